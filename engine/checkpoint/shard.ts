/**
 * A part of the guest's RAM in one kernel memory: pages, the bitmap of those that the secondary lacks,
 * and the buffers in which chunks are made.
 *
 * @module
 */

import { ENCODE, ENCODE_COUNTER, type KernelSet, PAGE_ENTRY_BYTES } from "../../wasm/mod.ts";
import { LocalProtocolError } from "../errors.ts";
import { BLOCK_NAME_BYTES_MAX, PAGE_BYTES } from "../limits.ts";
import type { PlacedBlock } from "../stream/format.ts";

/** Entries `from .. pageCount` of a page table. */
export interface PageBatch {
  readonly kernels: KernelSet;
  readonly table: number;
  readonly from: number;
  readonly pageCount: number;
}

/** The part of a RAM block that a shard holds. */
interface Piece {
  readonly block: PlacedBlock;
  readonly firstPage: number;
  readonly pages: number;
  /** Whether this is the guest's main memory, which is zero in a fresh VM; a ROM's block is not. */
  readonly isMain: boolean;
  /** Address of its first page in the mirror. */
  readonly mirror: number;
  /** Address and length of the block's name. */
  readonly name: number;
  readonly nameLength: number;
}

/** A chunk is about this large: big enough to compress well, small enough to travel soon. */
export const CHUNK_BYTES = 256 * 1024;

/** The longest record: header, block name, a whole page. */
const RECORD_BYTES_MAX = 8 + 1 + BLOCK_NAME_BYTES_MAX + PAGE_BYTES;

/** Pages that are copied from another memory, or collected from the bitmap, at a time. */
const INBOX_PAGES = 256;

const COUNTER_BYTES = 4 * Object.keys(ENCODE_COUNTER).length;

/** One shard of a mirror. */
export class Shard {
  readonly #pieces: readonly Piece[];
  readonly #mirror: number;
  readonly #missing: number;
  readonly #chunk: number;
  readonly #inboxTable: number;
  #inbox = 0;
  readonly #counters: number;
  readonly #out: number;

  constructor(
    readonly kernels: KernelSet,
    readonly firstPage: number,
    readonly pages: number,
    blocks: readonly PlacedBlock[],
  ) {
    this.#mirror = kernels.alloc(pages * PAGE_BYTES);
    this.#missing = kernels.alloc(Math.ceil(pages / 8));
    this.#chunk = kernels.alloc(CHUNK_BYTES);
    this.#inboxTable = kernels.alloc(INBOX_PAGES * PAGE_ENTRY_BYTES);
    this.#counters = kernels.alloc(COUNTER_BYTES);
    this.#out = kernels.alloc(8);
    const main = Math.max(...blocks.map((block) => block.pages));
    this.#pieces = blocks.flatMap((block) => this.#piece(block, block.pages === main) ?? []);
  }

  #piece(block: PlacedBlock, isMain: boolean): Piece | undefined {
    const firstPage = Math.max(block.firstPage, this.firstPage);
    const end = Math.min(block.firstPage + block.pages, this.firstPage + this.pages);
    if (firstPage >= end) return undefined;
    const name = new TextEncoder().encode(block.name);
    const address = this.kernels.alloc(name.length);
    this.kernels.bytes.set(name, address);
    return {
      block,
      firstPage,
      pages: end - firstPage,
      isMain,
      mirror: this.#mirror + (firstPage - this.firstPage) * PAGE_BYTES,
      name: address,
      nameLength: name.length,
    };
  }

  holds(page: number): boolean {
    return page >= this.firstPage && page < this.firstPage + this.pages;
  }

  page(page: number): Uint8Array<ArrayBuffer> {
    const at = this.#mirror + (page - this.firstPage) * PAGE_BYTES;
    return this.kernels.bytes.slice(at, at + PAGE_BYTES);
  }

  count(counter: number): number {
    return this.#u32(this.#counters + counter * 4);
  }

  resetCounts(): void {
    this.kernels.bytes.fill(0, this.#counters, this.#counters + COUNTER_BYTES);
  }

  get missingPages(): number {
    return this.kernels.bitmapCount(this.#missing, this.pages);
  }

  markAllMissing(): void {
    this.kernels.bitmapSet(this.#missing, this.pages, 0, this.pages);
  }

  clearMissing(): void {
    this.kernels.bitmapClear(this.#missing, this.pages, 0, this.pages);
  }

  markMissing(batch: PageBatch): void {
    const { kernels, firstPage, pages } = this;
    const table = batch.table + batch.from * PAGE_ENTRY_BYTES;
    const count = batch.pageCount - batch.from;
    this.#inside(kernels.markPages(table, count, this.#missing, firstPage, pages));
  }

  absorb(batch: PageBatch): void {
    const { kernels, firstPage, pages } = this;
    const table = batch.table + batch.from * PAGE_ENTRY_BYTES;
    const count = batch.pageCount - batch.from;
    this.#inside(kernels.applyPages(table, count, this.#mirror, firstPage, pages));
  }

  /** Copy pages `from .. to` of a table in another memory here, as many as the inbox takes. */
  receive(source: Omit<PageBatch, "from">, from: number, to: number): PageBatch {
    if (this.#inbox === 0) this.#inbox = this.kernels.alloc(INBOX_PAGES * PAGE_BYTES);
    const count = Math.min(to - from, INBOX_PAGES);
    const bytes = this.kernels.bytes;
    const there = source.kernels.bytes;
    const entries = new DataView(there.buffer, source.table + from * PAGE_ENTRY_BYTES);
    const inbox = new DataView(bytes.buffer, this.#inboxTable);
    for (let index = 0; index < count; index++) {
      const at = index * PAGE_ENTRY_BYTES;
      const content = entries.getUint32(at + 4, true);
      const copy = content === 0 ? 0 : this.#inbox + index * PAGE_BYTES;
      if (content !== 0) bytes.set(there.subarray(content, content + PAGE_BYTES), copy);
      inbox.setUint32(at, entries.getUint32(at, true), true);
      inbox.setUint32(at + 4, copy, true);
    }
    return { kernels: this.kernels, table: this.#inboxTable, from: 0, pageCount: count };
  }

  /** Encode a batch as chunks; each is valid until the next is asked for. */
  *encode(mode: number, batch: PageBatch): Generator<Uint8Array<ArrayBuffer>, void> {
    let from = batch.from;
    while (from < batch.pageCount) {
      const { next, bytes } = this.#encodeChunk(mode, batch.table, from, batch.pageCount);
      from = next;
      if (bytes > 0) yield this.kernels.bytes.subarray(this.#chunk, this.#chunk + bytes);
    }
  }

  /**
   * Encode missing pages at or behind page `from` of this shard as one chunk, and count them as held.
   *
   * @returns Nothing when none is missing there
   */
  takeMissing(
    mode: number,
    from: number,
  ): { readonly chunk: Uint8Array<ArrayBuffer>; readonly next: number } | undefined {
    const { kernels, firstPage, pages } = this;
    // As many as surely fit one chunk, whatever they hold.
    const capacity = Math.floor(CHUNK_BYTES / RECORD_BYTES_MAX);
    const [missing, table] = [this.#missing, this.#inboxTable];
    kernels.collectPages(missing, from, pages, firstPage, this.#mirror, table, capacity, this.#out);
    const next = this.#u32(this.#out);
    const count = this.#u32(this.#out + 4);
    if (count === 0) return undefined;
    const encoded = this.#encodeChunk(mode, table, 0, count);
    if (encoded.next !== count) {
      throw new LocalProtocolError("Cannot encode: the chunk is too small");
    }
    kernels.bitmapClear(missing, pages, from, next - from);
    return { chunk: kernels.bytes.subarray(this.#chunk, this.#chunk + encoded.bytes), next };
  }

  #encodeChunk(mode: number, table: number, from: number, count: number) {
    const { kernels } = this;
    let next = from;
    let bytes = 0;
    let piece: Piece | undefined;
    while (next < count && CHUNK_BYTES - bytes >= RECORD_BYTES_MAX) {
      const page = this.#u32(table + next * PAGE_ENTRY_BYTES);
      const here = this.#pieceOf(page);
      const named = here !== piece;
      piece = here;
      const written = kernels.encodePages(
        mode === ENCODE.SEED && !piece.isMain ? ENCODE.WHOLE : mode,
        table,
        next,
        count,
        piece.block.firstPage,
        piece.firstPage,
        piece.pages,
        piece.mirror,
        piece.name,
        named ? piece.nameLength : 0,
        this.#chunk + bytes,
        CHUNK_BYTES - bytes,
        this.#counters,
        this.#out,
      );
      next = this.#u32(this.#out);
      bytes += written;
      // Nothing was written: the block is yet to be named.
      if (written === 0) piece = undefined;
    }
    return { next, bytes };
  }

  #pieceOf(page: number): Piece {
    for (const piece of this.#pieces) {
      if (page >= piece.firstPage && page < piece.firstPage + piece.pages) return piece;
    }
    throw new LocalProtocolError(`Cannot encode page ${page}: it is not in this shard`);
  }

  #inside(result: number): void {
    if (result < 0) throw new LocalProtocolError("Cannot mirror a page: it is not in this shard");
  }

  #u32(address: number): number {
    return new DataView(this.kernels.bytes.buffer, address, 4).getUint32(0, true);
  }
}
