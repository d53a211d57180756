import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { WasmKernels } from "../../wasm/mod.ts";
import { Tool } from "../_tool.ts";
import { contents, noise } from "./contents.ts";
import { Twin } from "./twin.ts";

const SOURCE_MAX = 20000;
const CAPACITY_MAX = SOURCE_MAX + 200;
const twin = new Twin();
const source = twin.alloc(SOURCE_MAX);
const target = twin.alloc(CAPACITY_MAX);
const restored = twin.alloc(SOURCE_MAX);

const openBehind = (address: number, capacity: number) => (result: number) => ({
  address: address + Math.max(0, result),
  length: capacity - Math.max(0, result),
});

function compress(length: number, capacity = CAPACITY_MAX): number {
  return twin.run(
    (kernels) => kernels.lz4Compress(source, length, target, capacity),
    openBehind(target, capacity),
  );
}

function decompress(length: number, capacity: number): number {
  return twin.run(
    (kernels) => kernels.lz4Decompress(target, length, restored, capacity),
    openBehind(restored, capacity),
  );
}

Deno.test("lz4Compress and lz4Decompress give the bytes back, in the least room they need", () => {
  fc.assert(fc.property(contents(SOURCE_MAX), (bytes) => {
    twin.reset();
    twin.set(source, bytes);
    const size = compress(bytes.length);
    assert(size > 0 && size <= bytes.length + bytes.length / 255 + 16);
    assertEquals(compress(bytes.length, size - 1), -1);
    assertEquals(compress(bytes.length, size >> 1), -1);
    assertEquals(compress(bytes.length, size + 1), size);
    assertEquals(compress(bytes.length, size), size);
    assertEquals(decompress(size, bytes.length), bytes.length);
    assertEquals(twin.get({ address: restored, length: bytes.length }), bytes);
    if (bytes.length > 0) assertEquals(decompress(size, bytes.length - 1), -1);
    if (bytes.length < SOURCE_MAX) assertEquals(decompress(size, bytes.length + 1), bytes.length);
    assertEquals(decompress(size - 1, bytes.length), -1);
  }));
});

Deno.test("lz4Compress takes sources of every short length", () => {
  for (let length = 0; length <= 80; length++) {
    for (const bytes of [new Uint8Array(length), noise(length + 1, length)]) {
      twin.reset();
      twin.set(source, bytes);
      const size = compress(length);
      assertEquals(compress(length, size), size);
      assertEquals(decompress(size, length), length);
      assertEquals(twin.get({ address: restored, length }), bytes);
    }
  }
});

Deno.test("lz4Decompress repeats from every offset up to 40 for every length", () => {
  for (let offset = 1; offset <= 40; offset++) {
    for (const length of [4, 5, 7, 8, 15, 16, 17, 18, 19, 31, 33, 100]) {
      for (const capacity of [offset + length + 5, offset + length + 200]) {
        twin.reset();
        const first = noise(offset, offset);
        const last = noise(length, 5);
        const block = [
          ...literals(first, Math.min(length - 4, 15)),
          ...[offset, 0],
          ...(length >= 19 ? [length - 19] : []),
          ...literals(last, 0),
        ];
        twin.set(target, block);
        assertEquals(decompress(block.length, capacity), offset + length + 5);
        const expected = [...first];
        for (let i = 0; i < length; i++) expected.push(expected[i] ?? NaN);
        expected.push(...last);
        assertEquals([...twin.get({ address: restored, length: expected.length })], expected);
      }
    }
  }
});

/** A sequence's token and literals. */
function literals(bytes: Uint8Array, matchCode: number): number[] {
  const { length } = bytes;
  return [Math.min(length, 15) << 4 | matchCode, ...(length >= 15 ? [length - 15] : []), ...bytes];
}

Deno.test("lz4Decompress refuses malformed blocks", () => {
  const malformed = {
    "nothing at all": [],
    "literals missing": [0x50, 1, 2, 3, 4],
    "half an offset": [0x10, 1, 1],
    "no last literals": [0x10, 1, 1, 0],
    "an offset of zero": [0x10, 1, 0, 0, 0x10, 1],
    "an offset before the target": [0x10, 1, 2, 0, 0x10, 1],
    "a literal length cut off": [0xf0],
    "a literal length without end": [0xf0, ...Array(200).fill(255)],
    "a match length cut off": [0x1f, 1, 1, 0],
    "a match length without end": [0x1f, 1, 1, 0, ...Array(200).fill(255)],
  };
  for (const [what, block] of Object.entries(malformed)) {
    twin.reset();
    twin.set(target, block);
    assertEquals(decompress(block.length, SOURCE_MAX), -1, what);
  }
});

Deno.test("lz4Decompress agrees with the reference on damaged blocks", () => {
  const mutation = fc.record({ at: fc.nat(SOURCE_MAX), value: fc.nat(255) });
  fc.assert(fc.property(
    contents(SOURCE_MAX),
    fc.array(mutation, { minLength: 1, maxLength: 5 }),
    fc.nat(SOURCE_MAX),
    fc.nat(SOURCE_MAX),
    (bytes, mutations, length, capacity) => {
      twin.reset();
      twin.set(source, bytes);
      const size = compress(bytes.length);
      for (const { at, value } of mutations) twin.set(target + at % size, [value]);
      decompress(size, bytes.length);
      decompress(size, capacity);
      decompress(Math.min(length, size), bytes.length);
    },
  ));
});

Deno.test("lz4Decompress agrees with the reference on rubbish", () => {
  const tokens = fc.array(fc.oneof(fc.nat(255), fc.nat(4), fc.constant(255)), { maxLength: 300 });
  fc.assert(fc.property(tokens, fc.nat(600), (block, capacity) => {
    twin.reset();
    twin.set(target, block);
    const size = decompress(block.length, capacity);
    assert(size >= -1 && size <= capacity);
  }));
});

Deno.test("lz4Compress finds matches over more than 64 KiB and keeps their offsets short", () => {
  const kernels = new Twin();
  const length = 300_000;
  const capacity = length + 2000;
  const [from, to, back] = [length, capacity, length].map((size) => kernels.alloc(size));
  assert(from !== undefined && to !== undefined && back !== undefined);
  // Islands of noise in a sea of zeros, each there twice.
  const bytes = new Uint8Array(length);
  const distances = [65534, 65535, 65536, 65537, 131072, 200_000];
  for (const [i, distance] of distances.entries()) {
    const at = 1000 + 2000 * i;
    bytes.set(noise(2 * i + 1, 400), at);
    bytes.copyWithin(at + distance, at, at + 400);
  }
  kernels.set(from, bytes);
  const size = kernels.run(
    (k) => k.lz4Compress(from, length, to, capacity),
    openBehind(to, capacity),
  );
  // Only those two in reach are found; the zeros take one byte per 255.
  const islands = 400 * (2 * distances.length - 2);
  assert(size > islands && size < islands + length / 255 + 200, `${size}`);
  assertEquals(kernels.run((k) => k.lz4Decompress(to, size, back, length)), length);
  assertEquals(kernels.get({ address: back, length }), bytes);
});

const lz4 = await Tool.find("lz4");
const lz4Tool = (args: readonly string[], input: Uint8Array) =>
  lz4!.run([...args, "-c", "-q", "-"], input);

/** Frames of the lz4 tool's legacy format (lz4_Frame_format.md): le32 magic, then le32 size, block. */
const LEGACY_MAGIC = 0x184c2102;

Deno.test({
  name: "lz4 blocks are read by the lz4 tool, and the tool's by lz4Decompress",
  ignore: lz4 === undefined,
  fn: async () => {
    const kernels = WasmKernels.create();
    const length = 1_000_000;
    const [from, to] = [kernels.alloc(length), kernels.alloc(length + 5000)];
    const inputs = [
      new Uint8Array(length),
      noise(5, length),
      noise(6, length).map((byte) => 97 + byte % 5),
      new Uint8Array(length).map((_, i) => (i * i) >> 9),
      Uint8Array.of(1, 2, 3),
    ];
    for (const bytes of inputs) {
      kernels.bytes.set(bytes, from);
      const size = kernels.lz4Compress(from, bytes.length, to, length + 5000);
      const frame = new Uint8Array(8 + size);
      new DataView(frame.buffer).setUint32(0, LEGACY_MAGIC, true);
      new DataView(frame.buffer).setUint32(4, size, true);
      frame.set(kernels.bytes.subarray(to, to + size), 8);
      assertEquals(await lz4Tool(["-d"], frame), bytes);

      const theirs = await lz4Tool(["-l"], bytes);
      const theirSize = new DataView(theirs.buffer).getUint32(4, true);
      assertEquals(theirSize, theirs.length - 8);
      kernels.bytes.set(theirs.subarray(8), to);
      assertEquals(kernels.lz4Decompress(to, theirSize, from, length), bytes.length);
      assertEquals(kernels.bytes.slice(from, from + bytes.length), bytes);
    }
  },
});
