/**
 * Reference XBZRLE codec, after QEMU `migration/xbzrle.c`:
 *
 * ```text
 *   body = { zero run: uleb128, non-zero run: uleb128, that many new bytes }*
 * ```
 *
 * Runs are as long as they can be. Numbers are uleb128 of one or two bytes (14 bits).
 *
 * @module
 */

import { XBZRLE_LENGTH_MAX } from "../format.ts";
import { byteAt } from "./memory.ts";

/** Returns bytes written; 0 when nothing changed; -1 when `capacity` is too small. */
export function xbzrleEncode(
  bytes: Uint8Array,
  before: number,
  after: number,
  length: number,
  target: number,
  capacity: number,
): number {
  let written = 0;
  let at = 0;
  while (true) {
    const zeroRun = runLength(bytes, before, after, at, length, true);
    if (at + zeroRun === length) return written;
    const changed = at + zeroRun;
    const nonZeroRun = runLength(bytes, before, after, changed, length, false);
    const header = [...uleb128(zeroRun), ...uleb128(nonZeroRun)];
    if (written + header.length + nonZeroRun > capacity) return -1;
    bytes.set(header, target + written);
    written += header.length;
    bytes.copyWithin(target + written, after + changed, after + changed + nonZeroRun);
    written += nonZeroRun;
    at = changed + nonZeroRun;
  }
}

/** How many bytes from `at` on are all equal, or all different. */
function runLength(
  bytes: Uint8Array,
  before: number,
  after: number,
  at: number,
  length: number,
  equal: boolean,
): number {
  let end = at;
  while (end < length && (bytes[before + end] === bytes[after + end]) === equal) end++;
  return end - at;
}

function uleb128(value: number): readonly number[] {
  return value < 0x80 ? [value] : [value & 0x7f | 0x80, value >> 7];
}

/** Returns the bytes of `target` covered, or -1 when malformed. */
export function xbzrleDecode(
  bytes: Uint8Array,
  source: number,
  sourceLength: number,
  target: number,
  length: number,
): number {
  const end = source + sourceLength;
  let at = source;
  let covered = 0;
  while (at < end) {
    const zeroRun = readUleb128(bytes, at, end);
    if (zeroRun === undefined || (zeroRun.value === 0 && at > source)) return -1;
    at += zeroRun.sizeBytes;
    const nonZeroRun = readUleb128(bytes, at, end);
    if (nonZeroRun === undefined || nonZeroRun.value === 0) return -1;
    at += nonZeroRun.sizeBytes;
    covered += zeroRun.value;
    if (covered + nonZeroRun.value > length || nonZeroRun.value > end - at) return -1;
    bytes.copyWithin(target + covered, at, at + nonZeroRun.value);
    covered += nonZeroRun.value;
    at += nonZeroRun.value;
  }
  return covered;
}

function readUleb128(
  bytes: Uint8Array,
  at: number,
  end: number,
): { readonly value: number; readonly sizeBytes: number } | undefined {
  if (at >= end) return undefined;
  const low = byteAt(bytes, at);
  if (low < 0x80) return { value: low, sizeBytes: 1 };
  if (at + 1 >= end) return undefined;
  const high = byteAt(bytes, at + 1);
  if (high >= 0x80) return undefined;
  const value = high << 7 | low & 0x7f;
  if (value > XBZRLE_LENGTH_MAX) return undefined;
  return { value, sizeBytes: 2 };
}
