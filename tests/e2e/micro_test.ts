import { assert } from "@std/assert/mod.js";
import type { Report } from "../../engine/host/mod.ts";
import { randomFrom, sleep, testKills, testSeed, withPair } from "./_pair.ts";

const TAKEOVERS = testKills(2);

/** Ticks come twice a second, and a takeover falls back by a checkpoint at the most. */
const TICKS_LOST_MAX = 1;
const TICKS_REPEATED_MAX = 2;

Deno.test(`a secondary that holds micro-checkpoints takes over at ${TAKEOVERS} random moments`, async () => {
  const random = randomFrom(testSeed());
  for (let round = 0; round < TAKEOVERS; round++) {
    const loaded: number[] = [];
    const onReport = (side: string, report: Report) => {
      if (side === "standby" && report.event === "loaded") loaded.push(report.epoch);
    };
    await withPair(
      {
        periodMs: 300,
        // Without KVM a pause is longer than a twentieth of 30 ms.
        replication: ["microPeriod = 30", "pauseShare = 100"],
        append: "colo.load=small-writes colo.load_pages=400",
        onReport,
      },
      async (session) => {
        await session.protected();
        const from = session.checkpoints.length;
        const loadedFrom = loaded.length;
        await sleep(1500 + random() * 1000);
        const taken = session.checkpoints.slice(from);
        const loads = loaded.length - loadedFrom;
        const micros = taken.filter(({ micro }) => micro);
        const takeover = await session.killPrimary();
        console.log(
          `${taken.length} checkpoints, ${micros.length} of them micro, ${loads} loads; running after ` +
            `${takeover.killToRunningMs.toFixed(1)} ms from checkpoint ${takeover.epoch}, ` +
            `${takeover.ticksLost} ticks lost, ${takeover.ticksRepeated} repeated`,
        );
        assert(takeover.chainVerified, "the hash chain is broken");
        assert(takeover.memoryVerified, "the guest's file is damaged");
        assert(takeover.ticksLost <= TICKS_LOST_MAX, `${takeover.ticksLost} ticks were lost`);
        assert(takeover.ticksRepeated <= TICKS_REPEATED_MAX, `${takeover.ticksRepeated} repeated`);
        assert(taken.length >= 2 * loads, `${loads} loads of ${taken.length} checkpoints`);
        assert(loads >= 3, `${loads} loads`);
        assert(2 * micros.length > taken.length, `${micros.length} of ${taken.length} are micro`);
        // What was only held when the primary died was loaded for the takeover.
        const last = taken.at(-1)!.epoch;
        assert(
          takeover.epoch >= last,
          `checkpoint ${last} was held, it runs from ${takeover.epoch}`,
        );
      },
    );
  }
});
