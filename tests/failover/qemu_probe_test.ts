import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { QemuProbe } from "../../engine/failover/qemu_probe.ts";

/** Ask a QEMU that never answers, tick as it wants, and say when it was found hung. */
function hungAtMs(probe: QemuProbe, fromMs: number): number {
  let nowMs = fromMs;
  for (let ticks = 0; ticks < 1000; ticks++) {
    if (probe.tick(nowMs) === "hung") return nowMs;
    if (nowMs >= probe.askAtMs) probe.asked(nowMs);
    assert(probe.wakeAtMs > nowMs, "woken over and over");
    nowMs = probe.wakeAtMs;
  }
  return Infinity;
}

Deno.test("QemuProbe asks every period, and finds a QEMU hung that does not answer for the timeout", () => {
  const probe = new QemuProbe({}, 0);
  assertEquals(probe.askAtMs, 0);
  probe.asked(0);
  assertEquals(probe.askAtMs, Infinity);
  probe.answered(3);
  assertEquals([probe.askAtMs, probe.wakeAtMs], [253, 253]);
  assertEquals(hungAtMs(probe, 253), 1253);
  probe.answered(9000);
  assertEquals(probe.liveness, "answering");
});

Deno.test("QemuProbe waits for a checkpoint to end, and then for the whole timeout", () => {
  const probe = new QemuProbe({}, 0);
  probe.asked(0);
  for (let nowMs = 0; nowMs <= 900; nowMs += 100) probe.tick(nowMs);
  probe.checkpointing(true, 900);
  for (let nowMs = 1000; nowMs <= 3000; nowMs += 100) {
    assertEquals(probe.tick(nowMs), "answering");
  }
  probe.checkpointing(false, 3000);
  assertEquals(hungAtMs(probe, 3000), 4000);
});

Deno.test("QemuProbe finds a QEMU hung by the timeout, however often it is told that no checkpoint is under way", () => {
  const probe = new QemuProbe({}, 0);
  probe.asked(0);
  let nowMs = 0;
  while (probe.tick(nowMs) !== "hung") {
    probe.checkpointing(false, nowMs);
    nowMs += 100;
  }
  assertEquals(nowMs, 1000);
});

Deno.test("QemuProbe finds a QEMU hung in a checkpoint, and in one after the other, by the longer bound", () => {
  const within = new QemuProbe({}, 0);
  within.checkpointing(true, 0);
  assertEquals(hungAtMs(within, 0), 5000);
  const between = new QemuProbe({}, 0);
  between.asked(0);
  let nowMs = 0;
  while (between.tick(nowMs) !== "hung") {
    between.checkpointing(nowMs % 200 === 0, nowMs);
    nowMs += 100;
  }
  assertEquals(nowMs, 5000);
});

Deno.test("QemuProbe does not take its own stall for QEMU's", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 501, max: 60_000 }),
      fc.integer({ min: 0, max: 999 }),
      fc.boolean(),
      (stallMs, openMs, checkpoint) => {
        const probe = new QemuProbe({}, 0);
        probe.checkpointing(checkpoint, 0);
        probe.asked(0);
        for (let nowMs = 0; nowMs <= openMs; nowMs += 50) probe.tick(nowMs);
        const wokenMs = openMs + stallMs;
        assertEquals(probe.tick(wokenMs), "answering");
        const foundMs = hungAtMs(probe, wokenMs);
        assert(foundMs >= wokenMs + 500, `condemned ${foundMs - wokenMs} ms after the stall`);
        assert(foundMs <= wokenMs + 5000);
      },
    ),
  );
});
