/**
 * Reference kernels that read RAM records and work on page tables. Record format: QEMU
 * `migration/ram.c` (`save_normal_page`, `save_zero_page`, `ram_load_precopy`).
 *
 * @module
 */

import { PAGE_BYTES, RAM_FLAG } from "../format.ts";
import { PAGE_ENTRY_BYTES, SCAN } from "../kernel_set.ts";
import { nextBit, setBit } from "./bitmap.ts";
import { byteAt, readU32, writeU32 } from "./memory.ts";
import { copy, isZero } from "./page.ts";

/** One entry of a page table: which page, and where its content is (0: it is all zero). */
export interface PageEntry {
  readonly page: number;
  readonly content: number;
}

export function readEntry(bytes: Uint8Array, table: number, index: number): PageEntry {
  const at = table + index * PAGE_ENTRY_BYTES;
  return { page: readU32(bytes, at), content: readU32(bytes, at + 4) };
}

export function writeEntry(
  bytes: Uint8Array,
  table: number,
  index: number,
  entry: PageEntry,
): void {
  const at = table + index * PAGE_ENTRY_BYTES;
  writeU32(bytes, at, entry.page);
  writeU32(bytes, at + 4, entry.content);
}

export function scanRam(
  bytes: Uint8Array,
  at: number,
  end: number,
  firstPage: number,
  pages: number,
  table: number,
  used: number,
  capacity: number,
  out: number,
): number {
  let result: number;
  let position = at;
  let entries = used;
  while (true) {
    const record = readRecord(bytes, position, end, pages);
    if (typeof record === "number") {
      result = record;
      break;
    }
    if (entries >= capacity) {
      result = SCAN.FULL;
      break;
    }
    writeEntry(bytes, table, entries++, {
      page: firstPage + record.pageOfBlock,
      content: record.content,
    });
    position += record.sizeBytes;
  }
  writeU32(bytes, out, position);
  writeU32(bytes, out + 4, entries);
  return result;
}

interface RamRecord {
  readonly pageOfBlock: number;
  readonly content: number;
  readonly sizeBytes: number;
}

/** One complete common record, or why there is none at this position. */
function readRecord(bytes: Uint8Array, at: number, end: number, pages: number): RamRecord | number {
  if (end - at < 8) return SCAN.MORE;
  const header = new DataView(bytes.buffer).getBigUint64(at, false);
  const flags = Number(header & 0xfffn);
  const isPage = flags === (RAM_FLAG.PAGE | RAM_FLAG.CONTINUE);
  const isZeroPage = flags === (RAM_FLAG.ZERO | RAM_FLAG.CONTINUE);
  if (!isPage && !isZeroPage) return SCAN.OTHER;
  const pageOfBlock = header >> 12n;
  if (pageOfBlock >= BigInt(pages)) return SCAN.BAD_ADDRESS;
  const sizeBytes = isPage ? 8 + PAGE_BYTES : 8 + 1;
  if (end - at < sizeBytes) return SCAN.MORE;
  // Old QEMUs could send pages filled with another byte than zero.
  if (isZeroPage && byteAt(bytes, at + 8) !== 0) return SCAN.OTHER;
  return { pageOfBlock: Number(pageOfBlock), content: isPage ? at + 8 : 0, sizeBytes };
}

/** The index of an entry's page in `firstPage .. firstPage + pages`, or -1 when it is outside. */
export function pageIndex(entry: PageEntry, firstPage: number, pages: number): number {
  const index = entry.page - firstPage;
  return index >= 0 && index < pages ? index : -1;
}

/** Does the content an entry points to lie in the memory? */
export function contentExists(bytes: Uint8Array, entry: PageEntry): boolean {
  return entry.content === 0 || entry.content + PAGE_BYTES <= bytes.length;
}

export function applyPages(
  bytes: Uint8Array,
  table: number,
  count: number,
  mirror: number,
  firstPage: number,
  pages: number,
): number {
  for (let i = 0; i < count; i++) {
    const entry = readEntry(bytes, table, i);
    const index = pageIndex(entry, firstPage, pages);
    if (index < 0 || !contentExists(bytes, entry)) return -1;
    const target = mirror + index * PAGE_BYTES;
    if (entry.content !== 0) {
      copy(bytes, target, entry.content, PAGE_BYTES);
    } else if (!isZero(bytes, target, PAGE_BYTES)) {
      bytes.fill(0, target, target + PAGE_BYTES);
    }
  }
  return count;
}

export function markPages(
  bytes: Uint8Array,
  table: number,
  count: number,
  bitmap: number,
  firstPage: number,
  pages: number,
): number {
  for (let i = 0; i < count; i++) {
    const index = pageIndex(readEntry(bytes, table, i), firstPage, pages);
    if (index < 0) return -1;
    setBit(bytes, bitmap, index);
  }
  return count;
}

export function collectPages(
  bytes: Uint8Array,
  bitmap: number,
  from: number,
  pages: number,
  firstPage: number,
  mirror: number,
  table: number,
  capacity: number,
  out: number,
): number {
  let used = 0;
  let bit = nextBit(bytes, bitmap, pages, from, true);
  while (bit < pages && used < capacity) {
    writeEntry(bytes, table, used++, {
      page: firstPage + bit,
      content: mirror + bit * PAGE_BYTES,
    });
    bit = nextBit(bytes, bitmap, pages, bit + 1, true);
  }
  writeU32(bytes, out, bit);
  writeU32(bytes, out + 4, used);
  return used;
}
