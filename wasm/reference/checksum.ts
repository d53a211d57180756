/**
 * Reference XXH64, after the xxHash specification (`doc/xxhash_spec.md`, section "XXH64 Algorithm
 * Description"), with seed 0.
 *
 * @module
 */

const MASK = 0xffff_ffff_ffff_ffffn;
const PRIME_1 = 0x9e3779b185ebca87n;
const PRIME_2 = 0xc2b2ae3d27d4eb4fn;
const PRIME_3 = 0x165667b19e3779f9n;
const PRIME_4 = 0x85ebca77c2b2ae63n;
const PRIME_5 = 0x27d4eb2f165667c5n;

/** XXH64 (seed 0) of a range. */
export function xxh64(bytes: Uint8Array, address: number, length: number): bigint {
  const view = new DataView(bytes.buffer, bytes.byteOffset + address, length);
  let at = 0;
  let hash = PRIME_5;
  if (length >= 32) {
    const lanes = [PRIME_1 + PRIME_2 & MASK, PRIME_2, 0n, -PRIME_1 & MASK];
    for (; at + 32 <= length; at += 32) {
      for (const [lane, value] of lanes.entries()) {
        lanes[lane] = round(value, view.getBigUint64(at + 8 * lane, true));
      }
    }
    hash = converge(lanes);
  }
  hash = hash + BigInt(length) & MASK;
  for (; at + 8 <= length; at += 8) {
    hash ^= round(0n, view.getBigUint64(at, true));
    hash = rotateLeft(hash, 27n) * PRIME_1 + PRIME_4 & MASK;
  }
  for (; at + 4 <= length; at += 4) {
    hash ^= BigInt(view.getUint32(at, true)) * PRIME_1 & MASK;
    hash = rotateLeft(hash, 23n) * PRIME_2 + PRIME_3 & MASK;
  }
  for (; at < length; at++) {
    hash ^= BigInt(view.getUint8(at)) * PRIME_5 & MASK;
    hash = rotateLeft(hash, 11n) * PRIME_1 & MASK;
  }
  return avalanche(hash);
}

function rotateLeft(value: bigint, bits: bigint): bigint {
  return (value << bits | value >> 64n - bits) & MASK;
}

function round(lane: bigint, input: bigint): bigint {
  return rotateLeft(lane + input * PRIME_2 & MASK, 31n) * PRIME_1 & MASK;
}

function converge(lanes: readonly bigint[]): bigint {
  const rotations = [1n, 7n, 12n, 18n];
  let hash = 0n;
  for (const [lane, value] of lanes.entries()) hash += rotateLeft(value, rotations[lane] ?? 0n);
  hash &= MASK;
  for (const value of lanes) hash = (hash ^ round(0n, value)) * PRIME_1 + PRIME_4 & MASK;
  return hash;
}

function avalanche(hash: bigint): bigint {
  hash = (hash ^ hash >> 33n) * PRIME_2 & MASK;
  hash = (hash ^ hash >> 29n) * PRIME_3 & MASK;
  return hash ^ hash >> 32n;
}
