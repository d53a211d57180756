import { assert, assertEquals } from "@std/assert/mod.js";
import { GUEST } from "../../bench/rig/hosts.ts";
import { ArbitratedPair, phase, TIMEOUT_MS, whyNoArbitratedPair } from "./_arbitrated_pair.ts";
import { isAlive, sleep } from "./_pair.ts";

/** Until everything has settled that is to settle by itself. */
const SETTLE_MS = 20_000;

const LOOP = { connections: 4, durationMs: 60_000, intervalMs: 2 };

const whyNot = await whyNoArbitratedPair();
if (whyNot !== undefined && Deno.env.get("CI")) throw new Error(`CI needs etcd: ${whyNot}`);
if (whyNot !== undefined) console.log(`tests with an arbiter are skipped: ${whyNot}`);

function test(name: string, fn: (world: ArbitratedPair) => Promise<void>): void {
  Deno.test({
    name,
    ignore: whyNot !== undefined,
    fn: async () => {
      await using world = await ArbitratedPair.start();
      await fn(world);
    },
  });
}

test("a host that is lost altogether is taken over from within the heartbeat's timeout", async ({ pair }) => {
  const load = pair.load({ kind: "count" }, LOOP);
  await load.connected;
  const qemu = pair.qemuPid("primary");
  const lostMs = performance.timeOrigin + performance.now();
  await Promise.all([
    pair.hosts.cut(pair.hosts.a),
    Deno.kill(pair.primary.pid, "SIGKILL"),
    Deno.kill(qemu, "SIGKILL"),
  ]);
  const { atMs } = await pair.standby.waitFor("running", () => true, SETTLE_MS);
  await sleep(1500);
  const result = await load.stop();
  console.log(
    `running ${(atMs - lostMs).toFixed(0)} ms after the loss of the host, ` +
      `longest gap ${result.longestGapMs.toFixed(0)} ms`,
  );
  assertEquals(result.errors, []);
  assert(atMs - lostMs < TIMEOUT_MS + 300, `${atMs - lostMs} ms`);
  // The host comes back, and its operator starts what has always run there.
  await pair.hosts.heal(pair.hosts.a);
  await sleep(1000);
  const again = pair.restartPrimary();
  assertEquals(await again.exited(), 1);
  assertEquals(again.reports.some(({ event }) => event === "qemu-started"), false);
});

test("of two hosts that cannot hear each other exactly one runs the VM", async ({ pair }) => {
  const load = pair.load({ kind: "count" }, LOOP);
  await load.connected;
  const pids = [pair.qemuPid("primary"), pair.qemuPid("standby")] as const;
  await pair.hosts.separate();
  await sleep(4000);
  // A standby that has taken over is a primary from then on, and looks for a standby of its own.
  const runs = [pair.primary, pair.standby].map((side) => phase(side) === "alone");
  console.log(`primary ${phase(pair.primary)}, standby ${phase(pair.standby)}`);
  assertEquals(runs.filter((one) => one).length, 1, `${runs}`);
  // The other one's guest is no more, or waits for a new life.
  if (runs[1]) assertEquals(isAlive(pids[0]), false);
  assertEquals((await load.stop()).errors, []);
});

test("a primary that is cut off from everybody is taken over from, and says nothing more", async ({ pair }) => {
  const load = pair.load({ kind: "count" }, LOOP);
  await load.connected;
  const qemu = pair.qemuPid("primary");
  await pair.hosts.cut(pair.hosts.a);
  await pair.standby.waitFor("running", () => true, SETTLE_MS);
  await sleep(1500);
  // It cannot know yet that it is not wanted any more; it holds back what it has to say.
  assertEquals(phase(pair.primary), "deciding");
  await pair.hosts.heal(pair.hosts.a);
  for (const deadline = performance.now() + SETTLE_MS; isAlive(qemu);) {
    assert(performance.now() < deadline, "the stale guest goes on");
    await sleep(50);
  }
  await pair.primary.waitFor("primary", ({ phase }) => phase === "ended", SETTLE_MS);
  assertEquals((await load.stop()).errors, []);
});

test("a primary that was stopped, and goes on, finds that it is stale, and lets nothing out", async ({ pair }) => {
  const load = pair.load({ kind: "count" }, LOOP);
  await load.connected;
  const qemu = pair.qemuPid("primary");
  for (const pid of [qemu, pair.primary.pid]) Deno.kill(pid, "SIGSTOP");
  await pair.standby.waitFor("running", () => true, SETTLE_MS);
  await sleep(1000);
  for (const pid of [qemu, pair.primary.pid]) Deno.kill(pid, "SIGCONT");
  for (const deadline = performance.now() + SETTLE_MS; isAlive(qemu);) {
    assert(performance.now() < deadline, "the stale guest goes on");
    await sleep(50);
  }
  await sleep(500);
  const result = await load.stop();
  assertEquals(result.errors, []);
  console.log(`longest gap ${result.longestGapMs.toFixed(0)} ms`);
});

test("without etcd a lost host is not taken over from, until etcd is back", async (world) => {
  const { pair, etcd } = world;
  await etcd.kill();
  await sleep(1000);
  assertEquals(phase(pair.primary), "protected");
  Deno.kill(pair.primary.pid, "SIGKILL");
  Deno.kill(pair.qemuPid("primary"), "SIGKILL");
  await sleep(3000);
  assertEquals(phase(pair.standby), "deciding");
  world.restartEtcd();
  await pair.standby.waitFor("running", () => true, SETTLE_MS);
  const load = pair.load({ kind: "count" }, { ...LOOP, requestsMax: 50 }, GUEST.address);
  assertEquals((await load.result).errors, []);
});

test("a primary that loses its secondary goes on alone, with the arbiter's grant", async ({ pair }) => {
  const load = pair.load({ kind: "count" }, LOOP);
  await load.connected;
  await pair.hosts.cut(pair.hosts.b);
  await pair.primary.waitFor("primary", ({ phase }) => phase === "deciding", SETTLE_MS);
  const after = pair.primary.reports.length;
  for (const deadline = performance.now() + SETTLE_MS; phase(pair.primary) !== "alone";) {
    assert(performance.now() < deadline, `${phase(pair.primary)} after ${after} reports`);
    await sleep(20);
  }
  await sleep(1000);
  // The secondary, which asks as soon as it can, is too late.
  await pair.hosts.heal(pair.hosts.b);
  await pair.primary.waitFor("seeded", () => true, SETTLE_MS);
  for (const deadline = performance.now() + SETTLE_MS; phase(pair.primary) !== "protected";) {
    assert(performance.now() < deadline, `${phase(pair.primary)}`);
    await sleep(20);
  }
  assertEquals(phase(pair.standby), "protecting");
  const result = await load.stop();
  assertEquals(result.errors, []);
  console.log(`longest gap ${result.longestGapMs.toFixed(0)} ms`);
});
