/**
 * One line of a benchmark's table, and how it is made of measurements. Pure.
 *
 * @module
 */

import type { Row } from "./measure.ts";

export type { Row } from "./measure.ts";

/** What {@linkcode costRow} puts together. */
export interface Cost {
  readonly case: string;
  readonly unit: string;
  /** One figure an alternation, in `unit`. */
  readonly ours: readonly number[];
  readonly peer: readonly number[];
  readonly peerName: string;
  /** The most that ours / peer may be. */
  readonly bar?: number | undefined;
}

/** The row of something that is better the less it is, such as time or bytes: its medians. */
export function costRow({ case: name, unit, ours, peer, peerName, bar }: Cost): Row {
  const ratio = median(ours) / median(peer);
  return {
    case: name,
    unit,
    ours: median(ours),
    peer: median(peer),
    peerName,
    ratio,
    bar: bar ?? null,
    ok: bar === undefined ? null : ratio <= bar,
  };
}

/** The row of something of which more is better, or less: its medians. */
export function compareRow(cost: Cost, sense: "least" | "most"): Row {
  const row = costRow(cost);
  if (sense === "most" || row.bar === null || row.ratio === null) return { ...row, sense };
  return { ...row, sense, ok: row.ratio >= row.bar };
}

/** The row of a figure that is compared with nothing, and better the less it is: its median. */
export function figure(name: string, unit: string, ours: readonly number[], bar?: number): Row {
  return {
    case: name,
    unit,
    ours: median(ours),
    peer: null,
    peerName: null,
    ratio: null,
    bar: bar ?? null,
    ok: bar === undefined ? null : median(ours) <= bar,
  };
}

/** The middle value, or the mean of the two middle ones; NaN of none. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const upper = sorted[Math.floor(sorted.length / 2)] ?? NaN;
  const lower = sorted[Math.ceil(sorted.length / 2) - 1] ?? NaN;
  return (lower + upper) / 2;
}
