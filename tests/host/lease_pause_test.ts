import { assertEquals } from "@std/assert/mod.js";
import { LeasePause } from "../../engine/host/lease_pause.ts";
import type { FilterMonitor } from "../../engine/host/packet_filters.ts";

/** A VM whose checkpoint is under way until it is settled. */
class FakeVm {
  readonly said: string[] = [];
  isUnderWay = false;
  isHeld = false;
  readonly pause = new LeasePause({
    monitor: () => this.#monitor as FilterMonitor,
    hold: (on) => this.isHeld = on,
    isSettled: () => !this.isUnderWay,
    isExempt: () => false,
    notice: () => {},
  });
  readonly #monitor = {
    execute: async (command: string) => {
      await new Promise((resolve) => setTimeout(resolve, 1));
      this.said.push(command);
      return {};
    },
  };

  /** This was said, and nothing follows. */
  async comesTo(said: readonly string[], isHeld: boolean): Promise<void> {
    for (let turn = 0; turn < 400 && this.said.length < said.length; turn++) await sleep(5);
    await sleep(20);
    assertEquals([this.said, this.isHeld], [said, isHeld]);
  }
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

Deno.test("LeasePause stops at once, and again when QEMU has let run what it had stopped", async () => {
  const vm = new FakeVm();
  vm.isUnderWay = true;
  vm.pause.pause();
  await vm.comesTo(["stop"], true);
  vm.isUnderWay = false;
  vm.pause.reapply();
  await vm.comesTo(["stop", "stop"], true);
  vm.pause.resume();
  await vm.comesTo(["stop", "stop", "cont"], false);
  vm.pause.pause();
  await vm.comesTo(["stop", "stop", "cont", "stop"], true);
});

Deno.test("LeasePause lets nothing run while a checkpoint is under way", async () => {
  const vm = new FakeVm();
  vm.isUnderWay = true;
  vm.pause.pause();
  await sleep(60);
  // QEMU writes its checkpoint with the guest stopped: let run now, it would tear it.
  vm.pause.resume();
  await vm.comesTo(["stop"], true);
  vm.isUnderWay = false;
  await vm.comesTo(["stop", "cont"], false);
});

Deno.test("LeasePause ends as it was told last, however soon that comes", async () => {
  const vm = new FakeVm();
  for (let turn = 0; turn < 5; turn++) {
    vm.pause.pause();
    vm.pause.resume();
  }
  vm.pause.pause();
  await sleep(100);
  assertEquals([vm.said.at(-1), vm.isHeld], ["stop", true]);
  for (let turn = 0; turn < 5; turn++) {
    vm.pause.resume();
    vm.pause.pause();
  }
  vm.pause.resume();
  await sleep(100);
  assertEquals([vm.said.at(-1), vm.isHeld], ["cont", false]);
});
