/**
 * Reference kernels on bitmaps. Bit `n` is bit `n & 7` of byte `n >> 3`; bits of the last byte that
 * lie behind the bitmap's length are neither read nor changed.
 *
 * @module
 */

import { byteAt, writeU32 } from "./memory.ts";

export function bitmapTest(bytes: Uint8Array, bitmap: number, bit: number): boolean {
  return (byteAt(bytes, bitmap + Math.floor(bit / 8)) >> (bit % 8) & 1) === 1;
}

export function setBit(bytes: Uint8Array, bitmap: number, bit: number): void {
  const at = bitmap + Math.floor(bit / 8);
  bytes[at] = byteAt(bytes, at) | 1 << (bit % 8);
}

export function clearBit(bytes: Uint8Array, bitmap: number, bit: number): void {
  const at = bitmap + Math.floor(bit / 8);
  bytes[at] = byteAt(bytes, at) & ~(1 << (bit % 8));
}

export function bitmapSet(bytes: Uint8Array, bitmap: number, first: number, count: number): void {
  for (let bit = first; bit < first + count; bit++) setBit(bytes, bitmap, bit);
}

export function bitmapClear(bytes: Uint8Array, bitmap: number, first: number, count: number): void {
  for (let bit = first; bit < first + count; bit++) clearBit(bytes, bitmap, bit);
}

export function bitmapCount(bytes: Uint8Array, bitmap: number, bits: number): number {
  let count = 0;
  for (let bit = 0; bit < bits; bit++) {
    if (bitmapTest(bytes, bitmap, bit)) count++;
  }
  return count;
}

export function bitmapUnion(bytes: Uint8Array, target: number, source: number, bits: number): void {
  for (let bit = 0; bit < bits; bit++) {
    if (bitmapTest(bytes, source, bit)) setBit(bytes, target, bit);
  }
}

export function bitmapDifference(
  bytes: Uint8Array,
  target: number,
  source: number,
  bits: number,
): void {
  for (let bit = 0; bit < bits; bit++) {
    if (bitmapTest(bytes, source, bit)) clearBit(bytes, target, bit);
  }
}

/** The first bit at or behind `from` that has this value; `bits` when there is none. */
export function nextBit(
  bytes: Uint8Array,
  bitmap: number,
  bits: number,
  from: number,
  value: boolean,
): number {
  for (let bit = from; bit < bits; bit++) {
    if (bitmapTest(bytes, bitmap, bit) === value) return bit;
  }
  return bits;
}

export function bitmapNextRun(
  bytes: Uint8Array,
  bitmap: number,
  bits: number,
  from: number,
  out: number,
): boolean {
  const first = nextBit(bytes, bitmap, bits, from, true);
  const behind = nextBit(bytes, bitmap, bits, first, false);
  writeU32(bytes, out, first);
  writeU32(bytes, out + 4, behind - first);
  return first < bits;
}
