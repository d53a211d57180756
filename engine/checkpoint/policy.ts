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
}

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

  /** When the next one is due. */
  get dueAtMs(): number {
    const { periodMs, minIntervalMs } = this.options;
    return this.#lastMs + (this.#demanded ? minIntervalMs : Math.max(periodMs, minIntervalMs));
  }
}
