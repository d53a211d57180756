/**
 * What every kernel set does before a kernel runs: hand out memory, and refuse address ranges that
 * lie outside it. The kernels behind the door see only ranges that exist.
 *
 * The checks are a few comparisons of numbers and allocate nothing.
 *
 * @module
 */

import { LZ4_SOURCE_BYTES_MAX, PAGE_BYTES, XBZRLE_LENGTH_MAX } from "./format.ts";
import {
  ENCODE,
  FRAME_ENTRY_BYTES,
  type KernelSet,
  PAGE_ENTRY_BYTES,
  PAIR_ENTRY_BYTES,
} from "./kernel_set.ts";

/** Unit in which a WebAssembly memory grows. */
export const WASM_PAGE_BYTES = 65536;

/** Addresses below this belong to the kernels' own tables; nothing is allocated there. */
export const ARENA_START = WASM_PAGE_BYTES;

/**
 * Largest memory: one WebAssembly page less than 4 GiB. The address behind the last byte, and any
 * loop bound a little behind it, then still fits u32.
 */
export const MEMORY_BYTES_MAX = 65535 * WASM_PAGE_BYTES;

/** QEMU writes a block's name with one length byte. */
const NAME_BYTES_MAX = 255;

const U32_MAX = 0xffff_ffff;

/** A memory that can only grow. */
export interface LinearMemory {
  readonly bytes: Uint8Array;
  readonly sizeBytes: number;
  /** @param sizeBytes A multiple of {@linkcode WASM_PAGE_BYTES}, not below the present size */
  growTo(sizeBytes: number): void;
}

/** The kernels without any check of their addresses. */
export type RawKernels = Omit<KernelSet, "bytes" | "alloc">;

/** A kernel set made of a memory and unchecked kernels that work on it. */
export abstract class KernelDoor implements KernelSet {
  readonly #memory: LinearMemory;
  readonly #raw: RawKernels;
  readonly #maximumBytes: number;
  #allocatedEnd = ARENA_START;
  /** Never above the memory's real size. */
  #sizeBytes: number;

  constructor(memory: LinearMemory, raw: RawKernels, maximumBytes = MEMORY_BYTES_MAX) {
    this.#memory = memory;
    this.#raw = raw;
    this.#maximumBytes = checkedMaximumBytes(maximumBytes);
    this.#sizeBytes = memory.sizeBytes;
  }

  get bytes(): Uint8Array {
    return this.#memory.bytes;
  }

  alloc(sizeBytes: number): number {
    const alignment = sizeBytes >= PAGE_BYTES ? PAGE_BYTES : 16;
    const address = Math.ceil(this.#allocatedEnd / alignment) * alignment;
    const end = address + sizeBytes;
    if (!Number.isSafeInteger(sizeBytes) || sizeBytes < 0 || end > this.#maximumBytes) {
      throw new RangeError(
        `Cannot allocate ${sizeBytes} bytes: ${this.#maximumBytes - this.#allocatedEnd} are left ` +
          "of the memory's maximum",
      );
    }
    if (end > this.#sizeBytes) {
      this.#memory.growTo(Math.ceil(end / WASM_PAGE_BYTES) * WASM_PAGE_BYTES);
      this.#sizeBytes = this.#memory.sizeBytes;
    }
    this.#allocatedEnd = end;
    return address;
  }

  scanRam(
    at: number,
    end: number,
    firstPage: number,
    pages: number,
    table: number,
    used: number,
    capacity: number,
    out: number,
  ): number {
    this.#checkRange(at, end - at);
    this.#checkPages(firstPage, pages);
    this.#checkPart(used, capacity);
    this.#checkRange(table, capacity * PAGE_ENTRY_BYTES);
    this.#checkRange(out, 8);
    return this.#raw.scanRam(at, end, firstPage, pages, table, used, capacity, out);
  }

  applyPages(
    table: number,
    count: number,
    mirror: number,
    firstPage: number,
    pages: number,
  ): number {
    this.#checkRange(table, count * PAGE_ENTRY_BYTES);
    this.#checkRange(mirror, pages * PAGE_BYTES);
    this.#checkPages(firstPage, pages);
    return this.#raw.applyPages(table, count, mirror, firstPage, pages);
  }

  markPages(
    table: number,
    count: number,
    bitmap: number,
    firstPage: number,
    pages: number,
  ): number {
    this.#checkRange(table, count * PAGE_ENTRY_BYTES);
    this.#checkBits(bitmap, pages);
    this.#checkPages(firstPage, pages);
    return this.#raw.markPages(table, count, bitmap, firstPage, pages);
  }

  collectPages(
    bitmap: number,
    from: number,
    pages: number,
    firstPage: number,
    mirror: number,
    table: number,
    capacity: number,
    out: number,
  ): number {
    this.#checkBits(bitmap, pages);
    this.#checkPart(from, pages);
    this.#checkPages(firstPage, pages);
    this.#checkRange(mirror, pages * PAGE_BYTES);
    this.#checkRange(table, capacity * PAGE_ENTRY_BYTES);
    this.#checkRange(out, 8);
    return this.#raw.collectPages(
      bitmap,
      from,
      pages,
      firstPage,
      mirror,
      table,
      capacity,
      out,
    );
  }

  encodePages(
    mode: number,
    table: number,
    from: number,
    count: number,
    blockFirstPage: number,
    firstPage: number,
    pages: number,
    mirror: number,
    name: number,
    nameLength: number,
    target: number,
    targetCapacity: number,
    counters: number,
    out: number,
  ): number {
    this.#checkPart(from, count);
    this.#checkRange(table, count * PAGE_ENTRY_BYTES);
    this.#checkPages(firstPage, pages);
    this.#checkPart(blockFirstPage, firstPage);
    this.#checkPart(mode, ENCODE.SEED);
    if (mode === ENCODE.DELTA) this.#checkRange(mirror, pages * PAGE_BYTES);
    this.#checkPart(nameLength, NAME_BYTES_MAX);
    this.#checkRange(name, nameLength);
    this.#checkRange(target, targetCapacity);
    this.#checkRange(counters, 16);
    this.#checkRange(out, 8);
    return this.#raw.encodePages(
      mode,
      table,
      from,
      count,
      blockFirstPage,
      firstPage,
      pages,
      mirror,
      name,
      nameLength,
      target,
      targetCapacity,
      counters,
      out,
    );
  }

  scanFrames(
    at: number,
    end: number,
    vnetHeader: number,
    seed: number,
    table: number,
    capacity: number,
    out: number,
  ): number {
    this.#checkRange(at, end - at);
    this.#checkPart(vnetHeader, 1);
    this.#checkPart(seed, U32_MAX);
    this.#checkRange(table, capacity * FRAME_ENTRY_BYTES);
    this.#checkRange(out, 8);
    return this.#raw.scanFrames(at, end, vnetHeader, seed, table, capacity, out);
  }

  comparePairs(pairs: number, count: number): number {
    this.#checkRange(pairs, count * PAIR_ENTRY_BYTES);
    return this.#raw.comparePairs(pairs, count);
  }

  isZero(address: number, length: number): number {
    this.#checkRange(address, length);
    return this.#raw.isZero(address, length);
  }

  isEqual(a: number, b: number, length: number): number {
    this.#checkRange(a, length);
    this.#checkRange(b, length);
    return this.#raw.isEqual(a, b, length);
  }

  copy(target: number, source: number, length: number): void {
    this.#checkRange(target, length);
    this.#checkRange(source, length);
    this.#raw.copy(target, source, length);
  }

  bitmapSet(bitmap: number, bits: number, first: number, count: number): void {
    this.#checkBits(bitmap, bits);
    this.#checkPart(first, bits);
    this.#checkPart(count, bits - first);
    this.#raw.bitmapSet(bitmap, bits, first, count);
  }

  bitmapClear(bitmap: number, bits: number, first: number, count: number): void {
    this.#checkBits(bitmap, bits);
    this.#checkPart(first, bits);
    this.#checkPart(count, bits - first);
    this.#raw.bitmapClear(bitmap, bits, first, count);
  }

  bitmapTest(bitmap: number, bits: number, bit: number): number {
    this.#checkBits(bitmap, bits);
    this.#checkPart(bit, bits - 1);
    return this.#raw.bitmapTest(bitmap, bits, bit);
  }

  bitmapCount(bitmap: number, bits: number): number {
    this.#checkBits(bitmap, bits);
    return this.#raw.bitmapCount(bitmap, bits) >>> 0;
  }

  bitmapUnion(target: number, source: number, bits: number): void {
    this.#checkBits(target, bits);
    this.#checkBits(source, bits);
    this.#raw.bitmapUnion(target, source, bits);
  }

  bitmapDifference(target: number, source: number, bits: number): void {
    this.#checkBits(target, bits);
    this.#checkBits(source, bits);
    this.#raw.bitmapDifference(target, source, bits);
  }

  bitmapNextRun(bitmap: number, bits: number, from: number, out: number): number {
    this.#checkBits(bitmap, bits);
    this.#checkPart(from, bits);
    this.#checkRange(out, 8);
    return this.#raw.bitmapNextRun(bitmap, bits, from, out);
  }

  xbzrleEncode(
    before: number,
    after: number,
    length: number,
    target: number,
    capacity: number,
  ): number {
    this.#checkPart(length, XBZRLE_LENGTH_MAX);
    this.#checkRange(before, length);
    this.#checkRange(after, length);
    this.#checkRange(target, capacity);
    return this.#raw.xbzrleEncode(before, after, length, target, capacity);
  }

  xbzrleDecode(source: number, sourceLength: number, target: number, length: number): number {
    this.#checkRange(source, sourceLength);
    this.#checkRange(target, length);
    return this.#raw.xbzrleDecode(source, sourceLength, target, length);
  }

  lz4Compress(source: number, sourceLength: number, target: number, capacity: number): number {
    this.#checkPart(sourceLength, LZ4_SOURCE_BYTES_MAX);
    this.#checkRange(source, sourceLength);
    this.#checkRange(target, capacity);
    return this.#raw.lz4Compress(source, sourceLength, target, capacity);
  }

  lz4Decompress(source: number, sourceLength: number, target: number, capacity: number): number {
    this.#checkRange(source, sourceLength);
    this.#checkRange(target, capacity);
    return this.#raw.lz4Decompress(source, sourceLength, target, capacity);
  }

  xxh64(address: number, length: number, out: number): void {
    this.#checkRange(address, length);
    this.#checkRange(out, 8);
    this.#raw.xxh64(address, length, out);
  }

  #checkRange(address: number, length: number): void {
    // x >>> 0 === x holds for whole numbers of u32 alone: not for NaN, fractions or negatives.
    if (
      address >>> 0 !== address || length >>> 0 !== length ||
      (address + length > this.#sizeBytes && address + length > this.#measure())
    ) {
      throw new RangeError(
        `Cannot access ${length} bytes at address ${address}: the memory has ${this.#sizeBytes}`,
      );
    }
  }

  /** Another thread may have made the memory larger. */
  #measure(): number {
    this.#sizeBytes = this.#memory.sizeBytes;
    return this.#sizeBytes;
  }

  #checkBits(bitmap: number, bits: number): void {
    this.#checkPart(bits, U32_MAX);
    this.#checkRange(bitmap, Math.ceil(bits / 8));
  }

  /** Page numbers fit u32. */
  #checkPages(firstPage: number, pages: number): void {
    this.#checkPart(firstPage, U32_MAX);
    this.#checkPart(pages, U32_MAX + 1 - firstPage);
  }

  #checkPart(part: number, whole: number): void {
    if (part >>> 0 !== part || part > whole) {
      throw new RangeError(`Cannot take ${part} as a count or position: it must be 0..${whole}`);
    }
  }
}

/** @throws {RangeError} when no memory can have this maximum */
export function checkedMaximumBytes(maximumBytes: number): number {
  if (!(maximumBytes >= ARENA_START && maximumBytes <= MEMORY_BYTES_MAX)) {
    throw new RangeError(
      `Cannot make a memory of up to ${maximumBytes} bytes: ` +
        `the maximum must be ${ARENA_START}..${MEMORY_BYTES_MAX}`,
    );
  }
  return maximumBytes;
}
