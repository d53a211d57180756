import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { ConfigError } from "../../engine/errors.ts";
import { Lease, LEASE_MARGIN_MS, LEASE_TTL_MS } from "../../engine/failover/lease.ts";

Deno.test("Lease is renewed three times before it pauses the VM, a margin before its end", () => {
  const lease = new Lease({}, 0);
  const advice: [number, string][] = [];
  for (let nowMs = 0; nowMs <= 5000; nowMs += 250) {
    const said = lease.step(nowMs);
    if (said !== "keep") advice.push([nowMs, said]);
    // Each request takes its time and fails.
    if (said === "renew") nowMs += 750;
  }
  assertEquals(advice.slice(0, 4), [[1000, "renew"], [2000, "renew"], [3000, "renew"], [
    4000,
    "pause",
  ]]);
  assert(!lease.holds(4000));
});

Deno.test("Lease asks again soon when the arbiter says no at once, and goes on asking while it is paused", () => {
  const lease = new Lease({}, 0);
  const renewals: number[] = [];
  let paused = 0;
  for (let nowMs = 0; nowMs < 10_000; nowMs = Math.max(nowMs + 1, lease.wakeAtMs)) {
    const said = lease.step(nowMs);
    if (said === "renew") renewals.push(nowMs);
    if (said === "pause") paused++;
  }
  assertEquals(renewals.slice(0, 3), [1000, 1250, 1500]);
  assertEquals(paused, 1);
  assert(renewals.at(-1)! > 9500);
});

Deno.test("Lease resumes the VM once it has been renewed, and only then", () => {
  const lease = new Lease({}, 0);
  assertEquals(lease.step(4000), "pause");
  assertEquals(lease.step(4000), "renew");
  assertEquals(lease.step(4100), "keep");
  lease.renewed(4000);
  assert(!lease.holds(4200), "runs before it is told to");
  assertEquals(lease.step(4200), "resume");
  assert(lease.holds(4200));
  assertEquals(lease.step(5000), "renew");
});

Deno.test("Lease is counted from when the request was sent: an answer that comes too late renews nothing", () => {
  const lease = new Lease({}, 0);
  assertEquals(lease.step(4500), "pause");
  lease.renewed(100);
  assertEquals(lease.step(4600), "renew");
  assert(!lease.holds(4600));
});

Deno.test("Lease is not shortened by answers that come in another order", () => {
  const lease = new Lease({}, 0);
  lease.renewed(2000);
  lease.renewed(1000);
  assert(lease.holds(5999));
  assert(!lease.holds(6000));
});

Deno.test("Lease refuses a margin that leaves nothing of it", () => {
  assertThrows(() => new Lease({ ttlMs: 1000, marginMs: 1000 }, 0), ConfigError, "Cannot keep");
  assertThrows(() => new Lease({ ttlMs: 1000, marginMs: -1 }, 0), ConfigError);
});

/** What becomes of a renewal. */
interface Request {
  /** On its way there, then on its way back. */
  readonly thereMs: number;
  readonly backMs: number;
  readonly fate: "answered" | "request lost" | "answer lost";
}

const request: fc.Arbitrary<Request> = fc.record({
  thereMs: fc.oneof(fc.nat(50), fc.nat(8000)),
  backMs: fc.oneof(fc.nat(50), fc.nat(8000)),
  fate: fc.constantFrom("answered", "answered", "request lost", "answer lost"),
});

interface Plan {
  readonly ttlMs: number;
  readonly marginMs: number;
  readonly requests: readonly Request[];
  /** How late the holder wakes, up to the margin. */
  readonly lateness: readonly number[];
}

const plan: fc.Arbitrary<Plan> = fc.integer({ min: 1000, max: 10_000 }).chain((ttlMs) =>
  fc.integer({ min: 100, max: Math.floor(ttlMs / 2) }).chain((marginMs) =>
    fc.record({
      ttlMs: fc.constant(ttlMs),
      marginMs: fc.constant(marginMs),
      requests: fc.array(request, { maxLength: 60, size: "max" }),
      lateness: fc.array(fc.oneof(fc.nat(5), fc.nat(marginMs)), { minLength: 1, maxLength: 30 }),
    })
  )
);

/** A holder and an arbiter that counts from when a renewal reached it. */
function hold({ ttlMs, marginMs, requests, lateness }: Plan) {
  const lease = new Lease({ ttlMs, marginMs }, 0);
  /** When the arbiter ends the lease, by the clock of both. */
  let endsMs = ttlMs;
  let nowMs = 0;
  let pauses = 0;
  let resumes = 0;
  const arrivals: { readonly atMs: number; readonly act: () => void }[] = [];
  for (let steps = 0, asked = 0; steps < 600; steps++) {
    const wakeAtMs = lease.wakeAtMs + lateness[steps % lateness.length]!;
    arrivals.sort((a, b) => a.atMs - b.atMs);
    const [first] = arrivals;
    if (first !== undefined && first.atMs <= wakeAtMs) {
      nowMs = Math.max(nowMs, first.atMs);
      arrivals.shift();
      first.act();
      continue;
    }
    const ranMs = nowMs;
    nowMs = Math.max(nowMs, wakeAtMs);
    // The VM has run up to here, if it was not paused.
    if (!lease.paused) assert(nowMs <= endsMs, `ran from ${ranMs} to ${nowMs}, ended ${endsMs}`);
    if (lease.holds(nowMs)) assert(nowMs + marginMs <= endsMs);
    const advice = lease.step(nowMs);
    if (advice === "pause") pauses++;
    if (advice === "resume") resumes++;
    if (advice !== "renew") continue;
    const sentMs = nowMs;
    const { thereMs, backMs, fate } = requests[asked++] ??
      { thereMs: 10, backMs: 10, fate: "answered" };
    if (fate === "request lost") continue;
    const reachesMs = sentMs + thereMs;
    arrivals.push({
      atMs: reachesMs,
      act: () => {
        endsMs = Math.max(endsMs, reachesMs + ttlMs);
        if (fate === "answer lost") return;
        arrivals.push({ atMs: reachesMs + backMs, act: () => lease.renewed(sentMs) });
      },
    });
  }
  return { lease, pauses, resumes };
}

Deno.test("Lease never lets the VM run when the arbiter has ended it, whatever becomes of the renewals", () => {
  const seen = { pauses: 0, resumes: 0 };
  fc.assert(
    fc.property(plan, (plan) => {
      const { pauses, resumes } = hold(plan);
      seen.pauses += pauses;
      seen.resumes += resumes;
    }),
    { numRuns: 300 },
  );
  assert(seen.pauses > 100 && seen.resumes > 100, `too little happened: ${JSON.stringify(seen)}`);
});

Deno.test("Lease lets the VM run again when the arbiter can be reached again", () => {
  fc.assert(
    fc.property(plan, (plan) => {
      // All requests that fail are behind it in the end.
      const { lease, pauses, resumes } = hold({ ...plan, lateness: [0, 5] });
      assertEquals(pauses, resumes);
      assert(!lease.paused);
    }),
  );
});

Deno.test("Lease never pauses a VM whose renewals are answered", () => {
  fc.assert(
    fc.property(fc.array(fc.nat(200), { minLength: 1, maxLength: 30 }), (delays) => {
      const requests = delays.map((delayMs) => ({
        thereMs: delayMs,
        backMs: delayMs,
        fate: "answered" as const,
      }));
      const plan = { ttlMs: LEASE_TTL_MS, marginMs: LEASE_MARGIN_MS, requests, lateness: delays };
      assertEquals(hold(plan).pauses, 0);
    }),
  );
});
