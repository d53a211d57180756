import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { ImageReplica } from "../../engine/checkpoint/image_replica.ts";
import { LiveReplica } from "../../engine/checkpoint/live_replica.ts";
import { StateError, StreamError, WireError } from "../../engine/errors.ts";
import { type PrimaryEvent, PrimaryMachine } from "../../engine/failover/primary.ts";
import {
  PRIMARY_TRANSITIONS,
  type PrimaryPhase,
} from "../../engine/failover/primary_transitions.ts";
import { type SecondaryEvent, SecondaryMachine } from "../../engine/failover/secondary.ts";
import {
  IMAGE_TRANSITIONS,
  LIVE_TRANSITIONS,
  type SecondaryPhase,
} from "../../engine/failover/secondary_transitions.ts";
import { type Reaction, reactionTo, type Transitions } from "../../engine/failover/transitions.ts";
import { pong, shut } from "../../engine/stream/return_path.ts";
import { coloMessage } from "../../engine/stream/writer.ts";
import { diagramOf } from "../life_cycles.ts";
import { BLOCKS, concat, device, MACHINE, records } from "../stream/sample.ts";

/** A machine that lives by a table. */
interface Life<Phase extends string, Event extends { readonly type: string }> {
  readonly transitions: Transitions<Phase, Event["type"]>;
  create(): {
    readonly phase: Phase;
    step(event: Event): readonly { readonly type: string; readonly phase?: unknown }[];
  };
  /** Ways into each phase: one for each thing that conditions ask for. */
  readonly ways: Readonly<Record<Phase, readonly (readonly Event[])[]>>;
  /** All events, some with several contents. */
  readonly events: readonly Event[];
}

/** Events whose content may be no good, which is the peer's fault or QEMU's. */
const CONTENTS = ["seed-begin", "pages", "device-state", "commit", "qemu-answer", "refused"];

/**
 * Give a machine one event, which must lead where its table says.
 *
 * @returns The arrow that it went along; nothing when it was refused or ignored
 */
function walk<Phase extends string, Event extends { readonly type: string }>(
  { transitions }: Life<Phase, Event>,
  machine: ReturnType<Life<Phase, Event>["create"]>,
  event: Event,
): string | undefined {
  const from = machine.phase;
  const reaction = reactionTo(transitions, from, event.type as Event["type"]);
  const label = `${event.type} while ${from}`;
  let effects: ReturnType<typeof machine.step>;
  try {
    effects = machine.step(event);
  } catch (error) {
    assertEquals(machine.phase, from, label);
    const expected = reaction === "impossible" ? StateError : WireError;
    if (reaction === "impossible" || reaction === "forbidden") {
      assert(error instanceof expected, `${label}: ${error}`);
      assert(
        String(error).includes(`Cannot take ${label.replace("while", "the")}`) ||
          String(error).includes(`Cannot take ${event.type}: the`),
        `${label}: ${error}`,
      );
      return undefined;
    }
    assert(CONTENTS.includes(event.type), `${label}: ${error}`);
    assert(error instanceof WireError || error instanceof StreamError, `${label}: ${error}`);
    return undefined;
  }
  const to = machine.phase;
  assert(reaction !== "impossible" && reaction !== "forbidden", `${label} was not refused`);
  if (reaction === "ignored") {
    assertEquals([to, effects], [from, []], label);
    return undefined;
  }
  assert(phasesBehind(from, reaction).includes(to), `${label}: ${to} is not in its table`);
  const reports = effects.filter(({ type }) => type === "report").map(({ phase }) => phase);
  if (to !== from) assertEquals(reports, [to], `${label}: every change of phase is a report, once`);
  return `${from} ${event.type} ${to}`;
}

/** The phases that a machine may be in behind an event that it takes. */
function phasesBehind<Phase extends string>(from: Phase, reaction: Reaction<Phase>): string[] {
  if (reaction === "stays") return [from];
  return typeof reaction === "string" ? [reaction] : Object.keys(reaction);
}

/** The arrows of a table, as {@linkcode walk} names them. */
function arrowsOf<Phase extends string, Event extends string>(
  transitions: Transitions<Phase, Event>,
): string[] {
  return transitions.phases.flatMap((from) =>
    (Object.keys(transitions.rows) as Event[]).flatMap((event) => {
      const reaction = reactionTo(transitions, from, event);
      if (reaction === "impossible" || reaction === "forbidden" || reaction === "ignored") {
        return [];
      }
      return phasesBehind(from, reaction).map((to) => `${from} ${event} ${to}`);
    })
  );
}

function machineIn<Phase extends string, Event extends { readonly type: string }>(
  life: Life<Phase, Event>,
  phase: Phase,
  way: number,
) {
  const machine = life.create();
  const ways = life.ways[phase];
  for (const event of ways[way % ways.length]!) machine.step(event);
  assertEquals(machine.phase, phase);
  return machine;
}

/** @param lives That have one table between them */
function walkAll<Phase extends string, Event extends { readonly type: string }>(
  ...lives: readonly [Life<Phase, Event>, ...Life<Phase, Event>[]]
): void {
  const [{ transitions }] = lives;
  const walked = new Set<string>();
  for (const life of lives) {
    const { ways, events } = life;
    assertEquals(new Set(events.map(({ type }) => type)), new Set(Object.keys(transitions.rows)));
    for (const phase of transitions.phases) {
      for (const way of ways[phase].keys()) {
        for (const event of events) {
          const arrow = walk(life, machineIn(life, phase, way), event);
          if (arrow !== undefined) walked.add(arrow);
        }
      }
    }
  }
  const never = arrowsOf(transitions).filter((arrow) => !walked.has(arrow) && !isRefused(arrow));
  assertEquals(never, [], "no event leads along these arrows");
}

/** `refused` is always the peer's fault. */
function isRefused(arrow: string): boolean {
  return arrow.includes(" refused ");
}

function wander<Phase extends string, Event extends { readonly type: string }>(
  life: Life<Phase, Event>,
): void {
  const { transitions: { phases }, events } = life;
  fc.assert(
    fc.property(
      fc.constantFrom(...phases.slice(0, -1)),
      fc.nat(10),
      fc.array(fc.constantFrom(...events), { maxLength: 60, size: "max" }),
      (phase, way, events) => {
        const machine = machineIn(life, phase, way);
        for (const event of events) walk(life, machine, event);
      },
    ),
    { numRuns: 1000 },
  );
}

const P = {
  initial: { type: "initial" },
  ready: { type: "replica-ready" },
  sent: { type: "seed-sent", epoch: 1 },
  request: { type: "request" },
  whole: { type: "whole", epoch: 2 },
  loaded: { type: "loaded", epoch: 2 },
  gone: { type: "replica-lost", reason: "gone" },
  broken: { type: "capture-lost", reason: "broken" },
  died: { type: "qemu-lost", reason: "killed" },
  revivable: { type: "qemu-lost", reason: "killed", revivable: true },
} as const satisfies Record<string, PrimaryEvent>;

const JOINING = [P.initial, P.ready, P.sent];
const ENTRUSTED = [...JOINING, P.request, P.whole];

const PRIMARY: Life<PrimaryPhase, PrimaryEvent> = {
  transitions: PRIMARY_TRANSITIONS,
  create: () => {
    const machine = new PrimaryMachine({ periodMs: 500, minIntervalMs: 50 }, 0);
    return {
      get phase() {
        return machine.phase;
      },
      step: (event) => machine.step(event, 0),
    };
  },
  ways: {
    starting: [[]],
    alone: [[P.initial], [P.initial, P.request]],
    seeding: [[P.initial, P.ready]],
    joining: [JOINING, ENTRUSTED],
    protected: [[...ENTRUSTED, P.loaded]],
    deciding: [[...ENTRUSTED, P.gone], [...ENTRUSTED, P.broken]],
    unattended: [[P.initial, P.broken]],
    reviving: [[P.initial, P.revivable]],
    ended: [[P.died]],
  },
  events: [
    ...Object.values(P),
    { type: "seed-pass", missingPages: 1 },
    { type: "encoded" },
    { type: "committed", epoch: 1 },
    { type: "loaded", epoch: 1 },
    { type: "granted" },
    { type: "stale", reason: "another's" },
    { type: "demand" },
    { type: "hold" },
    { type: "release" },
    { type: "paused", pauseMs: 10 },
    { type: "tick" },
    { type: "guest-ended", reason: "off" },
    { type: "revived" },
  ],
};

const DEVICE_STATE = concat(device(Uint8Array.of(1, 2, 3)), Uint8Array.of(0));
const TOTALS = {
  pagesFrames: 0,
  pageBytes: 0,
  deviceStateBytes: DEVICE_STATE.length,
  load: true,
};

const S = {
  ready: { type: "qemu-ready" },
  up: { type: "link-up" },
  cut: { type: "link-lost", reason: "cut" },
  begin: {
    type: "seed-begin",
    seed: { lineage: "l", resumes: false, machine: MACHINE, blocks: BLOCKS, ramSectionId: 2 },
  },
  resume: {
    type: "seed-begin",
    seed: { lineage: "l", resumes: true, machine: MACHINE, blocks: BLOCKS, ramSectionId: 2 },
  },
  state: { type: "device-state", piece: DEVICE_STATE },
  commit: { type: "commit", epoch: 1, commit: TOTALS },
  lost: { type: "primary-lost", reason: "killed" },
  granted: { type: "granted" },
  undecided: { type: "undecided", reason: "ask" },
  promoted: { type: "promoted" },
  bye: { type: "goodbye", reason: "off" },
  recovered: { type: "recovered", held: { lineage: "l", epoch: 9 } },
  stored: { type: "stored", epoch: 1 },
  applied: { type: "applied", epoch: 1 },
  standby: { type: "standby-ready" },
  prepared: { type: "prepared" },
  settled: { type: "disks-settled" },
  full: { type: "load-held" },
  pong: { type: "qemu-answer", bytes: pong(1) },
  loaded: {
    type: "qemu-answer",
    bytes: concat(pong(1), shut(), coloMessage("checkpoint-ready")),
  },
  reply: { type: "qemu-answer", bytes: coloMessage("checkpoint-reply") },
} as const satisfies Record<string, SecondaryEvent>;

const SECONDARY_EVENTS: readonly SecondaryEvent[] = [
  ...Object.values(S),
  { type: "pages", chunk: records([{ block: 0, page: 1, fill: 1 }]) },
  { type: "seed-anew" },
  { type: "refused", reason: "no records", offset: 0 },
  { type: "take-over", reason: "ordered" },
  { type: "stale", reason: "another's" },
  { type: "qemu-lost", reason: "died" },
];

/** Ways from what leads to `waiting` and `protecting`, and what begins a load: the two kinds differ. */
function secondaryWays(
  waiting: readonly SecondaryEvent[],
  loaded: readonly SecondaryEvent[],
  begun: readonly SecondaryEvent[],
  seedSuffices = true,
): Life<SecondaryPhase, SecondaryEvent>["ways"] {
  const seeding = [...waiting, S.up, S.begin];
  const whole = [...seeding, S.state, S.commit];
  const protecting = [...whole, ...loaded];
  // Once the device state of the next checkpoint is there, it can be committed.
  const entitled = [...protecting, S.state, { ...S.commit, epoch: 2 }];
  const loading = [...entitled, ...begun];
  const able = seedSuffices ? protecting : entitled;
  const resuming = seedSuffices ? [[...protecting, S.cut, S.up, S.resume]] : [];
  const taking = [...able, S.lost, S.granted];
  return {
    starting: [[]],
    waiting: [waiting, [...waiting, S.up]],
    seeding: [
      seeding,
      whole,
      [...seeding, S.state],
      [...whole, ...loaded.slice(0, -1)],
      ...resuming,
    ],
    protecting: [protecting, loading, [...protecting, S.state]],
    deciding: [[...able, S.lost], [...loading, S.lost]],
    orphaned: [[...protecting, S.cut], [...loading, S.lost, S.undecided]],
    "taking-over": [taking, [...loading, S.lost, S.granted]],
    promoted: [[...taking, S.promoted]],
    ended: [[S.bye]],
  };
}

const LIVE: Life<SecondaryPhase, SecondaryEvent> = {
  transitions: LIVE_TRANSITIONS,
  create: () => new SecondaryMachine(() => new LiveReplica()),
  ways: secondaryWays([S.ready], [S.settled, S.loaded], [S.prepared]),
  events: SECONDARY_EVENTS,
};

/** Its VM has disks, which have gone on since the seed. */
const LIVE_WITH_DISKS: Life<SecondaryPhase, SecondaryEvent> = {
  ...LIVE,
  create: () => new SecondaryMachine(() => new LiveReplica(), false),
  ways: secondaryWays([S.ready], [S.settled, S.loaded], [S.prepared], false),
};

const IMAGE_WAYS = secondaryWays([S.ready], [S.stored, S.applied, S.standby], []);
const HOLDING = [S.recovered, S.ready];

const IMAGE: Life<SecondaryPhase, SecondaryEvent> = {
  transitions: IMAGE_TRANSITIONS,
  create: () => new SecondaryMachine(() => new ImageReplica()),
  ways: {
    ...IMAGE_WAYS,
    starting: [[], [S.recovered]],
    seeding: [
      ...IMAGE_WAYS.seeding,
      [...HOLDING, S.up, S.begin],
      [...HOLDING, S.up, S.begin, S.state],
      [S.ready, S.up, S.begin, S.state, S.commit, S.stored, S.standby],
    ],
    orphaned: [...IMAGE_WAYS.orphaned, HOLDING],
  },
  events: SECONDARY_EVENTS,
};

const IMAGE_WITH_DISKS: Life<SecondaryPhase, SecondaryEvent> = {
  ...IMAGE,
  create: () => new SecondaryMachine(() => new ImageReplica(), false),
  ways: {
    ...IMAGE.ways,
    ...secondaryWays([S.ready], [S.stored, S.applied, S.standby], [], false),
  },
};

Deno.test("PrimaryMachine does in every phase what its table says", () => walkAll(PRIMARY));
Deno.test("PrimaryMachine goes along the arrows of its table, whatever comes", () =>
  wander(PRIMARY));
Deno.test("SecondaryMachine with a live VM does in every phase what its table says", () =>
  walkAll(LIVE, LIVE_WITH_DISKS));
Deno.test("SecondaryMachine with a live VM goes along the arrows of its table, whatever comes", () =>
  [LIVE, LIVE_WITH_DISKS].forEach(wander));
Deno.test("SecondaryMachine with an image does in every phase what its table says", () =>
  walkAll(IMAGE, IMAGE_WITH_DISKS));
Deno.test("SecondaryMachine with an image goes along the arrows of its table, whatever comes", () =>
  [IMAGE, IMAGE_WITH_DISKS].forEach(wander));

Deno.test("PrimaryMachine believes no secondary that says it has loaded what it was not sent", () => {
  const machine = PRIMARY.create();
  for (const event of JOINING) machine.step(event);
  assertEquals(machine.step(P.loaded), []);
  assertEquals(machine.phase, "joining");
});

Deno.test("diagramOf() draws what leads to a phase from all others once, and other arrows as they are", () => {
  const transitions: Transitions<"on" | "half-on" | "off", "dim" | "switch" | "tick"> = {
    phases: ["on", "half-on", "off"],
    rows: {
      dim: { on: { on: "the lamp cannot", "half-on": "it can" }, otherwise: "ignored" },
      switch: { otherwise: "off" },
      tick: { "half-on": "on", otherwise: "stays" },
    },
  };
  assertEquals(
    diagramOf(transitions),
    `stateDiagram-v2
  state "any phase" as any {
    state "half-on" as half_on
    [*] --> on
    on --> half_on: dim (it can)
    half_on --> on: tick
  }
  any --> off: switch`,
  );
});
