import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import type { Claim, ClaimAnswer, Ownership } from "../../engine/failover/arbiter.ts";
import { EtcdClient } from "../../engine/failover/etcd.ts";
import { EtcdArbiter } from "../../engine/failover/etcd_arbiter.ts";
import { Lease } from "../../engine/failover/lease.ts";
import { FakeEtcd, type Fate } from "./fake_etcd.ts";

const ENDPOINTS = ["http://127.0.0.1:2379", "http://127.0.0.2:2379", "http://127.0.0.3:2379"];
const OWNER = "colo/web1/owner";
const LEASE = "colo/web1/lease";
/** Short, since silent requests are waited for. */
const TIMEOUT_MS = 20;

function clientOf(etcd: FakeEtcd, endpoints = ENDPOINTS.slice(0, 1), fetch = etcd.fetch) {
  return new EtcdClient({ endpoints, timeoutMs: TIMEOUT_MS, fetch });
}

function arbiterOf(etcd: FakeEtcd, client = clientOf(etcd)): EtcdArbiter {
  return new EtcdArbiter(client, { vm: "web1", now: () => etcd.nowMs });
}

function claimOf(generation: number, holder: string, standing: Claim["standing"] = "pair"): Claim {
  return { generation, holder, standing, evidence: "silent" };
}

/** An etcd with a VM that A runs in generation 7, whose lease has ended. */
function etcdWith(owner: Ownership = { generation: 7, holder: "A" }): FakeEtcd {
  const etcd = new FakeEtcd();
  etcd.set(OWNER, JSON.stringify(owner));
  return etcd;
}

/** The next requests meet these fates, later ones none. */
function meet(etcd: FakeEtcd, ...fates: readonly Fate[]): void {
  const left = [...fates];
  etcd.fate = () => left.shift() ?? "answered";
}

Deno.test("the first one that runs a VM makes its record, and a second one finds it stale", async () => {
  const etcd = new FakeEtcd();
  const arbiter = arbiterOf(etcd);
  assertEquals(await arbiter.prepare(), { type: "owner", owner: undefined });
  etcd.nowMs = 400;
  assertEquals(await arbiter.claim(claimOf(0, "A")), {
    type: "granted",
    generation: 1,
    renewedMs: 0,
  });
  assertEquals(etcd.get(OWNER), '{"generation":1,"holder":"A"}');
  assertEquals(etcd.get(LEASE), '{"generation":1,"holder":"A"}');
  assertEquals(await arbiterOf(etcd).claim(claimOf(0, "B")), {
    type: "stale",
    generation: 1,
    holder: "A",
  });
});

Deno.test("a claim that was prepared is one request", async () => {
  const etcd = etcdWith();
  const arbiter = arbiterOf(etcd);
  assertEquals((await arbiter.prepare()).type, "owner");
  etcd.nowMs = 1700;
  const from = etcd.asked.length;
  assertEquals((await arbiter.claim(claimOf(7, "B"))).type, "granted");
  assertEquals(etcd.asked.slice(from), ["kv/txn"]);
});

Deno.test("a lease is counted from before the request was sent that made or renewed it", async () => {
  const etcd = etcdWith();
  const arbiter = arbiterOf(etcd);
  // Each request takes its time.
  etcd.fate = () => {
    etcd.nowMs += 700;
    return "answered";
  };
  const granted = await arbiter.claim(claimOf(7, "B"));
  // The record was read before.
  assertEquals(granted, { type: "granted", generation: 8, renewedMs: 700 });
  const sentMs = etcd.nowMs;
  const renewed = await arbiter.renew({ generation: 8, holder: "B" });
  assertEquals(renewed, { type: "renewed", renewedMs: sentMs });
});

Deno.test("a claim uses no lease of which less than half is left, nor one that has ended", async () => {
  for (const laterMs of [2600, 60_000]) {
    const etcd = etcdWith();
    const arbiter = arbiterOf(etcd);
    await arbiter.prepare();
    etcd.nowMs = laterMs;
    const answer = await arbiter.claim(claimOf(7, "B"));
    assertEquals(answer, { type: "granted", generation: 8, renewedMs: laterMs });
    etcd.nowMs += 4999;
    assertEquals(etcd.get(LEASE), '{"generation":8,"holder":"B"}');
    etcd.nowMs += 1;
    assertEquals(etcd.get(LEASE), undefined);
  }
});

Deno.test("a claim goes through though etcd has forgotten the lease that was made for it", async () => {
  const etcd = etcdWith();
  const arbiter = arbiterOf(etcd);
  await arbiter.prepare();
  etcd.wipe();
  etcd.set(OWNER, '{"generation":7,"holder":"A"}');
  etcd.set(OWNER, '{"generation":7,"holder":"A"}');
  assertEquals((await arbiter.claim(claimOf(7, "B"))).type, "granted");
  assertEquals(etcd.get(LEASE), '{"generation":8,"holder":"B"}');
});

Deno.test("a claim waits for no lease of the pair, and takes the place of it", async () => {
  const etcd = new FakeEtcd();
  const [primary, secondary] = [arbiterOf(etcd), arbiterOf(etcd)];
  await primary.claim(claimOf(0, "A"));
  assertEquals((await secondary.claim(claimOf(1, "B"))).type, "granted");
  await secondary.renew({ generation: 2, holder: "B" });
  // The old holder's lease ends without taking anything with it.
  etcd.nowMs = 4000;
  assertEquals((await secondary.renew({ generation: 2, holder: "B" })).type, "renewed");
  etcd.nowMs = 7000;
  assertEquals(etcd.get(LEASE), '{"generation":2,"holder":"B"}');
  const stale = { type: "stale", generation: 2, holder: "B" } as const;
  assertEquals(await primary.renew({ generation: 1, holder: "A" }), stale);
  assertEquals(await primary.claim(claimOf(1, "A")), stale);
});

Deno.test("one from outside the pair waits until the holder's lease has ended, or was given back", async () => {
  const etcd = new FakeEtcd();
  const [holder, outside] = [arbiterOf(etcd), arbiterOf(etcd)];
  const own = { generation: 1, holder: "A" };
  await holder.claim(claimOf(0, "A"));
  etcd.nowMs = 3000;
  assertEquals((await holder.renew(own)).type, "renewed");
  etcd.nowMs = 7999;
  const claim = claimOf(1, "C", "outside");
  assertEquals(await outside.claim(claim), { type: "held", ...own });
  etcd.nowMs = 8000;
  assertEquals((await outside.claim(claim)).type, "granted");
  await outside.release();
  assertEquals(etcd.get(LEASE), undefined);
  assertEquals((await holder.claim(claimOf(2, "A", "outside"))).type, "granted");
});

Deno.test("one from outside is refused by a lease that is renewed between its looking and its claiming", async () => {
  const etcd = new FakeEtcd();
  const [holder, outside] = [arbiterOf(etcd), arbiterOf(etcd)];
  const own = { generation: 1, holder: "A" };
  await holder.claim(claimOf(0, "A"));
  etcd.nowMs = 6000;
  await outside.prepare();
  let renewed: Promise<unknown> | undefined;
  const real = etcd.fetch;
  const between = new EtcdClient({
    endpoints: ENDPOINTS,
    fetch: async (url, init) => {
      if (url.endsWith("kv/txn")) renewed ??= holder.renew(own);
      await renewed;
      return await real(url, init);
    },
  });
  const answer = await arbiterOf(etcd, between).claim(claimOf(1, "C", "outside"));
  assertEquals(answer, { type: "held", ...own });
});

Deno.test("a lease that has ended is had again as long as nobody else was let run", async () => {
  const etcd = new FakeEtcd();
  const arbiter = arbiterOf(etcd);
  await arbiter.claim(claimOf(0, "A"));
  etcd.nowMs = 20_000;
  assertEquals(etcd.get(LEASE), undefined);
  assertEquals(await arbiter.renew({ generation: 1, holder: "A" }), {
    type: "renewed",
    renewedMs: 20_000,
  });
  assertEquals(etcd.get(LEASE), '{"generation":1,"holder":"A"}');
});

Deno.test("a claim whose answer was lost is granted when it is made again", async () => {
  for (const lost of ["answer lost", "silent"] as const) {
    const etcd = etcdWith();
    const arbiter = arbiterOf(etcd);
    await arbiter.prepare();
    meet(etcd, lost);
    const first = await arbiter.claim(claimOf(7, "B"));
    assert(first.type === "unreachable");
    assertEquals(etcd.get(OWNER), '{"generation":8,"holder":"B"}');
    // The other side has lost in any case.
    assertEquals((await arbiterOf(etcd).claim(claimOf(7, "A"))).type, "stale");
    etcd.nowMs = 9000;
    const again = { type: "granted", generation: 8, renewedMs: 9000 } as const;
    assertEquals(await arbiter.claim(claimOf(7, "B")), again);
    // As it is by an engine that was started again.
    assertEquals(await arbiterOf(etcd).claim(claimOf(7, "B")), again);
    assertEquals(etcd.get(LEASE), '{"generation":8,"holder":"B"}');
  }
});

Deno.test("with another endpoint a claim whose answer was lost is granted at once", async () => {
  const etcd = etcdWith();
  const arbiter = arbiterOf(etcd, clientOf(etcd, ENDPOINTS));
  await arbiter.prepare();
  meet(etcd, "answer lost");
  assertEquals((await arbiter.claim(claimOf(7, "B"))).type, "granted");
});

Deno.test("a claim that arrives long after the claimer has given it up takes nothing from anybody", async () => {
  const etcd = etcdWith();
  const [late, other] = [arbiterOf(etcd), arbiterOf(etcd)];
  await late.prepare();
  meet(etcd, "late");
  assertEquals((await late.claim(claimOf(7, "B"))).type, "unreachable");
  assertEquals((await other.claim(claimOf(7, "A"))).type, "granted");
  etcd.deliverLate();
  assertEquals(etcd.get(OWNER), '{"generation":8,"holder":"A"}');
  assertEquals((await late.claim(claimOf(7, "B"))).type, "stale");
});

Deno.test("an etcd that has forgotten a generation decides nothing", async () => {
  const etcd = etcdWith();
  const arbiter = arbiterOf(etcd);
  const own = { generation: 8, holder: "B" };
  assertEquals((await arbiter.claim(claimOf(7, "B"))).type, "granted");
  etcd.set(OWNER, '{"generation":3,"holder":"A"}');
  const older = await arbiter.claim(claimOf(8, "B"));
  assert(older.type === "ask" && older.reason.includes("knows generation 3"));
  assertEquals((await arbiter.renew(own)).type, "ask");
  etcd.wipe();
  const none = await arbiter.claim(claimOf(8, "B"));
  assert(none.type === "ask" && none.reason.includes("has no record of this VM"));
  assertEquals((await arbiter.renew(own)).type, "ask");
});

Deno.test("a record that no engine has written is not taken for none", async () => {
  const etcd = new FakeEtcd();
  etcd.set(OWNER, "hello");
  const answer = await arbiterOf(etcd).claim(claimOf(0, "A"));
  assert(answer.type === "unreachable" && answer.reason.includes("holds no generation"));
  assertEquals(etcd.get(OWNER), "hello");
});

Deno.test("an etcd that cannot be reached is said so within the deadline of each endpoint", async () => {
  const etcd = etcdWith();
  etcd.fate = () => "request lost";
  const arbiter = arbiterOf(etcd, clientOf(etcd, ENDPOINTS));
  const began = performance.now();
  const answer = await arbiter.claim(claimOf(7, "B"));
  const tookMs = performance.now() - began;
  assert(answer.type === "unreachable");
  for (const endpoint of ENDPOINTS) assert(answer.reason.includes(endpoint), answer.reason);
  assert(answer.reason.includes("no answer within 20 ms"), answer.reason);
  assert(tookMs >= 3 * TIMEOUT_MS - 5 && tookMs < 40 * TIMEOUT_MS, `took ${tookMs} ms`);
  assertEquals((await arbiter.prepare()).type, "unreachable");
  assertEquals((await arbiter.renew({ generation: 7, holder: "A" })).type, "unreachable");
});

const fate: fc.Arbitrary<Fate> = fc.constantFrom(
  "answered",
  "answered",
  "refused",
  "answer lost",
  "unavailable",
);

/** Claim until the arbiter has decided. */
async function insist(arbiter: EtcdArbiter, claim: Claim): Promise<ClaimAnswer> {
  for (let attempt = 0; attempt < 50; attempt++) {
    const answer = await arbiter.claim(claim);
    if (answer.type !== "unreachable") return answer;
  }
  throw new Error("never decided");
}

Deno.test("of those that claim a generation exactly one is granted, in any order and with any answers lost", async () => {
  const seen = { lost: 0, winners: new Map<string, number>() };
  await fc.assert(
    fc.asyncProperty(
      fc.scheduler(),
      fc.array(fate, { maxLength: 30 }),
      fc.integer({ min: 2, max: 4 }),
      fc.integer({ min: 1, max: 3 }),
      fc.boolean(),
      async (scheduler, fates, claimers, endpoints, prepared) => {
        const etcd = etcdWith();
        meet(etcd, ...fates);
        const fetch = scheduler.scheduleFunction(etcd.fetch);
        const holders = ["A", "B", "C", "D"].slice(0, claimers);
        const arbiters = holders.map(() =>
          arbiterOf(etcd, clientOf(etcd, ENDPOINTS.slice(0, endpoints), fetch))
        );
        for (let generation = 7; generation < 10; generation++) {
          const answers = await scheduler.waitFor(Promise.all(arbiters.map(async (arbiter, at) => {
            if (prepared) await arbiter.prepare();
            return await insist(arbiter, claimOf(generation, holders[at]!));
          })));
          const winners = answers.filter(({ type }) => type === "granted");
          assertEquals(winners.length, 1, JSON.stringify(answers));
          const winner = holders[answers.indexOf(winners[0]!)]!;
          const owner = { generation: generation + 1, holder: winner };
          const losers = answers.filter((answer) => answer !== winners[0]);
          for (const loser of losers) assertEquals(loser, { type: "stale", ...owner });
          assertEquals(etcd.get(OWNER), JSON.stringify(owner));
          assertEquals(etcd.get(LEASE), JSON.stringify(owner));
          seen.winners.set(winner, (seen.winners.get(winner) ?? 0) + 1);
        }
        seen.lost += fates.filter((fate) => fate === "answer lost").length;
      },
    ),
    { numRuns: 200 },
  );
  assert(seen.lost > 50, `only ${seen.lost} answers were lost`);
  assert(seen.winners.size === 4, "some never won");
});

/** What happens in a run of one that holds the VM and one that waits outside. */
interface Moment {
  readonly laterMs: number;
  readonly fate: Fate;
  readonly outsideClaims: boolean;
}

const moment: fc.Arbitrary<Moment> = fc.record({
  laterMs: fc.oneof(fc.nat(300), fc.nat(2000)),
  fate: fc.oneof(fate, fc.constant("refused" as const)),
  outsideClaims: fc.boolean(),
});

Deno.test("nobody from outside is let run while the holder's lease lets it run", async () => {
  const seen = { takeovers: 0, held: 0, pauses: 0, resumes: 0 };
  await fc.assert(
    fc.asyncProperty(fc.array(moment, { maxLength: 60, size: "max" }), async (moments) => {
      const etcd = new FakeEtcd();
      const [holder, outside] = [arbiterOf(etcd), arbiterOf(etcd)];
      const own = { generation: 1, holder: "A" };
      const granted = await holder.claim(claimOf(0, "A"));
      assert(granted.type === "granted" && granted.renewedMs !== undefined);
      const lease = new Lease({}, granted.renewedMs);
      for (const { laterMs, fate, outsideClaims } of moments) {
        // The holder is woken in time, and its requests take none.
        const untilMs = etcd.nowMs + laterMs;
        while (lease.wakeAtMs <= untilMs) {
          etcd.nowMs = Math.max(etcd.nowMs, lease.wakeAtMs);
          const advice = lease.step(etcd.nowMs);
          if (advice === "pause") seen.pauses++;
          if (advice === "resume") seen.resumes++;
          if (advice !== "renew") continue;
          etcd.fate = () => fate;
          const answer = await holder.renew(own);
          if (answer.type === "renewed") lease.renewed(answer.renewedMs!);
          else assertEquals(answer.type, "unreachable");
        }
        etcd.nowMs = untilMs;
        if (!outsideClaims) continue;
        etcd.fate = () => "answered";
        const answer = await outside.claim(claimOf(1, "C", "outside"));
        if (answer.type === "held") seen.held++;
        if (answer.type !== "granted") continue;
        assert(!lease.holds(etcd.nowMs), `both run at ${etcd.nowMs}`);
        seen.takeovers++;
        assertEquals((await holder.renew(own)).type, "stale");
        return;
      }
    }),
    { numRuns: 300 },
  );
  const enough = seen.takeovers > 20 && seen.held > 100 && seen.pauses > 20 && seen.resumes > 5;
  assert(enough, `too little happened: ${JSON.stringify(seen)}`);
});
