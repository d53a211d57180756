/**
 * What a primary has done so far, in the words of COLO's own statistics.
 *
 * @module
 */

import type { CheckpointReport } from "./report.ts";

/** Sums over all checkpoints. Times in milliseconds. */
export interface ColoStatistics {
  readonly checkpoints: number;
  /** Taken because what the two VMs sent differed, or was not said in time. */
  readonly "discompare-count": number;
  /** Taken because it was time. */
  readonly "periodic-count": number;
  readonly "downtime-total": number;
  readonly "downtime-max": number;
  readonly "downtime-min": number;
  /** Bytes of the guest's memory that were written, and what of them went over the link. */
  readonly "dirty-bytes": number;
  readonly "transferred-bytes": number;
}

/** Adds up checkpoints. */
export class StatisticsCounter {
  #checkpoints = 0;
  #discompare = 0;
  #periodic = 0;
  #totalMs = 0;
  #maxMs = 0;
  #minMs = Infinity;
  #dirtyBytes = 0;
  #wireBytes = 0;

  count({ cause, pauseMs, ramBytes, wireBytes }: CheckpointReport): void {
    this.#checkpoints++;
    if (cause === "mismatch" || cause === "timeout") this.#discompare++;
    if (cause === "periodic") this.#periodic++;
    this.#totalMs += pauseMs;
    this.#maxMs = Math.max(this.#maxMs, pauseMs);
    this.#minMs = Math.min(this.#minMs, pauseMs);
    this.#dirtyBytes += ramBytes;
    this.#wireBytes += wireBytes;
  }

  get statistics(): ColoStatistics {
    return {
      checkpoints: this.#checkpoints,
      "discompare-count": this.#discompare,
      "periodic-count": this.#periodic,
      "downtime-total": this.#totalMs,
      "downtime-max": this.#maxMs,
      "downtime-min": this.#checkpoints === 0 ? 0 : this.#minMs,
      "dirty-bytes": this.#dirtyBytes,
      "transferred-bytes": this.#wireBytes,
    };
  }
}
