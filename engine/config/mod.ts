/**
 * `vm.toml`.
 *
 * @module
 */

export { loadVmConfig } from "./load.ts";
export * from "./vm_config.ts";
