import { assert, assertEquals } from "@std/assert/mod.js";
import { GUEST, Hosts } from "../../bench/rig/hosts.ts";
import { Ping } from "../../bench/rig/ping.ts";
import type { LoadResult } from "../../bench/rig/closed_loop.ts";
import { NetworkPair, type NetworkPairOptions } from "./_network_pair.ts";
import { randomFrom, sleep, testKills, testSeed } from "./_pair.ts";
import type { ReplicationMode } from "../../engine/config/mod.ts";

/** So many takeovers in each mode. */
const KILLS = testKills(3);

/**
 * The longest that a client on an open connection may wait for an answer at a takeover. What it has lost
 * it sends again: in `colo`, where it is answered within milliseconds, after 200 ms, and 22 takeovers
 * made 140 to 320 ms, or 430 where the machine was busy with something else. In `continuous` every answer
 * waits for a checkpoint, and a client whose round trips take that long waits 300 ms and more before
 * it sends again: of 20 takeovers 19 made 120 to 360 ms, one 530 ms.
 */
const GAP_MS_MAX = { colo: 500, continuous: 1000 } as const;

const COLO = new URL("../../cli/colo.ts", import.meta.url).pathname;

const LOAD_MS = 60_000;
const AFTER_MS = 1500;
const DOWNLOAD_BYTES = 8 * 1024 * 1024;

const whyNot = await Hosts.whyNot();
if (whyNot !== undefined && Deno.env.get("CI")) throw new Error(`CI needs a network: ${whyNot}`);
if (whyNot !== undefined) console.log(`tests of the network are skipped: ${whyNot}`);

function test(name: string, fn: () => Promise<void>): void {
  Deno.test({ name, fn, ignore: whyNot !== undefined });
}

async function withPair(
  options: NetworkPairOptions,
  work: (pair: NetworkPair) => Promise<void>,
): Promise<void> {
  await using pair = await NetworkPair.start(options);
  await pair.protected();
  await work(pair);
}

function assertIntact(result: LoadResult, what: string): void {
  assertEquals({ what, errors: result.errors, count: result.errorCount }, {
    what,
    errors: [],
    count: 0,
  });
  assert(result.answers > 0, `${what}: no answer`);
}

for (const mode of ["colo", "continuous"] as const satisfies readonly ReplicationMode[]) {
  test(`open connections survive takeovers at random moments, mode ${mode}`, async () => {
    const random = randomFrom(testSeed());
    for (let kill = 0; kill < KILLS; kill++) {
      await withPair({ mode }, async (pair) => {
        const loop = { durationMs: LOAD_MS, intervalMs: 2 };
        const counting = pair.load({ kind: "count" }, { connections: 4, ...loop });
        const counting6 = pair.load(
          { kind: "count" },
          { connections: 2, ...loop },
          GUEST.address6,
        );
        const dialed = pair.load({ kind: "dial", own: pair.client }, { connections: 1, ...loop });
        const pages = pair.load({ kind: "page", sizeBytes: 3000 }, { connections: 2, ...loop });
        const ping = new Ping(pair.hosts.client, pair.guest.busyboxPath, GUEST.address);
        const loads = { counting, counting6, dialed, pages };
        await Promise.all([
          ...Object.values(loads).map(({ connected }) => connected),
          ping.answered,
        ]);
        const afterMs = 200 + random() * 1500;
        await sleep(afterMs);
        const killToRunningMs = await pair.killPrimary();
        await sleep(AFTER_MS);
        const pinged = await ping.stop();
        const gapsMs: number[] = [];
        for (const [what, load] of Object.entries(loads)) {
          const result = await load.stop();
          assertIntact(result, what);
          gapsMs.push(...result.longestGapsMs);
        }
        const longestMs = Math.max(...gapsMs);
        console.log(
          `after ${afterMs.toFixed(0)} ms: running after ${killToRunningMs.toFixed(1)} ms, ` +
            `longest gap ${longestMs.toFixed(0)} ms ` +
            `(each: ${gapsMs.map((gapMs) => gapMs.toFixed(0)).join(" ")}), ` +
            `${pinged.lost} of ${pinged.replies} pings lost`,
        );
        assert(longestMs <= GAP_MS_MAX[mode], `a client waited ${longestMs} ms`);
        assert(pinged.replies > 10 && pinged.longestGapMs < 1000, JSON.stringify(pinged));
      });
    }
  });

  test(`a download that spans the takeover arrives intact, mode ${mode}`, async () => {
    await withPair({ mode }, async (pair) => {
      const once = { connections: 1, durationMs: LOAD_MS, requestsMax: 1 };
      const page = { kind: "page", sizeBytes: DOWNLOAD_BYTES } as const;
      const download = pair.load(page, once);
      const download6 = pair.load(page, once, GUEST.address6);
      await sleep(600);
      let isDone = false;
      download.result.then(() => isDone = true, () => {});
      await pair.killPrimary();
      assert(!isDone, "it was over before the takeover");
      for (const [what, load] of Object.entries({ download, download6 })) {
        const result = await load.result;
        assertIntact(result, what);
        assertEquals(result.answers, 1);
      }
    });
  });
}

test("connections survive the death of the primary's engine, which takes care of its VM again", async () => {
  await withPair({}, async (pair) => {
    const loop = { durationMs: LOAD_MS, intervalMs: 2 };
    const load = pair.load({ kind: "count" }, { connections: 4, ...loop });
    await load.connected;
    await sleep(1000);
    // As a service manager does.
    Deno.kill(pair.primary.pid, "SIGKILL");
    const diedMs = performance.now();
    const again = pair.restartPrimary();
    const adopted = await again.waitFor("qemu-adopted", () => true, 5000);
    await again.waitFor("primary", ({ phase }) => phase === "protected", LOAD_MS);
    const protectedMs = performance.now() - diedMs;
    await sleep(500);
    const result = await load.stop();
    assertIntact(result, "counting");
    console.log(
      `protected again after ${protectedMs.toFixed(0)} ms, ` +
        `longest gap ${result.longestGapMs.toFixed(0)} ms`,
    );
    assertEquals(adopted.pid, pair.qemuPid("primary"));
    assert(result.longestGapMs < 2000, `a client waited ${result.longestGapMs} ms`);
    // And a takeover works as before.
    await pair.killPrimary();
  });
});

test("colo bypass opens the network of a VM whose engine is dead, and of one that runs", async () => {
  await withPair({}, async (pair) => {
    const bypass = (state: string) =>
      pair.hosts.run(
        pair.hosts.a,
        ...[Deno.execPath(), "run", "-A", COLO, "bypass", state, "--config"],
        `${pair.directory}/primary.toml`,
      );
    const loop = { connections: 2, durationMs: LOAD_MS, intervalMs: 2 };
    const load = pair.load({ kind: "count" }, loop);
    await load.connected;
    assertEquals(await bypass("on"), "the network is open");
    await pair.primary.waitFor("network", ({ bypass }) => bypass, 5000);
    // The secondary is not compared with any more: it may stand still.
    Deno.kill(pair.qemuPid("standby"), "SIGSTOP");
    const open = pair.load({ kind: "count" }, { ...loop, requestsMax: 100 });
    assertIntact(await open.result, "while open");
    Deno.kill(pair.qemuPid("standby"), "SIGCONT");
    assertEquals(await bypass("off"), "the network is closed");
    await sleep(500);
    // Dead engines let nothing through.
    Deno.kill(pair.primary.pid, "SIGKILL");
    await pair.primary.exited();
    assertEquals(await bypass("on"), "the network is open");
    const dead = pair.load({ kind: "count" }, { ...loop, requestsMax: 100 });
    assertIntact(await dead.result, "with a dead engine");
    assertIntact(await load.stop(), "from first to last");
    // An engine that is ended before it may look after the VM leaves it as it was.
    await pair.restartPrimary().waitFor("primary", ({ phase }) => phase === "alone", 10_000);
  });
});

test("a secondary that stands still, and a link that is cut, hold up the guest's clients but a while", async () => {
  await withPair({ replication: ["period = 300"] }, async (pair) => {
    const loop = { durationMs: LOAD_MS, intervalMs: 2 };
    const load = pair.load({ kind: "page", sizeBytes: 100_000 }, { connections: 4, ...loop });
    await load.connected;
    // The secondary QEMU takes nothing any more: neither frames nor checkpoints.
    Deno.kill(pair.qemuPid("standby"), "SIGSTOP");
    await sleep(2000);
    Deno.kill(pair.qemuPid("standby"), "SIGCONT");
    await sleep(500);
    // The standby's engine takes nothing any more.
    Deno.kill(pair.standby.pid, "SIGSTOP");
    await sleep(2000);
    Deno.kill(pair.standby.pid, "SIGCONT");
    await sleep(500);
    await pair.hosts.cut(pair.hosts.b);
    await sleep(1000);
    await pair.hosts.heal(pair.hosts.b);
    await sleep(3000);
    const result = await load.stop();
    assertIntact(result, "pages");
    // The monitor of a primary that waits for a chardev answers to nobody.
    const status = await pair.status();
    assertEquals(status.phase, "protected");
    console.log(`longest gap ${result.longestGapMs.toFixed(0)} ms`);
  });
});

test("a primary QEMU that hangs is ended, and taken over from", async () => {
  await withPair({}, async (pair) => {
    // Clients are told nothing, and try again ever more rarely.
    const patience = { answerTimeoutMs: 40_000 };
    const loop = { connections: 4, durationMs: LOAD_MS, intervalMs: 2, ...patience };
    const load = pair.load({ kind: "count" }, loop);
    await load.connected;
    const hungMs = performance.timeOrigin + performance.now();
    Deno.kill(pair.qemuPid("primary"), "SIGSTOP");
    const { atMs, reason } = await pair.standby.waitFor("running", () => true, LOAD_MS);
    console.log(`running ${(atMs - hungMs).toFixed(0)} ms after the primary hung: ${reason}`);
    await sleep(AFTER_MS);
    assertIntact(await load.stop(), "counting");
  });
});

test("a flood of frames costs frames, not the guest: its monitor and other clients are answered", async () => {
  await withPair({}, async (pair) => {
    const loop = { durationMs: LOAD_MS, intervalMs: 5 };
    const load = pair.load({ kind: "count" }, { connections: 1, ...loop });
    await load.connected;
    const downloads = pair.load({ kind: "page", sizeBytes: 256 * 1024 }, {
      connections: 16,
      durationMs: 6000,
    });
    await downloads.connected;
    const askedMs = performance.now();
    const status = await pair.status();
    assert(performance.now() - askedMs < 3000);
    assertEquals(status.protected, true);
    assertIntact(await downloads.result, "downloads");
    assertIntact(await load.stop(), "counting");
    const { network: [card] } = await pair.status();
    console.log(JSON.stringify(card));
    assertEquals(card!.lost, 0);
  });
});

test("pages that no two VMs write alike are let out by checkpoints, and what differs is counted", async () => {
  await withPair({}, async (pair) => {
    const random = pair.load({ kind: "random", sizeBytes: 2000 }, {
      connections: 2,
      durationMs: 4000,
    });
    const result = await random.result;
    assertIntact(result, "random pages");
    const { statistics } = await pair.status();
    console.log(`${result.answers} answers, ${JSON.stringify(statistics)}`);
    assert(statistics["discompare-count"] > 0);
    await pair.killPrimary();
  });
});

test("a guest's own connections are let out by a checkpoint at once", async () => {
  await withPair({}, async (pair) => {
    const connects = pair.load({ kind: "syn", own: { ...pair.client, port: 0 } }, {
      connections: 1,
      durationMs: 6000,
      intervalMs: 100,
    });
    const result = await connects.result;
    assertIntact(result, "connects");
    console.log(`connects: ${result.p50Ms.toFixed(1)} ms p50, ${result.p99Ms.toFixed(1)} ms p99`);
    assert(result.p50Ms < 100);
  });
});

for (
  const [what, options] of [
    ["with a vnet header", { nic: ["vnetHdr = true"] }],
    ["with a second card", {
      rest: ["[[vm.nics]]", 'mac = "52:54:00:c0:10:99"', 'netdev = "user,restrict=on"'],
    }],
  ] as const
) {
  test(`open connections survive a takeover ${what}`, async () => {
    await withPair(options, async (pair) => {
      const loop = { durationMs: LOAD_MS, intervalMs: 2 };
      const counting = pair.load({ kind: "count" }, { connections: 4, ...loop });
      const pages = pair.load({ kind: "page", sizeBytes: 50_000 }, { connections: 2, ...loop });
      await Promise.all([counting.connected, pages.connected]);
      await sleep(800);
      const { network } = await pair.status();
      assert(network[0]!.released > 50, JSON.stringify(network));
      await pair.killPrimary();
      await sleep(AFTER_MS);
      assertIntact(await counting.stop(), "counting");
      assertIntact(await pages.stop(), "pages");
    });
  });
}
