/**
 * What becomes known of a primary's QEMU while it runs: its pauses, and that it is dying, hangs or has
 * ended.
 *
 * @module
 */

import { REPLICA_SUFFIX } from "../block/mod.ts";
import type { PrimaryEvent } from "../failover/primary.ts";
import { eventTimeMs } from "../qmp/mod.ts";
import type { CheckpointLog } from "./checkpoint_log.ts";
import { watchForHang } from "./hang_watch.ts";
import type { Vm } from "./start_vm.ts";
import { watchForDeath } from "./vm_end.ts";

/** The primary, as far as it is needed here. */
export interface WatchedPrimary {
  readonly log: CheckpointLog;
  /** A secondary can take over. */
  isProtected(): boolean;
  /** QEMU is writing a checkpoint, and busy with that. */
  isMidCheckpoint(): boolean;
  step(event: PrimaryEvent): void;
  resumed(): void;
  exited(end: PrimaryVmEnd): void;
  notice(text: string): void;
}

/** How a QEMU has ended. */
export interface PrimaryVmEnd {
  /** The guest was shut down, or has panicked. */
  readonly ordered: boolean;
  /** The signal, or the exit code. */
  readonly how: string;
}

/** Watch one VM until it has ended. */
export function watchPrimary(vm: Vm, primary: WatchedPrimary): void {
  const { log } = primary;
  let isShutDown = false;
  let hasPanicked = false;
  vm.qmp.on("STOP", (event) => log.stopped(eventTimeMs(event)));
  vm.qmp.on("RESUME", (event) => {
    const pauseMs = log.resumed(eventTimeMs(event));
    if (pauseMs !== undefined) primary.step({ type: "paused", pauseMs });
    primary.resumed();
  });
  vm.qmp.on("SHUTDOWN", () => isShutDown = true);
  vm.qmp.on("GUEST_PANICKED", ({ data }) => {
    if (data.action === "run") return;
    hasPanicked = true;
    // Taken over it would panic again; and a QEMU that has stopped for it dies of another checkpoint.
    primary.step({ type: "guest-ended", reason: "the guest has panicked" });
  });
  // A secondary that can take over is told before the system has cleared away what was killed.
  watchForDeath(vm, () => primary.isProtected() && !isShutDown, (signal) => {
    primary.step({ type: "qemu-lost", reason: `the primary QEMU ended by ${signal}` });
  });
  watchForHang(vm, () => primary.isMidCheckpoint(), () => {
    // There is nobody who could go on in its place, and it may come round.
    if (!primary.isProtected()) {
      return primary.notice("the primary QEMU does not answer its monitor");
    }
    primary.notice("the primary QEMU hangs, and is ended");
    vm.process.kill();
  });
  vm.qmp.on(
    "QUORUM_REPORT_BAD",
    ({ data: { "node-name": node, error = "it does not say why" } }) => {
      // The loss of a replica is noticed where the link is read.
      if (node.endsWith(REPLICA_SUFFIX)) return;
      primary.notice(`${node} of the primary fails: ${error}`);
      // The replica has what this disk lacks, and the guest was told of no error.
      if (primary.isProtected()) vm.process.kill();
    },
  );
  vm.process.exited.then(({ code, signal }) => {
    primary.exited({
      ordered: hasPanicked || (isShutDown && code === 0),
      how: signal === null ? `exit code ${code}` : signal,
    });
  });
}
