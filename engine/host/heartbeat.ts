/**
 * Heartbeats over the control connection of a link.
 *
 * @module
 */

import { type DetectorOptions, HeartbeatDetector } from "../failover/detector.ts";
import type { LinkConnection } from "../link/mod.ts";

/** Sends beats to a peer, and notices when it has none for us. */
export class Heartbeat {
  readonly #detector: HeartbeatDetector;
  readonly #control: LinkConnection;
  readonly #lost: () => void;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #over = false;

  /** @param lost Called once, when the peer has been silent for too long */
  constructor(control: LinkConnection, options: DetectorOptions, lost: () => void) {
    this.#control = control;
    this.#lost = lost;
    this.#detector = new HeartbeatDetector(options, performance.now());
    this.#tick();
  }

  /** The peer has said something. */
  heard(): void {
    this.#detector.heard(performance.now());
  }

  stop(): void {
    this.#over = true;
    clearTimeout(this.#timer);
  }

  #tick(): void {
    if (this.#over) return;
    const nowMs = performance.now();
    if (this.#detector.tick(nowMs) === "lost") {
      this.stop();
      return this.#lost();
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
