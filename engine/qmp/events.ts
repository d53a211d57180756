/**
 * The events of a QEMU monitor that the engine listens to, as types, and the time they carry.
 *
 * Source: QEMU `qapi/run-state.json`, `qapi/migration.json`, `qapi/block-core.json`,
 * `qapi/block-export.json` and `qapi/job.json`. The types are QEMU's promise: the client checks the
 * frame of an event, not each member of its data.
 *
 * @module
 */

import type {
  BlockErrorAction,
  ColoExitReason,
  ColoMode,
  JobStatus,
  JobType,
  MigrationStatus,
  NoMembers,
  ShutdownCause,
} from "./schema.ts";

/** When an event happened, by the clock of QEMU's host; -1 and -1 if QEMU could not read it. */
export interface QmpTimestamp {
  readonly seconds: number;
  readonly microseconds: number;
}

/** An event as it comes, whatever its name. */
export interface QmpEvent {
  readonly event: string;
  /** Empty where QEMU sends no data. */
  readonly data: Readonly<Record<string, unknown>>;
  readonly timestamp: QmpTimestamp;
}

/** What a block job says when it is ready or over. */
interface BlockJobProgress {
  readonly type: JobType;
  /** The job's id. */
  readonly device: string;
  readonly len: number;
  readonly offset: number;
  readonly speed: number;
}

/** What a guest's end or reset is caused by. */
interface ShutdownData {
  /** The guest itself asked for it. */
  readonly guest: boolean;
  readonly reason: ShutdownCause;
}

/** Event name to the type of its data. */
export interface QmpEvents {
  /** The VM stopped: in COLO, also at the start of every checkpoint's pause. */
  readonly STOP: NoMembers;
  /** The VM runs again. */
  readonly RESUME: NoMembers;
  /** A migration changed its state; only with the capability `events`. */
  readonly MIGRATION: { readonly status: MigrationStatus };
  /** The source starts its n-th pass over the dirty pages; only with the capability `events`. */
  readonly MIGRATION_PASS: { readonly pass: number };
  /** COLO ended. On success the reason is `request` or `error` at random: do not judge by it. */
  readonly COLO_EXIT: { readonly mode: ColoMode; readonly reason: ColoExitReason };
  /** The VM has shut down; QEMU is about to exit unless it was started with `-no-shutdown`. */
  readonly SHUTDOWN: ShutdownData;
  readonly RESET: ShutdownData;
  /** The VM was told to power down; the guest may or may not do so. */
  readonly POWERDOWN: NoMembers;
  readonly SUSPEND: NoMembers;
  readonly WAKEUP: NoMembers;
  readonly GUEST_PANICKED: {
    readonly action: "pause" | "poweroff" | "run";
    readonly info?: Readonly<Record<string, unknown>>;
  };
  /** A mirror has caught up and may be cancelled or completed. */
  readonly BLOCK_JOB_READY: BlockJobProgress;
  readonly BLOCK_JOB_COMPLETED: BlockJobProgress & { readonly error?: string };
  readonly BLOCK_JOB_CANCELLED: BlockJobProgress;
  readonly BLOCK_JOB_ERROR: {
    readonly device: string;
    readonly operation: "read" | "write";
    readonly action: BlockErrorAction;
  };
  readonly BLOCK_IO_ERROR: {
    /** Since QEMU 9.2. */
    readonly "qom-path"?: string;
    /** Empty if the node has no device. */
    readonly device: string;
    readonly "node-name"?: string;
    readonly operation: "read" | "write";
    readonly action: BlockErrorAction;
    readonly nospace?: boolean;
    readonly reason: string;
  };
  /** A child of a quorum failed, or disagreed. Rate-limited to one a second. */
  readonly QUORUM_REPORT_BAD: {
    readonly type: "read" | "write" | "flush";
    readonly error?: string;
    readonly "node-name": string;
    readonly "sector-num": number;
    readonly "sectors-count": number;
  };
  /** No quorum could be reached. Rate-limited to one a second. */
  readonly QUORUM_FAILURE: {
    readonly reference: string;
    readonly "sector-num": number;
    readonly "sectors-count": number;
  };
  readonly JOB_STATUS_CHANGE: { readonly id: string; readonly status: JobStatus };
  readonly BLOCK_EXPORT_DELETED: { readonly id: string };
}

/** The name of an event whose data has a type. */
export type QmpEventName = keyof QmpEvents;

/** The event called `Name`: with typed data if it is one of {@linkcode QmpEvents}. */
export type QmpEventOf<Name extends string> = Name extends QmpEventName
  ? Readonly<{ event: Name; data: QmpEvents[Name]; timestamp: QmpTimestamp }>
  : QmpEvent;

/**
 * When an event happened, in milliseconds since the Unix epoch with a fraction: precise to the
 * microsecond, which is what the pause of a checkpoint is measured with.
 *
 * @param event Any event
 * @returns Milliseconds; NaN if QEMU could not read its clock
 *
 * @example
 * ```ts
 * import { eventTimeMs } from "./events.ts";
 *
 * const stop = { timestamp: { seconds: 1_700_000_000, microseconds: 1_250 } };
 * const resume = { timestamp: { seconds: 1_700_000_000, microseconds: 6_750 } };
 * const pauseMs = eventTimeMs(resume) - eventTimeMs(stop);
 * if (Math.abs(pauseMs - 5.5) > 0.001) throw new Error(`${pauseMs} ms`);
 * ```
 */
export function eventTimeMs(event: { readonly timestamp: QmpTimestamp }): number {
  const { seconds, microseconds } = event.timestamp;
  if (seconds < 0) return NaN;
  return seconds * 1000 + microseconds / 1000;
}
