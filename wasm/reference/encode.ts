/**
 * Reference kernel that writes pages as RAM records of QEMU's migration stream
 * (`migration/ram.c`: `save_page_header`, `save_zero_page`, `save_xbzrle_page`, `save_normal_page`).
 *
 * @module
 */

import { PAGE_BYTES, RAM_FLAG, XBZRLE_BODY_BYTES_MAX, XBZRLE_ENCODING } from "../format.ts";
import { ENCODE, ENCODE_COUNTER } from "../kernel_set.ts";
import { readU32, writeU32 } from "./memory.ts";
import { copy, isEqual, isZero } from "./page.ts";
import { contentExists, pageIndex, readEntry } from "./scan.ts";
import { xbzrleEncode } from "./xbzrle.ts";

export function encodePages(
  bytes: Uint8Array,
  mode: number,
  table: number,
  from: number,
  count: number,
  blockFirstPage: number,
  firstPage: number,
  pages: number,
  mirror: number,
  name: number,
  nameLength: number,
  target: number,
  targetCapacity: number,
  counters: number,
  out: number,
): number {
  let written = 0;
  let next = from;
  for (; next < count; next++) {
    const entry = readEntry(bytes, table, next);
    const index = pageIndex(entry, firstPage, pages);
    if (index < 0 || !contentExists(bytes, entry)) break;
    const nameBytes = written === 0 && nameLength > 0 ? 1 + nameLength : 0;
    if (8 + nameBytes + PAGE_BYTES > targetCapacity - written) break;

    const pageOfBlock = entry.page - blockFirstPage;
    const header = { pageOfBlock, name, nameLength: nameBytes === 0 ? 0 : nameLength };
    const at = target + written;
    const record = mode === ENCODE.DELTA
      ? encodeChange(bytes, entry.content, mirror + index * PAGE_BYTES, header, at)
      : encodeWhole(bytes, mode, entry.content, header, at);
    written += record.sizeBytes;
    const counter = counters + 4 * record.counter;
    writeU32(bytes, counter, readU32(bytes, counter) + 1);
  }
  writeU32(bytes, out, next);
  writeU32(bytes, out + 4, written);
  return written;
}

interface Header {
  readonly pageOfBlock: number;
  readonly name: number;
  /** 0: the record continues the block of the one before. */
  readonly nameLength: number;
}

interface Written {
  readonly counter: number;
  readonly sizeBytes: number;
}

/** Write what changed against the mirror's page, and bring that page up to date. */
function encodeChange(
  bytes: Uint8Array,
  content: number,
  mirrorPage: number,
  header: Header,
  at: number,
): Written {
  const isSame = content === 0
    ? isZero(bytes, mirrorPage, PAGE_BYTES)
    : isEqual(bytes, content, mirrorPage, PAGE_BYTES);
  if (isSame) return { counter: ENCODE_COUNTER.UNCHANGED, sizeBytes: 0 };
  if (content === 0 || isZero(bytes, content, PAGE_BYTES)) {
    bytes.fill(0, mirrorPage, mirrorPage + PAGE_BYTES);
    return writeZero(bytes, header, at);
  }
  const record = writeXbzrle(bytes, mirrorPage, content, header, at) ??
    writeWhole(bytes, content, header, at);
  copy(bytes, mirrorPage, content, PAGE_BYTES);
  return record;
}

function encodeWhole(
  bytes: Uint8Array,
  mode: number,
  content: number,
  header: Header,
  at: number,
): Written {
  if (content !== 0 && !isZero(bytes, content, PAGE_BYTES)) {
    return writeWhole(bytes, content, header, at);
  }
  if (mode === ENCODE.SEED) return { counter: ENCODE_COUNTER.UNCHANGED, sizeBytes: 0 };
  return writeZero(bytes, header, at);
}

function writeZero(bytes: Uint8Array, header: Header, at: number): Written {
  const body = at + writeHeader(bytes, header, RAM_FLAG.ZERO, at);
  bytes[body] = 0;
  return { counter: ENCODE_COUNTER.ZERO, sizeBytes: body + 1 - at };
}

function writeWhole(bytes: Uint8Array, content: number, header: Header, at: number): Written {
  const body = at + writeHeader(bytes, header, RAM_FLAG.PAGE, at);
  copy(bytes, body, content, PAGE_BYTES);
  return { counter: ENCODE_COUNTER.WHOLE, sizeBytes: body + PAGE_BYTES - at };
}

function writeXbzrle(
  bytes: Uint8Array,
  before: number,
  after: number,
  header: Header,
  at: number,
): Written | undefined {
  const body = at + writeHeader(bytes, header, RAM_FLAG.XBZRLE, at) + 3;
  const length = xbzrleEncode(bytes, before, after, PAGE_BYTES, body, XBZRLE_BODY_BYTES_MAX);
  if (length < 0) return undefined;
  bytes.set([XBZRLE_ENCODING, length >> 8, length & 0xff], body - 3);
  return { counter: ENCODE_COUNTER.XBZRLE, sizeBytes: body + length - at };
}

/** be64 `offset | flags`, and the block's name where it is not a continuation. */
function writeHeader(bytes: Uint8Array, header: Header, flag: number, at: number): number {
  const { pageOfBlock, name, nameLength } = header;
  const flags = nameLength === 0 ? flag | RAM_FLAG.CONTINUE : flag;
  const view = new DataView(bytes.buffer);
  view.setBigUint64(at, BigInt(pageOfBlock) * BigInt(PAGE_BYTES) | BigInt(flags), false);
  if (nameLength === 0) return 8;
  bytes[at + 8] = nameLength;
  copy(bytes, at + 9, name, nameLength);
  return 9 + nameLength;
}
