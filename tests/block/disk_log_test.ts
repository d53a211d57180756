import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { DiskLog, type DiskWrite } from "../../engine/block/disk_log.ts";
import { applyWrite, type DiskTarget } from "../../engine/block/disk_replica.ts";
import { LocalProtocolError } from "../../engine/errors.ts";
import { ReferenceKernels } from "../../wasm/mod.ts";
import { Crash, MemoryFiles, type ProcessFiles } from "../image/_memory_files.ts";
import { assertContent, pattern } from "./_nbd.ts";

const SIZE_BYTES = 8192;

function newLog(files: ProcessFiles): DiskLog {
  return new DiskLog(files, "disk0", new ReferenceKernels());
}

/** The disk: a file of its own that survives, too. */
function diskOf(files: ProcessFiles): DiskTarget {
  return files.open("image")!;
}

function withDisk(): MemoryFiles {
  const files = new MemoryFiles();
  files.entries.set("image", { bytes: new Uint8Array(SIZE_BYTES) });
  return files;
}

function contentOf(files: MemoryFiles): Uint8Array {
  return files.entries.get("image")!.bytes;
}

const write: fc.Arbitrary<DiskWrite> = fc.record({
  offset: fc.nat(SIZE_BYTES - 1),
  length: fc.integer({ min: 1, max: 2000 }),
  seed: fc.nat(255),
  isZeros: fc.boolean(),
}).map(({ offset, length: wanted, seed, isZeros }) => {
  const length = Math.min(wanted, SIZE_BYTES - offset);
  return isZeros ? { offset, length } : { offset, length, bytes: pattern(seed, length) };
});

/** The writes of each epoch. */
const epochs = fc.array(fc.array(write, { maxLength: 4 }), { maxLength: 4, size: "max" });

/** What a disk holds after these writes. */
function after(before: Uint8Array, writes: readonly DiskWrite[]): Uint8Array<ArrayBuffer> {
  const content = Uint8Array.from(before);
  for (const { offset, length, bytes } of writes) {
    content.set(bytes ?? new Uint8Array(length), offset);
  }
  return content;
}

Deno.test("a disk has what was committed, and is read as if it had all", () => {
  fc.assert(fc.property(epochs, fc.nat(4), (epochs, behind) => {
    const files = withDisk();
    const view = files.open();
    const log = newLog(view);
    const disk = diskOf(view);
    log.begin(1);
    const contents = [contentOf(files).slice()];
    for (const [epoch, writes] of epochs.entries()) {
      for (const write of writes) log.write(write);
      contents.push(after(contents.at(-1)!, writes));
      const seen = new Uint8Array(SIZE_BYTES);
      disk.read(0, seen);
      log.overlay(0, seen);
      assertContent(seen, contents.at(-1)!);
      log.seal(epoch);
      for (const write of log.commit(epoch - behind)) applyWrite(disk, write);
      assertContent(contentOf(files), contents[Math.max(0, epoch - behind + 1)]!);
    }
    for (const write of log.commit(epochs.length)) applyWrite(disk, write);
    assertContent(contentOf(files), contents.at(-1)!);
    assertEquals(log.heldBytes, 0);
    assertEquals(view.list(), ["image"]);
  }));
});

Deno.test("wherever a process ends, the disk comes to the checkpoint that its memory is at", () => {
  fc.assert(
    fc.property(epochs, fc.boolean(), (epochs, isLate) => {
      let steps = 0;
      for (let stepsMax = 0; stepsMax <= steps; stepsMax++) {
        const files = withDisk();
        const contents = [contentOf(files).slice()];
        for (const writes of epochs) contents.push(after(contents.at(-1)!, writes));
        const view = files.open(stepsMax);
        let held = -1;
        let isWhole = false;
        try {
          const log = newLog(view);
          const disk = diskOf(view);
          for (const _ of log.recover({ generation: 3, epoch: held })) assert(false);
          for (const [epoch, writes] of epochs.entries()) {
            for (const write of writes) log.write(write);
            log.seal(epoch);
            // Here the guest's memory is committed; with `isLate`, several before the disk's logs are.
            held = epoch;
            if (isLate && epoch % 2 === 0) continue;
            for (const write of log.commit(epoch)) applyWrite(disk, write);
          }
          isWhole = true;
        } catch (error) {
          if (!(error instanceof Crash)) throw error;
        }
        steps = isWhole ? stepsMax : Infinity;
        // The next process may end, too, any number of times, before one is through.
        for (let more = 0;; more++) {
          const next = files.open(more);
          try {
            for (const write of newLog(next).recover({ generation: 3, epoch: held })) {
              applyWrite(diskOf(next), write);
            }
            break;
          } catch (error) {
            if (!(error instanceof Crash)) throw error;
          }
        }
        assertContent(contentOf(files), contents[held + 1]!, `ended at step ${stepsMax}: the disk`);
        assertEquals(files.open().list(), ["image"]);
      }
    }),
    { numRuns: 40 },
  );
});

Deno.test("what another seed has logged is forgotten, whatever its epochs are", () => {
  const files = withDisk();
  const before = newLog(files.open());
  before.begin(5);
  before.write({ offset: 0, length: 10, bytes: pattern(1, 10) });
  before.seal(1);
  assertEquals([...newLog(files.open()).recover({ generation: 4, epoch: 9 })], []);
  assertEquals(files.open().list(), ["image"]);
});

Deno.test("what was not sealed, or later than what is held, is forgotten", () => {
  const files = withDisk();
  const log = newLog(files.open());
  log.begin(1);
  for (const epoch of [7, 8, 9]) {
    log.write({ offset: epoch, length: 1, bytes: Uint8Array.of(epoch) });
    if (epoch < 9) log.seal(epoch);
  }
  log.flush();
  const found = [...newLog(files.open()).recover({ generation: 1, epoch: 7 })];
  assertEquals(found, [{ offset: 7, length: 1, bytes: Uint8Array.of(7) }]);
  assertEquals(files.open().list(), ["image"]);
});

Deno.test("a takeover leaves nothing of what was not committed", () => {
  const files = withDisk();
  const log = newLog(files.open());
  log.begin(1);
  log.write({ offset: 0, length: 4, bytes: pattern(1, 4) });
  log.seal(1);
  log.write({ offset: 0, length: 4, bytes: pattern(2, 4) });
  log.drop();
  assertEquals(files.open().list(), ["image"]);
  assertEquals([...log.commit(9)], []);
  log.write({ offset: 1, length: 4, bytes: pattern(3, 4) });
  log.seal(2);
  assertEquals([...log.commit(2)], [{ offset: 1, length: 4, bytes: pattern(3, 4) }]);
});

Deno.test("writes that are larger than its buffer are logged as well", () => {
  const files = withDisk();
  const log = newLog(files.open());
  log.begin(1);
  const writes = [100, 300_000, 5, 262_144 - 32, 1].map((length, index) => ({
    offset: index * 1000,
    length,
    bytes: pattern(index, length),
  }));
  for (const write of writes) log.write(write);
  log.seal(1);
  let found = 0;
  for (const { offset, bytes } of newLog(files.open()).recover({ generation: 1, epoch: 1 })) {
    const written = writes[found++]!;
    assertEquals(offset, written.offset);
    assert(bytes!.every((byte, at) => byte === written.bytes[at]));
  }
  assertEquals(found, writes.length);
});

Deno.test("a log that is damaged anywhere is no log, and no trap", () => {
  const files = withDisk();
  const log = newLog(files.open());
  log.begin(1);
  log.write({ offset: 4, length: 40, bytes: pattern(1, 40) });
  log.write({ offset: 9, length: 70 });
  log.seal(1);
  const [name, whole] = [...files.entries].find(([name]) => name.includes("log"))!;
  const bytes = whole.bytes.slice();
  fc.assert(
    fc.property(fc.nat(), fc.integer({ min: 1, max: 255 }), fc.boolean(), (at, change, cut) => {
      const damaged = cut ? bytes.slice(0, at % bytes.length) : bytes.slice();
      if (!cut) damaged[at % bytes.length]! ^= change;
      files.entries.set(name, { bytes: damaged });
      assertEquals([...newLog(files.open()).recover({ generation: 1, epoch: 1 })], []);
    }),
  );
});

Deno.test("a write that belongs to no seed is a bug", () => {
  const log = newLog(withDisk().open());
  assertThrows(() => log.write({ offset: 0, length: 1 }), LocalProtocolError);
});

Deno.test("zeros are written where there is something else, and nowhere else", () => {
  const written: number[] = [];
  const content = new Uint8Array(3 * 1024 * 1024 + 5);
  content[2 * 1024 * 1024 + 3] = 1;
  const target: DiskTarget = {
    sizeBytes: content.length,
    read: (at, target) => target.set(content.subarray(at, at + target.length)),
    write: (at, bytes) => {
      written.push(at, bytes.length);
      content.set(bytes, at);
    },
  };
  applyWrite(target, { offset: 1, length: content.length - 2 });
  assertEquals(written, [2 * 1024 * 1024 + 1, 1024 * 1024]);
  assert(content.every((byte) => byte === 0));
});
