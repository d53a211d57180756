/**
 * Kernels on bitmaps. Bit n is bit n & 7 of byte n >> 3; bits of the last byte that lie behind the
 * bitmap's length are neither counted nor changed.
 *
 *   byte      0                1                2
 *   bit       7 6 5 4 3 2 1 0  7 6 5 4 3 2 1 0  7 6 5 4 ...
 *   number    7 . . . . . . 0  15 . . . . .  8  23 . . .
 *
 * A little-endian load of 8 bytes therefore has bit n of the 64 at its bit n, and ctz finds the
 * lowest number.
 */

/** Bytes that hold `bits` bits. (bits + 7) >> 3 would overflow. */
// @ts-ignore: decorator
@inline
function byteLength(bits: u32): u32 {
  return (bits >>> 3) + u32((bits & 7) != 0);
}

/** The lowest `count` (0..7) bits. */
// @ts-ignore: decorator
@inline
function lowBits(count: u32): u32 {
  return (1 << count) - 1;
}

export function bitmapSet(bitmap: usize, bits: u32, first: u32, count: u32): void {
  if (count == 0) return;
  const end = first + count;
  const firstByte = bitmap + (first >>> 3);
  const lastByte = bitmap + (end >>> 3);
  const head = ~lowBits(first & 7);
  const tail = lowBits(end & 7);
  if (firstByte == lastByte) {
    store<u8>(firstByte, load<u8>(firstByte) | (head & tail));
    return;
  }
  store<u8>(firstByte, load<u8>(firstByte) | head);
  memory.fill(firstByte + 1, 0xff, lastByte - firstByte - 1);
  if (tail != 0) store<u8>(lastByte, load<u8>(lastByte) | tail);
}

export function bitmapClear(bitmap: usize, bits: u32, first: u32, count: u32): void {
  if (count == 0) return;
  const end = first + count;
  const firstByte = bitmap + (first >>> 3);
  const lastByte = bitmap + (end >>> 3);
  const head = ~lowBits(first & 7);
  const tail = lowBits(end & 7);
  if (firstByte == lastByte) {
    store<u8>(firstByte, load<u8>(firstByte) & ~(head & tail));
    return;
  }
  store<u8>(firstByte, load<u8>(firstByte) & ~head);
  memory.fill(firstByte + 1, 0, lastByte - firstByte - 1);
  if (tail != 0) store<u8>(lastByte, load<u8>(lastByte) & ~tail);
}

export function bitmapTest(bitmap: usize, bits: u32, bit: u32): i32 {
  return (load<u8>(bitmap + (bit >>> 3)) >>> (bit & 7)) & 1;
}

export function bitmapCount(bitmap: usize, bits: u32): u32 {
  let count: u64 = 0;
  let at = bitmap;
  const end = bitmap + (bits >>> 3);
  for (; at + 8 <= end; at += 8) count += popcnt(load<u64>(at));
  for (; at < end; at++) count += popcnt(u64(load<u8>(at)));
  if ((bits & 7) != 0) count += popcnt(u64(load<u8>(at) & lowBits(bits & 7)));
  return u32(count);
}

export function bitmapUnion(target: usize, source: usize, bits: u32): void {
  const whole: usize = bits >>> 3;
  let at: usize = 0;
  for (; at + 16 <= whole; at += 16) {
    v128.store(target + at, v128.or(v128.load(target + at), v128.load(source + at)));
  }
  for (; at < whole; at++) store<u8>(target + at, load<u8>(target + at) | load<u8>(source + at));
  if ((bits & 7) != 0) {
    const tail = load<u8>(source + at) & lowBits(bits & 7);
    store<u8>(target + at, load<u8>(target + at) | tail);
  }
}

export function bitmapDifference(target: usize, source: usize, bits: u32): void {
  const whole: usize = bits >>> 3;
  let at: usize = 0;
  for (; at + 16 <= whole; at += 16) {
    v128.store(target + at, v128.andnot(v128.load(target + at), v128.load(source + at)));
  }
  for (; at < whole; at++) store<u8>(target + at, load<u8>(target + at) & ~load<u8>(source + at));
  if ((bits & 7) != 0) {
    const tail = load<u8>(source + at) & lowBits(bits & 7);
    store<u8>(target + at, load<u8>(target + at) & ~tail);
  }
}

/**
 * The first bit at or behind `from` that differs from `flip`'s bits: `flip` = 0 finds a set bit,
 * `flip` = -1 a clear one. `bits` when there is none.
 *
 *   from's byte, shifted | 16 bytes at a time while all equal flip | 8 at a time | single bytes
 */
export function nextBit(bitmap: usize, bits: u32, from: u32, flip: u64): u32 {
  if (from >= bits) return bits;
  const end = byteLength(bits);
  let byte = from >>> 3;
  const head = ((u32(load<u8>(bitmap + byte)) ^ u32(flip)) & 0xff) >>> (from & 7);
  if (head != 0) return min(from + ctz(head), bits);
  byte++;
  const flips = i64x2.splat(flip);
  while (byte + 16 <= end && !v128.any_true(v128.xor(v128.load(bitmap + byte), flips))) byte += 16;
  for (; byte + 8 <= end; byte += 8) {
    const word = load<u64>(bitmap + byte) ^ flip;
    if (word != 0) return min((byte << 3) + u32(ctz(word)), bits);
  }
  for (; byte < end; byte++) {
    const rest = (u32(load<u8>(bitmap + byte)) ^ u32(flip)) & 0xff;
    if (rest != 0) return min((byte << 3) + ctz(rest), bits);
  }
  return bits;
}

export function bitmapNextRun(bitmap: usize, bits: u32, from: u32, out: usize): i32 {
  const first = nextBit(bitmap, bits, from, 0);
  const behind = nextBit(bitmap, bits, first, -1);
  store<u32>(out, first);
  store<u32>(out, behind - first, 4);
  return i32(first < bits);
}
