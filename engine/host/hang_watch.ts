/**
 * Notices a QEMU that has not ended and does nothing any more: its monitor is asked, and does not answer.
 *
 * @module
 */

import { QemuProbe, type QemuProbeOptions } from "../failover/qemu_probe.ts";
import type { Vm } from "./start_vm.ts";

/** Ends nobody who is only slow: a guest of many GiB keeps QEMU's main loop busy now and then. */
const PATIENCE: QemuProbeOptions = { timeoutMs: 3000, checkpointTimeoutMs: 10_000 };

/** Between two looks at the most: whether QEMU is busy is not told, but looked at. */
const LOOK_MS = 250;

/**
 * Ask a VM's monitor, until it has ended.
 *
 * @param isBusy Whether a checkpoint keeps QEMU busy now
 * @param hung Called when it has not answered for too long, and again when that happens anew
 * @param patience How long it may take
 */
export function watchForHang(
  vm: Vm,
  isBusy: () => boolean,
  hung: () => void,
  patience: QemuProbeOptions = PATIENCE,
): void {
  const now = () => performance.now();
  const probe = new QemuProbe(patience, now());
  let timer: ReturnType<typeof setTimeout> | undefined;
  let isOver = false;
  let wasHung = false;
  const look = () => {
    if (isOver) return;
    probe.checkpointing(isBusy(), now());
    const isHung = probe.tick(now()) === "hung";
    if (isHung && !wasHung) hung();
    wasHung = isHung;
    if (now() >= probe.askAtMs) {
      probe.asked(now());
      // An error is an answer, unless the monitor is gone, which is noticed elsewhere.
      const answered = () => probe.answered(now());
      vm.qmp.execute("query-status", {}, { timeoutMs: Infinity }).then(answered, answered);
    }
    timer = setTimeout(look, Math.min(LOOK_MS, Math.max(1, probe.wakeAtMs - now())));
  };
  look();
  vm.process.exited.then(() => {
    isOver = true;
    clearTimeout(timer);
  });
}
