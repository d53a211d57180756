import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { ENCODE, type KernelSet, ReferenceKernels, WasmKernels } from "../../wasm/mod.ts";
import { ARENA_START, MEMORY_BYTES_MAX } from "../../wasm/door.ts";
import { KERNEL_SETS } from "./twin.ts";

/** Calls with one argument wrong, by what is wrong with it. `end` is the memory's size. */
function wrongCalls(k: KernelSet, a: number): Record<string, () => void> {
  const end = k.bytes.length;
  return {
    "address behind the end": () => k.isZero(end + 1, 0),
    "range over the end": () => k.isZero(end - 15, 16),
    "length beyond u32": () => k.isZero(a, 2 ** 32),
    "negative address": () => k.isZero(-1, 1),
    "negative length": () => k.isZero(a, -1),
    "address that is no whole number": () => k.isZero(a + 0.5, 1),
    "address that is not a number": () => k.isZero(NaN, 1),
    "isEqual first": () => k.isEqual(end, a, 1),
    "isEqual second": () => k.isEqual(a, end, 1),
    "copy target": () => k.copy(end, a, 1),
    "copy source": () => k.copy(a, end, 1),
    "scanRam end before start": () => k.scanRam(a + 8, a, 0, 1, a, 0, 1, a),
    "scanRam end behind memory": () => k.scanRam(a, end + 1, 0, 1, a, 0, 1, a),
    "scanRam table": () => k.scanRam(a, a, 0, 1, end - 8, 0, 2, a),
    "scanRam used beyond capacity": () => k.scanRam(a, a, 0, 1, a, 2, 1, a),
    "scanRam out": () => k.scanRam(a, a, 0, 1, a, 0, 1, end - 7),
    "scanRam page numbers beyond u32": () => k.scanRam(a, a, 2 ** 32 - 1, 2, a, 0, 1, a),
    "applyPages table": () => k.applyPages(end, 1, a, 0, 1),
    "applyPages mirror": () => k.applyPages(a, 1, end - 4095, 0, 1),
    "applyPages mirror beyond 4 GiB": () => k.applyPages(a, 1, a, 0, 2 ** 20),
    "markPages table": () => k.markPages(end, 1, a, 0, 1),
    "markPages bitmap": () => k.markPages(a, 1, end, 0, 1),
    "collectPages bitmap": () => k.collectPages(end, 0, 1, 0, a, a, 1, a),
    "collectPages from": () => k.collectPages(a, 2, 1, 0, a, a, 1, a),
    "collectPages mirror": () => k.collectPages(a, 0, 1, 0, end, a, 1, a),
    "collectPages table": () => k.collectPages(a, 0, 1, 0, a, end, 1, a),
    "collectPages out": () => k.collectPages(a, 0, 1, 0, a, a, 1, end),
    "encodePages table": () => encode(k, a, { table: end }),
    "encodePages from": () => encode(k, a, { from: 2 }),
    "encodePages block behind pages": () => encode(k, a, { blockFirstPage: 2 }),
    "encodePages mode": () => encode(k, a, { mode: 3 }),
    "encodePages mirror": () => encode(k, a, { mirror: end }),
    "encodePages name": () => encode(k, a, { name: end - 5 }),
    "encodePages long name": () => encode(k, a, { nameLength: 256 }),
    "encodePages target": () => encode(k, a, { target: end - 8191 }),
    "encodePages counters": () => encode(k, a, { counters: end - 15 }),
    "encodePages out": () => encode(k, a, { out: end - 7 }),
    "scanFrames end before start": () => k.scanFrames(a + 8, a, 0, 0, a, 1, a),
    "scanFrames end behind memory": () => k.scanFrames(a, end + 1, 0, 0, a, 1, a),
    "scanFrames vnet header": () => k.scanFrames(a, a, 2, 0, a, 1, a),
    "scanFrames seed": () => k.scanFrames(a, a, 0, -1, a, 1, a),
    "scanFrames table": () => k.scanFrames(a, a, 0, 0, end - 63, 1, a),
    "scanFrames out": () => k.scanFrames(a, a, 0, 0, a, 1, end - 7),
    "comparePairs table": () => k.comparePairs(end - 15, 1),
    "comparePairs count": () => k.comparePairs(a, 2 ** 28),
    "bitmapSet bitmap": () => k.bitmapSet(end, 1, 0, 1),
    "bitmapSet bits": () => k.bitmapSet(a, 8, 5, 4),
    "bitmapClear bits": () => k.bitmapClear(a, 8, 9, 0),
    "bitmapTest bit": () => k.bitmapTest(a, 8, 8),
    "bitmapCount bits beyond u32": () => k.bitmapCount(a, 2 ** 32),
    "bitmapUnion target": () => k.bitmapUnion(end, a, 1),
    "bitmapUnion source": () => k.bitmapUnion(a, end, 1),
    "bitmapDifference target": () => k.bitmapDifference(end - 1, a, 9),
    "bitmapNextRun from": () => k.bitmapNextRun(a, 8, 9, a),
    "bitmapNextRun out": () => k.bitmapNextRun(a, 8, 0, end - 4),
    "xbzrleEncode before": () => k.xbzrleEncode(end, a, 1, a, 1),
    "xbzrleEncode after": () => k.xbzrleEncode(a, end, 1, a, 1),
    "xbzrleEncode length of 15 bits": () => k.xbzrleEncode(a, a, 16384, a, 1),
    "xbzrleEncode target": () => k.xbzrleEncode(a, a, 1, end, 1),
    "xbzrleDecode source": () => k.xbzrleDecode(end, 1, a, 1),
    "xbzrleDecode target": () => k.xbzrleDecode(a, 1, end, 1),
    "lz4Compress source": () => k.lz4Compress(end, 1, a, 1),
    "lz4Compress source over 1 MiB": () => k.lz4Compress(a, 2 ** 20 + 1, a, 1),
    "lz4Compress target": () => k.lz4Compress(a, 1, end, 1),
    "lz4Decompress source": () => k.lz4Decompress(end, 1, a, 1),
    "lz4Decompress target": () => k.lz4Decompress(a, 1, end, 1),
    "xxh64 source": () => k.xxh64(end, 1, a),
    "xxh64 out": () => k.xxh64(a, 1, end - 7),
  };
}

interface EncodeArguments {
  mode: number;
  table: number;
  from: number;
  blockFirstPage: number;
  mirror: number;
  name: number;
  nameLength: number;
  target: number;
  counters: number;
  out: number;
}

function encode(k: KernelSet, a: number, wrong: Partial<EncodeArguments>): void {
  const right = { table: a, from: 0, blockFirstPage: 1, mirror: a, name: a, nameLength: 6 };
  const args = { ...right, mode: ENCODE.DELTA, target: a, counters: a, out: a, ...wrong };
  k.encodePages(
    args.mode,
    args.table,
    args.from,
    1,
    args.blockFirstPage,
    1,
    1,
    args.mirror,
    args.name,
    args.nameLength,
    args.target,
    8192,
    args.counters,
    args.out,
  );
}

for (const { name, create } of KERNEL_SETS) {
  Deno.test(`${name} throws RangeError for what lies outside the memory and touches nothing`, () => {
    const kernels = create();
    const address = kernels.alloc(1.5 * 2 ** 20);
    kernels.bytes.fill(0x5a, ARENA_START);
    const arena = new Uint32Array(kernels.bytes.buffer, ARENA_START);
    for (const [what, call] of Object.entries(wrongCalls(kernels, address))) {
      assertThrows(call, RangeError, "Cannot ", what);
      assert(arena.every((word) => word === 0x5a5a5a5a), what);
    }
  });

  Deno.test(`${name} accepts empty ranges at the end of the memory`, () => {
    const kernels = create();
    const out = kernels.alloc(16);
    const end = kernels.bytes.length;
    assertEquals(kernels.isZero(end, 0), 1);
    assertEquals(kernels.isEqual(end, end, 0), 1);
    kernels.copy(end, end, 0);
    assertEquals(kernels.scanRam(end, end, 0, 0, end, 0, 0, out), 0);
    assertEquals(kernels.scanFrames(end, end, 0, 0, end, 0, out), 0);
    assertEquals(kernels.comparePairs(end, 0), 0);
    assertEquals(kernels.xbzrleEncode(end, end, 0, end, 0), 0);
    assertEquals(kernels.lz4Compress(end, 0, end, 0), -1);
    assertEquals(kernels.lz4Compress(end, 0, end - 1, 1), 1);
    assertEquals(kernels.lz4Decompress(end - 1, 1, end, 0), 0);
    assertEquals(kernels.lz4Decompress(end, 0, end, 0), -1);
    kernels.bitmapUnion(end, end, 0);
    assertEquals(kernels.bitmapCount(end, 0), 0);
    kernels.xxh64(end, 0, out);
  });

  Deno.test(`${name}.alloc gives zeroed, aligned ranges that do not overlap`, () => {
    const kernels = create();
    let end = ARENA_START;
    for (const sizeBytes of [1, 0, 16, 4095, 4096, 17, 70_000, 4097, 300_000]) {
      const address = kernels.alloc(sizeBytes);
      assert(address >= end);
      assertEquals(address % (sizeBytes >= 4096 ? 4096 : 16), 0);
      end = address + sizeBytes;
      assert(end <= kernels.bytes.length);
      const range = kernels.bytes.subarray(address, end);
      assert(range.every((byte) => byte === 0));
      range.fill(0xff);
    }
  });

  Deno.test(`${name}.alloc keeps the contents and renews the view when the memory grows`, () => {
    const kernels = create();
    const address = kernels.alloc(16);
    kernels.bytes[address] = 7;
    const view = kernels.bytes;
    kernels.alloc(2 ** 20);
    assert(kernels.bytes !== view);
    assertEquals(kernels.bytes[address], 7);
    assert(kernels.bytes === kernels.bytes);
  });
}

Deno.test("alloc refuses more than the memory's maximum and what is no size", () => {
  const maximumBytes = 4 * 65536;
  const sets = [WasmKernels.create({ maximumBytes }), new ReferenceKernels({ maximumBytes })];
  for (const kernels of sets) {
    for (const sizeBytes of [maximumBytes, -1, 0.5, NaN, Infinity]) {
      assertThrows(() => kernels.alloc(sizeBytes), RangeError, "Cannot allocate");
    }
    const address = kernels.alloc(3 * 65536);
    assertEquals(address + 3 * 65536, maximumBytes);
    assertThrows(() => kernels.alloc(1), RangeError, "Cannot allocate 1 bytes: 0 are left");
  }
});

Deno.test("a memory cannot have a maximum that addresses of 32 bits do not reach", () => {
  for (const maximumBytes of [0, -1, NaN, 65535, MEMORY_BYTES_MAX + 1]) {
    assertThrows(() => WasmKernels.create({ maximumBytes }), RangeError, "Cannot make a memory");
    assertThrows(() => new ReferenceKernels({ maximumBytes }), RangeError, "Cannot make a memory");
  }
});

Deno.test("WasmKernels instances do not share memory", () => {
  const [first, second] = [WasmKernels.create(), WasmKernels.create({ maximumBytes: 2 ** 20 })];
  const address = first.alloc(16);
  assertEquals(second.alloc(16), address);
  first.bytes[address] = 1;
  assertEquals(second.isZero(address, 16), 1);
  assertEquals(first.isZero(address, 16), 0);
  assertEquals(first.memory.buffer.byteLength, first.bytes.length);
});
