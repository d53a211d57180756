import { assert, assertEquals } from "@std/assert/mod.js";
import type { DemoSession } from "../../cli/demo/session.ts";
import { imagePlace } from "../../engine/host/image_directory.ts";
import { loadVmConfig } from "../../engine/config/mod.ts";
import { isAlive, randomFrom, sleep, testKills, testSeed, withPair } from "./_pair.ts";
import { SavedGuest } from "./_saved_guest.ts";

const KILLS = testKills(5);

const ENGINE_KILLS = testKills(3);

const PERIODS = [25, 50, 100, 200, "adaptive"] as const;

/** Ticks come twice a second, and a takeover falls back by a checkpoint at the most. */
const TICKS_LOST_MAX = 1;
const TICKS_REPEATED_MAX = 2;

/** Ticks that each survivor of many must show: the second proves that the first was no accident. */
const TICKS_AFTER = 2;

const CONTINUOUS = {
  mode: "continuous",
  append: "colo.load=small-writes colo.load_pages=400",
} as const;

/** Many pages, so that a checkpoint takes its time to go into the image. */
const HEAVY = { ...CONTINUOUS, append: "colo.load=sweep colo.load_pages=2048 colo.load_ms=50" };

/** Run a pair whose guest was booted before, and is protected. */
async function withSavedPair(
  guest: SavedGuest,
  options: Parameters<typeof withPair>[0],
  work: (session: DemoSession) => Promise<void>,
): Promise<void> {
  await withPair({ ...options, configure: guest.configure }, async (session) => {
    session.primaryConsole.bootedAs(guest.bootFacts);
    await session.protected();
    await work(session);
  });
}

/** Where the standby keeps the guest's memory. */
async function placeOf(session: DemoSession): Promise<string> {
  return imagePlace(await loadVmConfig(session.standbyToml)).directory;
}

function filesIn(directory: string): string[] {
  try {
    return [...Deno.readDirSync(directory)].map(({ name }) => name);
  } catch {
    return [];
  }
}

Deno.test(`a standby's QEMU takes over at ${KILLS} random moments, memory and CPU state verified`, async () => {
  await using guest = await SavedGuest.boot(128, CONTINUOUS.append);
  const random = randomFrom(testSeed());
  const tookMs: number[] = [];
  for (let round = 0; round < KILLS; round++) {
    const periodMs = PERIODS[round % PERIODS.length]!;
    const delayMs = random() * 600;
    await withSavedPair(guest, { ...CONTINUOUS, periodMs }, async (session) => {
      const place = await placeOf(session);
      await sleep(delayMs);
      const takeover = await session.killPrimary(TICKS_AFTER);
      tookMs.push(takeover.killToRunningMs);
      console.log(
        `period ${periodMs} +${delayMs.toFixed(1)} ms: running after ` +
          `${takeover.killToRunningMs.toFixed(1)} ms from checkpoint ${takeover.epoch}, ` +
          `${takeover.ticksLost} ticks lost, ${takeover.ticksRepeated} repeated`,
      );
      assert(takeover.chainVerified, "the hash chain is broken");
      assert(takeover.memoryVerified, "the guest's file is damaged");
      assert(takeover.ticksLost <= TICKS_LOST_MAX, `${takeover.ticksLost} ticks were lost`);
      assert(takeover.ticksRepeated <= TICKS_REPEATED_MAX, `${takeover.ticksRepeated} repeated`);
      const left = filesIn(place).map((name) => name.replace(/-.*/, "")).sort();
      assertEquals(left, ["lock", "taken"], "the memory's name is gone while the VM runs on it");
      await session.stop();
      assertEquals(filesIn(place), []);
    });
  }
  const sorted = tookMs.toSorted((a, b) => a - b);
  console.log(`kill to running: ${sorted[KILLS >> 1]?.toFixed(1)} ms in the middle`);
});

Deno.test("the last checkpoint runs, whole, when the standby's engine dies in the middle of the next", async () => {
  await using guest = await SavedGuest.boot(128, HEAVY.append);
  const random = randomFrom(testSeed());
  let mended = 0;
  for (let round = 0; round < ENGINE_KILLS; round++) {
    await withSavedPair(guest, { ...HEAVY, periodMs: 50 }, async (session) => {
      await sleep(300 + random() * 300);
      // The engine first, then the primary, before that has noticed.
      Deno.kill(session.standby.pid, "SIGKILL");
      const killedMs = Date.now();
      Deno.kill(session.qemuPid("primary"), "SIGKILL");
      await session.standby.exited();
      const held = session.checkpoints.at(-1)!.epoch;
      session.restartStandby("--take-over");
      const takeover = await session.survived(killedMs, TICKS_AFTER);
      const found = session.standby.reports.some((report) =>
        report.event === "notice" && report.text.includes("on its way into the image")
      );
      if (found) mended++;
      console.log(
        `checkpoint ${takeover.epoch} of ${held}${found ? ", mended" : ""}: ` +
          `${takeover.ticksLost} ticks lost, ${takeover.ticksRepeated} repeated`,
      );
      assert(takeover.epoch >= held, `checkpoint ${held} was held, it runs from ${takeover.epoch}`);
      assert(takeover.chainVerified, "the hash chain is broken");
      assert(takeover.memoryVerified, "the guest's file is damaged");
    });
  }
  console.log(`${mended} of ${ENGINE_KILLS} engines died while a checkpoint went into the image`);
});

Deno.test("a standby whose QEMU has memory of its own takes over as well", async () => {
  await withPair({ ...CONTINUOUS, replication: ["sharedMemory = false"] }, async (session) => {
    await session.protected();
    const takeover = await session.killPrimary();
    assert(takeover.chainVerified && takeover.memoryVerified);
  });
});

Deno.test("a standby QEMU that dies is replaced, and the guest stays protected", async () => {
  await withPair(CONTINUOUS, async (session) => {
    await session.protected();
    const pid = session.qemuPid("standby");
    const before = session.primary.reports.length;
    Deno.kill(pid, "SIGKILL");
    await session.standby.waitFor("qemu-started", (report) => report.pid !== pid, 10_000);
    await sleep(500);
    const phases = session.primary.reports.slice(before).filter(({ event }) => event === "primary");
    assertEquals(phases, []);
    const takeover = await session.killPrimary();
    assert(takeover.chainVerified && takeover.memoryVerified);
  });
});

Deno.test("a standby that comes back holds its checkpoint until the next seed is whole", async () => {
  await withPair(CONTINUOUS, async (session) => {
    const place = await placeOf(session);
    await session.protected();
    Deno.kill(session.standby.pid, "SIGKILL");
    await session.standby.exited();
    assert(filesIn(place).some((name) => name.startsWith("state-")));
    const reports = session.primary.reports.length;
    session.restartStandby();
    await session.primary.waitFor(
      "primary",
      (report) =>
        report.phase === "protected" && session.primary.reports.indexOf(report) >= reports,
      20_000,
    );
    await session.standby.waitFor("secondary", ({ phase }) => phase === "protecting", 5000);
    const phases = session.standby.reports.flatMap((report) =>
      report.event === "secondary" ? [report.phase] : []
    );
    assertEquals(phases, ["orphaned", "seeding", "protecting"]);
    const takeover = await session.killPrimary();
    assert(takeover.chainVerified && takeover.memoryVerified);
    await session.stop();
    assertEquals(filesIn(place), []);
  });
});

Deno.test("a primary in another mode is refused in one sentence", async () => {
  await withPair({ mode: "continuous" }, async (session) => {
    const place = await placeOf(session);
    await session.standby.stop();
    assertEquals(filesIn(place), []);
    const config = await Deno.readTextFile(session.standbyToml);
    await Deno.writeTextFile(session.standbyToml, config.replace('"continuous"', '"colo"'));
    session.restartStandby();
    const notice = await session.primary.waitFor(
      "notice",
      ({ text }) => text.includes("replication.mode"),
      20_000,
    );
    assertEquals(
      notice.text,
      'Cannot join the standby: its replication.mode is "colo", the primary\'s "continuous": ' +
        "make them the same; trying again",
    );
  });
});

Deno.test("a VM that was taken over and has lost its engine is not started a second time", async () => {
  await withPair(CONTINUOUS, async (session) => {
    const place = await placeOf(session);
    await session.protected();
    await session.killPrimary();
    const pid = session.qemuPid("standby");
    Deno.kill(session.standby.pid, "SIGKILL");
    await session.standby.exited();
    session.restartStandby("--take-over");
    const adopted = await session.standby.waitFor("qemu-adopted", () => true, 10_000);
    assertEquals(adopted.pid, pid);
    await session.standby.waitFor("primary", ({ phase }) => phase === "alone", 10_000);
    await session.standby.stop();
    assertEquals(isAlive(pid), false);
    // What it ran from is no more, and the next standby waits for a seed.
    session.restartStandby();
    await session.standby.waitFor("secondary", ({ phase }) => phase === "waiting", 10_000);
    await session.standby.stop();
    assertEquals(filesIn(place), []);
  });
});
