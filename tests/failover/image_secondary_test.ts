import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { ImageReplica } from "../../engine/checkpoint/image_replica.ts";
import type { ReplicaAnswer } from "../../engine/checkpoint/replica.ts";
import { StateError, WireError } from "../../engine/errors.ts";
import {
  type SecondaryEffect,
  type SecondaryEvent,
  SecondaryMachine,
} from "../../engine/failover/secondary.ts";
import { type FromKeeper, ImageKeeper } from "../../engine/image/keeper.ts";
import { standbyBegin, standbyEnd, standbyPages } from "../../engine/image/standby_stream.ts";
import { StreamReader } from "../../engine/stream/reader.ts";
import { ReferenceKernels } from "../../wasm/mod.ts";
import { applyRecords } from "../checkpoint/_ram.ts";
import { MemoryFiles } from "../image/_memory_files.ts";
import { delta, MAIN_PAGES, Model, PAGES, type Write, write } from "../image/_deltas.ts";
import { BLOCKS, concat, device, MACHINE, records } from "../stream/sample.ts";

const SEED = { lineage: "l", resumes: false, machine: MACHINE, blocks: BLOCKS, ramSectionId: 2 };

function deviceState(epoch: number): Uint8Array<ArrayBuffer> {
  return concat(device(Uint8Array.of(epoch & 0xff, epoch >> 8)), Uint8Array.of(0));
}

/** What a primary says of one checkpoint. */
function checkpoint(epoch: number, chunks: readonly Uint8Array<ArrayBuffer>[]): SecondaryEvent[] {
  const state = deviceState(epoch);
  return [
    ...chunks.map((chunk): SecondaryEvent => ({ type: "pages", chunk })),
    { type: "device-state", piece: state },
    {
      type: "commit",
      epoch,
      commit: {
        pagesFrames: chunks.length,
        pageBytes: chunks.reduce((sum, { length }) => sum + length, 0),
        deviceStateBytes: state.length,
        load: true,
      },
    },
  ];
}

function describe(effects: readonly SecondaryEffect[]): string {
  return effects.map((effect) => {
    if (effect.type === "report") return `>${effect.phase}`;
    if (effect.type === "image") return effect.command.type;
    return "epoch" in effect ? `${effect.type} ${effect.epoch}` : effect.type;
  }).join(",") || "-";
}

function machineWith(...events: readonly SecondaryEvent[]): SecondaryMachine {
  const machine = new SecondaryMachine(() => new ImageReplica());
  for (const event of events) machine.step(event);
  return machine;
}

const FRESH: readonly SecondaryEvent[] = [
  { type: "recovered", held: undefined },
  { type: "qemu-ready" },
];
const HOLDING: readonly SecondaryEvent[] = [
  { type: "recovered", held: { lineage: "l", epoch: 9 } },
  { type: "qemu-ready" },
];
const LINK: SecondaryEvent = { type: "link-up" };
const BEGIN: SecondaryEvent = { type: "seed-begin", seed: SEED };
const SEEDED: readonly SecondaryEvent[] = [BEGIN, ...checkpoint(0, [])];
const PROTECTING: readonly SecondaryEvent[] = [
  ...FRESH,
  LINK,
  ...SEEDED,
  { type: "stored", epoch: 0 },
  { type: "applied", epoch: 0 },
  { type: "standby-ready" },
];
const CUT: SecondaryEvent = { type: "link-lost", reason: "cut" };
const LOST: SecondaryEvent = { type: "primary-lost", reason: "killed" };
const ORDER: SecondaryEvent = { type: "take-over", reason: "ordered" };
const GRANTED: SecondaryEvent = { type: "granted" };
const UNDECIDED: SecondaryEvent = { type: "undecided", reason: "silent" };

Deno.test("a seed is told of when it is stored, and protects when it is applied and a QEMU stands by", () => {
  const machine = machineWith(...FRESH, LINK, ...SEEDED);
  assertEquals(describe(machine.step({ type: "stored", epoch: 0 })), "tell-committed 0");
  assertEquals(describe(machine.step({ type: "standby-ready" })), "-");
  assertEquals(
    describe(machine.step({ type: "applied", epoch: 0 })),
    "tell-loaded 0,>protecting",
  );
  const other = machineWith(...FRESH, LINK, ...SEEDED, { type: "stored", epoch: 0 });
  assertEquals(describe(other.step({ type: "applied", epoch: 0 })), "-");
  assertEquals(describe(other.step({ type: "standby-ready" })), "tell-loaded 0,>protecting");
});

Deno.test("a checkpoint is told of when it is stored, not before, and applied while the next arrives", () => {
  const machine = machineWith(...PROTECTING);
  const effects = checkpoint(1, [records([{ block: 0, page: 1, fill: 1 }])]).flatMap((event) =>
    machine.step(event)
  );
  assertEquals(describe(effects), "pages,commit");
  assertEquals(describe(checkpoint(2, []).flatMap((event) => machine.step(event))), "commit");
  assertEquals(describe(machine.step({ type: "stored", epoch: 1 })), "tell-committed 1");
  assertEquals(machine.epoch, 0);
  assertEquals(describe(machine.step({ type: "applied", epoch: 1 })), "tell-loaded 1");
  assertEquals(machine.epoch, 1);
});

Deno.test("a takeover waits until all that is whole is in the image, and drops what is not", () => {
  for (const answers of [0, 1, 2, 3, 4]) {
    const machine = machineWith(...PROTECTING);
    for (const epoch of [1, 2]) for (const event of checkpoint(epoch, [])) machine.step(event);
    const all: SecondaryEvent[] = [1, 2].flatMap((epoch) => [
      { type: "stored", epoch } as const,
      { type: "applied", epoch } as const,
    ]);
    for (const answer of all.slice(0, answers)) machine.step(answer);
    machine.step({ type: "pages", chunk: records([{ block: 0, page: 1, fill: 1 }]) });
    assertEquals(describe(machine.step(LOST)), ">deciding,claim,drop");
    const effects = [GRANTED, ...all.slice(answers)].map((event) => describe(machine.step(event)));
    assertEquals(effects[0], answers === 4 ? ">taking-over,take-over" : ">taking-over");
    assert(effects.at(-1)!.endsWith("take-over"));
    assertEquals(effects.filter((words) => words.endsWith("take-over")).length, 1);
    assertEquals(machine.epoch, 2);
    assertEquals(describe(machine.step({ type: "promoted" })), ">promoted");
  }
});

Deno.test("a seed that is whole is taken over from, though no QEMU stands by yet", () => {
  const machine = machineWith(...FRESH, LINK, ...SEEDED);
  assertEquals(describe(machine.step(LOST)), ">deciding,claim,drop");
  assertEquals(describe(machine.step(GRANTED)), ">taking-over");
  machine.step({ type: "stored", epoch: 0 });
  assertEquals(describe(machine.step({ type: "applied", epoch: 0 })), "take-over");
  assertEquals(describe(machine.step({ type: "standby-ready" })), "tell-loaded 0");
});

Deno.test("what is held outlives a seed that does not become whole", () => {
  for (const end of [CUT, LOST]) {
    const machine = machineWith(...HOLDING, LINK, BEGIN);
    const words = describe(machine.step(end));
    assert(words.startsWith("seed-drop,>orphaned"), words);
    assertEquals(machine.epoch, 9);
    assertEquals(describe(machine.step(ORDER)), ">deciding,claim,drop");
    assertEquals(describe(machine.step(GRANTED)), ">taking-over,take-over");
  }
  const fresh = machineWith(...FRESH, LINK, BEGIN);
  assertEquals(describe(fresh.step(CUT)), "seed-drop,>waiting");
  assertThrows(() => fresh.step({ type: "take-over", reason: "ordered" }), StateError);
});

Deno.test("what is held is older than a primary that is there: its loss alone does not run it", () => {
  const machine = machineWith(...HOLDING, LINK);
  assertEquals(describe(machine.step(LOST)), ">orphaned");
  machine.step(CUT);
  assertEquals(describe(machine.step(LOST)), ">deciding,claim,drop");
  assertEquals(describe(machine.step(GRANTED)), ">taking-over,take-over");
});

Deno.test("answers to what was held before a seed are not taken for answers to the seed", () => {
  const machine = machineWith(
    ...PROTECTING,
    ...checkpoint(1, []),
    CUT,
    UNDECIDED,
    LINK,
    ...SEEDED,
  );
  assertEquals(describe(machine.step({ type: "stored", epoch: 1 })), "-");
  assertEquals(describe(machine.step({ type: "applied", epoch: 1 })), "-");
  assertEquals(describe(machine.step({ type: "standby-ready" })), "-");
  assertEquals(describe(machine.step({ type: "stored", epoch: 0 })), "tell-committed 0");
  assertEquals(describe(machine.step({ type: "applied", epoch: 0 })), "tell-loaded 0,>protecting");
});

Deno.test("what the keeper refuses costs the link, and nothing else", () => {
  const machine = machineWith(...PROTECTING);
  for (const event of checkpoint(1, [records([{ block: 0, page: 1, fill: 1 }])])) {
    machine.step(event);
  }
  assertThrows(
    () => machine.step({ type: "refused", reason: "no good", offset: 3 }),
    WireError,
    "no good",
  );
  for (const event of checkpoint(2, [])) machine.step(event);
  assertEquals(describe(machine.step(CUT)), ">deciding,claim,drop");
  assertEquals(describe(machine.step(UNDECIDED)), ">orphaned");
  assertEquals(describe(machine.step(ORDER)), ">deciding,claim,drop");
  assertEquals(describe(machine.step(GRANTED)), ">taking-over,take-over");
});

/** A QEMU that stands by: takes the stream as QEMU does. */
class ModelStandby {
  readonly #reader = new StreamReader(new ReferenceKernels());
  /** What it was told of the pages. */
  readonly #chunks: Uint8Array[] = [];
  readonly fedAll = { is: false };

  constructor(readonly feeding: number, readonly shared: boolean) {
    this.#write(standbyBegin(MACHINE, BLOCKS, shared));
  }

  feed(chunk: Uint8Array): void {
    this.#chunks.push(chunk);
    this.#write(standbyPages(chunk));
  }

  /** @returns Its memory and device state once it runs */
  run(image: readonly Uint8Array[], state: Uint8Array) {
    const events = [...this.#write([standbyEnd(state)]), ...this.#reader.finishInitial()];
    const loaded = events.find((event) => event.type === "device-state");
    assert(loaded?.type === "device-state", "the stream is not whole");
    // Its ROM is not zero, and its main memory is the file's or zero.
    const ram = Array.from(
      { length: PAGES },
      (_, page) =>
        page >= MAIN_PAGES
          ? new Uint8Array(4096).fill(0xee)
          : this.shared
          ? image[page]!
          : new Uint8Array(4096),
    );
    const blocks = BLOCKS.map((block, index) => ({
      ...block,
      firstPage: index * MAIN_PAGES,
      pages: block.sizeBytes / 4096,
    }));
    for (const chunk of this.#chunks) applyRecords(ram, blocks, chunk);
    return { ram, deviceState: loaded.deviceState };
  }

  #write(parts: readonly Uint8Array[]) {
    return parts.flatMap((part) => [...this.#reader.push(part)]);
  }
}

type Step =
  | { readonly type: "checkpoint"; readonly chunks: readonly (readonly Write[])[] }
  | { readonly type: "half"; readonly writes: readonly Write[] }
  /** Let the keeper's next answers arrive. */
  | { readonly type: "answers"; readonly count: number }
  | { readonly type: "reseed"; readonly whole: boolean; readonly writes: readonly Write[] }
  /** The link breaks, and what has changed since what is held is sent, whole or not. */
  | { readonly type: "resume"; readonly whole: boolean; readonly writes: readonly Write[] }
  | { readonly type: "qemu-dies" }
  | { readonly type: "crash" };

const writes = fc.array(write, { maxLength: 5 });
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 5, arbitrary: fc.record({ type: fc.constant("checkpoint" as const), chunks: delta }) },
  { weight: 5, arbitrary: fc.record({ type: fc.constant("answers" as const), count: fc.nat(6) }) },
  { weight: 1, arbitrary: fc.record({ type: fc.constant("half" as const), writes }) },
  {
    weight: 1,
    arbitrary: fc.record({ type: fc.constant("reseed" as const), whole: fc.boolean(), writes }),
  },
  {
    weight: 2,
    arbitrary: fc.record({ type: fc.constant("resume" as const), whole: fc.boolean(), writes }),
  },
  { weight: 1, arbitrary: fc.constant({ type: "qemu-dies" } as const) },
  { weight: 1, arbitrary: fc.constant({ type: "crash" } as const) },
);

/** A secondary with everything but processes and sockets. */
class Secondary {
  readonly files = new MemoryFiles();
  machine = machineWith();
  #keeper = this.#openKeeper();
  answers: FromKeeper[] = [];
  standby: ModelStandby | undefined;
  readonly told: number[] = [];
  /** What it says that it holds. */
  held: number | undefined;
  takeOver = false;
  #feeding = 0;
  taken: { readonly deviceState: Uint8Array } | undefined;
  #imageName = "";

  constructor(readonly shared: boolean) {
    this.#start();
  }

  step(event: SecondaryEvent): void {
    let verdict: SecondaryEvent | undefined;
    for (const effect of this.machine.step(event)) {
      if (effect.type === "image") this.#keeper.tell(effect.command);
      if (effect.type === "tell-committed") this.told.push(effect.epoch);
      if (effect.type === "tell-ready") this.held = effect.held?.epoch;
      if (effect.type === "claim") verdict = effect.evidence === "silent" ? UNDECIDED : GRANTED;
      if (effect.type === "take-over") this.takeOver = true;
    }
    if (verdict !== undefined) this.step(verdict);
  }

  /** Take the next answers. */
  answer(count: number): void {
    for (const answer of this.answers.splice(0, count)) this.#take(answer);
  }

  settle(): void {
    while (this.answers.length > 0) this.answer(1);
  }

  /** The engine ends, and another begins. */
  crash(): void {
    this.machine = machineWith();
    this.#keeper = this.#openKeeper();
    this.answers = [];
    this.#start();
  }

  /** The QEMU ends, and another is started. */
  standAgain(): void {
    this.#standBy(this.#imageName);
  }

  take(): void {
    this.#keeper.tell({ type: "take", pid: 1 });
    this.settle();
  }

  #openKeeper(): ImageKeeper {
    return new ImageKeeper(
      this.files.open(),
      new ReferenceKernels(),
      (answer) => this.answers.push(answer),
    );
  }

  #start(): void {
    this.#keeper.tell({ type: "recover" });
    this.settle();
    this.step({ type: "qemu-ready" });
  }

  #standBy(imageName: string): void {
    this.#imageName = imageName;
    this.standby = new ModelStandby(++this.#feeding, this.shared);
    this.#keeper.tell({ type: "feed", feeding: this.#feeding, imageName, shared: this.shared });
  }

  #take(answer: FromKeeper): void {
    switch (answer.type) {
      case "recovered": {
        const held = answer.recovery.type === "held" ? answer.recovery.checkpoint : undefined;
        return this.step({ type: "recovered", held });
      }
      case "target":
        if (answer.target !== undefined) this.#standBy(answer.target.imageName);
        return;
      case "fed":
        if (answer.feeding !== this.#feeding) return;
        this.standby!.feed(answer.chunk);
        if (answer.more) this.#keeper.tell({ type: "feed-next" });
        return;
      case "fed-all":
        if (answer.feeding !== this.#feeding) return;
        this.standby!.fedAll.is = true;
        return this.step({ type: "standby-ready" });
      case "taken":
        this.taken = answer.checkpoint;
        return;
      case "done":
        return;
      case "failed":
        throw new Error(answer.reason);
      default:
        return this.step(answer satisfies ReplicaAnswer);
    }
  }
}

Deno.test("whatever happens, the QEMU that stands by runs from the last checkpoint that was told of, or a later one, whole", () => {
  let resumes = 0;
  fc.assert(
    fc.property(fc.boolean(), fc.array(step, { maxLength: 14 }), (shared, steps) => {
      const secondary = new Secondary(shared);
      /** What the guest held at each checkpoint that was sent as a whole, the last one last. */
      let sent: { epoch: number; model: Model }[] = [];
      let told: number[] = [];
      let model = new Model();
      let epoch = 0;
      const seed = (pages: readonly Write[], whole: boolean) => {
        secondary.step(LINK);
        secondary.settle();
        secondary.step(BEGIN);
        // A fresh VM's main memory is zero; its ROM goes over whole.
        const fresh = new Model();
        const rom = Array.from({ length: PAGES - MAIN_PAGES }, (_, page) => page + MAIN_PAGES);
        const chunks = [
          fresh.chunk(rom.map((page) => ({ page, fill: 0, change: false }))),
          fresh.chunk(pages.map((page) => ({ ...page, change: false }))),
        ];
        if (!whole) {
          secondary.step({ type: "pages", chunk: chunks[1]! });
          return secondary.step(CUT);
        }
        model = fresh;
        for (const event of checkpoint(++epoch, chunks)) secondary.step(event);
        secondary.settle();
        sent = [{ epoch, model: model.copy() }];
        told = secondary.told.splice(0);
      };
      seed([], true);
      for (const step of steps) {
        switch (step.type) {
          case "checkpoint": {
            if (secondary.machine.phase !== "protecting") seed([], true);
            const chunks = step.chunks.map((writes) => model.chunk(writes));
            for (const event of checkpoint(++epoch, chunks)) secondary.step(event);
            sent.push({ epoch, model: model.copy() });
            // More than a few on their way are not allowed.
            if (secondary.answers.length > 40) secondary.settle();
            break;
          }
          case "half":
            if (secondary.machine.phase !== "protecting") break;
            secondary.step({ type: "pages", chunk: model.copy().chunk(step.writes) });
            secondary.step(CUT);
            break;
          case "answers":
            secondary.answer(step.count);
            break;
          case "reseed":
            if (secondary.machine.phase === "protecting") secondary.step(CUT);
            seed(step.writes, step.whole);
            break;
          case "resume": {
            if (["seeding", "protecting"].includes(secondary.machine.phase)) secondary.step(CUT);
            if (secondary.machine.phase !== "orphaned") break;
            secondary.step(LINK);
            const from = sent.find(({ epoch }) => epoch === secondary.held);
            assert(from !== undefined, `checkpoint ${secondary.held} was never sent`);
            resumes++;
            secondary.step({ type: "seed-begin", seed: { ...SEED, resumes: true } });
            // What it holds may be older than what the guest has come to; all that differs is sent.
            const next = from.model.copy();
            const chunk = next.chunk(step.writes.map((write) => ({ ...write, change: false })));
            if (!step.whole) {
              secondary.step({ type: "pages", chunk });
              secondary.step(CUT);
              break;
            }
            model = next;
            for (const event of checkpoint(++epoch, [chunk])) secondary.step(event);
            secondary.settle();
            assertEquals(secondary.machine.phase, "protecting");
            sent.push({ epoch, model: model.copy() });
            break;
          }
          case "qemu-dies":
            secondary.standAgain();
            break;
          case "crash":
            secondary.crash();
            break;
        }
        told.push(...secondary.told.splice(0));
      }
      if (secondary.machine.phase === "protecting") secondary.step(LOST);
      else secondary.step(ORDER);
      secondary.settle();
      assert(secondary.takeOver, `it is ${secondary.machine.phase}`);
      assert(secondary.standby!.fedAll.is, "no QEMU stands by");
      const from = sent.find(({ epoch }) => epoch === secondary.machine.epoch);
      assert(from !== undefined, `checkpoint ${secondary.machine.epoch} was never sent`);
      const lastTold = told.filter((epoch) => epoch >= sent[0]!.epoch).at(-1) ?? 0;
      assert(from.epoch >= lastTold, `${lastTold} was told of, it runs from ${from.epoch}`);
      secondary.take();
      const image = [...secondary.files.entries].find(([name]) => name.startsWith("image-"))![1];
      const pages = Array.from(
        { length: PAGES },
        (_, page) => image.bytes.slice(page * 4096, (page + 1) * 4096),
      );
      const run = secondary.standby!.run(pages, secondary.taken!.deviceState);
      assertEquals(run.deviceState, deviceState(from.epoch));
      const wrong = run.ram.flatMap((content, page) =>
        content.every((byte, at) => byte === from.model.ram[page]![at]) ? [] : [page]
      );
      assertEquals(wrong, [], "these pages are wrong");
    }),
    { numRuns: 100 },
  );
  assert(resumes > 20, `only ${resumes} were brought up to date`);
});
