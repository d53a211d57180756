/**
 * Both sides of a pair at work: processes, sockets, clocks.
 *
 * @module
 */

export { type PrimaryEnd, PrimaryHost, type PrimaryHostOptions } from "./primary_host.ts";
export type { SavedOverControl } from "./primary_control.ts";
export * from "./report.ts";
export {
  type RestoredEnd,
  type RestoreOptions,
  type RestoreSource,
  restoreVm,
  runRestored,
} from "./restore.ts";
export { type SecondaryEnd, SecondaryHost, type SecondaryHostOptions } from "./secondary_host.ts";
