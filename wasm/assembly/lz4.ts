/**
 * LZ4 block codec. Format: lz4_Block_format.md.
 *
 *   sequence = token | [literal length]* | literals | offset u16le | [match length]*
 *   token      7654 literal length, 15: more bytes follow
 *                  3210 match length - 4, 15: more bytes follow
 *
 * The last sequence ends behind its literals; the last 5 bytes are literals, and no match begins in
 * the last 12.
 */

// @ts-ignore: decorator
@inline
const HASH_BITS: u32 = 13;
// @ts-ignore: decorator
@inline
const MATCH_MIN: usize = 4;
// @ts-ignore: decorator
@inline
const MATCH_MARGIN: usize = 12;
// @ts-ignore: decorator
@inline
const LAST_LITERALS: usize = 5;
// @ts-ignore: decorator
@inline
const MISSES_PER_STEP_LOG: u32 = 6;

/**
 * Low 16 bits of the last position with each hash. A match lies at most 65535 bytes back, so the
 * rest of the position follows from the current one: an old entry turns into some other earlier
 * position, which the comparison of its bytes then refuses or accepts like any.
 */
const table: usize = memory.data(2 << HASH_BITS, 16);

// @ts-ignore: decorator
@inline
function slot(sequence: u32): usize {
  return table + (usize((sequence * 2654435761) >>> (32 - HASH_BITS)) << 1);
}

/** Enter a position in the table, and return the earlier one that was there, or itself. */
// @ts-ignore: decorator
@inline
function remember(source: usize, at: usize, sequence: u32): usize {
  const position = u32(at - source);
  const entry = slot(sequence);
  const distance = (position - u32(load<u16>(entry))) & 0xffff;
  store<u16>(entry, position);
  return at - distance;
}

/** How many bytes from `at` on equal those from `from` on, up to `end`. */
// @ts-ignore: decorator
@inline
function matchLength(at: usize, from: usize, end: usize): usize {
  const start = at;
  while (at + 8 <= end) {
    const difference = load<u64>(at) ^ load<u64>(from);
    if (difference != 0) return at - start + usize(ctz(difference) >>> 3);
    at += 8;
    from += 8;
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

// @ts-ignore: decorator
@inline
function lengthBytes(length: usize): usize {
  return length < 15 ? 0 : 1 + (length - 15) / 255;
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
    memory.fill(table, 0, 2 << HASH_BITS);
    const lastStart = sourceEnd - MATCH_MARGIN;
    const matchEnd = sourceEnd - LAST_LITERALS;
    let at = source + 1;
    while (at <= lastStart) {
      let misses: u32 = 1 << MISSES_PER_STEP_LOG;
      let from: usize = 0;
      let found = false;
      while (at <= lastStart) {
        const sequence = load<u32>(at);
        from = remember(source, at, sequence);
        if (from < at && load<u32>(from) == sequence) {
          found = true;
          break;
        }
        at += misses >>> MISSES_PER_STEP_LOG;
        misses++;
      }
      if (!found) break;
      const end = at + MATCH_MIN + matchLength(at + MATCH_MIN, from + MATCH_MIN, matchEnd);
      const offset = at - from;
      while (at > anchor && from > source && load<u8>(at - 1) == load<u8>(from - 1)) {
        at--;
        from--;
      }
      const literals = at - anchor;
      const code = end - at - MATCH_MIN;
      if (1 + lengthBytes(literals) + literals + 2 + lengthBytes(code) > targetEnd - to) return -1;
      store<u8>(to++, (min<usize>(literals, 15) << 4) | min<usize>(code, 15));
      if (literals >= 15) to = writeLength(to, literals - 15);
      memory.copy(to, anchor, literals);
      to += literals;
      store<u16>(to, offset);
      to += 2;
      if (code >= 15) to = writeLength(to, code - 15);
      anchor = at = end;
      if (at > lastStart) break;
      remember(source, at - 2, load<u32>(at - 2));
    }
  }
  const literals = sourceEnd - anchor;
  if (1 + lengthBytes(literals) + literals > targetEnd - to) return -1;
  store<u8>(to++, min<usize>(literals, 15) << 4);
  if (literals >= 15) to = writeLength(to, literals - 15);
  memory.copy(to, anchor, literals);
  return i32(to + literals - target);
}

export function lz4Decompress(
  source: usize,
  sourceLength: usize,
  target: usize,
  capacity: usize,
): i32 {
  const sourceEnd = source + sourceLength;
  const targetEnd = target + capacity;
  let at = source;
  let to = target;
  while (at < sourceEnd) {
    const token: usize = load<u8>(at++);
    let literals = token >>> 4;
    if (literals == 15) {
      let more: usize;
      do {
        if (at >= sourceEnd) return -1;
        more = load<u8>(at++);
        literals += more;
      } while (more == 255);
    }
    if (literals > sourceEnd - at || literals > targetEnd - to) return -1;
    memory.copy(to, at, literals);
    at += literals;
    to += literals;
    if (at == sourceEnd) return i32(to - target);

    if (sourceEnd - at < 2) return -1;
    const offset: usize = load<u16>(at);
    at += 2;
    let length = token & 15;
    if (length == 15) {
      let more: usize;
      do {
        if (at >= sourceEnd) return -1;
        more = load<u8>(at++);
        length += more;
      } while (more == 255);
    }
    length += MATCH_MIN;
    if (offset == 0 || offset > to - target || length > targetEnd - to) return -1;
    let from = to - offset;
    const end = to + length;
    while (to < end) store<u8>(to++, load<u8>(from++));
  }
  return -1;
}
