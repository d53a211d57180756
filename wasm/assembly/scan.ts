/**
 * Kernels that read RAM records (QEMU migration/ram.c) and work on page tables.
 *
 *   RAM record                                  page table entry
 *   0        8                  4104            0      4         8
 *   | be64   | 4096 bytes       |  PAGE         | page | content |
 *   | be64   | 00 |                ZERO         u32 LE  u32 LE, address; 0 = zeros
 *     offset (52 bits) | flags (12 bits)
 */

import { nextBit } from "./bitmap";
import {
  FLAG_CONTINUE,
  FLAG_PAGE,
  FLAG_ZERO,
  FLAGS_MASK,
  PAGE_BYTES,
  PAGE_ENTRY_BYTES,
  SCAN_BAD_ADDRESS,
  SCAN_FULL,
  SCAN_MORE,
  SCAN_OTHER,
} from "./format";
import { isZero } from "./page";

/** Content addresses come from a table, which is memory like any other: a wrong one must not trap. */
// @ts-ignore: decorator
@inline
export function contentExists(content: usize): bool {
  // The host keeps memories below 65536 pages, so this does not overflow.
  return content <= (usize(memory.size()) << 16) - PAGE_BYTES;
}

export function scanRam(
  at: usize,
  end: usize,
  firstPage: u32,
  pages: u32,
  table: usize,
  used: u32,
  capacity: u32,
  out: usize,
): i32 {
  let entries = used;
  let result = SCAN_MORE;
  for (;;) {
    const left = end - at;
    if (left < 8) break;
    const header = bswap(load<u64>(at));
    const flags = header & FLAGS_MASK;
    if (flags != (FLAG_PAGE | FLAG_CONTINUE) && flags != (FLAG_ZERO | FLAG_CONTINUE)) {
      result = SCAN_OTHER;
      break;
    }
    const page = header >>> 12;
    if (page >= u64(pages)) {
      result = SCAN_BAD_ADDRESS;
      break;
    }
    const hasContent = flags == (FLAG_PAGE | FLAG_CONTINUE);
    const size: usize = hasContent ? 8 + PAGE_BYTES : 9;
    if (left < size) break;
    if (!hasContent && load<u8>(at, 8) != 0) {
      result = SCAN_OTHER;
      break;
    }
    if (entries >= capacity) {
      result = SCAN_FULL;
      break;
    }
    const entry = table + usize(entries) * PAGE_ENTRY_BYTES;
    store<u32>(entry, firstPage + u32(page));
    store<u32>(entry, hasContent ? at + 8 : 0, 4);
    entries++;
    at += size;
  }
  store<u32>(out, at);
  store<u32>(out, entries, 4);
  return result;
}

export function applyPages(
  table: usize,
  count: u32,
  mirror: usize,
  firstPage: u32,
  pages: u32,
): i32 {
  for (let i: u32 = 0; i < count; i++) {
    const entry = table + usize(i) * PAGE_ENTRY_BYTES;
    const index = load<u32>(entry) - firstPage;
    const content: usize = load<u32>(entry, 4);
    if (index >= pages || !contentExists(content)) return -1;
    const target = mirror + usize(index) * PAGE_BYTES;
    if (content != 0) memory.copy(target, content, PAGE_BYTES);
    else if (!isZero(target, PAGE_BYTES)) memory.fill(target, 0, PAGE_BYTES);
  }
  return count;
}

export function markPages(
  table: usize,
  count: u32,
  bitmap: usize,
  firstPage: u32,
  pages: u32,
): i32 {
  for (let i: u32 = 0; i < count; i++) {
    const index = load<u32>(table + usize(i) * PAGE_ENTRY_BYTES) - firstPage;
    if (index >= pages) return -1;
    const byte = bitmap + (index >>> 3);
    store<u8>(byte, u32(load<u8>(byte)) | (1 << (index & 7)));
  }
  return count;
}

export function collectPages(
  bitmap: usize,
  from: u32,
  pages: u32,
  firstPage: u32,
  mirror: usize,
  table: usize,
  capacity: u32,
  out: usize,
): u32 {
  let used: u32 = 0;
  let bit = nextBit(bitmap, pages, from, 0);
  for (; bit < pages && used < capacity; used++) {
    const entry = table + usize(used) * PAGE_ENTRY_BYTES;
    store<u32>(entry, firstPage + bit);
    store<u32>(entry, mirror + usize(bit) * PAGE_BYTES, 4);
    bit = nextBit(bitmap, pages, bit + 1, 0);
  }
  store<u32>(out, bit);
  store<u32>(out, used, 4);
  return used;
}
