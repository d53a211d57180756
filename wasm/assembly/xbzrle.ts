/**
 * XBZRLE codec, after QEMU migration/xbzrle.c:
 *
 *   body = { zero run: uleb128, non-zero run: uleb128, that many new bytes }*
 *
 * Runs are as long as they can be; numbers have one or two bytes (14 bits).
 */

import { copyRun, differs64 } from "./page";

/**
 * The first position from `at` on where the ranges differ; `length` when they do not.
 *
 *   64 bytes at a time while equal, then 16:
 *   before   b0 b1 b2 .. b15     i8x16.ne, bitmask: bit n set = byte n differs
 *   after    a0 a1 a2 .. a15     ctz of it: the first that does
 */
// @ts-ignore: decorator
@inline
export function nextDifference(before: usize, after: usize, at: usize, length: usize): usize {
  while (at + 64 <= length && !differs64(before + at, after + at)) at += 64;
  for (; at + 16 <= length; at += 16) {
    const mask = i8x16.bitmask(i8x16.ne(v128.load(before + at), v128.load(after + at)));
    if (mask != 0) return at + ctz(mask);
  }
  while (at < length && load<u8>(before + at) == load<u8>(after + at)) at++;
  return at;
}

/** The first position from `at` on where the ranges agree; `length` when they do not. */
// @ts-ignore: decorator
@inline
function nextAgreement(before: usize, after: usize, at: usize, length: usize): usize {
  for (; at + 16 <= length; at += 16) {
    const mask = i8x16.bitmask(i8x16.eq(v128.load(before + at), v128.load(after + at)));
    if (mask != 0) return at + ctz(mask);
  }
  while (at < length && load<u8>(before + at) != load<u8>(after + at)) at++;
  return at;
}

// @ts-ignore: decorator
@inline
function writeUleb128(at: usize, value: usize): usize {
  if (value < 0x80) {
    store<u8>(at, value);
    return 1;
  }
  store<u16>(at, (value & 0x7f) | 0x80 | ((value >>> 7) << 8));
  return 2;
}

export function xbzrleEncode(
  before: usize,
  after: usize,
  length: usize,
  target: usize,
  capacity: usize,
): i32 {
  const end = target + capacity;
  let to = target;
  let at: usize = 0;
  let changed = nextDifference(before, after, at, length);
  while (changed < length) {
    const agreed = nextAgreement(before, after, changed, length);
    const zeroRun = changed - at;
    const nonZeroRun = agreed - changed;
    const size = nonZeroRun + 2 + usize(zeroRun > 0x7f) + usize(nonZeroRun > 0x7f);
    if (size > end - to) return -1;
    to += writeUleb128(to, zeroRun);
    to += writeUleb128(to, nonZeroRun);
    copyRun(to, after + changed, nonZeroRun);
    to += nonZeroRun;
    at = agreed;
    changed = nextDifference(before, after, at, length);
  }
  return i32(to - target);
}

export function xbzrleDecode(
  source: usize,
  sourceLength: usize,
  target: usize,
  length: usize,
): i32 {
  const end = source + sourceLength;
  let at = source;
  let covered: usize = 0;
  while (at < end) {
    let zeroRun: usize = load<u8>(at++);
    if (zeroRun > 0x7f) {
      if (at >= end) return -1;
      const high: usize = load<u8>(at++);
      if (high > 0x7f) return -1;
      zeroRun = (zeroRun & 0x7f) | (high << 7);
    }
    if (zeroRun == 0 && covered != 0) return -1;
    if (at >= end) return -1;
    let nonZeroRun: usize = load<u8>(at++);
    if (nonZeroRun > 0x7f) {
      if (at >= end) return -1;
      const high: usize = load<u8>(at++);
      if (high > 0x7f) return -1;
      nonZeroRun = (nonZeroRun & 0x7f) | (high << 7);
    }
    covered += zeroRun;
    if (nonZeroRun == 0 || nonZeroRun > end - at) return -1;
    if (covered > length || nonZeroRun > length - covered) return -1;
    copyRun(target + covered, at, nonZeroRun);
    covered += nonZeroRun;
    at += nonZeroRun;
  }
  return i32(covered);
}
