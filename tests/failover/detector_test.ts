import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { ConfigError } from "../../engine/errors.ts";
import {
  HEARTBEAT_INTERVAL_MS,
  HEARTBEAT_TIMEOUT_MS,
  HeartbeatDetector,
  type PeerState,
} from "../../engine/failover/detector.ts";

const INTERVAL = HEARTBEAT_INTERVAL_MS;
const TIMEOUT = HEARTBEAT_TIMEOUT_MS;
/** A gap between two calls that is longer than this is a stall. */
const STALL = 2 * INTERVAL;
const FRESH_CHANCE_MS = 300;

/** For how long the detector's process runs, and then does not. */
interface Span {
  readonly runMs: number;
  readonly stallMs: number;
}

const span: fc.Arbitrary<Span> = fc.record({
  runMs: fc.oneof(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1, max: 1500 })),
  stallMs: fc.oneof(fc.integer({ min: 1, max: 250 }), fc.integer({ min: 1, max: 20_000 })),
});

interface Called {
  readonly atMs: number;
  readonly state: PeerState;
}

/**
 * Run a detector in a process that stalls. What arrives during a stall is read when it ends, and only
 * after the timer that is overdue too, which is the worse order.
 *
 * @param arrivals When beats of the peer arrive
 * @param lateMs How late the process's timers are while it runs
 */
function run(
  spans: readonly Span[],
  arrivals: readonly number[],
  lateMs: () => number = () => 0,
  startMs = 0,
): readonly Called[] {
  const detector = new HeartbeatDetector({}, startMs);
  const called: Called[] = [];
  let nowMs = startMs;
  let next = arrivals.findIndex((atMs) => atMs >= startMs);
  if (next === -1) next = arrivals.length;
  const tick = () => {
    called.push({ atMs: nowMs, state: detector.tick(nowMs) });
    if (nowMs >= detector.sendAtMs) detector.sent(nowMs);
  };
  const read = () => {
    for (; next < arrivals.length && arrivals[next]! <= nowMs; next++) detector.heard(nowMs);
  };
  tick();
  for (const { runMs, stallMs } of spans) {
    const endMs = nowMs + runMs;
    let wakeAtMs = detector.wakeAtMs + lateMs();
    while (true) {
      const arrivalMs = arrivals[next] ?? Infinity;
      if (Math.min(wakeAtMs, arrivalMs) > endMs) break;
      nowMs = Math.min(wakeAtMs, arrivalMs);
      if (arrivalMs <= nowMs) read();
      else tick();
      wakeAtMs = Math.max(nowMs, detector.wakeAtMs + lateMs());
    }
    nowMs = endMs + stallMs;
    tick();
    read();
  }
  return called;
}

/** Beats every interval, each under way for some time. */
function beats(delays: readonly number[], untilMs: number): number[] {
  const count = Math.ceil(untilMs / INTERVAL);
  return Array.from({ length: count }, (_, at) => at * INTERVAL + delays[at % delays.length]!)
    .sort((a, b) => a - b);
}

const total = (spans: readonly Span[]) =>
  spans.reduce((sum, { runMs, stallMs }) => sum + runMs + stallMs, 0);

const delays = fc.array(fc.integer({ min: 0, max: INTERVAL }), { minLength: 1, maxLength: 50 });

Deno.test("HeartbeatDetector suspects a silent peer after half the timeout and has lost it after all of it", () => {
  const detector = new HeartbeatDetector({}, 0);
  detector.heard(50);
  const states = new Map<number, PeerState>();
  for (let nowMs = 50; nowMs <= 1000; nowMs += 10) {
    states.set(nowMs, detector.tick(nowMs));
  }
  assertEquals(states.get(290), "alive");
  assertEquals(states.get(300), "suspected");
  assertEquals(states.get(540), "suspected");
  assertEquals(states.get(550), "lost");
  assertEquals(states.get(1000), "lost");
  detector.heard(1001);
  assertEquals(detector.state, "alive");
});

Deno.test("HeartbeatDetector wants a beat at once, then every interval, and one alone when it is late", () => {
  const detector = new HeartbeatDetector({}, 1000);
  assertEquals(detector.sendAtMs, 1000);
  detector.sent(1000);
  assertEquals([detector.sendAtMs, detector.wakeAtMs], [1100, 1100]);
  detector.tick(1750);
  assertEquals(detector.sendAtMs, 1100);
  detector.sent(1750);
  assertEquals(detector.sendAtMs, 1850);
});

Deno.test("HeartbeatDetector asks to be woken in the future though a beat cannot be sent", () => {
  const detector = new HeartbeatDetector({}, 0);
  for (let nowMs = 0; nowMs < 5000; nowMs = detector.wakeAtMs) {
    detector.tick(nowMs);
    assert(detector.wakeAtMs > nowMs, `woken at ${detector.wakeAtMs} at ${nowMs}`);
  }
  assertEquals(detector.state, "lost");
});

Deno.test("HeartbeatDetector takes a clock that steps back for one that stands still", () => {
  const detector = new HeartbeatDetector({}, 1000);
  detector.heard(1150);
  assertEquals(detector.tick(1000), "alive");
  for (let nowMs = 1200; nowMs < 1650; nowMs += 50) detector.tick(nowMs);
  assertEquals(detector.tick(1100), "suspected");
  assertEquals(detector.tick(1649), "suspected");
  assertEquals(detector.tick(1650), "lost");
});

Deno.test("HeartbeatDetector refuses a timeout of fewer than four intervals", () => {
  assertThrows(
    () => new HeartbeatDetector({ intervalMs: 100, timeoutMs: 399 }, 0),
    ConfigError,
    "Cannot detect a lost peer within 399 ms",
  );
  assertThrows(() => new HeartbeatDetector({ intervalMs: 0 }, 0), ConfigError);
});

Deno.test("HeartbeatDetector never loses a peer whose beats come in time, however it stalls itself", () => {
  let stalls = 0;
  fc.assert(
    fc.property(
      fc.array(span, { minLength: 1, maxLength: 40, size: "max" }),
      delays,
      (spans, delays) => {
        const called = run(spans, beats(delays, total(spans)));
        stalls +=
          called.filter(({ atMs }, at) => at > 0 && atMs - called[at - 1]!.atMs > STALL).length;
        assertEquals(called.find(({ state }) => state === "lost"), undefined);
      },
    ),
    { numRuns: 500 },
  );
  assert(stalls > 1000, `only ${stalls} stalls`);
});

Deno.test("HeartbeatDetector never loses a peer whose beats were lost while it stalled, and come in time again", () => {
  fc.assert(
    fc.property(fc.array(span, { minLength: 1, maxLength: 20 }), delays, (spans, delays) => {
      // A span of running must be long enough for a beat, or nothing at all can be heard.
      const awake = spans.map((span) => ({ ...span, runMs: span.runMs + 2 * INTERVAL }));
      const starts = awake.map((_, at) => total(awake.slice(0, at)));
      const isHeard = (atMs: number) =>
        awake.some(({ runMs }, at) => atMs >= starts[at]! && atMs <= starts[at]! + runMs);
      const called = run(awake, beats(delays, total(awake)).filter(isHeard));
      assertEquals(called.find(({ state }) => state === "lost"), undefined);
    }),
    { numRuns: 500 },
  );
});

Deno.test("HeartbeatDetector loses a silent peer within the timeout and an interval, and not before the timeout", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 3000 }),
      delays,
      fc.array(fc.integer({ min: 0, max: INTERVAL }), { minLength: 1, maxLength: 50 }),
      (lastMs, delays, late) => {
        const arrivals = beats(delays, lastMs);
        let at = 0;
        const called = run(
          [{ runMs: lastMs + 3 * TIMEOUT, stallMs: 1 }],
          arrivals,
          () => late[at++ % late.length]!,
        );
        const silentFromMs = arrivals.at(-1) ?? 0;
        const found = called.find(({ state }) => state === "lost");
        assert(found !== undefined, "not found lost");
        const afterMs = found.atMs - silentFromMs;
        assert(afterMs >= TIMEOUT && afterMs <= TIMEOUT + INTERVAL, `found after ${afterMs} ms`);
      },
    ),
    { numRuns: 500 },
  );
});

Deno.test("HeartbeatDetector grants a fresh chance after each stall, and its deadline lies as late as the stall was long", () => {
  let lost = 0;
  fc.assert(
    fc.property(fc.array(span, { minLength: 1, maxLength: 40, size: "max" }), (spans) => {
      const called = run(spans, []);
      const at = called.findIndex(({ state }) => state === "lost");
      if (at === -1) return;
      lost++;
      const foundMs = called[at]!.atMs;
      let stalledMs = 0;
      for (let call = 1; call <= at; call++) {
        const gapMs = called[call]!.atMs - called[call - 1]!.atMs;
        if (gapMs <= STALL) continue;
        stalledMs += gapMs - INTERVAL;
        const listenedMs = foundMs - called[call]!.atMs;
        assert(listenedMs >= FRESH_CHANCE_MS, `condemned after ${listenedMs} ms`);
      }
      assert(foundMs >= TIMEOUT + stalledMs);
      // Once lost, a peer that says nothing stays so.
      assert(called.slice(at).every(({ state }) => state === "lost"));
    }),
    { numRuns: 500 },
  );
  assert(lost > 100, `only ${lost} lost`);
});

Deno.test("HeartbeatDetector says the same at whatever time its clock began", () => {
  fc.assert(
    fc.property(
      fc.array(span, { maxLength: 20 }),
      delays,
      fc.integer({ min: 1, max: 2 ** 40 }),
      (spans, delays, startMs) => {
        const arrivals = beats(delays, total(spans) / 2);
        const shifted = run(spans, arrivals.map((atMs) => atMs + startMs), () => 0, startMs);
        assertEquals(
          shifted.map(({ atMs, state }) => ({ atMs: atMs - startMs, state })),
          run(spans, arrivals),
        );
      },
    ),
  );
});

Deno.test("HeartbeatDetector knows that its peer has heard nothing for the timeout, whatever was heard", () => {
  const detector = new HeartbeatDetector({ intervalMs: INTERVAL, timeoutMs: TIMEOUT }, 0);
  detector.sent(0);
  assertEquals(detector.isUnheard(TIMEOUT - 1), false);
  // It stood still, and finds what the peer has said before.
  detector.heard(TIMEOUT);
  assertEquals(detector.isUnheard(TIMEOUT), true);
  assertEquals(detector.tick(TIMEOUT), "alive");
  assertEquals(detector.isUnheard(TIMEOUT), true);
  detector.sent(TIMEOUT);
  assertEquals(detector.isUnheard(TIMEOUT), false);
});
