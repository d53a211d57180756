/**
 * When to take a checkpoint.
 *
 * @module
 */

/** Times in milliseconds. */
export interface CheckpointPolicyOptions {
  /** A checkpoint that is loaded at least this often. */
  readonly periodMs: number;
  /**
   * A checkpoint of any kind at least this often, where one that is only held is of use: most dirty
   * pages go over early then, and the checkpoint to be loaded is small. 0 or absent: all are loaded.
   */
  readonly microPeriodMs?: number | undefined;
  /** And, however often one is asked for, not more often than this. */
  readonly minIntervalMs: number;
  /**
   * The largest share of time, up to 1, that the guest may stand still for checkpoints: where they take
   * longer, they become fewer, even fewer than the period asks for. Those that are demanded, because
   * somebody waits for what the guest has said, may take half of the time.
   */
  readonly pauseShareMax?: number;
}

/** Weight of the latest pause in the mean that the bound is held against: it follows in a few steps. */
const LATEST_PAUSE_WEIGHT = 0.5;

/** What the bound is for checkpoints that are demanded, at the least. */
const DEMANDED_PAUSE_SHARE_MAX = 0.5;

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
 * if (policy.dueAtMs() !== 50) throw new Error("not due after the minimal interval");
 * ```
 */
export class CheckpointPolicy {
  #lastMs: number;
  #lastLoadMs: number;
  /** A checkpoint is demanded, not before this time; Infinity if none is. */
  #demandedMs = Infinity;
  /** Mean of the last pauses. */
  #pauseMs = 0;

  constructor(public options: CheckpointPolicyOptions, nowMs: number) {
    this.#lastMs = nowMs;
    this.#lastLoadMs = nowMs;
  }

  /**
   * Ask for a checkpoint that is loaded, as soon as the minimal interval allows.
   *
   * @param earliestMs And not before this time, unless somebody else asks for one
   */
  demand(earliestMs = -Infinity): void {
    this.#demandedMs = Math.min(this.#demandedMs, earliestMs);
  }

  /**
   * A checkpoint begins.
   *
   * @param microAllowed Whether one that is only held would be of use
   * @returns Whether it is to be loaded: when one was demanded, or the next one would come too late
   */
  begun(nowMs: number, microAllowed = false): boolean {
    const load = this.#demandedMs < Infinity || this.#microPeriodMs(microAllowed) === Infinity ||
      nowMs + this.#gapMs > this.#lastLoadMs + this.options.periodMs;
    this.#lastMs = nowMs;
    if (!load) return false;
    this.#lastLoadMs = nowMs;
    this.#demandedMs = Infinity;
    return true;
  }

  /** A checkpoint has kept the guest still for so long. */
  paused(pauseMs: number): void {
    this.#pauseMs += (pauseMs - this.#pauseMs) * LATEST_PAUSE_WEIGHT;
  }

  /**
   * When the next one is due.
   *
   * @param microAllowed As for {@linkcode begun}
   */
  dueAtMs(microAllowed = false): number {
    const { minIntervalMs, pauseShareMax = 1 } = this.options;
    if (this.#demandedMs < Infinity) {
      const shareMax = Math.max(pauseShareMax, DEMANDED_PAUSE_SHARE_MAX);
      const gapMs = Math.max(minIntervalMs, this.#pauseMs / shareMax);
      return Math.max(this.#demandedMs, this.#lastMs + gapMs);
    }
    const earliestMs = this.#lastMs + this.#gapMs;
    const microMs = this.#lastMs + this.#microPeriodMs(microAllowed);
    return Math.max(earliestMs, Math.min(microMs, this.#lastLoadMs + this.options.periodMs));
  }

  /** Between two checkpoints of any kind at the least. */
  get #gapMs(): number {
    const { minIntervalMs, pauseShareMax = 1 } = this.options;
    return Math.max(minIntervalMs, this.#pauseMs / pauseShareMax);
  }

  #microPeriodMs(microAllowed: boolean): number {
    return microAllowed ? this.options.microPeriodMs || Infinity : Infinity;
  }
}
