import { assertEquals, assertThrows } from "@std/assert/mod.js";
import { ENCODE, SCAN, WasmKernels } from "../../wasm/mod.ts";
import { ARENA_START, MEMORY_BYTES_MAX } from "../../wasm/door.ts";
import { noise } from "./contents.ts";
import { readRecords, writeRecord } from "./ram_records.ts";

const PAGE_BYTES = 4096;

/** A memory as large as there can be. Only what is touched takes up real memory. */
function largest(): { readonly kernels: WasmKernels; readonly end: number } {
  const kernels = WasmKernels.create();
  kernels.alloc(MEMORY_BYTES_MAX - ARENA_START);
  assertEquals(kernels.bytes.length, MEMORY_BYTES_MAX);
  return { kernels, end: MEMORY_BYTES_MAX };
}

Deno.test("kernels work at the last addresses of the largest memory", () => {
  const { kernels, end } = largest();
  assertThrows(() => kernels.alloc(1), RangeError);
  const bytes = noise(3, 3000);
  const last = end - bytes.length;
  const low = ARENA_START;
  kernels.bytes.set(bytes, last);

  assertEquals(kernels.isZero(last - 5000, 5000), 1);
  assertEquals(kernels.isZero(last, bytes.length), 0);
  kernels.copy(low, last, bytes.length);
  assertEquals(kernels.isEqual(low, last, bytes.length), 1);

  const size = kernels.lz4Compress(last, bytes.length, low + 8192, 4096);
  kernels.copy(end - size, low + 8192, size);
  assertEquals(kernels.lz4Decompress(end - size, size, low + 16384, bytes.length), bytes.length);
  assertEquals(kernels.isEqual(low, low + 16384, bytes.length), 1);
  assertEquals(kernels.lz4Decompress(low + 8192, size, last, bytes.length), bytes.length);
  assertEquals(kernels.isEqual(low, last, bytes.length), 1);
  assertEquals(kernels.lz4Compress(low, bytes.length, end - size, size), size);

  kernels.bytes.set(bytes, last);
  const runs = kernels.xbzrleEncode(last - bytes.length, last, bytes.length, low, 8192);
  assertEquals(kernels.xbzrleEncode(last - 3000, last, 3000, end - runs, runs), runs);
  kernels.bytes.fill(0, end - 7000);
  assertEquals(kernels.xbzrleDecode(low, runs, last, bytes.length), bytes.length);
  assertEquals(kernels.bytes.slice(last), bytes);

  kernels.xxh64(last, bytes.length, low);
  kernels.copy(end - 8, low, 8);
  kernels.bytes.fill(0, end - 64);
  kernels.bitmapSet(end - 8, 64, 60, 4);
  assertEquals(kernels.bitmapCount(end - 8, 64), 4);
  assertEquals(kernels.bitmapNextRun(end - 8, 64, 0, low), 1);
});

Deno.test("a mirror of 3.5 GiB is scanned into, applied to and encoded from", () => {
  const kernels = WasmKernels.create();
  const pages = 3.5 * 2 ** 30 / PAGE_BYTES;
  const mirror = kernels.alloc(pages * PAGE_BYTES);
  const staging = kernels.alloc(65536);
  const table = kernels.alloc(4096);
  const target = kernels.alloc(65536);
  const out = kernels.alloc(64);
  const u32 = (address: number) => new DataView(kernels.bytes.buffer).getUint32(address, true);

  const content = noise(1, PAGE_BYTES);
  const records = [pages - 1, 2 ** 19 + 1, 0].map((page) =>
    writeRecord({ flags: 0x28, page, body: content })
  );
  let end = staging;
  for (const record of records) {
    kernels.bytes.set(record, end);
    end += record.length;
  }
  assertEquals(kernels.scanRam(staging, end, 0, pages, table, 0, 512, out), SCAN.MORE);
  assertEquals([u32(out), u32(out + 4)], [end, 3]);
  assertEquals(kernels.applyPages(table, 3, mirror, 0, pages), 3);
  const last = mirror + (pages - 1) * PAGE_BYTES;
  assertEquals(kernels.bytes.slice(last, last + PAGE_BYTES), content);

  kernels.bytes[staging + 8 + 100] = ~(content[100] ?? 0);
  const written = kernels.encodePages(
    ...[ENCODE.DELTA, table, 0, 3, 0, 0, pages, mirror, 0, 0, target, 65536, out + 8, out] as const,
  );
  const [record, ...others] = readRecords(kernels.bytes.slice(target, target + written));
  assertEquals(record?.page, pages - 1);
  assertEquals(others, []);
  assertEquals(kernels.bytes[last + 100], ~(content[100] ?? 0) & 0xff);
});
