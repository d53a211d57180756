import { assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { PacketError } from "../../engine/errors.ts";
import { RecordBuffer } from "../../engine/proxy/record_buffer.ts";

function records(sizes: readonly number[], prefixBytes: number): Uint8Array {
  return Uint8Array.from(sizes.flatMap((size) => {
    const bytes = new Uint8Array(prefixBytes + size).fill(size % 251);
    new DataView(bytes.buffer).setUint32(0, size);
    return [...bytes];
  }));
}

Deno.test("RecordBuffer passes on whole records, the same bytes for any chunking", () => {
  fc.assert(fc.property(
    fc.array(fc.integer({ min: 1, max: 2000 }), { maxLength: 30 }),
    fc.array(fc.integer({ min: 1, max: 5000 }), { minLength: 1 }),
    fc.constantFrom(4, 8),
    (sizes, pieces, prefixBytes) => {
      const bytes = records(sizes, prefixBytes);
      const ends = new Set([0]);
      let end = 0;
      for (const size of sizes) ends.add(end += prefixBytes + size);
      const buffer = new RecordBuffer("a test", prefixBytes);
      const taken: number[] = [];
      for (let at = 0, turn = 0; at < bytes.length; turn++) {
        const piece = bytes.subarray(at, at + pieces[turn % pieces.length]!);
        buffer.space().set(piece);
        buffer.filled(piece.length);
        for (const byte of buffer.take()) taken.push(byte);
        assertEquals(ends.has(taken.length), true, "cut inside of a record");
        at += piece.length;
      }
      assertEquals(Uint8Array.from(taken), bytes);
    },
  ));
});

Deno.test("RecordBuffer refuses what is no record, and says where it is", () => {
  for (const length of [0, 69_633, 0xffff_ffff]) {
    const buffer = new RecordBuffer("a test", 4);
    const good = records([60], 4);
    const bad = new Uint8Array(4);
    new DataView(bad.buffer).setUint32(0, length);
    buffer.space().set([...good, ...bad]);
    buffer.filled(good.length + bad.length);
    assertEquals(assertThrows(() => buffer.take(), PacketError).offset, good.length);
    buffer.reset();
    buffer.space().set(good);
    buffer.filled(good.length);
    assertEquals(buffer.take(), good);
  }
});
