/**
 * Heartbeats over a link, as `engine/host/heartbeat.ts` sends them; the detector is the real one.
 *
 * @module
 */

import { HeartbeatDetector } from "../../engine/failover/detector.ts";
import type { Actor } from "./actor.ts";
import type { LinkEnd } from "./network.ts";

/** Sends beats to a peer, and notices when it has none for us. */
export class Beats {
  readonly #detector: HeartbeatDetector;
  #isOver = false;

  /** @param unheard The peer has heard nothing for as long; left out: that is no matter */
  constructor(
    readonly actor: Actor,
    readonly link: LinkEnd,
    readonly lost: () => void,
    readonly unheard?: () => void,
  ) {
    this.#detector = new HeartbeatDetector({}, actor.nowMs);
    this.#tick();
  }

  heard(): void {
    this.#detector.heard(this.actor.nowMs);
  }

  get isUnheard(): boolean {
    return this.#detector.isUnheard(this.actor.nowMs);
  }

  stop(): void {
    this.#isOver = true;
  }

  #tick(): void {
    if (this.#isOver) return;
    const { nowMs } = this.actor;
    const detector = this.#detector;
    if (this.unheard !== undefined && detector.isUnheard(nowMs)) {
      this.stop();
      return this.unheard();
    }
    if (detector.tick(nowMs) === "lost") {
      this.stop();
      return this.lost();
    }
    if (nowMs >= detector.sendAtMs) {
      detector.sent(nowMs);
      this.link.send("control", { type: "heartbeat" });
    }
    this.actor.after(Math.max(1, detector.wakeAtMs - nowMs), () => this.#tick());
  }
}
