/**
 * What a demo comes to: the object of `colo demo --json`.
 *
 * @module
 */

import type { CheckpointReport, Report } from "../../engine/host/mod.ts";
import type { Takeover } from "./session.ts";

/** The result of one demo. */
export interface DemoResult {
  /** The guest survived, verified. */
  readonly ok: boolean;
  /** Version of QEMU. */
  readonly qemu: string;
  readonly accel: string;
  readonly mode: string;
  readonly memoryMiB: number;
  /** From the secondary's connection until its VM was ready. */
  readonly seedMs: number;
  /** Checkpoints that the secondary held. */
  readonly checkpoints: number;
  /** From QEMU's STOP to its RESUME event on the primary, per checkpoint. */
  readonly pauseMs: { readonly p50: number; readonly p99: number; readonly max: number };
  /** Pages written by the guest, per checkpoint. */
  readonly dirtyPages: { readonly p50: number; readonly max: number };
  /** Those pages in all checkpoints, in bytes. */
  readonly ramBytes: number;
  /** Bytes on the link for all checkpoints, device state included, without the seed. */
  readonly wireBytes: number;
  readonly killToRunningMs: number;
  readonly ticksLost: number;
  readonly ticksRepeated: number;
  readonly chainVerified: boolean;
  readonly memoryVerified: boolean;
}

/** The value below which a share of the values lies (nearest rank); 0 of none. */
export function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? 0;
}

/** Sum up a demo. */
export function demoResult(
  mode: string,
  memoryMiB: number,
  primaryReports: readonly Report[],
  checkpoints: readonly CheckpointReport[],
  takeover: Takeover,
): DemoResult {
  const started = primaryReports.find((report) => report.event === "qemu-started");
  const seeded = primaryReports.find((report) => report.event === "seeded");
  const pauses = checkpoints.map(({ pauseMs }) => pauseMs);
  const dirty = checkpoints.map(({ dirtyPages }) => dirtyPages);
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  const round = (value: number) => Math.round(value * 10) / 10;
  return {
    ok: takeover.chainVerified && takeover.memoryVerified && checkpoints.length > 0,
    qemu: started?.version ?? "",
    accel: started?.accel ?? "",
    mode,
    memoryMiB,
    seedMs: round(seeded?.durationMs ?? 0),
    checkpoints: checkpoints.length,
    pauseMs: {
      p50: round(percentile(pauses, 0.5)),
      p99: round(percentile(pauses, 0.99)),
      max: round(percentile(pauses, 1)),
    },
    dirtyPages: { p50: percentile(dirty, 0.5), max: percentile(dirty, 1) },
    ramBytes: sum(checkpoints.map(({ ramBytes }) => ramBytes)),
    wireBytes: sum(checkpoints.map(({ wireBytes }) => wireBytes)),
    killToRunningMs: round(takeover.killToRunningMs),
    ticksLost: takeover.ticksLost,
    ticksRepeated: takeover.ticksRepeated,
    chainVerified: takeover.chainVerified,
    memoryVerified: takeover.memoryVerified,
  };
}
