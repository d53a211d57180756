/**
 * Writes pages as RAM records of QEMU's migration stream (migration/ram.c).
 *
 *   | be64 offset | flags | [u8 n | n bytes of name] | 00                          |  ZERO
 *                                                    | 01 | be16 n | n bytes       |  XBZRLE
 *                                                    | 4096 bytes                  |  PAGE
 *
 * The name is there exactly when CONTINUE is not among the flags.
 */

import {
  COUNTER_UNCHANGED,
  COUNTER_WHOLE,
  COUNTER_XBZRLE,
  COUNTER_ZERO,
  ENCODE_DELTA,
  ENCODE_SEED,
  FLAG_CONTINUE,
  FLAG_PAGE,
  FLAG_XBZRLE,
  FLAG_ZERO,
  PAGE_BYTES,
  PAGE_ENTRY_BYTES,
  XBZRLE_BODY_BYTES_MAX,
  XBZRLE_ENCODING,
} from "./format";
import { isEqual, isZero } from "./page";
import { contentExists } from "./scan";
import { xbzrleEncode } from "./xbzrle";

// @ts-ignore: decorator
@inline
function addOne(counter: usize): void {
  store<u32>(counter, load<u32>(counter) + 1);
}

/** Returns the address behind the header. */
// @ts-ignore: decorator
@inline
function writeHeader(at: usize, offset: u64, flag: u64, name: usize, nameLength: usize): usize {
  if (nameLength == 0) {
    store<u64>(at, bswap(offset | flag | FLAG_CONTINUE));
    return at + 8;
  }
  store<u64>(at, bswap(offset | flag));
  store<u8>(at, nameLength, 8);
  memory.copy(at + 9, name, nameLength);
  return at + 9 + nameLength;
}

export function encodePages(
  mode: i32,
  table: usize,
  from: u32,
  count: u32,
  blockFirstPage: u32,
  firstPage: u32,
  pages: u32,
  mirror: usize,
  name: usize,
  nameLength: usize,
  target: usize,
  targetCapacity: usize,
  counters: usize,
  out: usize,
): u32 {
  let at = target;
  const end = target + targetCapacity;
  let next = from;
  for (; next < count; next++) {
    const entry = table + usize(next) * PAGE_ENTRY_BYTES;
    const page = load<u32>(entry);
    const content: usize = load<u32>(entry, 4);
    const index = page - firstPage;
    if (index >= pages || !contentExists(content)) break;
    const nameLengthNow: usize = at == target ? nameLength : 0;
    const nameBytes: usize = nameLengthNow == 0 ? 0 : 1 + nameLengthNow;
    if (nameBytes + 8 + PAGE_BYTES > end - at) break;

    const offset = u64(page - blockFirstPage) << 12;
    if (mode != ENCODE_DELTA) {
      if (content == 0 || isZero(content, PAGE_BYTES)) {
        if (mode == ENCODE_SEED) addOne(counters + COUNTER_UNCHANGED);
        else at = writeZero(at, offset, name, nameLengthNow, counters);
      } else {
        at = writeWhole(at, offset, name, nameLengthNow, content, counters);
      }
      continue;
    }
    const mirrorPage = mirror + usize(index) * PAGE_BYTES;
    if (content == 0 ? isZero(mirrorPage, PAGE_BYTES) : isEqual(content, mirrorPage, PAGE_BYTES)) {
      addOne(counters + COUNTER_UNCHANGED);
    } else if (content == 0 || isZero(content, PAGE_BYTES)) {
      memory.fill(mirrorPage, 0, PAGE_BYTES);
      at = writeZero(at, offset, name, nameLengthNow, counters);
    } else {
      const body = at + 8 + nameBytes + 3;
      const length = xbzrleEncode(mirrorPage, content, PAGE_BYTES, body, XBZRLE_BODY_BYTES_MAX);
      if (length < 0) {
        at = writeWhole(at, offset, name, nameLengthNow, content, counters);
      } else {
        writeHeader(at, offset, FLAG_XBZRLE, name, nameLengthNow);
        store<u8>(body - 3, XBZRLE_ENCODING);
        store<u16>(body - 2, bswap(u16(length)));
        addOne(counters + COUNTER_XBZRLE);
        at = body + length;
      }
      memory.copy(mirrorPage, content, PAGE_BYTES);
    }
  }
  store<u32>(out, next);
  store<u32>(out, at - target, 4);
  return u32(at - target);
}

function writeZero(at: usize, offset: u64, name: usize, nameLength: usize, counters: usize): usize {
  const body = writeHeader(at, offset, FLAG_ZERO, name, nameLength);
  store<u8>(body, 0);
  addOne(counters + COUNTER_ZERO);
  return body + 1;
}

function writeWhole(
  at: usize,
  offset: u64,
  name: usize,
  nameLength: usize,
  content: usize,
  counters: usize,
): usize {
  const body = writeHeader(at, offset, FLAG_PAGE, name, nameLength);
  memory.copy(body, content, PAGE_BYTES);
  addOne(counters + COUNTER_WHOLE);
  return body + PAGE_BYTES;
}
