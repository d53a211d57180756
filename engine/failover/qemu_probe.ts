/**
 * Whether a QEMU that has not ended hangs: it is asked something over QMP now and then, and must answer.
 *
 * QEMU answers QMP on its main loop, and a checkpoint may keep that busy for as long as it takes (the
 * primary writes its state, the secondary loads it). So while one is under way, only a much longer
 * bound counts, and once it is through, QEMU has the whole timeout to answer.
 *
 * @module
 */

import { Attention } from "./attention.ts";

/** What is known of a QEMU. */
export type QemuLiveness = "answering" | "hung";

/** Times in milliseconds. */
export interface QemuProbeOptions {
  /** Between two questions; 250 if absent. */
  readonly periodMs?: number | undefined;
  /** An answer that is not there by then will not come; 1000 if absent. */
  readonly timeoutMs?: number | undefined;
  /** The same while checkpoints are under way; 5000 if absent. */
  readonly checkpointTimeoutMs?: number | undefined;
}

/** Cheap for QEMU, and a fraction of the timeout. */
export const PROBE_PERIOD_MS = 250;

/** QEMU answers in less than a millisecond; on a starved host hundreds were seen. */
export const PROBE_TIMEOUT_MS = 1000;

/** A checkpoint that keeps the guest still for this long is no checkpoint any more. */
export const PROBE_CHECKPOINT_TIMEOUT_MS = 5000;

/** Questions' worth of listening that QEMU is granted after this engine was stalled. */
const FRESH_CHANCE_PERIODS = 2;

/**
 * Decides whether a QEMU hangs. Pure: the caller brings the time, in milliseconds of a clock that only
 * goes forward. There is one question at a time.
 *
 * @example
 * ```ts
 * import { QemuProbe } from "./qemu_probe.ts";
 *
 * const probe = new QemuProbe({}, 0);
 * probe.asked(0);
 * let nowMs = 0;
 * while (probe.tick(nowMs) !== "hung") nowMs = probe.wakeAtMs;
 * if (nowMs !== 1000) throw new Error("not found hung after the timeout");
 * ```
 */
export class QemuProbe {
  readonly #periodMs: number;
  readonly #timeoutMs: number;
  readonly #checkpointTimeoutMs: number;
  readonly #attention: Attention;
  #askAtMs: number;
  /** A question has not been answered yet. */
  #waiting = false;
  #checkpointing = false;
  /** When it is too late for an answer, unless a checkpoint is under way. */
  #silentUntilMs = Infinity;
  /** When it is too late in any case. */
  #openUntilMs = Infinity;
  #liveness: QemuLiveness = "answering";

  constructor(options: QemuProbeOptions, nowMs: number) {
    this.#periodMs = options.periodMs ?? PROBE_PERIOD_MS;
    this.#timeoutMs = options.timeoutMs ?? PROBE_TIMEOUT_MS;
    this.#checkpointTimeoutMs = options.checkpointTimeoutMs ?? PROBE_CHECKPOINT_TIMEOUT_MS;
    this.#attention = new Attention(this.#periodMs, nowMs);
    this.#askAtMs = nowMs;
  }

  /** As of the last call. */
  get liveness(): QemuLiveness {
    return this.#liveness;
  }

  /** When to ask next; `Infinity` while an answer is awaited. */
  get askAtMs(): number {
    return this.#waiting ? Infinity : this.#askAtMs;
  }

  /** When to {@linkcode tick} next: to ask, or because the liveness may change. */
  get wakeAtMs(): number {
    const { atMs, againAtMs } = this.#attention;
    if (this.#liveness === "hung") return againAtMs;
    if (!this.#waiting && this.#askAtMs > atMs) return Math.min(this.#askAtMs, againAtMs);
    return Math.min(againAtMs, this.#hungAtMs);
  }

  /** A question has been sent. */
  asked(nowMs: number): void {
    this.#advance(nowMs);
    if (this.#waiting) return;
    this.#waiting = true;
    this.#silentUntilMs = nowMs + this.#timeoutMs;
    this.#openUntilMs = nowMs + this.#checkpointTimeoutMs;
  }

  /** It has been answered, however: an error is an answer. A hung QEMU is none any more. */
  answered(nowMs: number): void {
    this.#attention.advance(nowMs);
    this.#waiting = false;
    this.#silentUntilMs = Infinity;
    this.#openUntilMs = Infinity;
    this.#askAtMs = nowMs + this.#periodMs;
    this.#liveness = "answering";
  }

  /** Whether a checkpoint, for which the guest stands still, is under way; it may be said again and again. */
  checkpointing(underWay: boolean, nowMs: number): void {
    this.#advance(nowMs);
    const isThrough = this.#checkpointing && !underWay;
    this.#checkpointing = underWay;
    if (this.#waiting && isThrough) this.#silentUntilMs = nowMs + this.#timeoutMs;
  }

  /** Time has passed. */
  tick(nowMs: number): QemuLiveness {
    this.#advance(nowMs);
    return this.#liveness;
  }

  #advance(nowMs: number): void {
    const absentMs = this.#attention.advance(nowMs);
    if (this.#liveness === "hung") return;
    const chanceMs = FRESH_CHANCE_PERIODS * this.#periodMs;
    this.#silentUntilMs = this.#attention.putOff(this.#silentUntilMs, absentMs, chanceMs);
    this.#openUntilMs = this.#attention.putOff(this.#openUntilMs, absentMs, chanceMs);
    if (this.#attention.atMs >= this.#hungAtMs) this.#liveness = "hung";
  }

  get #hungAtMs(): number {
    return this.#checkpointing
      ? this.#openUntilMs
      : Math.min(this.#silentUntilMs, this.#openUntilMs);
  }
}
