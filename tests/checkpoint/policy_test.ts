import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { CheckpointPolicy } from "../../engine/checkpoint/policy.ts";

Deno.test("CheckpointPolicy is due a period after the last checkpoint began", () => {
  const policy = new CheckpointPolicy({ periodMs: 500, minIntervalMs: 50 }, 1000);
  assertEquals(policy.dueAtMs(), 1500);
  policy.begun(1600);
  assertEquals(policy.dueAtMs(), 2100);
});

Deno.test("CheckpointPolicy is due after the minimal interval when one is demanded, once", () => {
  const policy = new CheckpointPolicy({ periodMs: 500, minIntervalMs: 50 }, 1000);
  policy.demand();
  policy.demand();
  assertEquals(policy.dueAtMs(), 1050);
  policy.begun(1050);
  assertEquals(policy.dueAtMs(), 1550);
});

Deno.test("CheckpointPolicy keeps the minimal interval where the period is shorter", () => {
  const policy = new CheckpointPolicy({ periodMs: 10, minIntervalMs: 50 }, 0);
  assertEquals(policy.dueAtMs(), 50);
});

Deno.test("CheckpointPolicy follows options that change while it runs", () => {
  const policy = new CheckpointPolicy({ periodMs: 500, minIntervalMs: 50 }, 0);
  policy.options = { periodMs: 100, minIntervalMs: 20 };
  assertEquals(policy.dueAtMs(), 100);
});

Deno.test("CheckpointPolicy is never due before the minimal interval, nor after the longer of both", () => {
  fc.assert(
    fc.property(
      fc.record({ periodMs: fc.nat(1000), minIntervalMs: fc.nat(1000) }),
      fc.array(fc.record({ waitMs: fc.nat(500), demand: fc.boolean(), begin: fc.boolean() })),
      (options, steps) => {
        const policy = new CheckpointPolicy(options, 0);
        let [nowMs, lastMs] = [0, 0];
        for (const { waitMs, demand, begin } of steps) {
          nowMs += waitMs;
          if (demand) policy.demand();
          if (begin) {
            policy.begun(nowMs);
            lastMs = nowMs;
          }
          assert(policy.dueAtMs() >= lastMs + options.minIntervalMs);
          assert(policy.dueAtMs() <= lastMs + Math.max(options.periodMs, options.minIntervalMs));
        }
      },
    ),
  );
});

Deno.test("CheckpointPolicy keeps the share of time paused under its bound", () => {
  fc.assert(
    fc.property(
      fc.array(fc.double({ min: 0, max: 200, noNaN: true }), { minLength: 30, maxLength: 60 }),
      fc.boolean(),
      (pauses, demanded) => {
        // Somebody waits for what is demanded.
        const pauseShareMax = demanded ? 0.5 : 0.05;
        const policy = new CheckpointPolicy(
          { periodMs: 100, minIntervalMs: 20, pauseShareMax: 0.05 },
          0,
        );
        let [nowMs, pausedMs] = [0, 0];
        for (const pauseMs of pauses) {
          if (demanded) policy.demand();
          nowMs = policy.dueAtMs();
          policy.begun(nowMs);
          policy.paused(pauseMs);
          pausedMs += pauseMs;
        }
        // The last pauses are paid for by the interval that follows them.
        assert(pausedMs <= pauseShareMax * policy.dueAtMs() + 200 + 1e-6);
      },
    ),
  );
});

Deno.test("CheckpointPolicy leaves the period alone while pauses are short", () => {
  const policy = new CheckpointPolicy(
    { periodMs: 100, minIntervalMs: 20, pauseShareMax: 0.05 },
    0,
  );
  policy.paused(4);
  assertEquals(policy.dueAtMs(), 100);
  for (let count = 0; count < 20; count++) policy.paused(50);
  assert(policy.dueAtMs() > 990 && policy.dueAtMs() <= 1000, `${policy.dueAtMs()}`);
});

const MICRO = { periodMs: 300, microPeriodMs: 30, minIntervalMs: 10 };

/** Checkpoints as they come, each begun when it is due: when, and whether it is loaded. */
function take(policy: CheckpointPolicy, count: number, microAllowed = true): [number, boolean][] {
  return Array.from({ length: count }, () => {
    const nowMs = policy.dueAtMs(microAllowed);
    return [nowMs, policy.begun(nowMs, microAllowed)];
  });
}

Deno.test("CheckpointPolicy has micro-checkpoints between those that are loaded", () => {
  const taken = take(new CheckpointPolicy(MICRO, 0), 20);
  assertEquals(taken.map(([nowMs]) => nowMs), taken.map((_, index) => 30 * (index + 1)));
  const loaded = taken.filter(([, load]) => load).map(([nowMs]) => nowMs);
  assertEquals(loaded, [300, 600]);
});

Deno.test("CheckpointPolicy has no micro-checkpoints where they are of no use or not wanted", () => {
  const plain = [[300, true], [600, true]];
  assertEquals(take(new CheckpointPolicy(MICRO, 0), 2, false), plain);
  assertEquals(take(new CheckpointPolicy({ ...MICRO, microPeriodMs: 0 }, 0), 2), plain);
  // When they come to be of use, the last checkpoint was one that counts as loaded.
  const policy = new CheckpointPolicy(MICRO, 0);
  take(policy, 1, false);
  assertEquals(take(policy, 1), [[330, false]]);
});

Deno.test("CheckpointPolicy has a demanded checkpoint loaded, and only a loaded one fulfils it", () => {
  const policy = new CheckpointPolicy(MICRO, 0);
  assertEquals(take(policy, 1), [[30, false]]);
  policy.demand();
  assertEquals(take(policy, 2), [[40, true], [70, false]]);
  // The period is counted from there.
  assertEquals(take(policy, 9).filter(([, load]) => load), [[340, true]]);
});

Deno.test("CheckpointPolicy loads a checkpoint after which the next one would come too late", () => {
  const policy = new CheckpointPolicy({ periodMs: 300, microPeriodMs: 100, minIntervalMs: 100 }, 0);
  take(policy, 1);
  // Something kept it from being begun when it was due: at 310 the period would be over.
  assertEquals(policy.begun(210, true), true);
  // Pauses so long that their share of time leaves no room for any but loaded ones.
  const slow = new CheckpointPolicy({ ...MICRO, pauseShareMax: 0.05 }, 0);
  for (let count = 0; count < 20; count++) slow.paused(20);
  assertEquals(take(slow, 3).map(([, load]) => load), [true, true, true]);
});

Deno.test("CheckpointPolicy keeps its intervals with micro-checkpoints, whenever they are begun", () => {
  fc.assert(
    fc.property(
      fc.record({
        periodMs: fc.integer({ min: 2, max: 1000 }),
        microPeriodMs: fc.nat(1000),
        minIntervalMs: fc.nat(1000),
      }),
      fc.array(fc.record({ lateMs: fc.nat(50), demand: fc.boolean(), allowed: fc.boolean() })),
      (options, steps) => {
        const { periodMs, microPeriodMs, minIntervalMs } = options;
        const policy = new CheckpointPolicy(options, 0);
        let [lastMs, lastLoadMs, demanded] = [0, 0, false];
        for (const { lateMs, demand, allowed } of steps) {
          if (demand) policy.demand();
          demanded ||= demand;
          const dueMs = policy.dueAtMs(allowed);
          assert(dueMs >= lastMs + minIntervalMs, "never before the minimal interval");
          const earliest = lastMs + minIntervalMs;
          assert(dueMs <= Math.max(earliest, lastLoadMs + periodMs), "the period");
          if (demanded) assertEquals(dueMs, earliest);
          const micro = allowed && microPeriodMs > 0;
          if (micro) {
            assert(dueMs <= Math.max(earliest, lastMs + microPeriodMs), "the micro-period");
          }
          lastMs = dueMs + lateMs;
          const load = policy.begun(lastMs, allowed);
          if (!micro || demanded) assert(load);
          if (load) [lastLoadMs, demanded] = [lastMs, false];
          // Begun at once, the next one is not too late to be loaded.
          else assert(lastMs + minIntervalMs <= lastLoadMs + periodMs);
        }
      },
    ),
    { numRuns: 500 },
  );
});

Deno.test("CheckpointPolicy waits with what is demanded for later, unless it is demanded at once", () => {
  const policy = new CheckpointPolicy({ periodMs: 500, minIntervalMs: 20 }, 0);
  policy.demand(480);
  assertEquals(policy.dueAtMs(), 480);
  policy.demand(490);
  assertEquals(policy.dueAtMs(), 480, "the earlier of two counts");
  policy.demand();
  assertEquals(policy.dueAtMs(), 20);
  assertEquals(policy.begun(20, true), true);
  assertEquals(policy.dueAtMs(), 520, "done");
  policy.demand(530);
  assertEquals(policy.dueAtMs(), 530, "also when another was due before");
});
