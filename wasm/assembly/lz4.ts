/**
 * LZ4 block codec. Format: lz4_Block_format.md.
 *
 *   sequence = token | [literal length]* | literals | offset u16le | [match length]*
 *   token      7654 literal length, 15: more bytes follow
 *                  3210 match length - 4, 15: more bytes follow
 *
 * The last sequence ends behind its literals; the last 5 bytes are literals, and no match begins in
 * the last 12 (16 here, so that a wild move of literals stays inside the source).
 *
 * Both directions move 16 bytes at a time and let the last move run up to 15 bytes too far ("wild"),
 * as long as that stays inside the source and the target; near an end they move exactly.
 *
 * The same output, bytes and all, comes from wasm/reference/lz4.ts.
 */

// @ts-ignore: decorator
@inline
const MATCH_MIN: usize = 4;
// @ts-ignore: decorator
@inline
const MATCH_MARGIN: usize = 16;
// @ts-ignore: decorator
@inline
const LAST_LITERALS: usize = 5;

/** Copy in steps of 16; up to 15 bytes behind both ranges are touched too. */
// @ts-ignore: decorator
@inline
function wildCopy(to: usize, from: usize, length: usize): void {
  v128.store(to, v128.load(from));
  while (length > 16) {
    to += 16;
    from += 16;
    length -= 16;
    v128.store(to, v128.load(from));
  }
}

// ---------------------------------------------------------------------------------- compression

// @ts-ignore: decorator
@inline
const HASH_BITS: u32 = 13;
// @ts-ignore: decorator
@inline
const TABLE_BYTES: usize = 2 << HASH_BITS;
/** After this many misses in a row the search makes steps of 2. */
// @ts-ignore: decorator
@inline
const FIRST_TRIES: usize = 64;
/** After this many more it makes steps of 3, and so on. */
// @ts-ignore: decorator
@inline
const TRIES_PER_STEP: usize = 32;

/**
 * Low 16 bits of the last address with each hash. A match lies at most 65535 bytes back, so the rest
 * follows from the current address: an old entry turns into some other earlier address, which the
 * comparison of its bytes then refuses or accepts like any.
 *
 *   at     = 0x0005_1234      distance = (at - entry) & 0xffff
 *   entry  =      0x_f00d  -> from     = at - distance = 0x0004_f00d
 *
 * A fresh entry means the source's first byte, so that no entry lies before the source.
 */
const table: usize = memory.data(16384, 16);

// @ts-ignore: decorator
@inline
function clearTable(source: usize): void {
  const first = i16x8.splat(u16(source));
  for (let at: usize = 0; at < TABLE_BYTES; at += 64) {
    v128.store(at, first, table);
    v128.store(at, first, table + 16);
    v128.store(at, first, table + 32);
    v128.store(at, first, table + 48);
  }
}

/**
 * Enter the address in the table, and return the one that was there: an earlier one, or the address
 * itself when that was a multiple of 64 KiB before it. The hash is of the lowest five of `bytes`:
 *
 *   bytes << 24      4 3 2 1 0 . . .        times an odd constant,
 *   product          hhhhhhhhhhhhh.......   its upper 13 bits, and times 2 for entries of 2 bytes
 */
// @ts-ignore: decorator
@inline
function exchange(at: usize, bytes: u64): usize {
  const hash = ((bytes << 24) * 0x9e3779b185ebca87) >>> (63 - HASH_BITS);
  const entry = usize(hash) & (TABLE_BYTES - 2);
  const from = at - ((at - usize(load<u16>(entry, table))) & 0xffff);
  store<u16>(entry, at, table);
  return from;
}

// @ts-ignore: decorator
@inline
function startsMatch(from: usize, bytes: u64): bool {
  return load<u32>(from) == u32(bytes);
}

/** Where a match is (low half), and what it repeats (high half). */
// @ts-ignore: decorator
@inline
function pair(at: usize, from: usize): u64 {
  return u64(at) | (u64(from) << 32);
}

/**
 * Find the first match from `at` on, or return an address behind `lastStart`.
 *
 * Each memory access costs a bounds check where the runtime makes no use of guard pages, so four
 * tries share one load as long as the step is 1.
 */
// @ts-ignore: decorator
@inline
function findMatch(at: usize, lastStart: usize): u64 {
  let step: usize = 1;
  let limit = at + FIRST_TRIES;
  let from: usize;
  let bytes: u64;
  if (limit <= lastStart) {
    do {
      bytes = load<u64>(at);
      from = exchange(at, bytes);
      if (startsMatch(from, bytes)) return pair(at, from);
      at++;
      from = exchange(at, bytes >>> 8);
      if (startsMatch(from, bytes >>> 8)) return pair(at, from);
      at++;
      from = exchange(at, bytes >>> 16);
      if (startsMatch(from, bytes >>> 16)) return pair(at, from);
      at++;
      from = exchange(at, bytes >>> 24);
      if (startsMatch(from, bytes >>> 24)) return pair(at, from);
      at++;
    } while (at < limit);
    step = 2;
    limit = at + TRIES_PER_STEP * step;
  }
  while (limit <= lastStart) {
    do {
      bytes = load<u64>(at);
      from = exchange(at, bytes);
      if (startsMatch(from, bytes)) return pair(at, from);
      at += step;
      bytes = load<u64>(at);
      from = exchange(at, bytes);
      if (startsMatch(from, bytes)) return pair(at, from);
      at += step;
    } while (at < limit);
    step++;
    limit = at + TRIES_PER_STEP * step;
  }
  for (; at <= lastStart; at += step) {
    bytes = load<u64>(at);
    from = exchange(at, bytes);
    if (startsMatch(from, bytes)) return pair(at, from);
  }
  return at;
}

/**
 * How many bytes from `at` on equal those from `from` on, up to `end`. Most matches end within the
 * first eight, which are compared before the loop.
 */
// @ts-ignore: decorator
@inline
function matchLength(at: usize, from: usize, end: usize): usize {
  const start = at;
  if (at + 8 <= end) {
    const difference = load<u64>(at) ^ load<u64>(from);
    if (difference != 0) return usize(ctz(difference) >>> 3);
    at += 8;
    from += 8;
    while (at + 8 <= end) {
      const difference = load<u64>(at) ^ load<u64>(from);
      if (difference != 0) return at - start + usize(ctz(difference) >>> 3);
      at += 8;
      from += 8;
    }
  }
  while (at < end && load<u8>(at) == load<u8>(from)) {
    at++;
    from++;
  }
  return at - start;
}

/** The part of a length that does not fit into the token; returns the address behind it. */
// @ts-ignore: decorator
@inline
function writeLength(to: usize, rest: usize): usize {
  for (; rest >= 255; rest -= 255) store<u8>(to++, 255);
  store<u8>(to, rest);
  return to + 1;
}

/** Bytes of a length that do not fit into the token. */
// @ts-ignore: decorator
@inline
function lengthBytes(length: usize): usize {
  return length < 15 ? 0 : 1 + (length - 15) / 255;
}

/** Write a sequence where there is room for wild moves; returns the address behind it. */
// @ts-ignore: decorator
@inline
function writeSequenceWild(
  to: usize,
  anchor: usize,
  literals: usize,
  offset: usize,
  code: usize,
): usize {
  const tokenAt = to++;
  let token: usize;
  if (literals < 15) {
    token = literals << 4;
    v128.store(to, v128.load(anchor));
  } else {
    token = 0xf0;
    to = writeLength(to, literals - 15);
    wildCopy(to, anchor, literals);
  }
  to += literals;
  store<u16>(to, offset);
  to += 2;
  if (code < 15) {
    token |= code;
  } else {
    token |= 15;
    to = writeLength(to, code - 15);
  }
  store<u8>(tokenAt, token);
  return to;
}

/** Write a sequence where there is just the room it needs; returns the address behind it. */
function writeSequence(
  to: usize,
  anchor: usize,
  literals: usize,
  offset: usize,
  code: usize,
): usize {
  to = writeLiterals(to, anchor, literals, min<usize>(code, 15));
  store<u16>(to, offset);
  return code < 15 ? to + 2 : writeLength(to + 2, code - 15);
}

/** Write the token and the literals; returns the address behind them. */
function writeLiterals(to: usize, anchor: usize, literals: usize, matchNibble: usize): usize {
  store<u8>(to++, (min<usize>(literals, 15) << 4) | matchNibble);
  if (literals >= 15) to = writeLength(to, literals - 15);
  memory.copy(to, anchor, literals);
  return to + literals;
}

export function lz4Compress(
  source: usize,
  sourceLength: usize,
  target: usize,
  capacity: usize,
): i32 {
  const sourceEnd = source + sourceLength;
  const targetEnd = target + capacity;
  let to = target;
  let anchor = source;
  if (sourceLength > MATCH_MARGIN) {
    clearTable(source);
    const lastStart = sourceEnd - MATCH_MARGIN;
    const matchEnd = sourceEnd - LAST_LITERALS;
    let at = source + 1;
    while (at <= lastStart) {
      const match = findMatch(at, lastStart);
      at = usize(match);
      if (at > lastStart) break;
      let from = usize(match >>> 32);
      const offset = at - from;
      if (offset == 0) {
        // An entry a multiple of 64 KiB old: out of reach.
        at++;
        continue;
      }
      const end = at + MATCH_MIN + matchLength(at + MATCH_MIN, from + MATCH_MIN, matchEnd);
      while (at > anchor && from > source && load<u8>(at - 1) == load<u8>(from - 1)) {
        at--;
        from--;
      }
      const literals = at - anchor;
      const code = end - at - MATCH_MIN;
      const room = targetEnd - to;
      // Token, offset, the first byte of either length and a wild move take less than 32.
      if (literals + ((literals + code) >>> 7) + 32 <= room) {
        to = writeSequenceWild(to, anchor, literals, offset, code);
      } else {
        if (literals + lengthBytes(literals) + lengthBytes(code) + 3 > room) return -1;
        to = writeSequence(to, anchor, literals, offset, code);
      }
      anchor = at = end;
    }
  }
  const literals = sourceEnd - anchor;
  if (1 + lengthBytes(literals) + literals > targetEnd - to) return -1;
  return i32(writeLiterals(to, anchor, literals, 0) - target);
}

// -------------------------------------------------------------------------------- decompression

/**
 * Room that the fast loop keeps before both ends. It reads a token, 14 literals and an offset, and
 * moves a match of up to 18 bytes, each move up to 15 bytes too far.
 */
// @ts-ignore: decorator
@inline
const FAST_MARGIN: usize = 64;

/**
 * For an offset below 16: which byte of the last `offset` each lane of a 16-byte pattern takes.
 *
 *   offset 3   0 1 2 0 1 2 0 1 2 0 1 2 0 1 2 0   then go on 15 bytes later, a multiple of 3
 */
const patterns: usize = memory.data<u8>([
  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
  0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
  0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1,
  0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0,
  0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3,
  0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0,
  0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2, 3,
  0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0, 1,
  0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7,
  0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2, 3, 4, 5, 6,
  0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5,
  0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1, 2, 3, 4,
  0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3,
  0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 1, 2,
  0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0, 1,
  0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0,
], 16);

/** How far such a pattern carries: the greatest multiple of the offset up to 16. */
const steps: usize = memory.data<u8>([0, 16, 16, 15, 16, 15, 12, 14, 16, 9, 10, 11, 12, 13, 14, 15]);

/** Copy a match; up to 15 bytes behind it are touched too. Offsets below 16 repeat what they make. */
// @ts-ignore: decorator
@inline
function wildMatch(to: usize, offset: usize, length: usize): void {
  if (offset >= 16) {
    wildCopy(to, to - offset, length);
    return;
  }
  const end = to + length;
  const pattern = i8x16.swizzle(v128.load(to - offset), v128.load(patterns + (offset << 4)));
  const step: usize = load<u8>(steps + offset);
  do {
    v128.store(to, pattern);
    to += step;
  } while (to < end);
}

/** Copy a match exactly. */
function exactMatch(to: usize, offset: usize, length: usize): void {
  const end = to + length;
  for (; to < end; to++) store<u8>(to, load<u8>(to - offset));
}

export function lz4Decompress(
  source: usize,
  sourceLength: usize,
  target: usize,
  capacity: usize,
): i32 {
  const sourceEnd = source + sourceLength;
  const targetEnd = target + capacity;
  // A range shorter than the margin has no fast part.
  const sourceFast = sourceLength > FAST_MARGIN ? sourceEnd - FAST_MARGIN : source;
  const targetFast = capacity > FAST_MARGIN ? targetEnd - FAST_MARGIN : target;
  let at = source;
  let to = target;
  while (at < sourceEnd) {
    const token: usize = load<u8>(at++);
    let literals = token >>> 4;
    if (literals < 15 && at < sourceFast && to < targetFast) {
      v128.store(to, v128.load(at));
    } else {
      if (literals == 15) {
        let more: usize;
        do {
          if (at >= sourceEnd) return -1;
          more = load<u8>(at++);
          literals += more;
        } while (more == 255);
      }
      if (literals > sourceEnd - at || literals > targetEnd - to) return -1;
      if (sourceEnd - at - literals >= 16 && targetEnd - to - literals >= 16) {
        wildCopy(to, at, literals);
      } else {
        memory.copy(to, at, literals);
        if (at + literals == sourceEnd) return i32(to + literals - target);
        if (sourceEnd - at - literals < 2) return -1;
      }
    }
    at += literals;
    to += literals;

    const offset: usize = load<u16>(at);
    at += 2;
    let length = token & 15;
    if (offset - 1 >= to - target) return -1;
    if (length < 15 && offset >= 16 && to < targetFast) {
      v128.store(to, v128.load(to - offset));
      // 4 + 14 bytes at most.
      store<u32>(to, load<u32>(to - offset, 16), 16);
      to += length + MATCH_MIN;
      continue;
    }
    if (length == 15) {
      let more: usize;
      do {
        if (at >= sourceEnd) return -1;
        more = load<u8>(at++);
        length += more;
      } while (more == 255);
    }
    length += MATCH_MIN;
    if (length > targetEnd - to) return -1;
    if (targetEnd - to - length >= 16) wildMatch(to, offset, length);
    else exactMatch(to, offset, length);
    to += length;
  }
  return -1;
}
