/**
 * How a benchmark measures and judges.
 *
 * @module
 */

/** One line of a benchmark's table. */
export interface Row {
  readonly case: string;
  readonly unit: string;
  readonly ours: number;
  /** What it is compared with, measured in turn with it; null when there is none here. */
  readonly peer: number | null;
  readonly peerName: string | null;
  /** ours / peer */
  readonly ratio: number | null;
  /** The least `ratio` wanted (the least `ours` where there is no peer); null when nothing is. */
  readonly bar: number | null;
  /** Whether the bar is the least wanted or the most allowed, where that is not the area's. */
  readonly sense?: "least" | "most";
  readonly ok: boolean | null;
}

/** Runs two things in turn, so that a slow spell of the machine hits both, and takes medians. */
export class Alternation {
  constructor(readonly rounds: number, readonly roundMs: number) {}

  /** @returns Runs per second of each */
  measure(ours: () => void, peer?: () => void): { ours: number; peer: number | null } {
    const oursRates: number[] = [];
    const peerRates: number[] = [];
    for (let round = -1; round < this.rounds; round++) {
      const oursRate = this.#rate(ours);
      const peerRate = peer === undefined ? undefined : this.#rate(peer);
      if (round < 0) continue; // The first round warms the compiler and the caches.
      oursRates.push(oursRate);
      if (peerRate !== undefined) peerRates.push(peerRate);
    }
    return { ours: median(oursRates), peer: peerRates.length === 0 ? null : median(peerRates) };
  }

  #rate(run: () => void): number {
    const start = performance.now();
    let runs = 0;
    let elapsedMs = 0;
    do {
      run();
      runs++;
      elapsedMs = performance.now() - start;
    } while (elapsedMs < this.roundMs);
    return runs * 1000 / elapsedMs;
  }
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? NaN;
}

/** What a row is made of. */
export interface Comparison {
  readonly case: string;
  readonly unit: string;
  readonly ours: number;
  /** null: there is none on this machine, and the bar stays unjudged. */
  readonly peer?: number | null;
  readonly peerName?: string;
  readonly bar?: number | undefined;
}

/** Compare, and judge. A bar that has no peer to be compared with is left open. */
export function row({ case: name, unit, ours, peer = null, peerName, bar }: Comparison): Row {
  const ratio = peer === null ? null : ours / peer;
  const ok = bar === undefined || (peer === null && peerName !== undefined)
    ? null
    : (ratio ?? ours) >= bar;
  return {
    case: name,
    unit,
    ours,
    peer,
    peerName: peer === null ? null : peerName ?? null,
    ratio,
    bar: bar ?? null,
    ok,
  };
}
