/**
 * Disks: what goes to the secondary, and when it becomes its disk.
 *
 * @module
 */

export { DiskLog, type DiskWrite, type HeldMemory } from "./disk_log.ts";
export * from "./disk_replica.ts";
export { EarlyAnswers } from "./early_answers.ts";
export { DiskGate, type GateEffect } from "./gate.ts";
export {
  type BlockMonitor,
  blockNodes,
  diskNames,
  type GuestDisk,
  REPLICA_SUFFIX,
  requireNode,
} from "./monitor.ts";
export * from "./nbd.ts";
export * from "./nbd_reader.ts";
export * from "./nbd_server.ts";
export * from "./nbd_server_effects.ts";
export * from "./overlay.ts";
export * from "./secondary.ts";
export * from "./setup.ts";
export * from "./sync.ts";
