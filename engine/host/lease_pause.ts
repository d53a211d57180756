/**
 * Pauses a VM whose arbiter cannot be reached, before somebody else may be let run it.
 *
 * @module
 */

import { messageOf } from "../errors.ts";
import type { FilterMonitor } from "./packet_filters.ts";

/** The VM, as far as it is needed here. */
export interface PausableVm {
  monitor(): FilterMonitor | undefined;
  /** Have no checkpoint begun, or let them begin again. */
  hold(on: boolean): void;
  /** No checkpoint is under way. */
  isSettled(): boolean;
  /** The VM may go on without a lease. */
  isExempt(): boolean;
  notice(text: string): void;
}

const POLL_MS = 1;

/** Pauses one VM, and lets it run on. */
export class LeasePause {
  readonly #vm: PausableVm;
  #isPaused = false;
  /** It has been told to stop, by us. */
  #isStopped = false;
  /** What has to be done for it, one after another. */
  #last: Promise<void> = Promise.resolve();

  constructor(vm: PausableVm) {
    this.#vm = vm;
  }

  pause(): void {
    if (this.#vm.isExempt() || this.#isPaused) return;
    this.#isPaused = true;
    this.#vm.notice("the arbiter cannot be reached: the VM is paused until it can");
    this.#follow();
  }

  /** It runs, in another QEMU or because this one has let it: at the end of a checkpoint, or of COLO. */
  reapply(): void {
    if (this.#isPaused) this.#follow();
  }

  resume(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    this.#vm.notice("the arbiter can be reached again: the VM runs on");
    this.#follow();
  }

  #follow(): void {
    this.#last = this.#last.then(() => this.#isPaused ? this.#stop() : this.#run())
      .catch((error) => this.#vm.notice(messageOf(error)));
  }

  async #stop(): Promise<void> {
    this.#vm.hold(true);
    this.#isStopped = true;
    await this.#vm.monitor()?.execute("stop");
  }

  async #run(): Promise<void> {
    // One that stands still for a checkpoint must not run before that is written.
    while (!this.#isPaused && !this.#vm.isSettled()) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    if (this.#isPaused) return;
    const wasStopped = this.#isStopped;
    this.#isStopped = false;
    try {
      if (wasStopped) await this.#vm.monitor()?.execute("cont");
    } finally {
      if (!this.#isPaused) this.#vm.hold(false);
    }
  }
}
