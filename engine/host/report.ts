/**
 * What an engine tells its operator: one object an event, the same for people and for programs.
 *
 * Times are milliseconds since the epoch, with fractions.
 *
 * @module
 */

import type { PageCounts } from "../checkpoint/page_encoder.ts";
import type { CheckpointReason } from "../proxy/mod.ts";
import type { PrimaryPhase } from "../failover/primary.ts";
import type { SecondaryPhase } from "../failover/secondary.ts";

/** What happened. */
export type Report =
  | QemuReport<"qemu-started">
  /** It was left running by an engine that has ended. */
  | QemuReport<"qemu-adopted">
  | {
    readonly event: "primary";
    readonly atMs: number;
    readonly phase: PrimaryPhase;
    readonly reason: string;
  }
  | {
    readonly event: "secondary";
    readonly atMs: number;
    readonly phase: SecondaryPhase;
    readonly reason: string;
  }
  | {
    readonly event: "seeded";
    readonly atMs: number;
    /** From the connection of the secondary until it could take over. */
    readonly durationMs: number;
    readonly wireBytes: number;
    /** It held an earlier checkpoint, and was sent what had changed. */
    readonly resumed: boolean;
  }
  /** The disks are being copied to the secondary, while the guest runs. */
  | {
    readonly event: "disks-copying";
    readonly atMs: number;
    readonly doneBytes: number;
    /** Grows when the guest writes. */
    readonly totalBytes: number;
  }
  /** The secondary's disks are equal, and stay so. */
  | {
    readonly event: "disks-synchronised";
    readonly atMs: number;
    /** Whether the secondary had them before, and was sent what had changed since. */
    readonly changesOnly: boolean;
    /** Of all disks. */
    readonly totalBytes: number;
    readonly wireBytes: number;
    readonly durationMs: number;
    /** How long the guest stood still at the end. */
    readonly pauseMs: number;
  }
  /** What a VM that has taken over had written before is in its disk, and its overlays are gone. */
  | {
    readonly event: "disk-merged";
    readonly atMs: number;
    readonly disk: string;
    readonly durationMs: number;
  }
  | CheckpointReport
  | {
    readonly event: "loaded";
    readonly atMs: number;
    readonly epoch: number;
  }
  | {
    readonly event: "running";
    /** When QEMU resumed the VM, by its own clock. */
    readonly atMs: number;
    readonly epoch: number;
    readonly reason: string;
  }
  | {
    readonly event: "saved";
    readonly atMs: number;
    /** Of the stored checkpoint. */
    readonly name: string;
    readonly epoch: number;
    readonly full: boolean;
    readonly pages: number;
    readonly sizeBytes: number;
    readonly durationMs: number;
    /** How long no checkpoint could be begun; the guest ran. */
    readonly frozenMs: number;
  }
  | {
    readonly event: "restored";
    /** When QEMU resumed the VM, by its own clock. */
    readonly atMs: number;
    /** Of the stored checkpoint. */
    readonly name: string;
    readonly epoch: number;
    /** Whether it runs on a RAM image. */
    readonly instant: boolean;
    /** From the first byte for QEMU until the VM ran. */
    readonly feedMs: number;
    /** From the start of QEMU until the VM ran. */
    readonly durationMs: number;
  }
  /** Whether all frames pass the engine by, because the operator wants it so. */
  | { readonly event: "network"; readonly atMs: number; readonly bypass: boolean }
  | { readonly event: "notice"; readonly atMs: number; readonly text: string };

/** A QEMU that this engine takes care of. */
export interface QemuReport<Event extends string> {
  readonly event: Event;
  readonly atMs: number;
  readonly pid: number;
  readonly version: string;
  readonly accel: string;
  readonly source: string;
}

/** Why a checkpoint was taken: it was time, or because of what the guest sent. */
export type CheckpointCause = "periodic" | CheckpointReason;

/** One checkpoint of the primary. */
export interface CheckpointReport {
  readonly event: "checkpoint";
  readonly atMs: number;
  readonly epoch: number;
  /** From QEMU's STOP event to its RESUME event. */
  readonly pauseMs: number;
  /** Pages that the guest had written. */
  readonly dirtyPages: number;
  /** Those pages, in bytes. */
  readonly ramBytes: number;
  /** Bytes on the link; 0 without a secondary. */
  readonly wireBytes: number;
  /** How the pages were sent. */
  readonly pages: PageCounts;
  /** Whether a secondary holds it. */
  readonly replicated: boolean;
  /** Whether the secondary only holds it until it loads another. */
  readonly micro: boolean;
  readonly cause: CheckpointCause;
}

/** Takes reports as they happen. */
export type Reporter = (report: Report) => void;

/** One line for a person. */
export function formatReport(report: Report): string {
  switch (report.event) {
    case "qemu-started":
      return `QEMU ${report.version} (${report.accel}, ${report.source}) runs as process ${report.pid}`;
    case "qemu-adopted":
      return `the VM runs as process ${report.pid} already, and is taken care of`;
    case "primary":
    case "secondary":
      return `${report.event} is ${report.phase}: ${report.reason}`;
    case "seeded":
      return `seeded ${report.resumed ? "with what had changed " : ""}in ` +
        `${report.durationMs.toFixed(0)} ms with ${formatBytes(report.wireBytes)}`;
    case "disks-copying":
      return `${formatBytes(report.doneBytes)} of ${
        formatBytes(report.totalBytes)
      } of the disks copied`;
    case "disks-synchronised":
      return `disks of ${formatBytes(report.totalBytes)} made equal in ` +
        `${report.durationMs.toFixed(0)} ms with ${formatBytes(report.wireBytes)}, ` +
        `paused ${report.pauseMs.toFixed(1)} ms`;
    case "disk-merged":
      return `${report.disk} has its overlays' content, after ${report.durationMs.toFixed(0)} ms`;
    case "checkpoint":
      return `${
        report.micro ? "micro-checkpoint" : "checkpoint"
      } ${report.epoch}: ${report.dirtyPages} pages, ` +
        (report.replicated ? `${formatBytes(report.wireBytes)} sent` : "not replicated") +
        `, paused ${report.pauseMs.toFixed(1)} ms` +
        (report.cause === "periodic" ? "" : ` (${report.cause})`);
    case "network":
      return report.bypass
        ? "the network is open: what the guest sends leaves unseen, and a takeover may tear connections"
        : "the network is closed: what the guest sends is compared or held back again";
    case "loaded":
      return `checkpoint ${report.epoch} loaded`;
    case "running":
      return `the VM runs here from checkpoint ${report.epoch} on: ${report.reason}`;
    case "saved":
      return `checkpoint ${report.epoch} saved as ${report.name}: ` +
        `${report.full ? "all" : "what changed"}, ${report.pages} pages, ` +
        `${formatBytes(report.sizeBytes)}, in ${report.durationMs.toFixed(0)} ms`;
    case "restored":
      return `the VM runs from ${report.name}${report.instant ? ", on its RAM image," : ""} ` +
        `${report.feedMs.toFixed(0)} ms after its first byte, ` +
        `${report.durationMs.toFixed(0)} ms after the start of QEMU`;
    case "notice":
      return report.text;
  }
}

/** Bytes for a person: `812 B`, `1.3 MB`. */
export function formatBytes(bytes: number): string {
  const units = ["B", "kB", "MB", "GB"];
  let value = bytes;
  let unit = 0;
  // As it will be shown: 999.95 kB is 1.0 MB.
  while ((unit === 0 ? value : Math.round(value * 10) / 10) >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}
