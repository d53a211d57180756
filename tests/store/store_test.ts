import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { StoreError } from "../../engine/errors.ts";
import type { StoreFiles } from "../../engine/store/files.ts";
import { Checksum, SealedReader, SealedWriter } from "../../engine/store/sealed_file.ts";
import { CheckpointStore } from "../../engine/store/store.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import { noise } from "../wasm/contents.ts";
import { assertHolds, BLOCKS, Guest, type GuestState, PAGE } from "./_guest.ts";
import { type Crash, type FaultKind, InjectedFault, MemoryFiles } from "./_memory_files.ts";

const storeOf = (files: StoreFiles) => new CheckpointStore(files, () => WasmKernels.create());

/** A store with three checkpoints, and what they hold. */
function filled() {
  const files = new MemoryFiles();
  const store = storeOf(files);
  const guest = new Guest();
  const states = new Map<string, GuestState>();
  for (const [round, name] of ["one", "two", "three"].entries()) {
    for (let page = round; page < guest.pages; page += 7 + 20 * round) {
      guest.write(page, page % 3 === 0 ? "bytes" : "whole", page + round);
    }
    if (round > 0) guest.write(20, "zero", 0);
    guest.run(round);
    guest.save(store, name);
    states.set(name, guest.state());
  }
  return { files, store, guest, states };
}

Deno.test("a checkpoint has only what differs from the one before it", () => {
  const { store, guest, states } = filled();
  for (const [name, state] of states) assertHolds(store, name, state);
  const [one, two, three] = store.list();
  assertEquals([one?.name, two?.name, three?.name], ["one", "two", "three"]);
  assertEquals(one?.metadata?.parent, undefined);
  assertEquals(two?.metadata?.parent?.id, one?.metadata?.id);
  assert(two!.metadata!.pages < 20 && one!.metadata!.pages > 40);
  guest.write(100, "bytes", 5);
  assertEquals(guest.save(store, "four").metadata.pages, 1);
  assertEquals(guest.save(store, "five").metadata.pages, 0);
});

Deno.test("another process, or one that was restarted, saves a difference as well", () => {
  const { files, guest, states } = filled();
  guest.write(100, "bytes", 5);
  const store = storeOf(files);
  assertEquals(guest.save(store, "four").metadata.pages, 1);
  assertHolds(store, "four", guest.state());
  for (const [name, state] of states) assertHolds(store, name, state);
});

Deno.test("what the guest writes while it is being saved counts", () => {
  const { store, guest } = filled();
  guest.write(50, "whole", 3);
  guest.save(store, "four", () => {
    guest.write(50, "zero", 0);
    guest.write(51, "whole", 4);
    guest.write(3, "bytes", 4);
    guest.run(9);
  });
  assertHolds(store, "four", guest.state());
});

Deno.test("a guest of another shape, and another VM, begin a chain of their own", () => {
  const { store, states } = filled();
  const larger = new Guest([...BLOCKS, { name: "more", sizeBytes: PAGE }]);
  larger.run(1);
  assertEquals(larger.save(store, "larger").metadata.parent, undefined);
  const other = new Guest();
  other.run(2);
  assertEquals(other.save(store, "other", () => {}, "neighbour").metadata.parent, undefined);
  assertHolds(store, "larger", larger.state());
  assertHolds(store, "other", other.state());
  for (const [name, state] of states) assertHolds(store, name, state);
});

Deno.test("a checkpoint is saved in full where the one before it is damaged", () => {
  const { files, guest } = filled();
  const bytes = files.get("one.colo").slice();
  bytes[bytes.length - 60]! ^= 1;
  files.set("one.colo", bytes);
  const store = storeOf(files);
  assertEquals(guest.save(store, "four").metadata.parent, undefined);
  assertHolds(store, "four", guest.state());
  const said = assertThrows(() => store.verify("three"), StoreError).message;
  assertEquals(
    said,
    "Cannot read checkpoint two: the one that it is a difference from is missing " +
      "(one cannot be read)",
  );
});

Deno.test("names that are taken or are none are refused", () => {
  const { store, guest } = filled();
  for (const name of ["", ".", "..", ".hidden", "a/b", "-x", "a b", "ä", "x".repeat(64)]) {
    assertThrows(() => guest.save(store, name), StoreError, "as the name of a checkpoint");
    assertThrows(() => store.open(name), StoreError, "as the name of a checkpoint");
    assertThrows(() => store.delete(name), StoreError, "as the name of a checkpoint");
  }
  assertThrows(() => guest.save(store, "two"), StoreError, "there is one");
  assertThrows(() => store.open("four"), StoreError, "Cannot find checkpoint four");
  assertThrows(() => store.delete("four"), StoreError, "there is none");
});

Deno.test("one save or delete is under way at a time", () => {
  const { store, guest } = filled();
  guest.save(store, "four", () => {
    assertThrows(() => guest.save(store, "five"), StoreError, "in use");
    assertThrows(() => store.delete("one"), StoreError, "in use");
  });
  assertEquals(store.list().length, 4);
});

for (const name of ["one", "two", "three"]) {
  Deno.test(`deleting ${name} leaves what the others hold`, () => {
    const { store, guest, states } = filled();
    store.delete(name);
    states.delete(name);
    assertEquals(store.list().map((entry) => entry.name), [...states.keys()]);
    for (const [other, state] of states) assertHolds(store, other, state);
    guest.write(9, "whole", 1);
    assertEquals(guest.save(store, "four").metadata.pages, name === "three" ? 8 : 1);
    assertHolds(store, "four", guest.state());
  });
}

Deno.test("the retention rule folds the oldest into a new full one", () => {
  const { store, states } = filled();
  assertEquals(store.retain("tested", 3), []);
  assertEquals(store.retain("another", 1), []);
  assertEquals(store.retain("tested", 1), ["one", "two"]);
  const [only, ...others] = store.list();
  assertEquals(others, []);
  assertEquals(only?.metadata?.parent, undefined);
  assertHolds(store, "three", states.get("three")!);
});

Deno.test("what is zero in a fresh VM is left out when the oldest are folded", () => {
  const { store, guest } = filled();
  for (let page = 20; page < 300; page++) guest.write(page, "zero", 0);
  guest.save(store, "four");
  store.retain("tested", 1);
  const other = storeOf(new MemoryFiles());
  const fresh = guest.save(other, "four");
  assertEquals(store.list()[0]?.metadata?.pages, fresh.metadata.pages);
  assertHolds(store, "four", guest.state());
});

Deno.test("files that are whole but do not add up to what was saved are refused", () => {
  const { files, store } = filled();
  const checksum = new Checksum(WasmKernels.create());
  const original = new SealedReader(files.open("three.colo")!, checksum);
  const forged = new SealedWriter(files.create("three.colo"), checksum);
  for (const piece of original.read(0, original.bodyBytes)) forged.write(piece);
  forged.finish({ ...Object(original.metadata), stateDigest: "0123456789abcdef" });
  assertThrows(() => store.verify("three"), StoreError, "do not add up");
  assertThrows(() => store.delete("two"), StoreError, "do not add up");
  store.verify("two");
});

Deno.test("a damaged checkpoint is deleted only when no other needs it", () => {
  const { files, store } = filled();
  const bytes = files.get("two.colo").slice();
  bytes[100]! ^= 1;
  files.set("two.colo", bytes);
  assertThrows(() => store.delete("two"), StoreError, "bytes 0 to ");
  assertThrows(() => store.delete("one"), StoreError, "bytes 0 to ");
  assertEquals(store.list().length, 3);
  for (const name of ["three", "two"]) store.delete(name);
  store.verify("one");
});

const change = fc.record({
  page: fc.nat(311),
  kind: fc.constantFrom("bytes" as const, "whole" as const, "zero" as const),
  seed: fc.nat(99),
});

const command = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      type: fc.constant("save" as const),
      changes: fc.array(change),
      late: fc.array(change),
    }),
  },
  { weight: 2, arbitrary: fc.record({ type: fc.constant("delete" as const), index: fc.nat(9) }) },
  {
    weight: 1,
    arbitrary: fc.record({
      type: fc.constant("retain" as const),
      count: fc.integer({ min: 1, max: 4 }),
    }),
  },
  { weight: 1, arbitrary: fc.constant({ type: "restart" as const }) },
);

Deno.test("whatever is saved and deleted in whatever order, each holds what was saved", () => {
  fc.assert(
    fc.property(fc.array(command, { maxLength: 12 }), (commands) => {
      const files = new MemoryFiles();
      let store = storeOf(files);
      const guest = new Guest();
      const states = new Map<string, GuestState>();
      const write = (
        changes: readonly { page: number; kind: "bytes" | "whole" | "zero"; seed: number }[],
      ) => {
        for (const { page, kind, seed } of changes) guest.write(page, kind, seed);
      };
      for (const [index, step] of commands.entries()) {
        if (step.type === "restart") store = storeOf(files);
        if (step.type === "save") {
          write(step.changes);
          guest.save(store, `c${index}`, () => {
            write(step.late);
            guest.run(index);
          });
          states.set(`c${index}`, guest.state());
        }
        if (step.type === "delete") {
          const name = [...states.keys()][step.index % Math.max(1, states.size)];
          if (name === undefined) continue;
          store.delete(name);
          states.delete(name);
        }
        if (step.type === "retain") {
          for (const name of store.retain("tested", step.count)) states.delete(name);
        }
      }
      assertEquals(store.list().map(({ name }) => name), [...states.keys()]);
      for (const [name, state] of states) assertHolds(store, name, state);
    }),
    { numRuns: 25 },
  );
});

const KINDS: readonly FaultKind[] = ["before", "half", "after"];
const CRASHES: readonly Crash[] = ["nothing lost", "all lost", "all but removals lost"];

/** Stop the machine at every step of `work`, and look at what is left. */
function everyFault(
  work: (store: CheckpointStore, guest: Guest) => void,
  look: (found: CheckpointStore, states: Map<string, GuestState>) => void,
): void {
  const { files: counted, store, guest } = filled();
  const before = counted.steps;
  work(store, guest);
  const steps = counted.steps - before;
  assert(steps >= 5);
  const seen = new Set<string>();
  for (let step = 1; step <= steps; step++) {
    for (const kind of KINDS) {
      const { files, store, guest, states } = filled();
      files.failAt(step, kind);
      assertThrows(() => work(store, guest), InjectedFault);
      states.set("four", guest.state());
      for (const crash of CRASHES) {
        const found = files.afterCrash(crash);
        // Many steps leave the same; each is looked at once.
        const left = found.list().map((name) => `${name} ${found.get(name).length}`).join();
        if (!seen.has(left)) look(storeOf(found), states);
        seen.add(left);
      }
    }
  }
}

Deno.test("a save that is interrupted at any step leaves the chain, with or without the new one", () => {
  everyFault(
    (store, guest) => {
      guest.write(40, "whole", 8);
      guest.run(40);
      guest.save(store, "four");
    },
    (found, states) => {
      const names = found.list().map(({ name }) => name);
      assert(["one,two,three", "one,two,three,four"].includes(names.join()));
      for (const name of names) assertHolds(found, name, states.get(name)!);
      // What is left of it is in nobody's way.
      const guest = new Guest();
      guest.run(1);
      guest.save(found, "five");
      assertHolds(found, "five", guest.state());
    },
  );
});

for (const name of ["one", "two"]) {
  Deno.test(`deleting ${name} leaves the others, whatever interrupts it`, () => {
    everyFault(
      (store) => store.delete(name),
      (found, states) => {
        const names = found.list().map((entry) => entry.name);
        assert(names.length >= 2 && names.includes("three"));
        for (const left of names) assertHolds(found, left, states.get(left)!);
        if (names.includes(name)) found.delete(name);
        for (const left of names.filter((left) => left !== name)) {
          assertHolds(found, left, states.get(left)!);
        }
      },
    );
  });
}

Deno.test("a save that fails, on a machine that goes on, can be repeated", () => {
  const { files, store, guest, states } = filled();
  guest.write(40, "whole", 8);
  const full: StoreFiles = {
    list: () => files.list(),
    open: (name) => files.open(name),
    create: (name) => ({
      ...files.create(name),
      write: () => {
        throw new Error("No space left on device");
      },
    }),
    rename: (from, to) => files.rename(from, to),
    remove: (name) => files.remove(name),
    syncDirectory: () => files.syncDirectory(),
    lock: () => files.lock(),
  };
  const failing = storeOf(full);
  assertThrows(() => guest.save(failing, "four"), Error, "No space left");
  assertEquals(guest.save(store, "four").metadata.pages, 1);
  assertHolds(store, "four", guest.state());
  for (const [name, state] of states) assertHolds(store, name, state);
});

Deno.test("a byte that is flipped anywhere is detected", () => {
  const { files, states } = filled();
  const names = [...states.keys()];
  for (const name of names) {
    const file = `${name}.colo`;
    const original = files.get(file);
    const ends = [...Array(64).keys()].flatMap((at) => [at, original.length - 1 - at]);
    const inside = Array.from(
      { length: 150 },
      (_, index) => Math.floor(index * original.length / 150),
    );
    for (const at of [...ends, ...inside]) {
      for (const mask of [1, 0x80, 0xff]) {
        const bytes = original.slice();
        bytes[at]! ^= mask;
        files.set(file, bytes);
        assertThrows(() => storeOf(files).verify(name), StoreError);
      }
    }
    files.set(file, original);
  }
  for (const name of names) storeOf(files).verify(name);
});

Deno.test("a file that was cut short, or is something else, is damage and nothing worse", () => {
  const { files, states } = filled();
  const original = files.get("two.colo");
  const cuts = [0, 1, 7, 8, 100, original.length >> 1, original.length - 1];
  for (const bytes of [...cuts.map((at) => original.slice(0, at)), noise(3, 5000)]) {
    files.set("two.colo", bytes);
    const store = storeOf(files);
    assertThrows(() => store.verify("two"), StoreError);
    assertThrows(() => store.verify("three"), StoreError);
    assertHolds(store, "one", states.get("one")!);
    assert(store.list().find(({ name }) => name === "two")?.damage !== undefined);
  }
});
