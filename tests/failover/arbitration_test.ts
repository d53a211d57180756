import fc from "fast-check";
import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { StateError } from "../../engine/errors.ts";
import {
  type ArbiterAnswer,
  type ArbitrationEffect,
  type ArbitrationEvent,
  ArbitrationMachine,
  type ArbitrationRules,
  type PeerState,
} from "../../engine/failover/arbitration.ts";

const LEASE_MS = 4000;

function machineWith(rules: Partial<ArbitrationRules> = {}): ArbitrationMachine {
  return new ArbitrationMachine({
    holder: "a",
    leaseMs: LEASE_MS,
    hasThirdParty: true,
    hasFence: false,
    ...rules,
  });
}

const CLAIM = { type: "claim", evidence: "silent", standing: "pair" } as const;

function types(effects: readonly ArbitrationEffect[]): string[] {
  return effects.map((effect) => effect.type === "ask" ? effect.call.type : effect.type);
}

function answer(answer: ArbiterAnswer): ArbitrationEvent {
  return { type: "answer", answer };
}

Deno.test("ArbitrationMachine asks for the generation that it has a share in, whatever is learned meanwhile", () => {
  const machine = machineWith();
  machine.step({ type: "share", owner: { generation: 4, holder: "b" } }, 0);
  assertEquals(types(machine.step(answer({ type: "done" }), 1)), ["shared", "wake", "prepare"]);
  machine.step(answer({ type: "owner", owner: { generation: 9, holder: "b" } }), 2);
  const claimed = machine.step(CLAIM, 3).find(({ type }) => type === "ask");
  assertEquals(claimed, {
    type: "ask",
    call: {
      type: "claim",
      claim: { generation: 4, holder: "a", standing: "pair", evidence: "silent" },
    },
  });
});

Deno.test("ArbitrationMachine looks up what a claim from outside the pair is for", () => {
  const machine = machineWith();
  const outside = { ...CLAIM, standing: "outside" } as const;
  assertEquals(types(machine.step(outside, 0)), ["prepare"]);
  const owner = { generation: 6, holder: "b" };
  const [claimed] = machine.step(answer({ type: "owner", owner }), 1);
  assert(claimed?.type === "ask" && claimed.call.type === "claim");
  assertEquals(claimed.call.claim.generation, 6);
});

Deno.test("ArbitrationMachine renews no lease that was replaced while its renewal waited", () => {
  const machine = machineWith();
  machine.step({ type: "begin", wasRunning: false }, 0);
  machine.step(answer({ type: "owner", owner: undefined }), 0);
  machine.step({ type: "peer", peer: { type: "silent" } }, 0);
  machine.step(answer({ type: "granted", generation: 1, renewedMs: 0 }), 0);
  assertEquals(types(machine.step(CLAIM, 10)), ["wake", "claim"]);
  assertEquals(types(machine.step({ type: "tick" }, 1100)), ["wake"]);
  const granted = answer({ type: "granted", generation: 2, renewedMs: 1000 });
  assertEquals(types(machine.step(granted, 1200)), ["decided", "wake"]);
  const [renewal] = machine.step({ type: "tick" }, 2000).filter(({ type }) => type === "ask");
  assertEquals(renewal, {
    type: "ask",
    call: { type: "renew", own: { generation: 2, holder: "a" } },
  });
});

Deno.test("ArbitrationMachine has no claim made again that nobody wants", () => {
  const waits = machineWith();
  waits.step(CLAIM, 0);
  waits.step(answer({ type: "unreachable", reason: "down" }), 1);
  const [decided] = waits.step({ type: "withdraw" }, 2);
  assert(decided?.type === "decided" && decided.verdict.type === "undecided");
  const gone = machineWith();
  gone.step(CLAIM, 0);
  gone.step({ type: "withdraw" }, 1);
  const after = gone.step(answer({ type: "unreachable", reason: "down" }), 2);
  assertEquals(types(after), ["decided"]);
});

Deno.test("ArbitrationMachine gives back what is granted for a VM that is gone", () => {
  const machine = machineWith();
  machine.step({ type: "share", owner: { generation: 4, holder: "b" } }, 0);
  machine.step(answer({ type: "done" }), 0);
  machine.step(answer({ type: "owner", owner: { generation: 4, holder: "b" } }), 0);
  machine.step(CLAIM, 1);
  assertEquals(types(machine.step({ type: "withdraw" }, 2)), ["wake"]);
  const effects = machine.step(answer({ type: "granted", generation: 5, renewedMs: 1 }), 3);
  assertEquals(types(effects), ["decided", "release"]);
  const [decided] = effects;
  assert(decided?.type === "decided" && decided.verdict.type === "undecided");
  assertEquals(machine.generation, 0, "it has a share in a VM that it does not have");
  assertEquals(types(machine.step({ type: "tick" }, LEASE_MS)), [], "it renews what it gave back");
  // It ends when that has been said.
  assertEquals(types(machine.step({ type: "close" }, LEASE_MS)), []);
  assertEquals(types(machine.step(answer({ type: "done" }), LEASE_MS)), ["closed"]);
});

Deno.test("ArbitrationMachine lets a VM run on whose lease had ended when it is granted another", () => {
  const machine = machineWith();
  machine.step({ type: "begin", wasRunning: false }, 0);
  machine.step(answer({ type: "owner", owner: undefined }), 0);
  machine.step({ type: "peer", peer: { type: "silent" } }, 0);
  machine.step(answer({ type: "granted", generation: 1, renewedMs: 0 }), 0);
  assertEquals(machine.holds(LEASE_MS), false);
  assertEquals(types(machine.step({ type: "tick" }, LEASE_MS)).includes("pause"), true);
  assertEquals(types(machine.step(CLAIM, LEASE_MS + 1)).includes("claim"), true);
  const granted = answer({ type: "granted", generation: 2, renewedMs: LEASE_MS + 1 });
  const effects = types(machine.step(granted, LEASE_MS + 2));
  assertEquals(effects.filter((type) => type !== "wake"), ["resume", "decided"]);
  assertEquals(machine.holds(LEASE_MS + 2), true);
});

Deno.test("ArbitrationMachine begins no VM that runs while the other side may be ending its host", () => {
  const rules = { hasThirdParty: false, hasFence: true };
  const begin = (peers: readonly PeerState[]) => {
    const machine = machineWith(rules);
    machine.step({ type: "begin", wasRunning: true }, 0);
    const said = types(
      machine.step(answer({ type: "owner", owner: { generation: 3, holder: "a" } }), 0),
    );
    assertEquals([said, machine.generation], [["ask-peer"], 3], "it asks by its generation");
    let nowMs = 0;
    let effects: string[] = [];
    for (const peer of peers) {
      effects = types(machine.step({ type: "peer", peer }, nowMs));
      nowMs += 1000;
      if (peer.type === "busy") {
        assertEquals(types(machine.step({ type: "tick" }, nowMs)), ["ask-peer"]);
      }
    }
    return { machine, effects };
  };
  const busy = { type: "busy", reason: "it is being decided who runs the VM" } as const;
  assertEquals(begin([busy, busy, { type: "idle" }]).effects, ["claim"]);
  const runs = { type: "runs", reason: "it has taken it over" } as const;
  assertEquals(begin([busy, runs]).effects, ["refused"]);
  const { machine, effects } = begin([{ type: "silent" }]);
  assertEquals(effects, ["switch-off"]);
  assertEquals(types(machine.step({ type: "switched-off" }, 5)), ["claim"]);
});

Deno.test("ArbitrationMachine lets the other side go first with its fence, and gives up with what it was for", () => {
  const rules = { hasThirdParty: false, hasFence: true };
  const waits = machineWith(rules);
  assertEquals(waits.step({ ...CLAIM, yieldsMs: 5000 }, 0), [{ type: "wake", atMs: 5000 }]);
  assertEquals(types(waits.step({ type: "tick" }, 4999)), ["wake"]);
  assertEquals(types(waits.step({ type: "tick" }, 5000)), ["switch-off"]);
  assertEquals(waits.wantsFence, true);
  assertEquals(types(waits.step({ type: "withdraw" }, 5001)), ["decided"]);
  assertEquals(waits.wantsFence, false);
  // The loser of a claim, which comes back before the device has answered.
  const winner = machineWith({ hasFence: true });
  winner.step(CLAIM, 0);
  winner.step(answer({ type: "granted", generation: 1, renewedMs: 0 }), 1);
  assertEquals(winner.wantsFence, true);
  winner.step({ type: "peer-back" }, 2);
  assertEquals(winner.wantsFence, false);
});

Deno.test("ArbitrationMachine starts no VM anew whose other host is silent, unless the operator knows better", () => {
  const begin = (
    wasRunning: boolean,
    isOrdered: boolean,
    owner = { generation: 3, holder: "a" },
  ) => {
    const machine = machineWith({ hasThirdParty: false });
    machine.step({ type: "begin", wasRunning, isOrdered }, 0);
    machine.step(answer({ type: "owner", owner: owner.generation === 0 ? undefined : owner }), 0);
    return types(machine.step({ type: "peer", peer: { type: "silent" } }, 1));
  };
  assertEquals(begin(false, false), ["refused"]);
  assertEquals(begin(false, true), ["claim"]);
  assertEquals(begin(true, false), ["claim"], "one that runs is taken over from by nobody");
  assertEquals(
    begin(false, false, { generation: 0, holder: "" }),
    ["claim"],
    "it never ran before",
  );
});

const owners = fc.record({
  generation: fc.integer({ min: 1, max: 9 }),
  holder: fc.constantFrom("a", "b"),
});

const reason = fc.constant("reason");

/** What each call may be answered with. */
const ANSWERS: Record<string, fc.Arbitrary<ArbiterAnswer>> = {
  prepare: fc.oneof(
    fc.record({
      type: fc.constant("owner" as const),
      owner: fc.option(owners, { nil: undefined }),
    }),
    fc.record({ type: fc.constant("unreachable" as const), reason }),
  ),
  claim: fc.oneof(
    fc.record({
      type: fc.constant("granted" as const),
      generation: fc.integer({ min: 1, max: 9 }),
      renewedMs: fc.option(fc.constant(-1), { nil: undefined }),
    }),
    owners.map((owner) => ({ type: "held" as const, ...owner })),
    owners.map((owner) => ({ type: "stale" as const, ...owner })),
    fc.record({ type: fc.constantFrom("unreachable" as const, "ask" as const), reason }),
  ),
  renew: fc.oneof(
    fc.record({
      type: fc.constant("renewed" as const),
      renewedMs: fc.option(fc.constant(-1), { nil: undefined }),
    }),
    owners.map((owner) => ({ type: "stale" as const, ...owner })),
    fc.record({ type: fc.constantFrom("unreachable" as const, "ask" as const), reason }),
  ),
  learn: fc.constant({ type: "done" }),
  release: fc.constant({ type: "done" }),
};

Deno.test("ArbitrationMachine asks one thing at a time, decides each claim once, and ends", () => {
  const steps = fc.array(
    fc.record({
      what: fc.constantFrom("share", "claim", "withdraw", "answer", "answer", "tick", "off"),
      waitMs: fc.integer({ min: 0, max: 2000 }),
      owner: owners,
      evidence: fc.constantFrom("silent" as const, "reported" as const, "ordered" as const),
      standing: fc.constantFrom("pair" as const, "outside" as const),
      answers: fc.record(ANSWERS),
    }),
    { maxLength: 60 },
  );
  const rules = { hasThirdParty: fc.boolean(), hasFence: fc.boolean() };
  fc.assert(fc.property(fc.record(rules), steps, ({ hasThirdParty, hasFence }, steps) => {
    const machine = machineWith({ hasThirdParty, hasFence });
    let [asked, nowMs, claims, verdicts, isPaused]: [
      string | undefined,
      number,
      number,
      number,
      boolean,
    ] = [undefined, 0, 0, 0, false];
    const take = (effects: readonly ArbitrationEffect[]) => {
      for (const effect of effects) {
        switch (effect.type) {
          case "ask":
            assertEquals(asked, undefined, "two calls at a time");
            asked = effect.call.type;
            break;
          case "decided":
            verdicts++;
            break;
          case "pause":
          case "resume":
            assertEquals(isPaused, effect.type === "resume", "said twice");
            isPaused = !isPaused;
            break;
          case "wake":
            assert(!Number.isNaN(effect.atMs));
        }
      }
    };
    const answerCall = (answers: Record<string, ArbiterAnswer>) => {
      if (asked === undefined) return;
      const given = answers[asked]!;
      asked = undefined;
      const sent = "renewedMs" in given && given.renewedMs !== undefined
        ? { ...given, renewedMs: nowMs }
        : given;
      take(machine.step(answer(sent), nowMs));
    };
    for (const { what, waitMs, owner, evidence, standing, answers } of steps) {
      nowMs += waitMs;
      const { isClaiming } = machine;
      switch (what) {
        case "share":
          take(machine.step({ type: "share", owner }, nowMs));
          break;
        case "claim":
          if (isClaiming) {
            assertThrows(
              () => machine.step({ type: "claim", evidence, standing }, nowMs),
              StateError,
            );
          } else {
            claims++;
            take(machine.step({ type: "claim", evidence, standing }, nowMs));
          }
          break;
        case "withdraw":
          take(machine.step({ type: "withdraw" }, nowMs));
          break;
        case "answer":
          answerCall(answers);
          break;
        case "tick":
          take(machine.step({ type: "tick" }, nowMs));
          break;
        case "off":
          take(machine.step({ type: "switched-off" }, nowMs));
      }
      assertEquals(verdicts, claims - (machine.isClaiming ? 1 : 0));
    }
    take(machine.step({ type: "close" }, nowMs));
    assertEquals([verdicts, machine.isClaiming], [claims, false]);
    for (const { answers } of steps.slice(0, 2)) answerCall(answers);
    assertEquals(asked, steps.length < 2 ? asked : undefined, "it goes on asking");
    assertEquals(machine.step({ type: "tick" }, nowMs + LEASE_MS), []);
  }));
});
