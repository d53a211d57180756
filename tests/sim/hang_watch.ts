/**
 * Asks a QEMU's monitor again and again, as `engine/host/hang_watch.ts` does it; the probe is the real one.
 *
 * @module
 */

import { QemuProbe } from "../../engine/failover/qemu_probe.ts";
import type { Actor } from "./actor.ts";
import type { Qemu } from "./qemu.ts";

const PATIENCE = { timeoutMs: 3000, checkpointTimeoutMs: 10_000 };
const LOOK_MS = 250;

/** @param hung Called when it has not answered for too long, and again when that happens anew */
export function watchForHang(
  actor: Actor,
  qemu: Qemu,
  isBusy: () => boolean,
  hung: () => void,
): void {
  const probe = new QemuProbe(PATIENCE, actor.nowMs);
  let wasHung = false;
  const look = () => {
    if (!qemu.actor.isAlive) return;
    probe.checkpointing(isBusy(), actor.nowMs);
    const isHung = probe.tick(actor.nowMs) === "hung";
    if (isHung && !wasHung) hung();
    wasHung = isHung;
    if (actor.nowMs >= probe.askAtMs) {
      probe.asked(actor.nowMs);
      qemu.ask(actor, () => probe.answered(actor.nowMs));
    }
    actor.after(Math.min(LOOK_MS, Math.max(1, probe.wakeAtMs - actor.nowMs)), look);
  };
  look();
}
