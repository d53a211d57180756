/**
 * Whether the other engine is there: the arithmetic of heartbeats.
 *
 * ```text
 *                  silent for half the timeout            silent for the timeout
 *  alive -----------------------------------> suspected -------------------------> lost
 *    ^                                            |                                  |
 *    +------------------ heard -------------------+--------------- heard ------------+
 * ```
 *
 * Silence is counted only while this engine listens. When it was stalled, be it the process or the
 * whole host, the peer's beats may lie unread in a socket or wait for TCP to send them again. So a
 * stall adds one interval of silence whatever its length, and behind it the peer has the time of
 * {@linkcode FRESH_CHANCE_INTERVALS} beats to be heard. A detector that stalls over and over therefore
 * condemns nobody. That is meant: its host is in no state to take over.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";
import { Attention } from "./attention.ts";

/** What is known of the other engine. */
export type PeerState =
  /** It was heard not long ago. */
  | "alive"
  /** It is late; nothing is to be done yet. */
  | "suspected"
  /** It was silent for the whole timeout, while this engine listened. */
  | "lost";

/** Times in milliseconds. */
export interface DetectorOptions {
  /** Between two beats; 100 if absent. */
  readonly intervalMs?: number | undefined;
  /** So much silence is the end; 500 if absent. At least {@linkcode TIMEOUT_INTERVALS_MIN} intervals. */
  readonly timeoutMs?: number | undefined;
}

/** Between two beats: some hundred bytes a second. */
export const HEARTBEAT_INTERVAL_MS = 100;

/** Silence that says that a peer is lost: four beats missed, and some slack. */
export const HEARTBEAT_TIMEOUT_MS = 500;

/**
 * The timeout in intervals at the least: one beat under way, a stall that is too short to be told from
 * a late timer (two intervals), and one more for the network.
 */
export const TIMEOUT_INTERVALS_MIN = 4;

/** Intervals of listening that a peer is granted after a stall, whatever came before. */
export const FRESH_CHANCE_INTERVALS = 3;

/** The share of the timeout after which a peer is suspected. */
const SUSPICION = 0.5;

/**
 * Decides whether a peer is lost. Pure: the caller brings the time, in milliseconds of a clock that
 * only goes forward (`performance.now()`, not the time of day).
 *
 * @example
 * ```ts
 * import { HeartbeatDetector } from "./detector.ts";
 *
 * const detector = new HeartbeatDetector({}, 0);
 * let nowMs = 0;
 * while (detector.tick(nowMs) !== "lost") {
 *   if (nowMs >= detector.sendAtMs) detector.sent(nowMs);
 *   nowMs = detector.wakeAtMs;
 * }
 * if (nowMs !== 500) throw new Error("not found lost after the timeout");
 * ```
 */
export class HeartbeatDetector {
  readonly #intervalMs: number;
  readonly #timeoutMs: number;
  readonly #attention: Attention;
  #sendAtMs: number;
  #sentMs: number;
  #lostAtMs: number;
  #state: PeerState = "alive";

  /** @throws {ConfigError} when the timeout leaves no room for a beat that is late */
  constructor(options: DetectorOptions, nowMs: number) {
    const { intervalMs = HEARTBEAT_INTERVAL_MS, timeoutMs = HEARTBEAT_TIMEOUT_MS } = options;
    if (!(intervalMs > 0 && timeoutMs >= TIMEOUT_INTERVALS_MIN * intervalMs)) {
      throw new ConfigError(
        `Cannot detect a lost peer within ${timeoutMs} ms: a heartbeat comes every ${intervalMs} ms; ` +
          `allow at least ${TIMEOUT_INTERVALS_MIN} of them`,
      );
    }
    this.#intervalMs = intervalMs;
    this.#timeoutMs = timeoutMs;
    this.#attention = new Attention(intervalMs, nowMs);
    this.#sendAtMs = nowMs;
    this.#sentMs = nowMs;
    this.#lostAtMs = nowMs + timeoutMs;
  }

  /** As of the last call. */
  get state(): PeerState {
    return this.#state;
  }

  /** When the next beat is to be sent: at once when it is overdue, and one is enough then. */
  get sendAtMs(): number {
    return this.#sendAtMs;
  }

  /**
   * Whether the peer has heard nothing of us for a whole timeout, because this engine stood still: it
   * may have gone on without us, and what it has said before proves nothing. A process that was
   * stopped wakes up anywhere, so this is to be asked before it acts on anything.
   */
  isUnheard(nowMs: number): boolean {
    return nowMs >= this.unheardAtMs;
  }

  /** When {@linkcode isUnheard} will be so, unless a beat is sent before. */
  get unheardAtMs(): number {
    return this.#sentMs + this.#timeoutMs;
  }

  /** When to {@linkcode tick} next: for a beat, or because the state may change. */
  get wakeAtMs(): number {
    const { atMs, againAtMs } = this.#attention;
    const changesAtMs = { alive: this.#suspectedAtMs, suspected: this.#lostAtMs, lost: Infinity };
    // A beat that is due and cannot be sent must not wake anybody again and again.
    const sendAtMs = this.#sendAtMs > atMs ? this.#sendAtMs : Infinity;
    return Math.min(sendAtMs, againAtMs, changesAtMs[this.#state]);
  }

  /** A beat has been sent. */
  sent(nowMs: number): void {
    this.#advance(nowMs);
    this.#sentMs = nowMs;
    this.#sendAtMs = nowMs + this.#intervalMs;
  }

  /** The peer was heard: a beat, or anything else that it said. A lost one is alive again. */
  heard(nowMs: number): void {
    this.#attention.advance(nowMs);
    this.#lostAtMs = this.#attention.atMs + this.#timeoutMs;
    this.#state = "alive";
  }

  /** Time has passed. */
  tick(nowMs: number): PeerState {
    this.#advance(nowMs);
    return this.#state;
  }

  #advance(nowMs: number): void {
    const absentMs = this.#attention.advance(nowMs);
    if (this.#state === "lost") return;
    const chanceMs = FRESH_CHANCE_INTERVALS * this.#intervalMs;
    this.#lostAtMs = this.#attention.putOff(this.#lostAtMs, absentMs, chanceMs);
    const { atMs } = this.#attention;
    if (atMs >= this.#lostAtMs) this.#state = "lost";
    else this.#state = atMs >= this.#suspectedAtMs ? "suspected" : "alive";
  }

  get #suspectedAtMs(): number {
    return this.#lostAtMs - SUSPICION * this.#timeoutMs;
  }
}
