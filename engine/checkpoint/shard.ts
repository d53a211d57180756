/**
 * A part of the guest's RAM in one kernel memory: pages, and the bitmap of those that the secondary
 * lacks.
 *
 * @module
 */

import { type KernelSet, PAGE_ENTRY_BYTES } from "../../wasm/mod.ts";
import { LocalProtocolError } from "../errors.ts";
import { PAGE_BYTES } from "../limits.ts";
import type { PlacedBlock } from "../stream/format.ts";
import { JOB_PAGES, type Piece } from "./page_encoder.ts";

/** Entries `from .. pageCount` of a page table. */
export interface PageBatch {
  readonly kernels: KernelSet;
  readonly table: number;
  readonly from: number;
  readonly pageCount: number;
}

/** Pages that are copied from another memory at a time. */
const INBOX_PAGES = 256;

/** One shard of a mirror. */
export class Shard {
  readonly pieces: readonly Piece[];
  readonly #mirror: number;
  readonly #missing: number;
  /** Bitmap of the pages that have changed since all were held by a secondary. */
  readonly #unheld: number;
  /** Address of the bitmap of pages whose content has changed, or is about to. */
  readonly touched: number;
  readonly #table: number;
  #inbox = 0;
  readonly #out: number;

  constructor(
    readonly kernels: KernelSet,
    readonly firstPage: number,
    readonly pages: number,
    blocks: readonly PlacedBlock[],
  ) {
    this.#mirror = kernels.alloc(pages * PAGE_BYTES);
    this.#missing = kernels.alloc(Math.ceil(pages / 8));
    this.#unheld = kernels.alloc(Math.ceil(pages / 8));
    this.touched = kernels.alloc(Math.ceil(pages / 8));
    this.#table = kernels.alloc(JOB_PAGES * PAGE_ENTRY_BYTES);
    this.#out = kernels.alloc(8);
    const main = Math.max(...blocks.map((block) => block.pages));
    this.pieces = blocks.flatMap((block) => this.#piece(block, block.pages === main) ?? []);
  }

  #piece(block: PlacedBlock, isMain: boolean): Piece | undefined {
    const firstPage = Math.max(block.firstPage, this.firstPage);
    const end = Math.min(block.firstPage + block.pages, this.firstPage + this.pages);
    if (firstPage >= end) return undefined;
    const name = new TextEncoder().encode(block.name);
    const address = this.kernels.alloc(name.length);
    this.kernels.bytes.set(name, address);
    return {
      blockFirstPage: block.firstPage,
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

  get missingPages(): number {
    return this.kernels.bitmapCount(this.#missing, this.pages);
  }

  get unheldPages(): number {
    return this.kernels.bitmapCount(this.#unheld, this.pages);
  }

  /** What has changed since all pages were held is missing, and nothing else. */
  markUnheldMissing(): void {
    const bytes = Math.ceil(this.pages / 8);
    this.kernels.bytes.copyWithin(this.#missing, this.#unheld, this.#unheld + bytes);
  }

  markAllMissing(): void {
    this.kernels.bitmapSet(this.#missing, this.pages, 0, this.pages);
  }

  clearTouched(): void {
    this.kernels.bitmapClear(this.touched, this.pages, 0, this.pages);
  }

  /** All pages are held by a secondary. */
  clearMissing(): void {
    this.kernels.bitmapClear(this.#missing, this.pages, 0, this.pages);
    this.kernels.bitmapClear(this.#unheld, this.pages, 0, this.pages);
  }

  markMissing(batch: PageBatch): void {
    const { kernels, firstPage, pages } = this;
    const table = batch.table + batch.from * PAGE_ENTRY_BYTES;
    const count = batch.pageCount - batch.from;
    this.#inside(kernels.markPages(table, count, this.#missing, firstPage, pages));
    kernels.markPages(table, count, this.#unheld, firstPage, pages);
    kernels.markPages(table, count, this.touched, firstPage, pages);
  }

  absorb(batch: PageBatch): void {
    const { kernels, firstPage, pages } = this;
    const table = batch.table + batch.from * PAGE_ENTRY_BYTES;
    const count = batch.pageCount - batch.from;
    this.#inside(kernels.applyPages(table, count, this.#mirror, firstPage, pages));
    kernels.markPages(table, count, this.touched, firstPage, pages);
  }

  /** Copy pages `from .. to` of a table in another memory here, as many as the inbox takes. */
  receive(source: Omit<PageBatch, "from">, from: number, to: number): PageBatch {
    if (this.#inbox === 0) this.#inbox = this.kernels.alloc(INBOX_PAGES * PAGE_BYTES);
    const count = Math.min(to - from, INBOX_PAGES);
    const bytes = this.kernels.bytes;
    const there = source.kernels.bytes;
    const entries = new DataView(there.buffer, source.table + from * PAGE_ENTRY_BYTES);
    const inbox = new DataView(bytes.buffer, this.#table);
    for (let index = 0; index < count; index++) {
      const at = index * PAGE_ENTRY_BYTES;
      const content = entries.getUint32(at + 4, true);
      const copy = content === 0 ? 0 : this.#inbox + index * PAGE_BYTES;
      if (content !== 0) bytes.set(there.subarray(content, content + PAGE_BYTES), copy);
      inbox.setUint32(at, entries.getUint32(at, true), true);
      inbox.setUint32(at + 4, copy, true);
    }
    return { kernels: this.kernels, table: this.#table, from: 0, pageCount: count };
  }

  /**
   * The next missing pages, up to `count`, at or behind page `from` of this shard, with their place in the mirror; they
   * count as held from here on.
   *
   * @returns Entries of a page table, and the page to go on from; nothing when none is missing there
   */
  takeMissing(
    from: number,
    count: number,
  ): { readonly entries: Uint32Array; readonly next: number } | undefined {
    const { kernels, firstPage, pages } = this;
    const [missing, table] = [this.#missing, this.#table];
    kernels.collectPages(missing, from, pages, firstPage, this.#mirror, table, count, this.#out);
    const view = new DataView(kernels.bytes.buffer, this.#out, 8);
    const [next, taken] = [view.getUint32(0, true), view.getUint32(4, true)];
    if (taken === 0) return undefined;
    kernels.bitmapClear(missing, pages, from, next - from);
    return { entries: entriesOf(kernels, table, 0, taken), next };
  }

  #inside(result: number): void {
    if (result < 0) throw new LocalProtocolError("Cannot mirror a page: it is not in this shard");
  }
}

/** A copy of entries `from .. to` of a page table. */
export function entriesOf(
  kernels: KernelSet,
  table: number,
  from: number,
  to: number,
): Uint32Array {
  const at = table + from * PAGE_ENTRY_BYTES;
  return new Uint32Array(kernels.bytes.slice(at, table + to * PAGE_ENTRY_BYTES).buffer);
}
