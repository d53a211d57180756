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
 * Both kernel sets find the same matches, so the compressed bytes are equal too: a table of 8192
 * positions by the hash of five bytes, into which go the positions that are tried. The search takes
 * every position at first and steps of 2, 3... the longer it finds nothing.
 *
 * @module
 */

import { byteAt, readU32 } from "./memory.ts";

const MATCH_MIN = 4;
/** No match begins closer than this to the end of the source (the format wants 12). */
const MATCH_MARGIN = 16;
/** The last bytes of the source are literals. */
const LAST_LITERALS = 5;
const OFFSET_MAX = 0xffff;
const HASH_BITS = 13;
const HASH_FACTOR = 0x9e3779b185ebca87n;
/** Misses in a row before the step is 2, and how many more before each further one. */
const FIRST_TRIES = 64;
const TRIES_PER_STEP = 32;

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
  let match = finder.find(1, anchor);
  while (match !== undefined) {
    writeSequence(compressed, block.subarray(anchor, match.at), match);
    anchor = match.at + match.length;
    match = finder.find(anchor, anchor);
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
    let step = 1;
    let triesLeft = FIRST_TRIES;
    let at = from;
    while (at <= this.#lastStart) {
      const candidate = this.#exchange(at);
      if (candidate < at && readU32(this.#block, candidate) === readU32(this.#block, at)) {
        return this.#extend(at, candidate, anchor);
      }
      if (candidate === at) {
        // The entry is a multiple of 64 KiB old and out of reach: begin anew behind it.
        step = 1;
        triesLeft = FIRST_TRIES + 1;
      }
      at += step;
      if (--triesLeft === 0) {
        step++;
        triesLeft = TRIES_PER_STEP;
      }
    }
    return undefined;
  }

  /** Enter a position in the table, and return the one that was there. */
  #exchange(at: number): number {
    const five = BigInt(readU32(this.#block, at)) | BigInt(byteAt(this.#block, at + 4)) << 32n;
    const product = BigInt.asUintN(64, (five << 24n) * HASH_FACTOR);
    const hash = Number(product >> BigInt(64 - HASH_BITS));
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
