import { assert, assertEquals } from "@std/assert/mod.js";
import { prepareDemoGuest } from "../../engine/vm/mod.ts";
import { randomFrom, sleep, testSeed, withPair } from "./_pair.ts";

const TAKEOVERS = 20;

/** Ticks come twice a second, and a takeover falls back by a checkpoint at the most. */
const TICKS_LOST_MAX = 1;
const TICKS_REPEATED_MAX = 2;

Deno.test(`a secondary takes over at ${TAKEOVERS} random moments, memory and CPU state verified`, async () => {
  await prepareDemoGuest();
  const random = randomFrom(testSeed());
  for (let round = 0; round < TAKEOVERS; round++) {
    // Half of the kills fall anywhere; half are aimed at the next checkpoint, while it is on its way.
    const aimed = round % 2 === 1;
    const delayMs = random() * (aimed ? 30 : 1500);
    const periodMs = aimed ? 60 : 100;
    await withPair(
      { periodMs, append: "colo.load=small-writes colo.load_pages=400" },
      async (session) => {
        await session.protected();
        if (aimed) {
          const { length } = session.checkpoints;
          await session.checkpointed(length + 1, 10_000);
          await sleep(periodMs - 15);
        }
        await sleep(delayMs);
        const takeover = await session.killPrimary();
        console.log(
          `${aimed ? "aimed " : "random"} +${delayMs.toFixed(1)} ms: running after ` +
            `${takeover.killToRunningMs.toFixed(1)} ms from checkpoint ${takeover.epoch}, ` +
            `${takeover.ticksLost} ticks lost, ${takeover.ticksRepeated} repeated`,
        );
        assert(takeover.chainVerified, "the hash chain is broken");
        assert(takeover.memoryVerified, "the guest's file is damaged");
        assert(takeover.ticksLost <= TICKS_LOST_MAX, `${takeover.ticksLost} ticks were lost`);
        assert(takeover.ticksRepeated <= TICKS_REPEATED_MAX, `${takeover.ticksRepeated} repeated`);
      },
    );
  }
});

Deno.test("the guest runs on, unprotected and saying so, when its secondary is killed", async () => {
  await withPair({}, async (session) => {
    await session.protected();
    const { primary, standby, primaryConsole } = session;
    const ticks = primaryConsole.ticks.length;
    const reports = primary.reports.length;
    const firstPid = session.qemuPid("standby");
    Deno.kill(firstPid, "SIGKILL");

    const alone = await primary.waitFor(
      "primary",
      (report) => primary.reports.indexOf(report) >= reports && report.phase === "alone",
      10_000,
    );
    assert(alone.reason.includes("SIGKILL"), alone.reason);
    await sleep(1500);
    assert(primaryConsole.ticks.length >= ticks + 2, "the guest stands still");

    // The standby starts another QEMU, and the guest is protected again without having left COLO.
    await primary.waitFor(
      "primary",
      (report) =>
        primary.reports.indexOf(report) > primary.reports.indexOf(alone) &&
        report.phase === "protected",
      20_000,
    );
    assert(session.qemuPid("standby") !== firstPid);
    assertEquals(
      primary.reports.some((report) => report.event === "primary" && report.phase === "unattended"),
      false,
    );
    assert(
      standby.reports.some((report) => report.event === "secondary" && report.phase === "starting"),
    );

    const takeover = await session.killPrimary();
    assert(takeover.chainVerified && takeover.memoryVerified);
  });
});

Deno.test("the guest is protected again when its standby is killed and another one started", async () => {
  await withPair({}, async (session) => {
    await session.protected();
    const { primary } = session;
    const reports = primary.reports.length;
    const orphan = session.qemuPid("standby");
    Deno.kill(session.standby.pid, "SIGKILL");
    // The engine is gone and could not end its QEMU: that is left to whoever killed the engine.
    Deno.kill(orphan, "SIGKILL");
    const alone = await primary.waitFor(
      "primary",
      (report) => primary.reports.indexOf(report) >= reports && report.phase === "alone",
      10_000,
    );
    session.restartStandby();
    await primary.waitFor(
      "primary",
      (report) =>
        primary.reports.indexOf(report) > primary.reports.indexOf(alone) &&
        report.phase === "protected",
      30_000,
    );
    const takeover = await session.killPrimary();
    assert(takeover.chainVerified && takeover.memoryVerified);
  });
});

Deno.test("colo run and its standby end together when the operator ends the VM", async () => {
  await withPair({}, async (session) => {
    await session.protected();
    const pids = [session.qemuPid("primary"), session.qemuPid("standby")];
    assertEquals(await session.primary.stop(), 130);
    const ended = await session.standby.waitFor(
      "secondary",
      ({ phase }) => phase === "ended",
      10_000,
    );
    assert(ended.reason.includes("operator"), ended.reason);
    assertEquals(await session.standby.exited(), 0);
    for (const pid of pids) {
      assertEquals(await Deno.stat(`/proc/${pid}`).then(() => true, () => false), false);
    }
  });
});
