/**
 * colo: fault tolerance for QEMU virtual machines.
 *
 * The parts, for use by other Deno programs:
 *
 * - {@linkcode QmpClient} speaks to a QEMU monitor.
 * - {@linkcode StreamReader} and {@linkcode streamWriter} read and write QEMU's migration stream and
 *   COLO's messages in it; {@linkcode StreamInspector} sums a stream up.
 * - {@linkcode WasmKernels} does what is done to memory byte by byte; {@linkcode ReferenceKernels} says
 *   in plain TypeScript what it means.
 * - {@linkcode Capture} is the COLO secondary that a primary QEMU sees, {@linkcode LiveReplica} the COLO
 *   primary that a secondary QEMU sees; between them a {@linkcode Mirror} holds the guest's memory.
 * - {@linkcode CheckpointStore} keeps checkpoints in a directory, {@linkcode exportStream} makes plain
 *   migration streams of them, {@linkcode restoreVm} starts a VM from one.
 * - {@linkcode ControlServer} is a control socket that speaks QMP.
 * - {@linkcode OutboundProxy} holds the frames that a protected VM sends back until they may leave.
 * - {@linkcode PrimaryHost} and {@linkcode SecondaryHost} run a whole side, as `colo run` and
 *   `colo standby` do.
 *
 * Everything but the hosts, the store's files and the sockets is pure: bytes in, events and bytes out.
 *
 * @example Read what a COLO primary says, and answer it
 * ```ts
 * import { Capture, streamWriter, WasmKernels } from "./mod.ts";
 *
 * const capture = new Capture(WasmKernels.create(), { createKernels: () => WasmKernels.create() });
 * const bytes = [streamWriter.header(), streamWriter.configuration("pc-i440fx-11.1")];
 * for (const piece of bytes) {
 *   capture.space().set(piece);
 *   capture.received(piece.length);
 * }
 * if (!(capture.machine === "pc-i440fx-11.1" && capture.state === "initial")) throw new Error("not as expected");
 * ```
 *
 * @example Compress with the kernels
 * ```ts
 * import { WasmKernels } from "./mod.ts";
 *
 * const kernels = WasmKernels.create();
 * const [source, packed] = [kernels.alloc(4096), kernels.alloc(4096)];
 * kernels.bytes.fill(7, source, source + 4096);
 * if (!(kernels.lz4Compress(source, 4096, packed, 4096) < 64)) throw new Error("not as expected");
 * ```
 *
 * @module
 */

export {
  Capture,
  type CaptureEvent,
  type CaptureOptions,
  type CaptureState,
} from "./engine/checkpoint/capture.ts";
export { ImageReplica } from "./engine/checkpoint/image_replica.ts";
export { type CommitTotals, IncomingCheckpoint } from "./engine/checkpoint/incoming.ts";
export { LiveReplica, type LiveReplicaState } from "./engine/checkpoint/live_replica.ts";
export type {
  Replica,
  ReplicaAnswer,
  ReplicaEffect,
  WholeCheckpoint,
} from "./engine/checkpoint/replica.ts";
export { Mirror, type MirrorOptions, type PageTable } from "./engine/checkpoint/mirror.ts";
export {
  type EncodeJob,
  type EncoderBuffers,
  type EncoderShard,
  type PageCounts,
  PageEncoder,
  type Piece,
} from "./engine/checkpoint/page_encoder.ts";
export { CheckpointPolicy, type CheckpointPolicyOptions } from "./engine/checkpoint/policy.ts";
export * from "./engine/config/mod.ts";
export {
  type CommandArguments,
  type ControlCommand,
  type ControlCommands,
  ControlServer,
  ControlSession,
  defaultControlPath,
} from "./engine/control/mod.ts";
export * from "./engine/errors.ts";
export type {
  Arbiter,
  Claim,
  ClaimAnswer,
  LossEvidence,
  Ownership,
  RenewAnswer,
} from "./engine/failover/arbiter.ts";
export { HeartbeatDetector, type PeerState } from "./engine/failover/detector.ts";
export { EtcdClient, type EtcdClientOptions } from "./engine/failover/etcd.ts";
export { EtcdArbiter } from "./engine/failover/etcd_arbiter.ts";
export { type GenerationFile, ManualArbiter } from "./engine/failover/manual_arbiter.ts";
export {
  type PrimaryEffect,
  type PrimaryEvent,
  PrimaryMachine,
  type PrimaryPhase,
} from "./engine/failover/primary.ts";
export {
  type SecondaryEffect,
  type SecondaryEvent,
  SecondaryMachine,
  type SecondaryPhase,
} from "./engine/failover/secondary.ts";
export {
  type CheckpointReport,
  createArbiter,
  formatReport,
  type PrimaryEnd,
  PrimaryHost,
  type PrimaryHostOptions,
  type Report,
  type Reporter,
  type RestoreOptions,
  type RestoreSource,
  restoreVm,
  RunDirectory,
  runRestored,
  type SecondaryEnd,
  SecondaryHost,
  type SecondaryHostOptions,
} from "./engine/host/mod.ts";
export * from "./engine/proxy/mod.ts";
export { eventTimeMs, QmpClient, type QmpEvent, QmpEventStream } from "./engine/qmp/mod.ts";
export type { QmpCommands, QmpEvents } from "./engine/qmp/mod.ts";
export {
  type Chain,
  type CheckpointMetadata,
  CheckpointStore,
  DirectoryFiles,
  exportStream,
  Lz4FrameReader,
  Lz4FrameWriter,
  type PageSource,
  prepareRamImage,
  type RamImage,
  type SavedCheckpoint,
  type StoredCheckpoint,
  type StoredPage,
  type StoreFiles,
  takeRamImage,
} from "./engine/store/mod.ts";
export * from "./engine/stream/mod.ts";
export { ENGINE_VERSION } from "./engine/version.ts";
export { findQemu, type FindQemuOptions, type Qemu } from "./engine/vm/mod.ts";
export * from "./wasm/mod.ts";
