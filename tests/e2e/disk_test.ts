/** Disks of a protected VM on real QEMU. */

import { assert, assertEquals } from "@std/assert/mod.js";
import type { Report } from "../../engine/host/mod.ts";
import { DiskLoad, DiskPair } from "./_disk_pair.ts";
import { randomFrom, sleep, testSeed } from "./_pair.ts";

/** Random kills of the primary: more when asked. */
const KILLS = Number(Deno.env.get("COLO_TEST_KILLS") ?? 3);

const HEARTBEAT_TIMEOUT_MS = 500;

/** How long a secondary is away. */
const AWAY_MS = 4000;

for (const mode of ["colo", "continuous"] as const) {
  const what =
    "every acknowledged transaction is on the survivor's disk, generation after generation";
  Deno.test(`${what}, mode ${mode}`, () => surviveKills(mode));
}

async function surviveKills(mode: "colo" | "continuous"): Promise<void> {
  const random = randomFrom(testSeed());
  await using pair = await DiskPair.start({ mode });
  let [from, to] = [pair.a, pair.b];
  await from.protects();
  let load = await from.load();
  for (let kill = 1; kill <= KILLS; kill++) {
    const synchronised = from.engine.reports.findLast(({ event }) =>
      event === "disks-synchronised"
    );
    assert(synchronised?.event === "disks-synchronised");
    assert(synchronised.pauseMs < 300, `the guest stood still for ${synchronised.pauseMs} ms`);
    const before = load.acknowledged;
    await sleep(1500 + random() * 1500);
    const killedMs = performance.timeOrigin + performance.now();
    Deno.kill(from.qemuPid, "SIGKILL");
    const atMs = await to.takesOver();
    const written = load.acknowledged.map((count, index) => count - before[index]!);
    await load.ended();
    assert(written.every((count) => count > 0), `only ${written} writes`);
    await from.engine.exited();
    const client = await to.client();
    await load.verify(client);
    console.log(
      `kill ${kill}: runs after ${(atMs - killedMs).toFixed(0)} ms; ${written} writes; copy of ` +
        `${synchronised.durationMs.toFixed(0)} ms, paused ${synchronised.pauseMs.toFixed(1)} ms`,
    );
    from.start("standby");
    [from, to] = [to, from];
    load = new DiskLoad(client, await from.client(), load);
    await from.protects();
  }
  await sleep(1000);
  await load.stop();
  await load.verify(await from.client());
  const [rows, sectors] = load.acknowledged;
  console.log(
    `${KILLS} kills: ${rows} transactions and ${sectors} sectors acknowledged, all found`,
  );
  await pair.assertSameImages();
  const notices = [from, to].flatMap(({ engine }) =>
    engine.reports.flatMap((report) => report.event === "notice" ? [report.text] : [])
  );
  assertEquals(notices.filter((text) => text.includes("disk")), []);
  // Killed is only what this test has killed.
  const secondaries = [from, to].flatMap(({ engine }) =>
    engine.reports.flatMap((report) => report.event === "secondary" ? [report.reason] : [])
  );
  assertEquals(secondaries.filter((reason) => reason.includes("secondary QEMU ended")), []);
}

Deno.test("a guest's writes go on when its secondary hangs, and one that returns gets what changed", async () => {
  await using pair = await DiskPair.start();
  const { a, b } = pair;
  await a.protects();
  const load = await a.load();
  await sleep(1500);
  // What is acknowledged to a client has waited for a checkpoint as well.
  const usualMs = load.longestMs;
  const longestMs = await hangSecondary(pair, load);
  assert(longestMs < HEARTBEAT_TIMEOUT_MS + 100 + usualMs, `${longestMs} ms`);
  await load.stop();
  await load.verify(await a.client());
  await pair.assertSameImages();
  // What went over in parts is whole: the survivor has all of it.
  Deno.kill(a.qemuPid, "SIGKILL");
  await b.takesOver();
  await load.verify(await b.client());
});

/** @returns How long the longest write took while the secondary's host stood still, in milliseconds */
async function hangSecondary({ a, b }: DiskPair, load: DiskLoad): Promise<number> {
  const before = a.engine.reports.length;
  const isNew = (report: Report) => a.engine.reports.indexOf(report) >= before;
  const usualMs = load.longestMs;
  load.longestMs = 0;
  // Engine and QEMU, as a host that stands still.
  const hung = [b.engine.pid, b.qemuPid];
  for (const pid of hung) Deno.kill(pid, "SIGSTOP");
  await a.engine.waitFor(
    "primary",
    (report) => report.phase === "alone" && report.reason.includes("silent") && isNew(report),
    10_000,
  );
  await sleep(AWAY_MS);
  const longestMs = load.longestMs;
  for (const pid of hung) Deno.kill(pid, "SIGCONT");
  await a.engine.waitFor(
    "primary",
    (report) => report.phase === "protected" && isNew(report),
    60_000,
  );
  const copied = await a.engine.waitFor("disks-synchronised", isNew, 1000);
  load.longestMs = 0;
  await sleep(500);
  console.log(
    `the longest write took ${longestMs.toFixed(0)} ms, ${
      usualMs.toFixed(0)
    } ms before; then ${copied.wireBytes} of ` +
      `${copied.totalBytes} bytes went over, paused ${copied.pauseMs.toFixed(1)} ms`,
  );
  assert(copied.changesOnly && copied.wireBytes < copied.totalBytes / 4);
  assert(copied.pauseMs < 300, `${copied.pauseMs} ms`);
  return longestMs;
}
