/**
 * Deadlines for others, put off while we do not pay attention ourselves.
 *
 * A process that was stopped, starved or asleep with its host has heard nothing, and that says nothing
 * about anybody else. It notices by its own lateness: it asked to be woken, and was woken much later.
 *
 * @module
 */

/** A wake-up that comes later than this many intervals after the last one was a stall. */
const STALL_INTERVALS = 2;

/**
 * Notices stalls. Pure: the caller brings the time, in milliseconds of a clock that only goes forward,
 * and calls at least once an interval when all is well.
 */
export class Attention {
  #atMs: number;

  constructor(readonly intervalMs: number, nowMs: number) {
    this.#atMs = nowMs;
  }

  /** When it was last called. */
  get atMs(): number {
    return this.#atMs;
  }

  /** By when to call again. */
  get againAtMs(): number {
    return this.#atMs + this.intervalMs;
  }

  /**
   * Account for the time since the last call.
   *
   * @returns How long we were not there: of a stall all but the interval that was planned
   */
  advance(nowMs: number): number {
    const elapsedMs = Math.max(0, nowMs - this.#atMs);
    this.#atMs += elapsedMs;
    return elapsedMs > STALL_INTERVALS * this.intervalMs ? elapsedMs - this.intervalMs : 0;
  }

  /**
   * Put off a deadline by a stall that has just ended.
   *
   * @param absentMs What {@linkcode advance} said
   * @param chanceMs From now on, this long at the least: what we missed takes a while to reach us
   */
  putOff(deadlineMs: number, absentMs: number, chanceMs: number): number {
    if (absentMs === 0) return deadlineMs;
    return Math.max(deadlineMs + absentMs, this.#atMs + chanceMs);
  }
}
