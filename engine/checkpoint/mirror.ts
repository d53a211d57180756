/**
 * The guest's RAM as of the last checkpoint, in kernel memory. Deltas are computed against it, a new
 * secondary is seeded from it, and its bitmap knows which pages the secondary lacks.
 *
 * A WebAssembly memory holds less than 4 GiB, so the guest's pages, all RAM blocks one after another,
 * are spread over *shards*, each with a memory of its own. The first shard lives in the memory that
 * QEMU's bytes are read to, so its pages are compared where they lie; pages of other shards are copied
 * into the shard's inbox first.
 *
 * What goes to a secondary is named here, as jobs for a {@linkcode PageEncoder}: pages that lie in the
 * mirror already, or pages to be compared with it.
 *
 * @module
 */

import { ENCODE, type KernelSet, PAGE_ENTRY_BYTES } from "../../wasm/mod.ts";
import { LocalProtocolError } from "../errors.ts";
import { PAGE_BYTES } from "../limits.ts";
import type { PlacedBlock } from "../stream/format.ts";
import {
  allocateBuffers,
  type EncodeJob,
  type EncoderShard,
  JOB_PAGES,
  type Piece,
} from "./page_encoder.ts";
import { entriesOf, Shard } from "./shard.ts";

/** How a mirror is laid out. */
export interface MirrorOptions {
  /** Makes the memory of every shard but the first. */
  readonly createKernels: () => KernelSet;
  /** Guest bytes in the first shard, next to the staging area. */
  readonly firstShardBytes?: number;
  /** Guest bytes in every other shard. */
  readonly shardBytes?: number;
  /** Pages of one job, at most and usually {@linkcode JOB_PAGES}. */
  readonly jobPages?: number;
}

/** A page table somewhere in kernel memory. */
export interface PageTable {
  readonly kernels: KernelSet;
  readonly table: number;
  readonly pageCount: number;
}

/** A bitmap in a shard's memory. */
export interface TouchedPages {
  readonly firstPage: number;
  readonly pages: number;
  readonly address: number;
}

const GIB = 1024 ** 3;

/** The mirror of one guest. */
export class Mirror {
  /** All pages of the guest. */
  readonly pages: number;
  readonly #shards: readonly Shard[];
  readonly #jobPages: number;
  /** A bit for each page, all of them 0 but while {@linkcode hasTwice} runs. */
  readonly #seen: Uint8Array;

  /**
   * @param blocks The guest's RAM blocks
   * @param ingest The memory that QEMU's bytes are read to
   */
  constructor(readonly blocks: readonly PlacedBlock[], ingest: KernelSet, options: MirrorOptions) {
    const last = blocks.at(-1);
    if (last === undefined) throw new LocalProtocolError("Cannot mirror a guest without RAM");
    this.pages = last.firstPage + last.pages;
    const shards: Shard[] = [];
    const firstPages = Math.floor((options.firstShardBytes ?? 2 * GIB) / PAGE_BYTES);
    const otherPages = Math.floor((options.shardBytes ?? 3 * GIB) / PAGE_BYTES);
    for (let page = 0; page < this.pages;) {
      const pages = Math.min(this.pages - page, shards.length === 0 ? firstPages : otherPages);
      const kernels = shards.length === 0 ? ingest : options.createKernels();
      shards.push(new Shard(kernels, page, pages, blocks));
      page += pages;
    }
    this.#shards = shards;
    this.#seen = new Uint8Array(Math.ceil(this.pages / 8));
    this.#jobPages = Math.min(options.jobPages ?? JOB_PAGES, JOB_PAGES);
  }

  /** The kernels over the memory of each shard; the first is that which QEMU's bytes are read to. */
  get kernels(): readonly KernelSet[] {
    return this.#shards.map((shard) => shard.kernels);
  }

  /** Where the guest's pages lie in the memory of each shard. */
  get pieces(): readonly (readonly Piece[])[] {
    return this.#shards.map((shard) => shard.pieces);
  }

  /**
   * Where each shard notes which pages have changed since {@linkcode clearTouched}: a bit set for each,
   * from its first page on.
   */
  get touched(): readonly TouchedPages[] {
    return this.#shards.map(({ firstPage, pages, touched }) => ({
      firstPage,
      pages,
      address: touched,
    }));
  }

  /** No page has changed, as long as none is on its way into the mirror. */
  clearTouched(): void {
    for (const shard of this.#shards) shard.clearTouched();
  }

  /** Reserve for good what one encoder needs in each shard's memory. */
  addEncoder(): EncoderShard[] {
    return this.#shards.map(({ kernels, pieces }, index) => ({
      pieces,
      buffers: allocateBuffers(kernels, index > 0),
    }));
  }

  /** Pages that the secondary lacks. */
  get missingPages(): number {
    return this.#shards.reduce((total, shard) => total + shard.missingPages, 0);
  }

  /** Pages that have changed since {@linkcode clearMissing}. */
  get unheldPages(): number {
    return this.#shards.reduce((total, shard) => total + shard.unheldPages, 0);
  }

  /** A secondary that holds what was held last: it lacks what has changed since {@linkcode clearMissing}. */
  markUnheldMissing(): void {
    for (const shard of this.#shards) shard.markUnheldMissing();
  }

  /** A secondary that holds nothing: it lacks every page. */
  markAllMissing(): void {
    for (const shard of this.#shards) shard.markAllMissing();
  }

  /** The secondary lacks these pages. */
  markMissing(pages: PageTable): void {
    for (const { shard, batch } of this.#batches(pages)) shard.markMissing(batch);
  }

  /** The secondary holds all that the mirror holds. */
  clearMissing(): void {
    for (const shard of this.#shards) shard.clearMissing();
  }

  /** Take pages into the mirror without sending them. */
  absorb(pages: PageTable): void {
    for (const { shard, batch } of this.#batches(pages)) shard.absorb(batch);
  }

  /** Whether one of these pages comes twice, so that their order matters. */
  hasTwice({ kernels, table, pageCount }: PageTable): boolean {
    const entries = new DataView(kernels.bytes.buffer, table, pageCount * PAGE_ENTRY_BYTES);
    const seen = this.#seen;
    let twice = false;
    for (let at = 0; at < entries.byteLength; at += PAGE_ENTRY_BYTES) {
      const page = entries.getUint32(at, true);
      const bit = 1 << (page & 7);
      twice ||= (seen[page >>> 3]! & bit) !== 0;
      seen[page >>> 3]! |= bit;
    }
    for (let at = 0; at < entries.byteLength; at += PAGE_ENTRY_BYTES) {
      seen[entries.getUint32(at, true) >>> 3] = 0;
    }
    return twice;
  }

  /**
   * What changed in these pages. Whoever encodes it also takes them into the mirror: the jobs must be
   * encoded, or the pages be {@linkcode absorb}ed. Where no page comes twice, in any order.
   */
  *deltaJobs(pages: PageTable): Generator<EncodeJob, void> {
    for (const { index, from, to } of this.#runs(pages, this.#jobPages)) {
      const entries = entriesOf(pages.kernels, pages.table, from, to);
      const foreign = this.#shards[index]!.kernels !== pages.kernels;
      yield { mode: ENCODE.DELTA, shard: index, entries, foreign };
    }
  }

  /**
   * Pages that the secondary lacks, once round the guest. They count as held from when they are asked
   * for, and are read from the mirror when they are encoded: a page that is written meanwhile is marked
   * as missing anew and may travel torn, so encode all of one round before the next is begun.
   *
   * @param fresh The secondary is a fresh VM, whose RAM is zero: pages of zeros may be left out
   */
  *missingJobs(fresh: boolean): Generator<EncodeJob, void> {
    const mode = fresh ? ENCODE.SEED : ENCODE.WHOLE;
    for (const [index, shard] of this.#shards.entries()) {
      let from = 0;
      for (
        let taken;
        (taken = shard.takeMissing(from, this.#jobPages)) !== undefined;
        from = taken.next
      ) {
        yield { mode, shard: index, entries: taken.entries, foreign: false };
      }
    }
  }

  /** A copy of one page, for tests and diagnosis. */
  page(page: number): Uint8Array<ArrayBuffer> {
    const shard = this.#shards.find((shard) => shard.holds(page));
    if (shard === undefined) throw new RangeError(`Cannot read page ${page}: it does not exist`);
    return shard.page(page);
  }

  /** Cut a page table into runs that belong to one shard and lie in its memory. */
  *#batches(pages: PageTable): Generator<{ shard: Shard; batch: PageTable & { from: number } }> {
    for (const { index, from, to } of this.#runs(pages, pages.pageCount)) {
      const shard = this.#shards[index]!;
      if (shard.kernels === pages.kernels) {
        yield { shard, batch: { ...pages, from, pageCount: to } };
        continue;
      }
      for (let at = from; at < to;) {
        const batch = shard.receive(pages, at, to);
        yield { shard, batch };
        at += batch.pageCount;
      }
    }
  }

  /** Cut a page table into runs `from .. to` of at most `pagesMax` that belong to one shard. */
  *#runs(
    pages: PageTable,
    pagesMax: number,
  ): Generator<{ readonly index: number; readonly from: number; readonly to: number }> {
    const pageAt = (entry: number) =>
      new DataView(pages.kernels.bytes.buffer, pages.table + entry * PAGE_ENTRY_BYTES)
        .getUint32(0, true);
    const single = this.#shards.length === 1;
    for (let from = 0; from < pages.pageCount;) {
      const first = pageAt(from);
      const index = single ? 0 : this.#shards.findIndex((shard) => shard.holds(first));
      const shard = this.#shards[index];
      if (shard === undefined) {
        throw new LocalProtocolError(`Cannot mirror page ${first}: it does not exist`);
      }
      const end = Math.min(pages.pageCount, from + pagesMax);
      let to = single ? end : from + 1;
      while (to < end && shard.holds(pageAt(to))) to++;
      yield { index, from, to };
      from = to;
    }
  }
}
