import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { LiveReplica } from "../../engine/checkpoint/live_replica.ts";
import { ColoError, StreamError, WireError } from "../../engine/errors.ts";
import {
  type SecondaryEffect,
  type SecondaryEvent,
  SecondaryMachine,
  type SecondaryPhase,
} from "../../engine/failover/secondary.ts";
import { IN_FLIGHT_MAX, PAGE_BYTES } from "../../engine/limits.ts";
import type { CommitPayload } from "../../engine/link/messages.ts";
import { pong, shut } from "../../engine/stream/return_path.ts";
import { coloMessage } from "../../engine/stream/writer.ts";
import {
  BLOCKS,
  concat,
  device,
  MACHINE,
  pageContent,
  records,
  type SamplePage,
} from "../stream/sample.ts";
import { ModelSecondary } from "./model_secondary.ts";

const DEVICE_STATE = concat(device(Uint8Array.of(1, 2, 3)), Uint8Array.of(0));
const SEED = { lineage: "l", resumes: false, machine: MACHINE, blocks: BLOCKS, ramSectionId: 2 };
const EMPTY_TOTALS = {
  pagesFrames: 0,
  pageBytes: 0,
  deviceStateBytes: DEVICE_STATE.length,
  load: true,
};

const EVENTS: Readonly<Record<SecondaryEvent["type"], SecondaryEvent>> = {
  "qemu-ready": { type: "qemu-ready" },
  "link-up": { type: "link-up" },
  "link-lost": { type: "link-lost", reason: "cut" },
  "seed-begin": { type: "seed-begin", seed: SEED },
  "seed-anew": { type: "seed-anew" },
  "pages": { type: "pages", chunk: records([{ block: 0, page: 1, fill: 1 }]) },
  "device-state": { type: "device-state", piece: DEVICE_STATE },
  "commit": { type: "commit", epoch: 1, commit: EMPTY_TOTALS },
  "prepared": { type: "prepared" },
  "disks-settled": { type: "disks-settled" },
  "load-held": { type: "load-held" },
  "qemu-answer": { type: "qemu-answer", bytes: concat(pong(1), shut()) },
  "recovered": { type: "recovered", held: undefined },
  "standby-ready": { type: "standby-ready" },
  "stored": { type: "stored", epoch: 1 },
  "applied": { type: "applied", epoch: 1 },
  "refused": { type: "refused", reason: "no records", offset: 0 },
  "primary-lost": { type: "primary-lost", reason: "killed" },
  "take-over": { type: "take-over", reason: "ordered" },
  "granted": { type: "granted" },
  "stale": { type: "stale", reason: "another's" },
  "undecided": { type: "undecided", reason: "ask" },
  "promoted": { type: "promoted" },
  "goodbye": { type: "goodbye", reason: "off" },
  "qemu-lost": { type: "qemu-lost", reason: "died" },
};

const READY: SecondaryEvent = {
  type: "qemu-answer",
  bytes: concat(pong(1), shut(), coloMessage("checkpoint-ready")),
};

const TO_SEEDING = [EVENTS["qemu-ready"], EVENTS["link-up"], EVENTS["seed-begin"]];
const TO_PROTECTING = [
  ...TO_SEEDING,
  EVENTS["device-state"],
  EVENTS.commit,
  EVENTS["disks-settled"],
  READY,
];

/** How to get into each phase. */
const WAYS: Readonly<Record<SecondaryPhase, readonly SecondaryEvent[]>> = {
  "starting": [],
  "waiting": [EVENTS["qemu-ready"]],
  "seeding": TO_SEEDING,
  "protecting": TO_PROTECTING,
  "orphaned": [...TO_PROTECTING, EVENTS["link-lost"]],
  "deciding": [...TO_PROTECTING, EVENTS["primary-lost"]],
  "taking-over": [...TO_PROTECTING, EVENTS["primary-lost"], EVENTS.granted],
  "promoted": [...TO_PROTECTING, EVENTS["primary-lost"], EVENTS.granted, EVENTS.promoted],
  "ended": [EVENTS.goodbye],
};

/**
 * What each event leads to in each phase: `!` cannot happen, `wire` the peer must not say it, `-` nothing,
 * else the effects in their order; `>phase` is the report of a new phase. The secondary is linked from
 * `seeding` on.
 */
const TABLE = `
               starting     waiting         seeding            protecting            orphaned           deciding              taking-over  promoted  ended
qemu-ready     >waiting     !               !                  !                     !                  !                     !            !         -
link-up        -            ready           !                  !                     ready              -                     -            -         -
link-lost      -            -               >starting,restart  >orphaned             -                  -                     -            -         -
seed-begin     wire         >seeding,write  wire               wire                  wire               -                     -            -         -
seed-anew      wire         wire            wire               wire                  >starting,restart  -                     -            -         -
pages          wire         wire            write              -                     wire               -                     -            -         -
device-state   wire         wire            -                  -                     wire               -                     -            -         -
commit         wire         wire            wire               wire                  wire               -                     -            -         -
prepared       -            -               -                  -                     -                  -                     -            -         -
disks-settled  -            -               -                  -                     -                  -                     -            -         -
load-held      -            -               -                  -                     -                  -                     -            -         -
primary-lost   -            -               >starting,restart  >deciding,claim       >deciding,claim    -                     -            -         -
take-over      !            !               !                  >deciding,claim       >deciding,claim    !                     !            !         -
granted        -            -               -                  -                     -                  >taking-over,takeover -            -         -
stale          -            -               -                  -                     -                  >orphaned             -            -         -
undecided      -            -               -                  -                     -                  >orphaned             -            -         -
promoted       !            !               !                  !                     !                  !                     >promoted    !         -
recovered      !            !               !                  !                     !                  !                     !            !         -
standby-ready  !            !               !                  !                     !                  !                     !            !         -
stored         !            !               !                  !                     !                  !                     !            !         -
applied        !            !               !                  !                     !                  !                     !            !         -
refused        !            !               !                  !                     !                  !                     !            !         -
goodbye        >ended       >ended          >ended             >ended                >ended             -                     -            -         -
qemu-lost      >starting,restart >starting,restart failed,>starting,restart failed,>starting,restart >starting,restart failed,>starting,restart >ended >ended -
`;

const SHORT: Readonly<Record<string, string>> = {
  "tell-ready": "ready",
  "tell-failed": "failed",
  "restart-qemu": "restart",
  "take-over": "takeover",
};

function describe(effects: readonly SecondaryEffect[]): string {
  const words = effects.map((effect) =>
    effect.type === "report" ? `>${effect.phase}` : effect.type
  );
  return words.map((word) => SHORT[word] ?? word).join(",") || "-";
}

function machineIn(phase: SecondaryPhase): SecondaryMachine {
  const machine = new SecondaryMachine(() => new LiveReplica());
  for (const event of WAYS[phase]) machine.step(event);
  assertEquals(machine.phase, phase);
  return machine;
}

function written(effects: readonly SecondaryEffect[]): Uint8Array {
  return concat(...effects.flatMap((effect) => effect.type === "write" ? effect.bytes : []));
}

function types(effects: readonly SecondaryEffect[]): string[] {
  return effects.map(({ type }) => type);
}

Deno.test("SecondaryMachine takes every event in every phase as its table says", () => {
  const [head = "", ...rows] = TABLE.trim().split("\n").map((line) => line.trim());
  const phases = head.split(/\s+/) as SecondaryPhase[];
  assertEquals(new Set(phases), new Set(Object.keys(WAYS)));
  const tested = rows.map((row) => row.split(/\s+/)[0]);
  assertEquals([...tested, "qemu-answer"].sort(), Object.keys(EVENTS).sort());
  for (const row of rows) {
    const [type, ...cells] = row.split(/\s+/);
    assertEquals(cells.length, phases.length, type);
    const event = EVENTS[type as SecondaryEvent["type"]];
    phases.forEach((phase, column) => {
      const machine = machineIn(phase);
      const cell = cells[column];
      const label = `${type} while ${phase}`;
      if (cell === "!" || cell === "wire") {
        const error = assertThrows(() => machine.step(event), ColoError, undefined, label);
        assertEquals(error.name, cell === "!" ? "StateError" : "WireError", label);
        assertEquals(machine.phase, phase, label);
      } else {
        assertEquals(describe(machine.step(event)), cell, label);
      }
    });
  }
});

Deno.test("SecondaryMachine says at once that it is ready to a primary that was there before QEMU", () => {
  const machine = new SecondaryMachine(() => new LiveReplica());
  assertEquals(machine.step(EVENTS["link-up"]), []);
  assertEquals(describe(machine.step(EVENTS["qemu-ready"])), ">waiting,ready");
});

Deno.test("SecondaryMachine gives QEMU a checkpoint when all of it is there, and not before", () => {
  const machine = machineIn("protecting");
  const chunk = records([{ block: 0, page: 3, fill: 5 }, { block: 1, page: 2, fill: 6 }]);
  assertEquals(machine.step({ type: "pages", chunk }), []);
  assertEquals(machine.step({ type: "device-state", piece: DEVICE_STATE.subarray(0, 5) }), []);
  assertEquals(machine.step({ type: "device-state", piece: DEVICE_STATE.subarray(5) }), []);
  const commit = { ...EMPTY_TOTALS, pagesFrames: 1, pageBytes: chunk.length };
  assertEquals(machine.step({ type: "commit", epoch: 2, commit }), [
    { type: "tell-committed", epoch: 2 },
    { type: "prepare" },
  ]);
  assertEquals(
    written(machine.step({ type: "prepared" })),
    coloMessage("checkpoint-request"),
    "QEMU is asked before it is given a page",
  );
  const answer = (message: Parameters<typeof coloMessage>[0]) =>
    machine.step({ type: "qemu-answer", bytes: coloMessage(message) });
  assertEquals(answer("checkpoint-reply"), [
    { type: "stopped", epoch: 2 },
    { type: "settle", epoch: 2, enters: false },
  ]);
  const load = written(machine.step(EVENTS["disks-settled"]));
  assert(load.length > chunk.length + DEVICE_STATE.length);
  assertEquals(answer("vmstate-received"), []);
  assertEquals(machine.epoch, 1, "it does not run from it yet");
  assertEquals(answer("vmstate-loaded"), [{ type: "tell-loaded", epoch: 2 }]);
  assertEquals(machine.epoch, 2);
});

Deno.test("SecondaryMachine takes over after the load that is under way, wherever that is", () => {
  const answers = ["checkpoint-reply", "vmstate-received", "vmstate-loaded"] as const;
  const [reply, ...rest] = answers.map((message): SecondaryEvent => ({
    type: "qemu-answer",
    bytes: coloMessage(message),
  }));
  const steps = [EVENTS.prepared, reply!, EVENTS["disks-settled"], ...rest];
  // How far the load is when the primary is lost: preparing, asked, settling, loading, received.
  for (let before = 0; before < steps.length; before++) {
    const machine = machineIn("protecting");
    machine.step(EVENTS["device-state"]);
    machine.step({ type: "commit", epoch: 2, commit: EMPTY_TOTALS });
    for (const step of steps.slice(0, before)) machine.step(step);
    // Half of another checkpoint has come: it must leave no trace.
    machine.step(EVENTS.pages);
    machine.step(EVENTS["device-state"]);
    const [report, claim] = machine.step(EVENTS["primary-lost"]);
    assertEquals([report?.type, claim?.type], ["report", "claim"]);
    machine.step(EVENTS.granted);
    assertEquals(machine.step({ type: "commit", epoch: 3, commit: EMPTY_TOTALS }), [], "too late");
    const effects = steps.slice(before).flatMap((step) => machine.step(step));
    const told = types(effects).filter((type) => !["write", "stopped", "settle"].includes(type));
    assertEquals(told, ["tell-loaded", "take-over"]);
    assertEquals(types(effects).at(-1), "take-over");
    assertEquals(machine.epoch, 2);
    assertEquals(describe(machine.step(EVENTS.promoted)), ">promoted");
  }
});

/** A checkpoint of one page, in three events. */
function checkpoint(epoch: number, page: SamplePage, load: boolean): SecondaryEvent[] {
  const chunk = records([page]);
  const commit = { ...EMPTY_TOTALS, pagesFrames: 1, pageBytes: chunk.length, load };
  return [
    { type: "pages", chunk },
    EVENTS["device-state"],
    { type: "commit", epoch, commit },
  ];
}

function stepAll(machine: SecondaryMachine, events: readonly SecondaryEvent[]): SecondaryEffect[] {
  return events.flatMap((event) => machine.step(event));
}

/** QEMU goes through one load; returns what it was given. */
function loadOnce(machine: SecondaryMachine): { load: Uint8Array; after: SecondaryEffect[] } {
  machine.step({ type: "prepared" });
  const answer = (bytes: Uint8Array) => machine.step({ type: "qemu-answer", bytes });
  answer(coloMessage("checkpoint-reply"));
  const load = written(machine.step(EVENTS["disks-settled"]));
  answer(coloMessage("vmstate-received"));
  return { load, after: answer(coloMessage("vmstate-loaded")) };
}

/** How often a piece of bytes occurs, and where first. */
function find(bytes: Uint8Array, piece: Uint8Array): { count: number; first: number } {
  const places = [...bytes.keys()].filter((at) => piece.every((byte, i) => bytes[at + i] === byte));
  return { count: places.length, first: places[0] ?? -1 };
}

Deno.test("SecondaryMachine only holds micro-checkpoints, and loads them all with the next one", () => {
  const machine = machineIn("protecting");
  const pages = [1, 3, 5].map((fill) => ({ block: 0, page: fill, fill }));
  for (const [index, page] of pages.slice(0, 2).entries()) {
    assertEquals(stepAll(machine, checkpoint(2 + index, page, false)), [
      { type: "tell-committed", epoch: 2 + index },
    ]);
  }
  assertEquals(stepAll(machine, checkpoint(4, pages[2]!, true)), [
    { type: "tell-committed", epoch: 4 },
    { type: "prepare" },
  ]);
  const { load, after } = loadOnce(machine);
  const found = pages.map((page) => find(load, records([page])));
  assertEquals(found.map(({ count }) => count), [1, 1, 1]);
  const order = found.map(({ first }) => first);
  assertEquals(order, order.toSorted((a, b) => a - b), "records in the order of the checkpoints");
  assertEquals(find(load, DEVICE_STATE).count, 1, "one device state");
  assertEquals(after, [{ type: "tell-loaded", epoch: 4 }], "the others are passed over");
});

Deno.test("SecondaryMachine merges what comes while a load is under way into the next one", () => {
  const machine = machineIn("protecting");
  const page = { block: 0, page: 1, fill: 1 };
  stepAll(machine, checkpoint(2, page, true));
  machine.step({ type: "prepared" });
  // QEMU has been asked, and given nothing yet: this one still goes with it.
  assertEquals(types(stepAll(machine, checkpoint(3, page, true))), ["tell-committed"]);
  const reply = { type: "qemu-answer", bytes: coloMessage("checkpoint-reply") } as const;
  machine.step(reply);
  const merged = written(machine.step(EVENTS["disks-settled"]));
  assertEquals(find(merged, records([page])).count, 2);
  for (const [epoch, load] of [[4, true], [5, false], [6, true]] as const) {
    assertEquals(types(stepAll(machine, checkpoint(epoch, page, load))), ["tell-committed"]);
  }
  const loaded = { type: "qemu-answer", bytes: coloMessage("vmstate-loaded") } as const;
  assertEquals(machine.step(loaded), [{ type: "tell-loaded", epoch: 3 }, { type: "prepare" }]);
  const { load, after } = loadOnce(machine);
  assertEquals(find(load, records([page])).count, 3);
  assertEquals(after, [{ type: "tell-loaded", epoch: 6 }]);
});

Deno.test("SecondaryMachine loads what it only held before it takes over, and when the link breaks", () => {
  const page = { block: 0, page: 1, fill: 1 };
  for (const first of ["primary-lost", "link-lost"] as const) {
    const machine = machineIn("protecting");
    stepAll(machine, checkpoint(2, page, false));
    stepAll(machine, checkpoint(3, page, false));
    assertEquals(describe(machine.step(EVENTS[first])), ">deciding,claim,prepare");
    assertEquals(describe(machine.step(EVENTS.granted)), ">taking-over");
    const { load, after } = loadOnce(machine);
    assertEquals(find(load, records([page])).count, 2);
    assertEquals(describe(after), "tell-loaded,takeover");
    assertEquals(machine.epoch, 3);
  }
});

Deno.test("SecondaryMachine does not take over from a seed whose disks have gone on since", () => {
  const machine = new SecondaryMachine(() => new LiveReplica(), false);
  stepAll(machine, TO_PROTECTING);
  assertEquals(describe(machine.step(EVENTS["primary-lost"])), ">starting,restart");
  const whole = new SecondaryMachine(() => new LiveReplica(), false);
  stepAll(whole, TO_PROTECTING);
  stepAll(whole, checkpoint(2, { block: 0, page: 1, fill: 1 }, true));
  assertEquals(describe(whole.step(EVENTS["primary-lost"])), ">deciding,claim");
});

Deno.test("SecondaryMachine loads what it holds when too much waits for that", () => {
  const machine = machineIn("protecting");
  stepAll(machine, checkpoint(2, { block: 0, page: 1, fill: 1 }, false));
  assertEquals(types(machine.step(EVENTS["load-held"])), ["prepare"]);
  assertEquals(loadOnce(machine).after, [{ type: "tell-loaded", epoch: 2 }]);
});

Deno.test("SecondaryMachine loads micro-checkpoints that came before its seed was loaded", () => {
  const machine = machineIn("seeding");
  stepAll(machine, [EVENTS["device-state"], EVENTS.commit]);
  stepAll(machine, checkpoint(2, { block: 0, page: 1, fill: 1 }, false));
  machine.step(EVENTS["primary-lost"]);
  machine.step(EVENTS.granted);
  machine.step(EVENTS["disks-settled"]);
  assertEquals(machine.step(READY), [{ type: "tell-loaded", epoch: 1 }, { type: "prepare" }]);
  assertEquals(describe(loadOnce(machine).after), "tell-loaded,takeover");
  assertEquals(machine.epoch, 2);
});

Deno.test("SecondaryMachine loads unasked, and has the primary wait, when it holds too much", () => {
  const machine = new SecondaryMachine(() => new LiveReplica(9000));
  stepAll(machine, TO_PROTECTING);
  const page = { block: 0, page: 1, fill: 1 };
  assertEquals(types(stepAll(machine, checkpoint(2, page, false))), ["tell-committed"]);
  assertEquals(types(stepAll(machine, checkpoint(3, page, false))), ["tell-committed"]);
  assertEquals(types(stepAll(machine, checkpoint(4, page, false))), ["prepare"]);
  assertEquals(types(machine.step({ type: "prepared" })), ["write"]);
  assertEquals(stepAll(machine, checkpoint(5, page, false)), [], "it was on its way already");
  const reply = { type: "qemu-answer", bytes: coloMessage("checkpoint-reply") } as const;
  const [first, second, stopped, settle] = machine.step(reply);
  assertEquals([first, second], [4, 5].map((epoch) => ({ type: "tell-committed", epoch })));
  assertEquals([stopped?.type, settle?.type], ["stopped", "settle"]);
  assertEquals(types(machine.step(EVENTS["disks-settled"])), ["write"]);
  assertEquals(types(stepAll(machine, checkpoint(6, page, false))), ["tell-committed"]);
  const loaded = { type: "qemu-answer", bytes: coloMessage("vmstate-loaded") } as const;
  assertEquals(machine.step(loaded), [{ type: "tell-loaded", epoch: 5 }], "6 is held");
});

Deno.test("SecondaryMachine takes no end of checkpoints from a primary that waits for no answer", () => {
  const machine = new SecondaryMachine(() => new LiveReplica(0));
  stepAll(machine, TO_PROTECTING);
  const next = (epoch: number) =>
    stepAll(machine, checkpoint(epoch, { block: 0, page: 1, fill: 1 }, true));
  for (let count = 0; count < IN_FLIGHT_MAX; count++) next(2 + count);
  assertThrows(() => next(99), WireError, `${IN_FLIGHT_MAX} have not been answered`);
});

Deno.test("SecondaryMachine takes over from a seed that it holds as a whole", () => {
  const machine = machineIn("seeding");
  machine.step(EVENTS["device-state"]);
  assertEquals(types(machine.step(EVENTS.commit)), ["tell-committed", "stopped", "settle"]);
  assertEquals(types(machine.step(EVENTS["disks-settled"])), ["write"]);
  assertEquals(describe(machine.step(EVENTS["primary-lost"])), ">deciding,claim");
  assertEquals(describe(machine.step(EVENTS.granted)), ">taking-over");
  assertEquals(describe(machine.step(READY)), "tell-loaded,takeover");
  assertEquals(machine.epoch, 1);
});

Deno.test("SecondaryMachine is taken in by nothing that a primary must not send", () => {
  const good = records([{ block: 0, page: 1, fill: 1 }]);
  const totals = { ...EMPTY_TOTALS, pagesFrames: 1, pageBytes: good.length };
  const pages = (chunk: Uint8Array): SecondaryEvent[] => [{ type: "pages", chunk }];
  const commit = (changes: Partial<typeof totals>): SecondaryEvent[] => [
    { type: "pages", chunk: good },
    { type: "device-state", piece: DEVICE_STATE },
    { type: "commit", epoch: 2, commit: { ...totals, ...changes } },
  ];
  const record = (flags: number, name: string, length: number) =>
    concat(
      Uint8Array.of(0, 0, 0, 0, 0, 0, flags >> 8, flags, name.length),
      new TextEncoder().encode(name),
      new Uint8Array(length),
    );
  const cases: [string, readonly SecondaryEvent[]][] = [
    ["1 frames", commit({ pagesFrames: 2 })],
    [`${good.length} + `, commit({ pageBytes: good.length - 1 })],
    ["Cannot commit", commit({ deviceStateBytes: 0 })],
    ["Cannot commit", commit({}).slice(0, 1).concat(commit({}).slice(2))],
    ["which does not exist", pages(record(0x08, "nvram", 4096))],
    [
      "outside RAM block",
      pages(concat(Uint8Array.of(0, 0, 0, 1), record(0x08, "pc.ram", 4096).subarray(4))),
    ],
    ["before any RAM block", pages(Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0x22, 0))],
    ["a record is not complete", pages(good.subarray(0, -1))],
    ["a record is not complete", pages(good.subarray(0, 5))],
    ["a record is not complete", pages(concat(good, good.subarray(0, 12)))],
    ["filled with 7", pages(concat(record(0x02, "pc.ram", 0), Uint8Array.of(7)))],
    ["flags 1024 are not known", pages(record(0x400, "pc.ram", 4096))],
    ["Cannot take pages", pages(record(0x10, "", 0).subarray(0, 8))],
    [
      "XBZRLE record of 4097 bytes",
      pages(concat(record(0x40, "pc.ram", 0), Uint8Array.of(1, 0x10, 1))),
    ],
    ["XBZRLE record of 0 bytes", pages(concat(record(0x40, "pc.ram", 0), Uint8Array.of(1, 0, 0)))],
    ["the secondary is protecting", [EVENTS["seed-begin"]]],
  ];
  for (const [message, events] of cases) {
    const machine = machineIn("protecting");
    const effects = events.slice(0, -1).flatMap((event) => machine.step(event));
    assertThrows(() => machine.step(events.at(-1)!), WireError, message);
    assertEquals(effects, [], `${message}: QEMU is given nothing`);
    assertEquals(machine.phase, "protecting");
    assertEquals(describe(machine.step(EVENTS["link-lost"])), ">orphaned");
  }
});

Deno.test("SecondaryMachine gives up a checkpoint that grows beyond the guest's memory", () => {
  const machine = machineIn("protecting");
  const whole = Array.from({ length: 64 }, (_, page) => ({ block: 0, page, fill: 1 }));
  const chunk = records(whole);
  const guestBytes = BLOCKS.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  assertThrows(
    () => {
      for (let held = 0; held < 4 * guestBytes; held += chunk.length) {
        machine.step({ type: "pages", chunk });
      }
    },
    WireError,
    "more than the guest",
  );
});

Deno.test("SecondaryMachine restarts a QEMU that answers what is not due, and seeds it anew", () => {
  const machine = machineIn("protecting");
  assertThrows(
    () => machine.step({ type: "qemu-answer", bytes: coloMessage("vmstate-loaded") }),
    StreamError,
    "vmstate-loaded while idle",
  );
  assertThrows(
    () => machineIn("seeding").step({ type: "qemu-answer", bytes: shut(1) }),
    StreamError,
    "refused",
  );
  assertEquals(
    describe(machine.step(EVENTS["qemu-lost"])),
    "failed,>starting,restart",
  );
  // What the QEMU before it was about to do does not concern this one.
  assertEquals(machine.step({ type: "prepared" }), []);
  assertEquals(describe(machine.step(EVENTS["qemu-ready"])), ">waiting,ready");
  for (const event of [EVENTS["seed-begin"], EVENTS.pages, EVENTS["device-state"]]) {
    machine.step(event);
  }
  const chunk = records([{ block: 0, page: 1, fill: 1 }]);
  const commit = { ...EMPTY_TOTALS, pagesFrames: 1, pageBytes: chunk.length };
  machine.step({ type: "commit", epoch: 7, commit });
  machine.step(EVENTS["disks-settled"]);
  assertEquals(describe(machine.step(READY)), "tell-loaded,>protecting");
  assertEquals(machine.epoch, 7);
});

/** The guest's memory, all blocks one after another. */
type Ram = readonly Uint8Array[];

/** So few that a secondary comes to hold more. */
const HELD_BYTES_MAX = 20_000;

/** A primary, a link that delivers in order, the machine, and a QEMU: whatever comes next, comes. */
class World {
  readonly machine = new SecondaryMachine(() => new LiveReplica(HELD_BYTES_MAX));
  takeOvers = 0;
  loadsSeen = 0;
  merged = 0;
  withheld = 0;
  seeds = 0;
  #qemu: ModelSecondary | undefined = new ModelSecondary();
  #preparing = false;
  #settling = false;
  #linked = false;
  #ready = false;
  #seeded = false;
  /** The checkpoint that the secondary says it holds, and whether a seed has become whole since. */
  #held: number | undefined;
  #seedWhole = false;
  resumes = 0;
  /** What the primary has said and the machine has not been given. */
  #wire: SecondaryEvent[] = [];
  #epoch = 0;
  #guest: Ram = [];
  readonly #committedRam = new Map<number, Ram>();
  /** Commits that the machine has taken since the seed. */
  #taken: number[] = [];
  /** How many of them QEMU has been given. */
  #given = 0;
  #verdict: SecondaryEvent | undefined;
  /** Bytes of those that it has not been given, and whether they may be loaded. */
  #heldBytes = 0;
  #wanted = false;
  /** What the primary has sent, and has not been told of. */
  #inFlight: number[] = [];
  /** The primary is told that QEMU has died, and has not heard it yet. */
  #failed = false;

  constructor(readonly inFlightMax: number) {}

  do(choice: number, pages: readonly SamplePage[]): void {
    const actions = [
      () => this.#connect(),
      () => this.#checkpoint(pages, true),
      () => this.#checkpoint(pages, false),
      () => this.#checkpoint(pages, false),
      () => this.#deliver(1),
      () => this.#deliver(2),
      () => this.#deliver(100),
      () => this.#answer(1),
      () => this.#answer(3),
      () => this.#answer(100),
      () => this.#prepared(),
      () => this.#prepared(),
      () => this.#startQemu(),
      () => choice % 7 === 0 ? this.#cut() : this.#answer(100),
      () => choice % 7 === 0 ? this.#killQemu() : this.#deliver(100),
    ];
    actions[choice % actions.length]!();
  }

  /** The primary is lost; then everything that is still under way happens. */
  end(): void {
    if (this.machine.phase === "protecting") {
      this.#settle();
      assert(!this.#wanted, "what is to be loaded was not");
    }
    const phase = this.machine.phase;
    const canTakeOver = phase === "protecting" || (phase === "orphaned" && !this.#linked);
    const heldWhole = this.#taken.at(-1);
    const seedHeld = phase === "seeding" && this.#seedWhole;
    this.#wanted = true;
    this.#step({ type: "primary-lost", reason: "killed" });
    // What was on the way comes too late.
    this.#deliver(1000);
    this.#settle();
    assertEquals(this.takeOvers, canTakeOver || seedHeld ? 1 : 0, phase);
    if (this.takeOvers === 0) return;
    assertEquals(this.machine.epoch, heldWhole, "it runs from the last that was whole");
    assert(this.#qemu!.atRest, "QEMU is left in the middle of something");
    this.#step({ type: "promoted" });
    assertEquals(this.machine.phase, "promoted");
  }

  /** Everything happens that QEMU does by itself. */
  #settle(): void {
    for (let round = 0; round < 100; round++) {
      this.#answer(1000);
      this.#prepared();
    }
  }

  #connect(): void {
    if (this.#linked) return;
    this.#linked = true;
    this.#seeded = false;
    this.#step({ type: "link-up" });
  }

  #cut(): void {
    if (!this.#linked) return;
    this.#linked = false;
    this.#ready = false;
    this.#inFlight = [];
    this.#failed = false;
    this.#wire = [];
    this.#wanted = true;
    this.#step({ type: "link-lost", reason: "cut" });
  }

  #killQemu(): void {
    if (this.#qemu === undefined) return;
    this.#step({ type: "qemu-lost", reason: "died" });
  }

  #startQemu(): void {
    if (this.machine.phase !== "starting") return;
    this.#qemu = new ModelSecondary();
    this.#step({ type: "qemu-ready" });
  }

  /** The primary sends a seed, or the next checkpoint; each page is a chunk of its own or not. */
  #checkpoint(pages: readonly SamplePage[], load: boolean): void {
    if (this.#failed) this.#cut();
    if (!this.#linked || !this.#ready || this.#inFlight.length >= this.inFlightMax) return;
    // The primary may know nothing of what is held.
    if (!this.#seeded && this.#held !== undefined && pages.length === 5) {
      this.#ready = false;
      return this.#step({ type: "seed-anew" });
    }
    const from = this.#seeded ? this.#guest : this.#committedRam.get(this.#held ?? -1);
    const guest = from !== undefined
      ? from.slice()
      : Array.from({ length: 72 }, (_, page) =>
        new Uint8Array(PAGE_BYTES).fill(page < 64 ? 0 : 0xee));
    for (const { block, page, fill } of pages) guest[block * 64 + page] = pageContent(fill);
    this.#guest = guest;
    this.#epoch++;
    this.#inFlight.push(this.#epoch);
    this.#committedRam.set(this.#epoch, guest);
    const resumes = this.#held !== undefined;
    if (!this.#seeded) {
      this.#wire.push({ type: "seed-begin", seed: { ...SEED, resumes } });
      if (resumes) this.resumes++;
    }
    this.#seeded = true;
    const middle = Math.floor(pages.length / 2);
    const chunks = [pages.slice(0, middle), pages.slice(middle)].filter(({ length }) => length > 0)
      .map(records);
    const state = concat(device(Uint8Array.of(this.#epoch)), Uint8Array.of(0));
    const pageBytes = chunks.reduce((sum, { length }) => sum + length, 0);
    this.#wire.push(
      ...chunks.map((chunk): SecondaryEvent => ({ type: "pages", chunk })),
      { type: "device-state", piece: state.subarray(0, 4) },
      { type: "device-state", piece: state.subarray(4) },
      {
        type: "commit",
        epoch: this.#epoch,
        commit: { pagesFrames: chunks.length, pageBytes, deviceStateBytes: state.length, load },
      },
    );
  }

  #deliver(count: number): void {
    for (let event; count > 0 && (event = this.#wire.shift()) !== undefined; count--) {
      // After a takeover, and while QEMU is replaced, the peer does not know yet.
      const { phase } = this.machine;
      const refused = phase === "starting" ||
        (["waiting", "orphaned"].includes(phase) && event.type !== "seed-begin") ||
        // Nor that what it had told of is gone with its QEMU.
        (phase === "waiting" && event.type === "seed-begin" && event.seed.resumes);
      if (refused) {
        const refusedEvent = event;
        assertThrows(() => this.machine.step(refusedEvent), WireError);
        this.#cut();
        return;
      }
      const late = ["deciding", "taking-over", "promoted"].includes(this.machine.phase);
      if (event.type === "commit" && !late) this.#take(event.epoch, event.commit);
      if (event.type === "seed-begin" && !late) this.#seedWhole = false;
      if (event.type === "seed-begin" && !late && !event.seed.resumes) {
        this.#taken = [];
        this.#given = 0;
        this.#heldBytes = 0;
        this.#wanted = false;
        this.seeds++;
      }
      this.#step(event);
      if (event.type === "commit" && this.#inFlight.includes(event.epoch) && !late) this.withheld++;
    }
  }

  #take(epoch: number, { load, pageBytes, deviceStateBytes }: CommitPayload): void {
    this.#seedWhole = true;
    this.#taken.push(epoch);
    if (this.#taken.length === 1) return;
    this.#heldBytes += pageBytes;
    this.#wanted ||= load || this.#heldBytes + deviceStateBytes > HELD_BYTES_MAX;
  }

  #answer(count: number): void {
    const bytes = this.#qemu?.read(count);
    if (bytes === undefined || bytes.length === 0) return;
    this.#step({ type: "qemu-answer", bytes });
  }

  #prepared(): void {
    if (this.#settling) {
      this.#settling = false;
      this.#step({ type: "disks-settled" });
    }
    if (!this.#preparing) return;
    this.#preparing = false;
    this.#step({ type: "prepared" });
  }

  #step(event: SecondaryEvent): void {
    for (const effect of this.machine.step(event)) this.#do(effect);
    const verdict = this.#verdict;
    this.#verdict = undefined;
    if (verdict !== undefined) this.#step(verdict);
  }

  #do(effect: SecondaryEffect): void {
    switch (effect.type) {
      case "write": {
        assertEquals(this.takeOvers, 0, "QEMU is written to after it was let go");
        const qemu = this.#qemu!;
        const loads = qemu.loads.length;
        qemu.write(concat(...effect.bytes));
        for (const load of qemu.loads.slice(loads)) this.#checkLoad(load.deviceState, load.ram);
        break;
      }
      case "prepare":
        assert(this.#wanted, "a load that nobody asked for");
        this.#preparing = true;
        break;
      case "settle":
        this.#settling = true;
        assertEquals(effect.epoch, this.#taken.at(-1), "a load is of all that is held");
        this.#give();
        break;
      case "tell-ready":
        this.#ready = true;
        this.#held = effect.held?.epoch;
        break;
      case "tell-committed":
        assert(this.#taken.includes(effect.epoch), "told of what it does not hold");
        assertEquals(effect.epoch, this.#inFlight.shift(), "told of each, in their order");
        break;
      case "tell-loaded":
        assertEquals(effect.epoch, this.#taken[this.#given - 1], "loaded is what QEMU was given");
        break;
      case "claim":
        // Two hosts, and nobody to ask: silence proves nothing.
        this.#verdict = effect.evidence === "silent"
          ? { type: "undecided", reason: "silent" }
          : { type: "granted" };
        break;
      case "take-over":
        this.takeOvers++;
        assert(this.#qemu!.atRest, "a takeover in the middle of a load");
        break;
      case "restart-qemu":
        this.#qemu = undefined;
        this.#preparing = this.#settling = false;
        this.#ready = false;
        this.#taken = [];
        this.#given = 0;
        break;
      case "tell-failed":
        // The primary's engine drops the link then.
        assert(this.#linked);
        this.#failed = true;
        break;
    }
  }

  /** All that is held goes to QEMU. */
  #give(): void {
    this.merged += this.#taken.length - this.#given - 1;
    this.#given = this.#taken.length;
    this.#heldBytes = 0;
    this.#wanted = false;
  }

  /** What QEMU runs from is the last committed checkpoint, byte for byte. */
  #checkLoad(deviceState: Uint8Array, ram: Ram): void {
    this.loadsSeen++;
    const epoch = this.#taken.find((epoch) =>
      concat(device(Uint8Array.of(epoch)), Uint8Array.of(0)).every((byte, at) =>
        byte === deviceState[at]
      )
    );
    assert(epoch !== undefined, "a load of what was never committed");
    // Of a seed there is nothing to settle.
    if (this.#given === 0) this.#give();
    assertEquals(epoch, this.#taken[this.#given - 1], "what the disks were settled for is loaded");
    const expected = this.#committedRam.get(epoch)!;
    const differing = expected.flatMap((page, index) =>
      page.every((byte, at) => byte === ram[index]![at]) ? [] : [index]
    );
    assertEquals(differing, [], `pages of checkpoint ${epoch}`);
  }
}

const samplePage: fc.Arbitrary<SamplePage> = fc.oneof(
  fc.record({ block: fc.constant(0), page: fc.nat(63), fill: fc.nat(4) }),
  fc.record({ block: fc.constant(1), page: fc.nat(7), fill: fc.nat(4) }),
);

Deno.test("SecondaryMachine gives QEMU whole checkpoints, all that it holds, whatever comes when", () => {
  const seen = { takeOvers: 0, loads: 0, seeds: 0, resumes: 0, merged: 0, withheld: 0 };
  fc.assert(
    fc.property(
      fc.array(
        fc.record({ choice: fc.nat(10_000), pages: fc.array(samplePage, { maxLength: 6 }) }),
        { maxLength: 160, size: "max" },
      ),
      fc.integer({ min: 1, max: 3 }),
      (steps, inFlightMax) => {
        const world = new World(inFlightMax);
        for (const { choice, pages } of steps) world.do(choice, pages);
        world.end();
        seen.takeOvers += world.takeOvers;
        seen.loads += world.loadsSeen;
        seen.seeds += world.seeds;
        seen.resumes += world.resumes;
        seen.merged += world.merged;
        seen.withheld += world.withheld;
      },
    ),
    { numRuns: 300 },
  );
  const enough = seen.takeOvers > 20 && seen.loads > 200 && seen.seeds > 100 && seen.resumes > 10 &&
    seen.merged > 100 && seen.withheld > 5;
  assert(enough, `too little happened: ${JSON.stringify(seen)}`);
});

/** A secondary that has loaded a checkpoint behind its seed. */
function entitled(): SecondaryMachine {
  const machine = machineIn("protecting");
  assertEquals(machine.entitled, false);
  stepAll(machine, checkpoint(2, { block: 0, page: 1, fill: 1 }, true));
  loadOnce(machine);
  assertEquals(machine.entitled, true);
  return machine;
}

Deno.test("SecondaryMachine asks the arbiter when the link is lost, once it knows all that was said", () => {
  const machine = entitled();
  assertEquals(describe(machine.step(EVENTS["link-lost"])), ">deciding,claim");
  // The primary is back: that does not undo a claim whose answer may be on its way.
  assertEquals(describe(machine.step(EVENTS["link-up"])), "-");
  assertEquals(describe(machine.step(EVENTS.granted)), ">taking-over,takeover");
});

Deno.test("SecondaryMachine keeps what it holds when the VM is another's, who may go on from there", () => {
  const machine = entitled();
  machine.step(EVENTS["link-lost"]);
  assertEquals(describe(machine.step(EVENTS.stale)), ">orphaned");
  assertEquals(machine.entitled, false);
  assertEquals(machine.step(EVENTS["link-up"]), [
    { type: "tell-ready", held: { lineage: "l", epoch: 2 } },
  ]);
});

/** A secondary that has lost its primary, which is back. */
function returned(): SecondaryMachine {
  const machine = entitled();
  stepAll(machine, [EVENTS["link-lost"], EVENTS.stale, EVENTS["link-up"]]);
  return machine;
}

const RESUME: SecondaryEvent = { type: "seed-begin", seed: { ...SEED, resumes: true } };

Deno.test("SecondaryMachine goes on from what it holds with what has changed since", () => {
  const machine = returned();
  assertEquals(describe(machine.step(RESUME)), ">seeding");
  const page = { block: 0, page: 3, fill: 4 };
  assertEquals(types(stepAll(machine, checkpoint(7, page, true))), ["tell-committed", "prepare"]);
  assertEquals(machine.entitled, false, "the world has seen more than the seed");
  const { load, after } = loadOnce(machine);
  assertEquals(find(load, records([page])).count, 1);
  assertEquals(describe(after), "tell-loaded,>protecting");
  stepAll(machine, checkpoint(8, page, true));
  assertEquals(machine.entitled, true);
});

Deno.test("SecondaryMachine is what it was when what has changed does not come as a whole", () => {
  for (const first of ["link-lost", "primary-lost"] as const) {
    const machine = returned();
    stepAll(machine, [RESUME, EVENTS.pages, EVENTS["device-state"]]);
    assert(describe(machine.step(EVENTS[first])).startsWith(">orphaned"));
    assertEquals([machine.epoch, machine.entitled], [2, false]);
    if (first === "primary-lost") continue;
    assertEquals(machine.step(EVENTS["link-up"]), [
      { type: "tell-ready", held: { lineage: "l", epoch: 2 } },
    ]);
    stepAll(machine, [RESUME, ...checkpoint(9, { block: 0, page: 1, fill: 2 }, true)]);
    loadOnce(machine);
    assertEquals([machine.phase, machine.epoch], ["protecting", 9]);
  }
});

Deno.test("SecondaryMachine takes no seed that does not go with what it holds", () => {
  const other = { ...SEED, lineage: "another", resumes: true };
  const none = { ...SEED, lineage: "", resumes: true };
  for (const seed of [SEED, other, none]) {
    const machine = returned();
    assertThrows(() => machine.step({ type: "seed-begin", seed }), WireError, "Cannot take a seed");
    assertEquals(machine.phase, "orphaned");
  }
  for (const seed of [other, none, { ...SEED, resumes: true }]) {
    const machine = machineIn("waiting");
    assertThrows(() => machine.step({ type: "seed-begin", seed }), WireError, "Cannot take a seed");
  }
  const machine = returned();
  assertEquals(describe(machine.step(EVENTS["seed-anew"])), ">starting,restart");
  assertEquals(machine.step(EVENTS["qemu-ready"]).at(-1), { type: "tell-ready" });
});

Deno.test("SecondaryMachine does not take the load of what it held before for that of its seed", () => {
  const machine = machineIn("protecting");
  stepAll(machine, checkpoint(2, { block: 0, page: 1, fill: 1 }, true));
  stepAll(machine, [EVENTS["link-lost"], EVENTS.undecided, EVENTS["link-up"], RESUME]);
  assertEquals(describe(loadOnce(machine).after), "tell-loaded");
  assertEquals(machine.phase, "seeding");
  stepAll(machine, checkpoint(5, { block: 0, page: 2, fill: 1 }, true));
  assertEquals(describe(loadOnce(machine).after), "tell-loaded,>protecting");
});

Deno.test("SecondaryMachine claims with the evidence that there is", () => {
  const evidence = (event: SecondaryEvent) =>
    entitled().step(event).flatMap((effect) => effect.type === "claim" ? [effect.evidence] : []);
  assertEquals(evidence(EVENTS["link-lost"]), ["silent"]);
  assertEquals(evidence(EVENTS["primary-lost"]), ["reported"]);
  assertEquals(evidence(EVENTS["take-over"]), ["ordered"]);
});

Deno.test("SecondaryMachine is entitled to nothing when what it holds is thrown away", () => {
  const machine = machineIn("seeding");
  stepAll(machine, [EVENTS["device-state"], EVENTS.commit]);
  stepAll(machine, checkpoint(2, { block: 0, page: 1, fill: 1 }, true));
  assertEquals([machine.phase, machine.entitled], ["seeding", true]);
  assertEquals(describe(machine.step(EVENTS["link-lost"])), ">starting,restart");
  assertEquals(machine.entitled, false);
});
