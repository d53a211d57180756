import { assert, assertEquals } from "@std/assert/mod.js";
import type { DemoSession } from "../../cli/demo/session.ts";
import type { Report } from "../../engine/host/mod.ts";
import { randomFrom, sleep, testSeed, withPair, withRelayedPair } from "./_pair.ts";

const AWAY_MS = 5000;

/** What may go over the link, at the most, as a share of a seed of everything. */
const SHARE_MAX = 0.2;

const LOAD = { append: "colo.load=small-writes colo.load_pages=400" } as const;

type Seeded = Extract<Report, { event: "seeded" }>;

function seedsOf({ primary }: DemoSession): Seeded[] {
  return primary.reports.filter((report): report is Seeded => report.event === "seeded");
}

/** The standby that was away is up to date again; returns how that went. */
async function resumed(session: DemoSession, after: number): Promise<Seeded> {
  const isNew = (report: Report) => session.primary.reports.indexOf(report) >= after;
  return await session.primary.waitFor("seeded", isNew, 20_000);
}

async function assertSurvives(session: DemoSession): Promise<void> {
  const takeover = await session.killPrimary();
  assert(takeover.chainVerified, "the hash chain is broken");
  assert(takeover.memoryVerified, "the guest's file is damaged");
}

for (const mode of ["continuous", "colo"] as const) {
  Deno.test(`a standby that was away for 5 s is sent what has changed, and takes over from it, in mode ${mode}`, async () => {
    await withRelayedPair({ ...LOAD, mode }, async (session, relay) => {
      await session.protected();
      await sleep(1000);
      const [full] = seedsOf(session);
      const pid = session.qemuPid("standby");
      const pausesBefore = session.checkpoints.map(({ pauseMs }) => pauseMs);
      relay.isCut = true;
      await sleep(AWAY_MS);
      const after = session.primary.reports.length;
      const taken = session.checkpoints.length;
      relay.isCut = false;
      const again = await resumed(session, after);
      const pauses = session.checkpoints.slice(taken).map(({ pauseMs }) => pauseMs);
      const share = again.wireBytes / full!.wireBytes;
      console.log(
        `everything: ${full!.wireBytes} bytes in ${
          full!.durationMs.toFixed(0)
        } ms, what has changed: ` +
          `${again.wireBytes} bytes in ${again.durationMs.toFixed(0)} ms (${share.toFixed(3)}); ` +
          `longest pause before ${Math.max(...pausesBefore).toFixed(1)} ms, ` +
          `meanwhile ${Math.max(...pauses).toFixed(1)} ms`,
      );
      assert(again.resumed, "everything was sent again");
      assert(share <= SHARE_MAX, `${share.toFixed(3)} of a whole seed`);
      assertEquals(session.qemuPid("standby"), pid, "its QEMU is still the same");
      await sleep(500);
      await assertSurvives(session);
    });
  });

  Deno.test(`a standby whose link breaks again and again holds the guest as it is, in mode ${mode}`, async () => {
    const random = randomFrom(testSeed());
    await withRelayedPair({ ...LOAD, mode }, async (session, relay) => {
      await session.protected();
      let after = 0;
      for (let round = 0; round < 8; round++) {
        relay.isCut = true;
        await sleep(random() * 600);
        after = session.primary.reports.length;
        relay.isCut = false;
        // The engines look for each other every 200 ms, and a resumed seed takes no longer.
        await sleep(random() * 800);
      }
      await resumed(session, after);
      await sleep(500);
      console.log(seedsOf(session).map(({ resumed }) => resumed ? "changes" : "everything").join());
      assert(seedsOf(session).some(({ resumed }) => resumed), "nothing was resumed");
      await assertSurvives(session);
    });
  });
}

Deno.test("a standby whose engine was killed is sent what has changed, from its image on", async () => {
  await withPair({ ...LOAD, mode: "continuous" }, async (session) => {
    await session.protected();
    await sleep(500);
    Deno.kill(session.standby.pid, "SIGKILL");
    await session.standby.exited();
    await sleep(1000);
    const after = session.primary.reports.length;
    session.restartStandby();
    assert((await resumed(session, after)).resumed, "everything was sent again");
    await sleep(500);
    await assertSurvives(session);
  });
});
