import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { WireError } from "../../engine/errors.ts";
import type { GuestImage } from "../../engine/image/guest_image.ts";
import { ImageStore } from "../../engine/image/store.ts";
import { ReferenceKernels } from "../../wasm/mod.ts";
import { applyRecords } from "../checkpoint/_ram.ts";
import { BLOCKS, MACHINE, records } from "../stream/sample.ts";
import { delta, Model, PAGES } from "./_deltas.ts";
import { Crash, MemoryFiles } from "./_memory_files.ts";

const GUEST = { lineage: "l", machine: MACHINE, blocks: BLOCKS };

function store(files: MemoryFiles, stepsMax?: number): ImageStore {
  return new ImageStore(files.open(stepsMax), new ReferenceKernels());
}

function blob(epoch: number): Uint8Array<ArrayBuffer> {
  return new Uint8Array(100).fill(epoch);
}

function memoryOf(image: GuestImage): Uint8Array[] {
  return Array.from({ length: image.pages }, (_, page) => image.page(page));
}

/** What a fresh process finds is exactly this checkpoint. */
function assertHolds(found: ImageStore, epoch: number, model: Model): void {
  const { held } = found;
  assertEquals(held?.epoch, epoch);
  assertEquals(held?.machine, MACHINE);
  assertEquals(held?.blocks, BLOCKS);
  assertEquals(held?.deviceState, blob(epoch));
  const wrong = memoryOf(found.image).flatMap((content, page) =>
    content.every((byte, at) => byte === model.ram[page]![at]) ? [] : [page]
  );
  assertEquals(wrong, [], "these pages are wrong");
}

function seed(
  into: ImageStore,
  epoch: number,
  model: Model,
  pages: Parameters<Model["chunk"]>[0],
): void {
  into.seedBegin(GUEST);
  into.seedPages(model.chunk(pages));
  into.seedCommit(epoch, blob(epoch));
}

Deno.test("a store holds what its checkpoints say, in this process and the next", () => {
  fc.assert(fc.property(fc.array(delta, { maxLength: 5 }), (deltas) => {
    const files = new MemoryFiles();
    const model = new Model();
    const held = store(files);
    assertEquals(held.recover(), { type: "nothing" });
    seed(held, 0, model, [{ page: 3, fill: 1, change: false }, {
      page: 66,
      fill: 4,
      change: false,
    }]);
    assertHolds(held, 0, model);
    for (const [index, chunks] of deltas.entries()) {
      for (const writes of chunks) held.append(model.chunk(writes));
      held.commit(index + 1, blob(index + 1));
      held.apply();
      assertHolds(held, index + 1, model);
    }
    const next = store(files);
    const recovery = next.recover();
    assert(recovery.type === "held" && !recovery.mended);
    assertHolds(next, deltas.length, model);
    next.discard();
    assertEquals(files.open().list(), []);
  }));
});

Deno.test("wherever a process ends, the last checkpoint that was committed is held whole", () => {
  fc.assert(
    fc.property(fc.array(delta, { minLength: 1, maxLength: 3 }), fc.boolean(), (deltas, again) => {
      let steps = 0;
      for (let stepsMax = 0; stepsMax <= steps; stepsMax++) {
        const files = new MemoryFiles();
        const model = new Model();
        const first = store(files);
        seed(first, 7, model, [{ page: 3, fill: 1, change: false }]);
        // What a process has committed counts; what it was about to commit may count.
        let committed = { epoch: 7, model: model.copy() };
        let begun = committed;
        const view = files.open(stepsMax);
        const dying = new ImageStore(view, new ReferenceKernels());
        let whole = false;
        try {
          dying.recover();
          for (const [index, chunks] of deltas.entries()) {
            for (const writes of chunks) dying.append(model.chunk(writes));
            begun = { epoch: 8 + index, model: model.copy() };
            dying.commit(begun.epoch, blob(begun.epoch));
            committed = begun;
            dying.apply();
          }
          if (again) {
            const fresh = new Model();
            dying.seedBegin(GUEST);
            dying.seedPages(fresh.chunk([{ page: 5, fill: 6, change: false }]));
            begun = { epoch: 1, model: fresh };
            dying.seedCommit(1, blob(1));
            committed = begun;
          }
          whole = true;
        } catch (error) {
          if (!(error instanceof Crash)) throw error;
        }
        steps = whole ? stepsMax : Infinity;
        const found = store(files);
        assertEquals(found.recover().type, "held");
        const expected = found.held?.epoch === begun.epoch ? begun : committed;
        assertHolds(found, expected.epoch, expected.model);
        // It goes on from there, and nothing else is left.
        found.append(expected.model.chunk([{ page: 9, fill: 2, change: true }]));
        found.commit(99, blob(99));
        found.apply();
        assertHolds(found, 99, expected.model);
        assertEquals(files.open().list().length, 3);
      }
    }),
    { numRuns: 12 },
  );
});

Deno.test("a process that ends while it mends what another one left can be mended again", () => {
  for (let stepsMax = 0; stepsMax < 12; stepsMax++) {
    const files = new MemoryFiles();
    const model = new Model();
    const first = store(files);
    seed(first, 1, model, []);
    first.append(model.chunk([
      { page: 1, fill: 3, change: false },
      { page: 2, fill: 2, change: true },
      { page: 70, fill: 5, change: false },
    ]));
    first.commit(2, blob(2));
    try {
      store(files, stepsMax).recover();
    } catch (error) {
      if (!(error instanceof Crash)) throw error;
    }
    const found = store(files);
    found.recover();
    assertHolds(found, 2, model);
  }
});

Deno.test("what is held stays while another seed arrives, and when that is dropped", () => {
  const files = new MemoryFiles();
  const model = new Model();
  const held = store(files);
  seed(held, 5, model, [{ page: 1, fill: 1, change: false }]);
  const old = held.held?.imageName;
  const name = held.seedBegin(GUEST);
  assert(name !== old);
  held.seedPages(records([{ block: 0, page: 1, fill: 3 }]));
  assertHolds(held, 5, model);
  const other = store(files);
  other.recover();
  assertHolds(other, 5, model);
  held.seedDrop();
  assertHolds(held, 5, model);
  assertEquals(files.open().list().length, 3);
});

Deno.test("records that make no sense are refused before anything of them is kept", () => {
  const files = new MemoryFiles();
  const model = new Model();
  const held = store(files);
  seed(held, 1, model, []);
  const good = records([{ block: 0, page: 1, fill: 1 }]);
  const malformed = model.copy().chunk([{ page: 1, fill: 1, change: true }]);
  malformed[malformed.length - 1]! ^= 0xff;
  malformed[malformed.length - 3] = 0xff;
  for (const chunk of [good.subarray(0, 50), malformed, new Uint8Array(9).fill(0x77)]) {
    assertThrows(() => held.append(chunk), WireError);
    held.drop();
  }
  assertHolds(held, 1, model);
});

Deno.test("a checkpoint that was dropped leaves nothing in the next one", () => {
  const files = new MemoryFiles();
  const model = new Model();
  const held = store(files);
  seed(held, 1, model, []);
  held.append(records([{ block: 0, page: 1, fill: 1 }]));
  held.drop();
  held.append(model.chunk([{ page: 2, fill: 1, change: false }]));
  held.commit(2, blob(2));
  held.apply();
  assertHolds(held, 2, model);
});

Deno.test("of a checkpoint that a QEMU was let run from, the next process finds only that", () => {
  const files = new MemoryFiles();
  const held = store(files);
  seed(held, 1, new Model(), []);
  held.take(4711);
  held.taken();
  assertEquals(files.open().list(), ["taken-1"]);
  const next = store(files);
  assertEquals(next.recover(), { type: "taken", pid: 4711 });
  next.discard();
  assertEquals(store(files).recover(), { type: "nothing" });
  assertEquals(files.open().list(), []);
});

Deno.test("damaged files are no checkpoint, and no trap", () => {
  const files = new MemoryFiles();
  seed(store(files), 1, new Model(), []);
  const saved = new Map([...files.entries].map(([name, { bytes }]) => [name, bytes.slice()]));
  const name = [...saved.keys()].find((name) => name.startsWith("state"))!;
  fc.assert(fc.property(fc.nat(), fc.integer({ min: 1, max: 255 }), (at, change) => {
    files.entries.clear();
    for (const [name, bytes] of saved) files.entries.set(name, { bytes: bytes.slice() });
    const { bytes } = files.entries.get(name)!;
    bytes[at % bytes.length]! ^= change;
    assertEquals(store(files).recover(), { type: "nothing" });
  }));
});

Deno.test("pages are told as records that leave what the image holds", () => {
  const files = new MemoryFiles();
  const held = store(files);
  const model = new Model();
  seed(held, 1, model, [{ page: 3, fill: 5, change: false }, { page: 70, fill: 2, change: false }]);
  const { image } = held;
  for (const zeros of [true, false]) {
    const ram = Array.from({ length: PAGES }, () => new Uint8Array(4096).fill(zeros ? 9 : 0));
    const all = Array.from({ length: PAGES }, (_, page) => page);
    for (const chunk of image.records(all, zeros)) applyRecords(ram, image.blocks, chunk);
    assertEquals(ram, model.ram);
  }
});
