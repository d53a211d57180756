/**
 * Heartbeats over the control connection of a link.
 *
 * @module
 */

import { type DetectorOptions, HeartbeatDetector } from "../failover/detector.ts";
import type { LinkConnection } from "../link/mod.ts";

/** What is noticed, once. */
export interface HeartbeatEvents {
  /** The peer has been silent for too long. */
  lost(): void;
  /** The peer has heard nothing for as long, because this process stood still. Left out: that is no matter. */
  readonly unheard?: () => void;
}

/** Sends beats to a peer, and notices when it has none for us. */
export class Heartbeat {
  readonly #detector: HeartbeatDetector;
  readonly #control: LinkConnection;
  readonly #events: HeartbeatEvents;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #over = false;

  constructor(control: LinkConnection, options: DetectorOptions, events: HeartbeatEvents) {
    this.#control = control;
    this.#events = events;
    this.#detector = new HeartbeatDetector(options, performance.now());
    this.#tick();
  }

  /** The peer has said something. */
  heard(): void {
    this.#detector.heard(performance.now());
  }

  /** See {@linkcode HeartbeatDetector.isUnheard}: from then on, unless a beat is sent before, which none is after. */
  get unheardAtMs(): number {
    return this.#detector.unheardAtMs;
  }

  stop(): void {
    this.#over = true;
    clearTimeout(this.#timer);
  }

  #tick(): void {
    if (this.#over) return;
    const nowMs = performance.now();
    const { unheard } = this.#events;
    if (unheard !== undefined && this.#detector.isUnheard(nowMs)) {
      this.stop();
      return unheard();
    }
    if (this.#detector.tick(nowMs) === "lost") {
      this.stop();
      return this.#events.lost();
    }
    if (nowMs >= this.#detector.sendAtMs) {
      this.#detector.sent(nowMs);
      // A link that broke says so on its own.
      this.#control.send({ type: "heartbeat" }).catch(() => {});
    }
    const waitMs = Math.max(1, this.#detector.wakeAtMs - nowMs);
    this.#timer = setTimeout(() => this.#tick(), waitMs);
  }
}
