/**
 * XXH64 with seed 0, after the xxHash specification (doc/xxhash_spec.md).
 *
 *   32-byte stripe   | lane 1 | lane 2 | lane 3 | lane 4 |   u64 LE each
 *   lane = rotl(lane + input * PRIME_2, 31) * PRIME_1        four independent multiplications
 */

// @ts-ignore: decorator
@inline
const PRIME_1: u64 = 0x9e3779b185ebca87;
// @ts-ignore: decorator
@inline
const PRIME_2: u64 = 0xc2b2ae3d27d4eb4f;
// @ts-ignore: decorator
@inline
const PRIME_3: u64 = 0x165667b19e3779f9;
// @ts-ignore: decorator
@inline
const PRIME_4: u64 = 0x85ebca77c2b2ae63;
// @ts-ignore: decorator
@inline
const PRIME_5: u64 = 0x27d4eb2f165667c5;

// @ts-ignore: decorator
@inline
function round(lane: u64, input: u64): u64 {
  return rotl(lane + input * PRIME_2, 31) * PRIME_1;
}

// @ts-ignore: decorator
@inline
function merge(hash: u64, lane: u64): u64 {
  return (hash ^ round(0, lane)) * PRIME_1 + PRIME_4;
}

export function xxh64(address: usize, length: usize, out: usize): void {
  let at = address;
  let left = length;
  let hash = PRIME_5;
  if (left >= 32) {
    let lane1: u64 = PRIME_1 + PRIME_2;
    let lane2: u64 = PRIME_2;
    let lane3: u64 = 0;
    let lane4: u64 = 0 - PRIME_1;
    do {
      lane1 = round(lane1, load<u64>(at));
      lane2 = round(lane2, load<u64>(at, 8));
      lane3 = round(lane3, load<u64>(at, 16));
      lane4 = round(lane4, load<u64>(at, 24));
      at += 32;
      left -= 32;
    } while (left >= 32);
    hash = rotl(lane1, 1) + rotl(lane2, 7) + rotl(lane3, 12) + rotl(lane4, 18);
    hash = merge(merge(merge(merge(hash, lane1), lane2), lane3), lane4);
  }
  hash += u64(length);
  for (; left >= 8; left -= 8, at += 8) {
    hash = rotl(hash ^ round(0, load<u64>(at)), 27) * PRIME_1 + PRIME_4;
  }
  if (left >= 4) {
    hash = rotl(hash ^ (u64(load<u32>(at)) * PRIME_1), 23) * PRIME_2 + PRIME_3;
    left -= 4;
    at += 4;
  }
  for (; left > 0; left--, at++) {
    hash = rotl(hash ^ (u64(load<u8>(at)) * PRIME_5), 11) * PRIME_1;
  }
  hash = (hash ^ (hash >>> 33)) * PRIME_2;
  hash = (hash ^ (hash >>> 29)) * PRIME_3;
  store<u64>(out, hash ^ (hash >>> 32));
}
