/**
 * Both sides of a pair at work: processes, sockets, clocks.
 *
 * @module
 */

export { PrimaryHost } from "./primary_host.ts";
export type { PrimaryEnd, PrimaryHostOptions, TakenVm } from "./primary_options.ts";
export { createArbiter } from "./arbitration.ts";
export { openDirectPath } from "./direct_path.ts";
export type { SavedOverControl, StatusOverControl } from "./primary_control.ts";
export type { StandbyOverControl } from "./secondary_control.ts";
export * from "./report.ts";
export { readRunRecord, RunDirectory, runDirectoryOf, type RunRecord } from "./run_directory.ts";
export {
  type RestoredEnd,
  type RestoreOptions,
  type RestoreSource,
  restoreVm,
  runRestored,
} from "./restore.ts";
export { type SecondaryEnd, SecondaryHost, type SecondaryHostOptions } from "./secondary_host.ts";
