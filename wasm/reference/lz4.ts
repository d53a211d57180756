/**
 * Reference LZ4 block codec. Format: `lz4_Block_format.md`.
 *
 * ```text
 *   block    = sequence*
 *   sequence = token | [literal length]* | literals | offset u16le | [match length]*
 *   token    = literal length (high 4 bits, 15 = more bytes follow) | match length - 4 (low 4 bits)
 *   The last sequence ends behind its literals. The last 5 bytes are always literals, and no match
 *   begins in the last 12.
 * ```
 *
 * Both kernel sets find the same matches, so the compressed bytes are equal too: one table of 8192
 * positions, hashed by the next four bytes; the step grows by one after every 64 misses.
 *
 * @module
 */

import { byteAt, readU32 } from "./memory.ts";

const MATCH_MIN = 4;
/** No match begins closer than this to the end of the source. */
const MATCH_MARGIN = 12;
/** The last bytes of the source are literals. */
const LAST_LITERALS = 5;
const OFFSET_MAX = 0xffff;
const HASH_BITS = 13;
const MISSES_PER_STEP_LOG = 6;

/** Returns bytes written, or -1 when `capacity` is too small. */
export function lz4Compress(
  bytes: Uint8Array,
  source: number,
  sourceLength: number,
  target: number,
  capacity: number,
): number {
  const block = bytes.subarray(source, source + sourceLength);
  const compressed: number[] = [];
  const finder = new MatchFinder(block);
  let anchor = 0;
  let at = 1;
  for (;;) {
    const match = finder.find(at, anchor);
    if (match === undefined) break;
    writeSequence(compressed, block.subarray(anchor, match.at), match);
    anchor = at = match.at + match.length;
    finder.remember(at - 2);
  }
  writeSequence(compressed, block.subarray(anchor), undefined);
  if (compressed.length > capacity) return -1;
  bytes.set(compressed, target);
  return compressed.length;
}

interface Match {
  readonly at: number;
  readonly length: number;
  readonly offset: number;
}

class MatchFinder {
  readonly #block: Uint8Array;
  /** Low 16 bits of the last position with this hash. LZ4's window makes the rest unnecessary. */
  readonly #table = new Uint16Array(1 << HASH_BITS);
  readonly #lastStart: number;

  constructor(block: Uint8Array) {
    this.#block = block;
    this.#lastStart = block.length - MATCH_MARGIN;
  }

  /** Find the first match at or behind `from`; it may reach back as far as `anchor`. */
  find(from: number, anchor: number): Match | undefined {
    let misses = 1 << MISSES_PER_STEP_LOG;
    for (let at = from; at <= this.#lastStart; at += misses++ >> MISSES_PER_STEP_LOG) {
      const candidate = this.remember(at);
      if (candidate < at && readU32(this.#block, candidate) === readU32(this.#block, at)) {
        return this.#extend(at, candidate, anchor);
      }
    }
    return undefined;
  }

  /** Enter a position in the table, and return the one that was there. */
  remember(at: number): number {
    if (at > this.#lastStart) return at;
    const hash = Math.imul(readU32(this.#block, at), 2654435761) >>> (32 - HASH_BITS);
    const distance = (at - (this.#table[hash] ?? 0)) & OFFSET_MAX;
    this.#table[hash] = at;
    return at - distance;
  }

  #extend(at: number, candidate: number, anchor: number): Match {
    const block = this.#block;
    const offset = at - candidate;
    let start = at;
    while (start > anchor && start > offset && block[start - 1] === block[start - 1 - offset]) {
      start--;
    }
    let end = at + MATCH_MIN;
    while (end < block.length - LAST_LITERALS && block[end] === block[end - offset]) end++;
    return { at: start, length: end - start, offset };
  }
}

function writeSequence(
  compressed: number[],
  literals: Uint8Array,
  match: Match | undefined,
): void {
  const matchCode = match === undefined ? 0 : match.length - MATCH_MIN;
  compressed.push(Math.min(literals.length, 15) << 4 | Math.min(matchCode, 15));
  writeLength(compressed, literals.length);
  for (const literal of literals) compressed.push(literal);
  if (match === undefined) return;
  compressed.push(match.offset & 0xff, match.offset >> 8);
  writeLength(compressed, matchCode);
}

/** The part of a length that does not fit into the token. */
function writeLength(compressed: number[], length: number): void {
  if (length < 15) return;
  let rest = length - 15;
  for (; rest >= 255; rest -= 255) compressed.push(255);
  compressed.push(rest);
}

/** Returns bytes written, or -1 when malformed or longer than `capacity`. */
export function lz4Decompress(
  bytes: Uint8Array,
  source: number,
  sourceLength: number,
  target: number,
  capacity: number,
): number {
  const reader = new BlockReader(bytes, source, source + sourceLength);
  let written = 0;
  for (;;) {
    const token = reader.byte();
    if (token === undefined) return -1;
    const literals = reader.length(token >> 4);
    if (literals === undefined || literals > reader.left || literals > capacity - written) {
      return -1;
    }
    bytes.copyWithin(target + written, reader.at, reader.at + literals);
    reader.at += literals;
    written += literals;
    if (reader.left === 0) return written;

    const low = reader.byte();
    const high = reader.byte();
    if (low === undefined || high === undefined) return -1;
    const offset = low | high << 8;
    const rest = reader.length(token & 15);
    if (rest === undefined || offset === 0 || offset > written) return -1;
    const length = rest + MATCH_MIN;
    if (length > capacity - written) return -1;
    // Byte by byte: a match may overlap what it produces.
    for (let i = 0; i < length; i++, written++) {
      bytes[target + written] = byteAt(bytes, target + written - offset);
    }
  }
}

class BlockReader {
  constructor(readonly bytes: Uint8Array, public at: number, readonly end: number) {}

  get left(): number {
    return this.end - this.at;
  }

  byte(): number | undefined {
    return this.at < this.end ? this.bytes[this.at++] : undefined;
  }

  /** The length that begins with these four bits of the token. */
  length(nibble: number): number | undefined {
    let length = nibble;
    if (nibble !== 15) return length;
    for (;;) {
      const more = this.byte();
      if (more === undefined) return undefined;
      length += more;
      if (more !== 255) return length;
    }
  }
}
