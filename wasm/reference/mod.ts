/**
 * The kernels in plain TypeScript: what they mean, in the clearest form. The tests run the
 * WebAssembly kernels against these on the same memory contents.
 *
 * @module
 */

import { ARENA_START, KernelDoor, type RawKernels } from "../door.ts";
import * as bitmap from "./bitmap.ts";
import { xxh64 } from "./checksum.ts";
import { encodePages } from "./encode.ts";
import { lz4Compress, lz4Decompress } from "./lz4.ts";
import { ReferenceMemory } from "./memory.ts";
import { comparePairs, scanFrames } from "./packet.ts";
import { copy, isEqual, isZero } from "./page.ts";
import { applyPages, collectPages, markPages, scanRam } from "./scan.ts";
import { xbzrleDecode, xbzrleEncode } from "./xbzrle.ts";

/**
 * The specification of the kernels, over an ordinary byte array.
 *
 * @example
 * ```ts
 * import { ReferenceKernels } from "./mod.ts";
 * import { assertEquals } from "@std/assert/mod.js";
 *
 * const kernels = new ReferenceKernels();
 * const page = kernels.alloc(4096);
 * assertEquals(kernels.isZero(page, 4096), 1);
 * ```
 */
export class ReferenceKernels extends KernelDoor {
  /**
   * @param options.initialBytes Memory to begin with
   * @param options.maximumBytes Memory that {@linkcode alloc} may grow it to
   * @throws {RangeError} when the maximum is none that a WebAssembly memory could have
   */
  constructor(
    options: { readonly initialBytes?: number; readonly maximumBytes?: number } = {},
  ) {
    const memory = new ReferenceMemory(Math.max(ARENA_START, options.initialBytes ?? 0));
    super(memory, rawKernels(memory), options.maximumBytes);
  }
}

function rawKernels(memory: ReferenceMemory): RawKernels {
  return {
    scanRam: (...args) => scanRam(memory.bytes, ...args),
    applyPages: (...args) => applyPages(memory.bytes, ...args),
    markPages: (...args) => markPages(memory.bytes, ...args),
    collectPages: (...args) => collectPages(memory.bytes, ...args),
    encodePages: (...args) => encodePages(memory.bytes, ...args),
    scanFrames: (...args) => scanFrames(memory.bytes, ...args),
    comparePairs: (...args) => comparePairs(memory.bytes, ...args),
    isZero: (...args) => Number(isZero(memory.bytes, ...args)),
    isEqual: (...args) => Number(isEqual(memory.bytes, ...args)),
    copy: (...args) => copy(memory.bytes, ...args),
    bitmapSet: (address, _bits, first, count) =>
      bitmap.bitmapSet(memory.bytes, address, first, count),
    bitmapClear: (address, _bits, first, count) =>
      bitmap.bitmapClear(memory.bytes, address, first, count),
    bitmapTest: (address, _bits, bit) => Number(bitmap.bitmapTest(memory.bytes, address, bit)),
    bitmapCount: (...args) => bitmap.bitmapCount(memory.bytes, ...args),
    bitmapUnion: (...args) => bitmap.bitmapUnion(memory.bytes, ...args),
    bitmapDifference: (...args) => bitmap.bitmapDifference(memory.bytes, ...args),
    bitmapNextRun: (...args) => Number(bitmap.bitmapNextRun(memory.bytes, ...args)),
    xbzrleEncode: (...args) => xbzrleEncode(memory.bytes, ...args),
    xbzrleDecode: (...args) => xbzrleDecode(memory.bytes, ...args),
    lz4Compress: (...args) => lz4Compress(memory.bytes, ...args),
    lz4Decompress: (...args) => lz4Decompress(memory.bytes, ...args),
    xxh64: (address, length, out) =>
      new DataView(memory.bytes.buffer).setBigUint64(
        out,
        xxh64(memory.bytes, address, length),
        true,
      ),
  };
}
