import { assertEquals } from "@std/assert/mod.js";
import { demoResult, percentile } from "../../cli/demo/result.ts";
import type { Takeover } from "../../cli/demo/session.ts";
import type { CheckpointReport, Report } from "../../engine/host/mod.ts";

const TAKEOVER: Takeover = {
  killToRunningMs: 9.1666,
  epoch: 3,
  ticksLost: 0,
  ticksRepeated: 1,
  chainVerified: true,
  memoryVerified: true,
};

const REPORTS: readonly Report[] = [
  { event: "qemu-started", atMs: 1, pid: 7, version: "11.1.3", accel: "tcg", source: "fetched" },
  { event: "seeded", atMs: 2, durationMs: 638.26, wireBytes: 1000, resumed: false },
  { event: "seeded", atMs: 3, durationMs: 5, wireBytes: 5, resumed: true },
];

function checkpoint(epoch: number, pauseMs: number, dirtyPages: number): CheckpointReport {
  return {
    event: "checkpoint",
    atMs: epoch,
    epoch,
    pauseMs,
    dirtyPages,
    ramBytes: dirtyPages * 4096,
    wireBytes: 100 * epoch,
    pages: { unchanged: 0, zero: 0, xbzrle: 0, whole: dirtyPages },
    replicated: true,
    micro: false,
    cause: "periodic",
  };
}

const CHECKPOINTS = [checkpoint(1, 89.34, 20), checkpoint(2, 5.06, 10), checkpoint(3, 7, 30)];

Deno.test("percentile takes the nearest rank", () => {
  const values = [50, 10, 40, 20, 30];
  assertEquals([0, 0.2, 0.21, 0.5, 0.99, 1].map((share) => percentile(values, share)), [
    10,
    10,
    20,
    30,
    50,
    50,
  ]);
  assertEquals(values, [50, 10, 40, 20, 30], "the values are left as they were");
  assertEquals(percentile([], 0.5), 0);
  assertEquals(percentile([7], 0.01), 7);
});

Deno.test("demoResult sums up a demo, in tenths of milliseconds", () => {
  assertEquals(demoResult("colo", 256, REPORTS, CHECKPOINTS, TAKEOVER), {
    ok: true,
    qemu: "11.1.3",
    accel: "tcg",
    mode: "colo",
    memoryMiB: 256,
    seedMs: 638.3,
    checkpoints: 3,
    pauseMs: { p50: 7, p99: 89.3, max: 89.3 },
    dirtyPages: { p50: 20, max: 30 },
    ramBytes: 60 * 4096,
    wireBytes: 600,
    killToRunningMs: 9.2,
    ticksLost: 0,
    ticksRepeated: 1,
    chainVerified: true,
    memoryVerified: true,
  });
});

Deno.test("demoResult is not ok when anything is not verified, or nothing was replicated", () => {
  const ok = (changes: Partial<Takeover>, checkpoints = CHECKPOINTS) =>
    demoResult("colo", 256, REPORTS, checkpoints, { ...TAKEOVER, ...changes }).ok;
  assertEquals(ok({}), true);
  assertEquals(ok({ chainVerified: false }), false);
  assertEquals(ok({ memoryVerified: false }), false);
  assertEquals(ok({}, []), false);
});
