import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { CheckpointPolicy } from "../../engine/checkpoint/policy.ts";

Deno.test("CheckpointPolicy is due a period after the last checkpoint began", () => {
  const policy = new CheckpointPolicy({ periodMs: 500, minIntervalMs: 50 }, 1000);
  assertEquals(policy.dueAtMs, 1500);
  policy.begun(1600);
  assertEquals(policy.dueAtMs, 2100);
});

Deno.test("CheckpointPolicy is due after the minimal interval when one is demanded, once", () => {
  const policy = new CheckpointPolicy({ periodMs: 500, minIntervalMs: 50 }, 1000);
  policy.demand();
  policy.demand();
  assertEquals(policy.dueAtMs, 1050);
  policy.begun(1050);
  assertEquals(policy.dueAtMs, 1550);
});

Deno.test("CheckpointPolicy keeps the minimal interval where the period is shorter", () => {
  const policy = new CheckpointPolicy({ periodMs: 10, minIntervalMs: 50 }, 0);
  assertEquals(policy.dueAtMs, 50);
});

Deno.test("CheckpointPolicy follows options that change while it runs", () => {
  const policy = new CheckpointPolicy({ periodMs: 500, minIntervalMs: 50 }, 0);
  policy.options = { periodMs: 100, minIntervalMs: 20 };
  assertEquals(policy.dueAtMs, 100);
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
          assert(policy.dueAtMs >= lastMs + options.minIntervalMs);
          assert(policy.dueAtMs <= lastMs + Math.max(options.periodMs, options.minIntervalMs));
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
        const pauseShareMax = 0.05;
        const policy = new CheckpointPolicy(
          { periodMs: 100, minIntervalMs: 20, pauseShareMax },
          0,
        );
        let [nowMs, pausedMs] = [0, 0];
        for (const pauseMs of pauses) {
          if (demanded) policy.demand();
          nowMs = policy.dueAtMs;
          policy.begun(nowMs);
          policy.paused(pauseMs);
          pausedMs += pauseMs;
        }
        // The last pauses are paid for by the interval that follows them.
        assert(pausedMs <= pauseShareMax * policy.dueAtMs + 200 + 1e-6);
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
  assertEquals(policy.dueAtMs, 100);
  for (let count = 0; count < 20; count++) policy.paused(50);
  assert(policy.dueAtMs > 990 && policy.dueAtMs <= 1000, `${policy.dueAtMs}`);
});
