/**
 * The commands of a QEMU monitor that the engine gives, as types: what each takes and returns.
 *
 * Source: QEMU `qapi/*.json`, as of 11.1; the file is named at each group. Names and arguments are
 * compared with a real QEMU's `query-qmp-schema` in the tests. What a command returns is QEMU's
 * promise and not checked at run time. A name with `x-` is one QEMU calls unstable.
 *
 * @module
 */

import type {
  BlockDeviceInfo,
  BlockdevOptions,
  BlockInfo,
  BlockJobInfo,
  ChardevBackend,
  ChardevInfo,
  ColoStatus,
  JobInfo,
  MachineInfo,
  MigrationCapability,
  MigrationCapabilityStatus,
  MigrationChannel,
  MigrationInfo,
  MigrationParameters,
  MigrationStatus,
  NoMembers,
  ObjectOptions,
  ObjectPropertyInfo,
  RunState,
  SocketAddressLegacy,
  VersionInfo,
  YankInstance,
} from "./schema.ts";

/** A command with these arguments and this answer. */
interface Command<Arguments, Returns = NoMembers> {
  readonly arguments: Arguments;
  readonly returns: Returns;
}

/** `qapi/control.json` */
interface ControlCommands {
  /** Ends the negotiation; the client has given it before it can be used. */
  readonly qmp_capabilities: Command<{ readonly enable?: readonly "oob"[] }>;
  readonly "query-version": Command<NoMembers, VersionInfo>;
  /** QEMU exits. The answer may come before the monitor closes, or not at all. */
  readonly quit: Command<NoMembers>;
}

/** `qapi/run-state.json`, `qapi/misc.json`, `qapi/machine.json` */
interface MachineCommands {
  /** The status `colo` in the middle of a checkpoint is normal. */
  readonly "query-status": Command<
    NoMembers,
    { readonly running: boolean; readonly status: RunState }
  >;
  readonly "query-name": Command<NoMembers, { readonly name?: string }>;
  readonly "query-machines": Command<NoMembers, readonly MachineInfo[]>;
  /** Deprecated as of QEMU 11.1, whose `query-accelerators` older versions do not have. */
  readonly "query-kvm": Command<
    NoMembers,
    { readonly enabled: boolean; readonly present: boolean }
  >;
  readonly "query-accelerators": Command<
    NoMembers,
    { readonly enabled: string; readonly present: readonly string[] }
  >;
  /** Sizes in bytes. */
  readonly "query-memory-size-summary": Command<
    NoMembers,
    { readonly "base-memory": number; readonly "plugged-memory"?: number }
  >;
  readonly stop: Command<NoMembers>;
  readonly cont: Command<NoMembers>;
  readonly system_reset: Command<NoMembers>;
  /** Asks the guest; it may not comply. */
  readonly system_powerdown: Command<NoMembers>;
  /** Takes a descriptor that comes with the message over the unix socket, which Deno cannot send. */
  readonly getfd: Command<{ readonly fdname: string }>;
}

/** `qapi/migration.json` */
interface MigrationCommands {
  readonly "query-migrate": Command<NoMembers, MigrationInfo>;
  readonly "query-migrate-capabilities": Command<NoMembers, readonly MigrationCapabilityStatus[]>;
  readonly "migrate-set-capabilities": Command<
    { readonly capabilities: readonly MigrationCapabilityStatus<MigrationCapability>[] }
  >;
  readonly "query-migrate-parameters": Command<NoMembers, MigrationParameters>;
  readonly "migrate-set-parameters": Command<MigrationParameters>;
  /** Returns when the migration has begun. Give either `uri` or `channels` (since QEMU 8.2). */
  readonly migrate: Command<
    {
      readonly uri?: string;
      readonly channels?: readonly MigrationChannel[];
      readonly resume?: boolean;
    }
  >;
  /** Only after `-incoming defer`. Give either `uri` or `channels` (since QEMU 8.2). */
  readonly "migrate-incoming": Command<
    {
      readonly uri?: string;
      readonly channels?: readonly MigrationChannel[];
      /** Default true; since QEMU 9.1. */
      readonly "exit-on-error"?: boolean;
    }
  >;
  /** Succeeds also when there is nothing to cancel. */
  readonly migrate_cancel: Command<NoMembers>;
  /** Goes on from where `pause-before-switchover` held. */
  readonly "migrate-continue": Command<{ readonly state: MigrationStatus }>;
  /** A primary leaves COLO and runs on; a secondary takes over. */
  readonly "x-colo-lost-heartbeat": Command<NoMembers>;
  readonly "query-colo-status": Command<NoMembers, ColoStatus>;
  /** `qapi/yank.json`: a migration is listed until QEMU has cleared up after it. */
  readonly "query-yank": Command<NoMembers, readonly YankInstance[]>;
}

/** `qapi/net.json`, `qapi/char.json`, `qapi/qom.json` */
interface DeviceCommands {
  /** Broadcasts RARP frames so that switches learn where the guest is; milliseconds. */
  readonly "announce-self": Command<
    {
      readonly initial: number;
      readonly max: number;
      readonly rounds: number;
      readonly step: number;
      readonly interfaces?: readonly string[];
      readonly id?: string;
    }
  >;
  readonly "query-chardev": Command<NoMembers, readonly ChardevInfo[]>;
  readonly "chardev-add": Command<
    { readonly id: string; readonly backend: ChardevBackend },
    { readonly pty?: string }
  >;
  readonly "chardev-remove": Command<{ readonly id: string }>;
  readonly "object-add": Command<ObjectOptions>;
  readonly "object-del": Command<{ readonly id: string }>;
  readonly "qom-list": Command<{ readonly path: string }, readonly ObjectPropertyInfo[]>;
  readonly "qom-get": Command<{ readonly path: string; readonly property: string }, unknown>;
  readonly "qom-set": Command<
    { readonly path: string; readonly property: string; readonly value: unknown }
  >;
}

/** `qapi/block-core.json`, `qapi/block-export.json`, `qapi/job.json` */
interface BlockCommands {
  readonly "query-block": Command<NoMembers, readonly BlockInfo[]>;
  readonly "query-named-block-nodes": Command<
    { readonly flat?: boolean },
    readonly BlockDeviceInfo[]
  >;
  readonly "blockdev-add": Command<BlockdevOptions>;
  readonly "blockdev-del": Command<{ readonly "node-name": string }>;
  /** Adds `node` to a quorum, or takes `child` out of it. */
  readonly "x-blockdev-change": Command<
    { readonly parent: string; readonly child?: string; readonly node?: string }
  >;
  /** Returns when the job has begun; BLOCK_JOB_READY says that the target has caught up. */
  readonly "blockdev-mirror": Command<
    {
      readonly "job-id"?: string;
      readonly device: string;
      readonly target: string;
      readonly sync: "top" | "full" | "none" | "incremental" | "bitmap";
      /** Bytes a second; 0 is unlimited. */
      readonly speed?: number;
      readonly "copy-mode"?: "background" | "write-blocking";
      readonly "on-target-error"?: "report" | "ignore" | "enospc" | "stop" | "auto";
      readonly "auto-finalize"?: boolean;
      readonly "auto-dismiss"?: boolean;
    }
  >;
  readonly "query-block-jobs": Command<NoMembers, readonly BlockJobInfo[]>;
  /** A ready mirror without `force` first copies what is still dirty: its target is a true copy. */
  readonly "block-job-cancel": Command<{ readonly device: string; readonly force?: boolean }>;
  readonly "query-jobs": Command<NoMembers, readonly JobInfo[]>;
  /** Like `block-job-cancel` with `force`: a mirror's target may lack the last writes. */
  readonly "job-cancel": Command<{ readonly id: string }>;
  readonly "job-dismiss": Command<{ readonly id: string }>;
  readonly "nbd-server-start": Command<
    {
      readonly addr: SocketAddressLegacy;
      readonly "tls-creds"?: string;
      readonly "tls-authz"?: string;
      readonly "max-connections"?: number;
    }
  >;
  readonly "nbd-server-stop": Command<NoMembers>;
  readonly "block-export-add": Command<
    {
      readonly type: "nbd";
      readonly id: string;
      readonly "node-name": string;
      /** The name clients ask for; by default the node's name. */
      readonly name?: string;
      /** Default false. */
      readonly writable?: boolean;
    }
  >;
  readonly "block-export-del": Command<{ readonly id: string; readonly mode?: "safe" | "hard" }>;
}

/** Command name to what it takes and returns. */
export interface QmpCommands
  extends ControlCommands, MachineCommands, MigrationCommands, DeviceCommands, BlockCommands {}

/** The name of a command whose arguments and answer have types. */
export type QmpCommandName = keyof QmpCommands;

/** What the command called `Name` takes. */
export type QmpArguments<Name extends QmpCommandName> = QmpCommands[Name]["arguments"];

/** What the command called `Name` returns. */
export type QmpReturns<Name extends QmpCommandName> = QmpCommands[Name]["returns"];
