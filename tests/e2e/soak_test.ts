import { assert } from "@std/assert/mod.js";
import { percentile } from "../../cli/demo/result.ts";
import type { DemoSession } from "../../cli/demo/session.ts";
import { memoryOf, until, withPair } from "./_pair.ts";

/** `COLO_TEST_CHECKPOINTS`, or as many as there is time for in every run. */
const CHECKPOINTS = Number(Deno.env.get("COLO_TEST_CHECKPOINTS") ?? 2000);

/** Until then buffers grow to the size that they keep, and code is compiled. */
const WARM_UP = 1000;

const SAMPLE_EVERY = 50;
const TIMEOUT_MS = 300_000;

/**
 * Growth from the first third of the samples to the last: of the peaks, and of the medians. Both move by
 * some tens of MiB with what the garbage collector happens to do; what leaks goes on growing.
 */
const PEAK_GROWTH_MIB_MAX = 48;
const MEDIAN_GROWTH_SHARE_MAX = 0.15;

const PROCESSES = {
  "primary engine": ({ primary }: DemoSession) => primary.pid,
  "standby engine": ({ standby }: DemoSession) => standby.pid,
  "primary QEMU": (session: DemoSession) => session.qemuPid("primary"),
  "secondary QEMU": (session: DemoSession) => session.qemuPid("standby"),
} as const;

Deno.test(`memory does not grow over ${CHECKPOINTS} checkpoints`, async (test) => {
  const names = Object.keys(PROCESSES) as (keyof typeof PROCESSES)[];
  const samples = new Map(names.map((name) => [name, [] as number[]]));
  // As fast as QEMU asks for them.
  const replication = ["minInterval = 1", "pauseShare = 100"];
  const append = "colo.load=small-writes colo.load_pages=400";
  await withPair({ periodMs: 10, replication, append }, async (session) => {
    await session.protected();
    const { checkpoints } = session;
    const startMs = performance.now();
    const from = checkpoints.length;
    for (let taken = WARM_UP; taken <= CHECKPOINTS; taken += SAMPLE_EVERY) {
      await until(() => checkpoints.length >= taken, TIMEOUT_MS, `${taken} checkpoints`);
      for (const name of names) samples.get(name)!.push(memoryOf(PROCESSES[name](session)).rssMiB);
    }
    const seconds = (performance.now() - startMs) / 1000;
    console.log(
      `${((CHECKPOINTS - from) / seconds).toFixed(0)} checkpoints a second, paused ` +
        `${percentile(checkpoints.map(({ pauseMs }) => pauseMs), 0.5).toFixed(1)} ms p50`,
    );
    const takeover = await session.killPrimary();
    assert(takeover.chainVerified && takeover.memoryVerified, "the guest was damaged");
  });
  for (const name of names) {
    console.log(`${name}: ${samples.get(name)!.map((mib) => mib.toFixed(0)).join(" ")} MiB`);
    await test.step(`of the ${name}`, () => requireFlat(name, samples.get(name)!));
  }
});

function requireFlat(name: string, rssMiB: readonly number[]): void {
  const third = Math.floor(rssMiB.length / 3);
  const [first, last] = [rssMiB.slice(0, third), rssMiB.slice(-third)];
  const peakGrowth = Math.max(...last) - Math.max(...first);
  const medianGrowth = percentile(last, 0.5) / percentile(first, 0.5) - 1;
  console.log(
    `${name}: ${rssMiB[0]!.toFixed(1)} MiB after ${WARM_UP} checkpoints, ` +
      `${rssMiB.at(-1)!.toFixed(1)} MiB after ${CHECKPOINTS}; peaks grew by ` +
      `${peakGrowth.toFixed(1)} MiB, the median by ${(100 * medianGrowth).toFixed(1)} %`,
  );
  assert(peakGrowth <= PEAK_GROWTH_MIB_MAX, `the ${name} grew by ${peakGrowth.toFixed(1)} MiB`);
  assert(
    medianGrowth <= MEDIAN_GROWTH_SHARE_MAX,
    `the ${name} grew by ${(100 * medianGrowth).toFixed(1)} %`,
  );
}
