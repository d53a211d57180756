import { dirname } from "@std/path/mod.js";
import { assert, assertEquals } from "@std/assert/mod.js";
import { percentile } from "../../cli/demo/result.ts";
import type { DemoSession, SessionOptions, Takeover } from "../../cli/demo/session.ts";
import { QmpClient } from "../../engine/qmp/mod.ts";
import { colo } from "../cli/_colo.ts";
import type { LinkRelay } from "./_link_relay.ts";
import {
  randomFrom,
  sleep,
  testKills,
  testSeed,
  until,
  within,
  withPair,
  withRelayedPair,
} from "./_pair.ts";
import { SavedGuest } from "./_saved_guest.ts";

/** Of five kills three come between a checkpoint's acknowledgment and its commit, two anywhere. */
const KILLS = testKills(6);
const isAimed = (round: number) => round % 5 < 3;

/** So many of all kills come at least when the last checkpoint was only held. */
const ONLY_HELD_SHARE_MIN = 0.1;

/** Ticks come twice a second, and a takeover falls back by a checkpoint at the most. */
const TICKS_LOST_MAX = 1;
const TICKS_REPEATED_MAX = 2;

/** Ticks that each survivor must show: the second proves that the first was no accident. */
const TICKS_AFTER = 2;

/** How long an aimed kill waits with its checkpoint held up, on top of what QEMU takes to resume. */
const HELD_MS = 20;

/** With checkpoints that are loaded, one or more on their way, and with some that are only held. */
const PACES = [
  { periodMs: 100 },
  { periodMs: 100, replication: ["inFlight = 3"] },
  { periodMs: 300, replication: ["microPeriod = 30", "pauseShare = 100"] },
  { periodMs: 300, replication: ["microPeriod = 30", "pauseShare = 100", "inFlight = 3"] },
];

/** What of a checkpoint is on its way when the kill comes: all before it has arrived. */
const HELD_FRAMES = ["pages", "deviceState", "commit"] as const;

/** A kill, and where the secondary went on. */
interface Kill {
  readonly takeover: Takeover;
  readonly what: string;
}

/** Kill the primary whenever. */
async function killAtRandom(session: DemoSession, random: () => number): Promise<Kill> {
  const delayMs = random() * 800;
  await sleep(delayMs);
  return {
    takeover: await session.killPrimary(TICKS_AFTER),
    what: `after ${delayMs.toFixed(0)} ms`,
  };
}

/**
 * Kill the primary when QEMU runs its guest again from a checkpoint of which the secondary lacks
 * something: it must go on from the one before. What was held up arrives after the takeover.
 */
async function killInFlight(
  session: DemoSession,
  relay: LinkRelay,
  monitor: QmpClient,
  random: () => number,
): Promise<Kill> {
  await sleep(random() * 200);
  const kind = HELD_FRAMES[Math.floor(random() * HELD_FRAMES.length)]!;
  const share = random() < 0.5 ? 0 : random();
  const hold = relay.hold(({ role, type }) => role === "bulk" && type.startsWith(kind), share);
  try {
    const { epoch, type } = await within(hold.frame, 10_000, `the ${kind} of a checkpoint`);
    // Its bytes are on the link, so the guest stood still for it before: running again, QEMU has been
    // told that the checkpoint is held.
    const isRunning = async () => (await monitor.execute("query-status")).status === "running";
    await until(isRunning, 5000, "QEMU resumes the guest");
    await sleep(random() * HELD_MS);
    session.standby.waitFor("running", () => true, 20_000).then(hold.release, hold.release);
    const takeover = await session.killPrimary(TICKS_AFTER);
    assertEquals(takeover.epoch, epoch - 1, `checkpoint ${epoch} had not arrived`);
    return { takeover, what: `with ${(100 * share).toFixed(0)} % of the ${type} of ${epoch} sent` };
  } finally {
    hold.release();
  }
}

Deno.test(`a secondary takes over at ${KILLS} moments, memory and CPU state verified`, async () => {
  const random = randomFrom(testSeed());
  await using guest = await SavedGuest.boot(128, "colo.load=small-writes colo.load_pages=400");
  const killToRunningMs: number[] = [];
  let inFlight = 0;
  let onlyHeld = 0;
  for (let round = 0; round < KILLS; round++) {
    const aimed = isAimed(round);
    const pace = PACES[round % PACES.length]!;
    let monitorPath = "";
    const configure: SessionOptions["configure"] = (given, side) => {
      const config = guest.configure(given, side);
      if (side !== "primary") return config;
      monitorPath = `${dirname(config.path)}/monitor.sock`;
      const extraArgs = [...config.vm.extraArgs, "-qmp", `unix:${monitorPath},server=on,wait=off`];
      return { ...config, vm: { ...config.vm, extraArgs } };
    };
    await withRelayedPair({ ...pace, configure }, async (session, relay) => {
      session.primaryConsole.bootedAs(guest.bootFacts);
      await session.primary.waitFor("primary", ({ phase }) => phase === "protected", 30_000);
      await until(() => session.primaryConsole.ticks.length > 0, 10_000, "the guest ticks");
      await using monitor = await QmpClient.connect(monitorPath);
      const { takeover, what } = aimed
        ? await killInFlight(session, relay, monitor, random)
        : await killAtRandom(session, random);
      console.log(
        `${what}: running after ${takeover.killToRunningMs.toFixed(1)} ms from checkpoint ` +
          `${takeover.epoch}, ${takeover.ticksLost} ticks lost, ${takeover.ticksRepeated} repeated`,
      );
      assert(takeover.chainVerified, "the hash chain is broken");
      assert(takeover.memoryVerified, "the guest's file is damaged");
      assert(takeover.ticksLost <= TICKS_LOST_MAX, `${takeover.ticksLost} ticks were lost`);
      assert(takeover.ticksRepeated <= TICKS_REPEATED_MAX, `${takeover.ticksRepeated} repeated`);
      killToRunningMs.push(takeover.killToRunningMs);
      if (aimed) inFlight++;
      const last = session.checkpoints.find(({ epoch }) => epoch === takeover.epoch);
      if (last?.micro) onlyHeld++;
    });
  }
  console.log(
    `${killToRunningMs.length} kills, ${inFlight} of them between acknowledgment and commit, ` +
      `${onlyHeld} from a checkpoint that was only held: ` +
      `running after ${percentile(killToRunningMs, 0.5).toFixed(1)} ms p50, ` +
      `${percentile(killToRunningMs, 1).toFixed(1)} ms max`,
  );
  assert(
    onlyHeld >= Math.floor(ONLY_HELD_SHARE_MIN * KILLS),
    `only ${onlyHeld} takeovers were from a checkpoint that was only held`,
  );
});

for (const mode of ["colo", "continuous"] as const) {
  Deno.test(`without an arbiter a host that is lost is taken over from when the operator says so, mode ${mode}`, async () => {
    await withPair({ mode }, async (session) => {
      const takeOver = () => colo(["take-over", "--config", session.standbyToml]);
      await session.protected();
      const early = await takeOver();
      assertEquals(early.code, 1);
      assert(early.stderr.includes("the primary is connected; end it there first"), early.stderr);

      const killedMs = Date.now();
      // The engine first, which could say that its QEMU has ended.
      Deno.kill(session.primary.pid, "SIGKILL");
      Deno.kill(session.qemuPid("primary"), "SIGKILL");
      await session.standby.waitFor("secondary", ({ phase }) => phase === "orphaned", 10_000);
      const { stdout } = await colo(["status", "--config", session.standbyToml]);
      assert(stdout.startsWith("standby      "), stdout);
      assert(session.standby.reports.every(({ event }) => event !== "running"));

      const order = takeOver();
      const takeover = await session.survived(killedMs);
      assert(takeover.chainVerified && takeover.memoryVerified);
      assertEquals((await order).code, 0);
    });
  });
}

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
