/**
 * `vm.toml`.
 *
 * @module
 */

export type { ArbiterChoice, FailoverSection, FenceSection } from "./failover_section.ts";
export { loadVmConfig } from "./load.ts";
export type { NetworkSection } from "./network_section.ts";
export * from "./vm_config.ts";
