import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { WasmKernels } from "../../wasm/mod.ts";
import { contents, edited, edits } from "./contents.ts";

const LENGTH_MAX = 6000;
const kernels = WasmKernels.create();
const first = kernels.alloc(2 * LENGTH_MAX);
const second = kernels.alloc(2 * LENGTH_MAX);
kernels.alloc(4 * LENGTH_MAX);
const end = kernels.bytes.length;

/** Put bytes where one more would be behind the memory: reading or writing on would trap. */
function setLast(bytes: Uint8Array): number {
  kernels.bytes.set(bytes, end - bytes.length);
  return end - bytes.length;
}

Deno.test("lz4 kernels neither read nor write behind the memory's last byte", () => {
  fc.assert(fc.property(contents(LENGTH_MAX), (bytes) => {
    const { length } = bytes;
    const size = kernels.lz4Compress(setLast(bytes), length, first, 2 * LENGTH_MAX);
    assert(size > 0);
    const block = kernels.bytes.slice(first, first + size);
    assertEquals(kernels.lz4Decompress(setLast(block), size, second, length), length);
    assert(kernels.bytes.subarray(second, second + length).every((byte, i) => byte === bytes[i]));
    assertEquals(kernels.lz4Decompress(first, size, end - length, length), length);
    assertEquals(kernels.lz4Compress(second, length, end - size, size), size);
    assert(kernels.bytes.subarray(end - size).every((byte, i) => byte === block[i]));
  }));
});

Deno.test("other kernels neither read nor write behind the memory's last byte", () => {
  fc.assert(fc.property(contents(LENGTH_MAX), edits(LENGTH_MAX), (bytes, changes) => {
    const { length } = bytes;
    const changed = edited(bytes, changes.filter(({ at }) => at < length));
    kernels.bytes.set(bytes, first);
    const size = kernels.xbzrleEncode(first, setLast(changed), length, second, 2 * LENGTH_MAX);
    assert(size >= 0);
    kernels.isZero(end - length, length);
    kernels.isEqual(end - length, first, length);
    kernels.isEqual(first, end - length, length);
    kernels.xxh64(end - length, length, first);
    kernels.bitmapCount(end - length, length * 8);
    kernels.bitmapNextRun(end - length, length * 8, length, first);
    kernels.bitmapUnion(end - length, first, length * 8);
    kernels.bitmapDifference(first, end - length, length * 8);

    const body = kernels.bytes.slice(second, second + size);
    kernels.bytes.set(bytes, first);
    kernels.xbzrleDecode(setLast(body), size, first, length);
    assert(kernels.bytes.subarray(first, first + length).every((byte, i) => byte === changed[i]));
    kernels.xbzrleDecode(second, size, setLast(bytes), length);
    assert(kernels.bytes.subarray(end - length).every((byte, i) => byte === changed[i]));
    kernels.bytes.set(bytes, first);
    kernels.bytes.set(changed, second);
    assertEquals(kernels.xbzrleEncode(first, second, length, end - size, size), size);
  }));
});
