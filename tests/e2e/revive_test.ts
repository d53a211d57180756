import { assert, assertEquals } from "@std/assert/mod.js";
import type { DemoSession } from "../../cli/demo/session.ts";
import { sleep, withPair } from "./_pair.ts";

const OPTIONS = {
  replication: ["revive = true"],
  append: "colo.load=small-writes colo.load_pages=400",
};

/** Ticks come twice a second, and a revival falls back by a checkpoint at the most. */
const TICKS_REPEATED_MAX = 2;

/** Kill the primary QEMU, which nobody else can take over from. */
async function killAndRevive(session: DemoSession): Promise<void> {
  const { primary, primaryConsole } = session;
  const pid = session.qemuPid("primary");
  const from = primary.reports.length;
  const isNew = (report: unknown) => (primary.reports as unknown[]).indexOf(report) >= from;
  const ticks = primaryConsole.ticks.length;
  Deno.kill(pid, "SIGKILL");
  const running = await primary.waitFor("running", isNew, 20_000);
  assertEquals(running.reason, "the primary QEMU ended by SIGKILL");
  assert(session.qemuPid("primary") !== pid);
  await primary.waitFor("primary", (report) => isNew(report) && report.phase === "alone", 20_000);
  await sleep(2000);
  const after = primaryConsole.ticks.slice(ticks);
  const before = primaryConsole.ticks[ticks - 1]!.n;
  console.log(`ticks before: up to ${before}; after: ${after.map(({ n }) => n).join(" ")}`);
  assert(after.length >= 2, "the guest stands still");
  assert(after[0]!.n <= before + 1 && after[0]!.n > before - TICKS_REPEATED_MAX);
  assert(primaryConsole.ticks.every(({ chainOk, fileOk }) => chainOk && fileOk));
}

Deno.test("a primary QEMU that crashes with no standby around goes on from the mirror, and is protected again", async () => {
  await withPair(OPTIONS, async (session) => {
    await session.protected();
    await session.standby.stop();
    await session.primary.waitFor("primary", ({ phase }) => phase === "alone", 10_000);
    await sleep(1000);
    await killAndRevive(session);
    const from = session.primary.reports.length;
    session.restartStandby();
    await session.primary.waitFor(
      "primary",
      (report) => report.phase === "protected" && session.primary.reports.indexOf(report) >= from,
      20_000,
    );
    // With a standby that can take over nothing is revived.
    const takeover = await session.killPrimary();
    assert(takeover.chainVerified && takeover.memoryVerified);
    assertEquals(await session.primary.exited(), 3);
  });
});

Deno.test("a guest that ends its QEMU again and again is revived a few times", async () => {
  await withPair(OPTIONS, async (session) => {
    await session.protected();
    await session.standby.stop();
    await session.primary.waitFor("primary", ({ phase }) => phase === "alone", 10_000);
    await sleep(1000);
    for (let death = 0; death < 4; death++) {
      const from = session.primary.reports.length;
      const isNew = (report: unknown) =>
        (session.primary.reports as unknown[]).indexOf(report) >= from;
      Deno.kill(session.qemuPid("primary"), "SIGKILL");
      if (death === 3) break;
      await session.primary.waitFor(
        "primary",
        (report) => isNew(report) && report.phase === "alone",
        20_000,
      );
      await sleep(300);
    }
    assertEquals(await session.primary.exited(), 3);
  });
});
