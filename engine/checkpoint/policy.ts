/**
 * When to take a checkpoint.
 *
 * @module
 */

/** Times in milliseconds. */
export interface CheckpointPolicyOptions {
  /** A checkpoint at least this often. */
  readonly periodMs: number;
  /** And, however often one is asked for, not more often than this. */
  readonly minIntervalMs: number;
  /**
   * The largest share of time, up to 1, that the guest may stand still for checkpoints: where they take
   * longer, they become fewer, even fewer than the period asks for.
   */
  readonly pauseShareMax?: number;
}

/** Weight of the latest pause in the mean that the bound is held against: it follows in a few steps. */
const LATEST_PAUSE_WEIGHT = 0.5;

/**
 * Says when the next checkpoint is due. Pure: the caller brings the time, in milliseconds of any clock
 * that only goes forward.
 *
 * @example
 * ```ts
 * import { CheckpointPolicy } from "./policy.ts";
 *
 * const policy = new CheckpointPolicy({ periodMs: 500, minIntervalMs: 50 }, 0);
 * policy.demand();
 * if (policy.dueAtMs !== 50) throw new Error("not due after the minimal interval");
 * ```
 */
export class CheckpointPolicy {
  #lastMs: number;
  #demanded = false;
  /** Mean of the last pauses. */
  #pauseMs = 0;

  constructor(public options: CheckpointPolicyOptions, nowMs: number) {
    this.#lastMs = nowMs;
  }

  /** Ask for a checkpoint as soon as the minimal interval allows. */
  demand(): void {
    this.#demanded = true;
  }

  /** A checkpoint begins. */
  begun(nowMs: number): void {
    this.#lastMs = nowMs;
    this.#demanded = false;
  }

  /** A checkpoint has kept the guest still for so long. */
  paused(pauseMs: number): void {
    this.#pauseMs += (pauseMs - this.#pauseMs) * LATEST_PAUSE_WEIGHT;
  }

  /** When the next one is due. */
  get dueAtMs(): number {
    const { periodMs, minIntervalMs, pauseShareMax = 1 } = this.options;
    const intervalMs = this.#demanded ? minIntervalMs : Math.max(periodMs, minIntervalMs);
    return this.#lastMs + Math.max(intervalMs, this.#pauseMs / pauseShareMax);
  }
}
