/**
 * The data types that the engine's commands and events share, after QEMU's QAPI schema.
 *
 * Source: QEMU `qapi/*.json`, as of 11.1; members that older versions leave out are optional. A
 * newer QEMU may send members and enumeration values that are not listed here: ignore what you do
 * not know.
 *
 * @module
 */

/** No arguments, or no data. */
export type NoMembers = Readonly<Record<string, never>>;

/** `qapi/control.json` */
export interface VersionInfo {
  readonly qemu: { readonly major: number; readonly minor: number; readonly micro: number };
  /** The distribution's name of the build; may be empty. */
  readonly package: string;
}

/** `qapi/run-state.json` */
export type RunState =
  | "debug"
  | "inmigrate"
  | "internal-error"
  | "io-error"
  | "paused"
  | "postmigrate"
  | "prelaunch"
  | "finish-migrate"
  | "restore-vm"
  | "running"
  | "save-vm"
  | "shutdown"
  | "suspended"
  | "watchdog"
  | "guest-panicked"
  | "colo";

/** `qapi/run-state.json` */
export type ShutdownCause =
  | "none"
  | "host-error"
  | "host-qmp-quit"
  | "host-qmp-system-reset"
  | "host-signal"
  | "host-ui"
  | "guest-shutdown"
  | "guest-reset"
  | "guest-panic"
  | "subsystem-reset"
  | "snapshot-load";

/** `qapi/migration.json` */
export type MigrationStatus =
  | "none"
  | "setup"
  | "cancelling"
  | "cancelled"
  | "active"
  | "postcopy-device"
  | "postcopy-active"
  | "postcopy-paused"
  | "postcopy-recover-setup"
  | "postcopy-recover"
  | "completed"
  | "failing"
  | "failed"
  | "colo"
  | "pre-switchover"
  | "device"
  | "wait-unplug";

/** `qapi/migration.json`, RAM statistics; sizes in bytes. */
export interface MigrationStats {
  readonly transferred: number;
  readonly remaining: number;
  readonly total: number;
  readonly duplicate: number;
  readonly normal: number;
  readonly "normal-bytes": number;
  /** Pages the guest dirties per second. */
  readonly "dirty-pages-rate": number;
  readonly mbps: number;
  readonly "dirty-sync-count": number;
  readonly "page-size": number;
  readonly "pages-per-second": number;
}

/** `qapi/migration.json`; times in milliseconds. */
export interface MigrationInfo {
  /** Missing when no migration was ever started. */
  readonly status?: MigrationStatus;
  readonly ram?: MigrationStats;
  readonly "total-time"?: number;
  readonly "expected-downtime"?: number;
  readonly downtime?: number;
  readonly "setup-time"?: number;
  readonly "error-desc"?: string;
  /** Why a migration cannot be started. */
  readonly "blocked-reasons"?: readonly string[];
}

/** `qapi/migration.json`, those the engine sets or reads; QEMU has more. */
export type MigrationCapability =
  | "events"
  | "x-colo"
  | "return-path"
  | "pause-before-switchover"
  | "x-ignore-shared"
  | "release-ram"
  | "late-block-activate"
  | "auto-converge"
  | "xbzrle"
  | "multifd"
  | "postcopy-ram"
  | "mapped-ram"
  | "background-snapshot"
  | "validate-uuid";

/** `qapi/migration.json` */
export interface MigrationCapabilityStatus<Name extends string = string> {
  readonly capability: Name;
  readonly state: boolean;
}

/** `qapi/migration.json`, those the engine sets or reads; QEMU has more. */
export type MigrationParameters = {
  /** Bytes a second; the default makes the first copy crawl. */
  readonly "max-bandwidth"?: number;
  /** Milliseconds. */
  readonly "downtime-limit"?: number;
  /** Milliseconds between two COLO checkpoints. Setting it on a COLO primary starts one at once. */
  readonly "x-checkpoint-delay"?: number;
  /** Milliseconds. */
  readonly "announce-initial"?: number;
  /** Milliseconds. */
  readonly "announce-max"?: number;
  readonly "announce-rounds"?: number;
  /** Milliseconds. */
  readonly "announce-step"?: number;
  /** Bytes. */
  readonly "xbzrle-cache-size"?: number;
  readonly "multifd-channels"?: number;
};

/** `qapi/migration.json`, one end of a migration stream. */
export type MigrationAddress =
  | ({ readonly transport: "socket" } & SocketAddress)
  | { readonly transport: "exec"; readonly args: readonly string[] }
  | { readonly transport: "file"; readonly filename: string; readonly offset: number };

/** `qapi/migration.json` */
export interface MigrationChannel {
  readonly "channel-type": "main";
  readonly addr: MigrationAddress;
}

/** `qapi/migration.json` */
export type ColoMode = "none" | "primary" | "secondary";

/** `qapi/migration.json` */
export type ColoExitReason = "none" | "request" | "error" | "processing";

/** `qapi/migration.json` */
export interface ColoStatus {
  readonly mode: ColoMode;
  readonly "last-mode": ColoMode;
  readonly reason: ColoExitReason;
}

interface InetAddress {
  readonly host: string;
  readonly port: string;
}

interface UnixAddress {
  readonly path: string;
}

/** `qapi/sockets.json` */
export type SocketAddress =
  | ({ readonly type: "inet" } & InetAddress)
  | ({ readonly type: "unix" } & UnixAddress)
  | { readonly type: "fd"; readonly str: string };

/** `qapi/sockets.json`: the older form, with the address one level down. */
export type SocketAddressLegacy =
  | { readonly type: "inet"; readonly data: InetAddress }
  | { readonly type: "unix"; readonly data: UnixAddress }
  | { readonly type: "fd"; readonly data: { readonly str: string } };

/** `qapi/char.json`, those the engine uses. */
export type ChardevBackend =
  | {
    readonly type: "socket";
    readonly data: {
      readonly addr: SocketAddressLegacy;
      /** True listens, false connects. Default true. */
      readonly server?: boolean;
      /** Default false. */
      readonly wait?: boolean;
      readonly nodelay?: boolean;
      /** Milliseconds, client only; since QEMU 9.2. */
      readonly "reconnect-ms"?: number;
    };
  }
  | { readonly type: "file"; readonly data: { readonly out: string; readonly append?: boolean } }
  | { readonly type: "ringbuf"; readonly data: { readonly size?: number } }
  | { readonly type: "null"; readonly data: NoMembers };

/** `qapi/char.json` */
export interface ChardevInfo {
  readonly label: string;
  readonly filename: string;
  readonly "frontend-open": boolean;
}

/** `qapi/yank.json`: what could be broken off; a chardev's or a node's has its name as well. */
export interface YankInstance {
  readonly type: "block-node" | "chardev" | "migration";
}

/** `qapi/qom.json`: the members of an object depend on its type. */
export interface ObjectOptions {
  readonly "qom-type": string;
  readonly id: string;
  readonly [property: string]: unknown;
}

/** `qapi/qom.json` */
export interface ObjectPropertyInfo {
  readonly name: string;
  readonly type: string;
  readonly description?: string;
}

/** `qapi/block-core.json`: the members of a node depend on its driver. */
export interface BlockdevOptions {
  readonly driver: string;
  readonly "node-name"?: string;
  readonly [option: string]: unknown;
}

/** `qapi/block-core.json`, those the engine reads. */
export interface ImageInfo {
  readonly filename: string;
  readonly format: string;
  /** Bytes the guest sees. */
  readonly "virtual-size": number;
  readonly "actual-size"?: number;
  readonly "backing-image"?: ImageInfo;
}

/** `qapi/block-core.json`, those the engine reads. */
export interface BlockDeviceInfo {
  readonly file: string;
  readonly "node-name"?: string;
  /** Read-only. */
  readonly ro: boolean;
  readonly drv: string;
  readonly backing_file?: string;
  readonly image: ImageInfo;
  /** Since QEMU 10.1. */
  readonly children?: readonly { readonly child: string; readonly "node-name": string }[];
}

/** `qapi/block-core.json` */
export interface BlockInfo {
  /** The backend's name; empty for a disk given by node name. */
  readonly device: string;
  /** The device's id or its path in the QOM tree. */
  readonly qdev?: string;
  readonly removable: boolean;
  readonly locked: boolean;
  readonly inserted?: BlockDeviceInfo;
  readonly "io-status"?: "ok" | "failed" | "nospace";
}

/** `qapi/block-core.json` */
export type BlockErrorAction = "ignore" | "report" | "stop";

/** `qapi/job.json` */
export type JobType =
  | "commit"
  | "stream"
  | "mirror"
  | "backup"
  | "create"
  | "amend"
  | "snapshot-load"
  | "snapshot-save"
  | "snapshot-delete";

/** `qapi/job.json` */
export type JobStatus =
  | "undefined"
  | "created"
  | "running"
  | "paused"
  | "ready"
  | "standby"
  | "waiting"
  | "pending"
  | "aborting"
  | "concluded"
  | "null";

/** `qapi/job.json` */
export interface JobInfo {
  readonly id: string;
  readonly type: JobType;
  readonly status: JobStatus;
  readonly "current-progress": number;
  readonly "total-progress": number;
  readonly error?: string;
}

/** `qapi/block-core.json`; sizes in bytes. */
export interface BlockJobInfo {
  readonly type: JobType;
  /** The job's id. */
  readonly device: string;
  readonly len: number;
  readonly offset: number;
  readonly speed: number;
  readonly busy: boolean;
  readonly paused: boolean;
  readonly ready: boolean;
  readonly status: JobStatus;
  readonly error?: string;
}

/** `qapi/machine.json`, those the engine reads. */
export interface MachineInfo {
  readonly name: string;
  /** What an unversioned machine name stands for has that name here. */
  readonly alias?: string;
  readonly "is-default"?: boolean;
  readonly "cpu-max": number;
  readonly deprecated: boolean;
  readonly "default-cpu-type"?: string;
  /** The id of the RAM block unless the command line names another. */
  readonly "default-ram-id"?: string;
}
