/**
 * The guest's RAM as of the last checkpoint, in kernel memory. Deltas are computed against it, a new
 * secondary is seeded from it, and its bitmap knows which pages the secondary lacks.
 *
 * A WebAssembly memory holds less than 4 GiB, so the guest's pages, all RAM blocks one after another,
 * are spread over *shards*, each with a memory of its own. The first shard lives in the memory that
 * QEMU's bytes are read to, so its pages are compared where they lie; pages of other shards are copied
 * into the shard's inbox first.
 *
 * What goes to a secondary is made here, as chunks of QEMU's own RAM records. Every chunk starts with
 * a record that names its block, so it can be written into any `ram` section.
 *
 * @module
 */

import { ENCODE, ENCODE_COUNTER, type KernelSet, PAGE_ENTRY_BYTES } from "../../wasm/mod.ts";
import { LocalProtocolError } from "../errors.ts";
import { PAGE_BYTES } from "../limits.ts";
import type { PlacedBlock } from "../stream/format.ts";
import { Shard } from "./shard.ts";

/** How pages were sent. */
export interface PageCounts {
  /** Written by the guest with what they held already: not sent. */
  readonly unchanged: number;
  readonly zero: number;
  /** Sent as the change within the page. */
  readonly xbzrle: number;
  readonly whole: number;
}

/** How a mirror is laid out. */
export interface MirrorOptions {
  /** Makes the memory of every shard but the first. */
  readonly createKernels: () => KernelSet;
  /** Guest bytes in the first shard, next to the staging area. */
  readonly firstShardBytes?: number;
  /** Guest bytes in every other shard. */
  readonly shardBytes?: number;
}

/** A page table somewhere in kernel memory. */
export interface PageTable {
  readonly kernels: KernelSet;
  readonly table: number;
  readonly pageCount: number;
}

const GIB = 1024 ** 3;

/** The mirror of one guest. */
export class Mirror {
  /** All pages of the guest. */
  readonly pages: number;
  readonly #shards: readonly Shard[];
  /** Where {@linkcode takeMissing} goes on. */
  #cursor = { shard: 0, page: 0 };

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
  }

  /** How pages were sent since the last {@linkcode resetCounts}. */
  get counts(): PageCounts {
    const sum = (counter: number) =>
      this.#shards.reduce((total, shard) => total + shard.count(counter), 0);
    return {
      unchanged: sum(ENCODE_COUNTER.UNCHANGED),
      zero: sum(ENCODE_COUNTER.ZERO),
      xbzrle: sum(ENCODE_COUNTER.XBZRLE),
      whole: sum(ENCODE_COUNTER.WHOLE),
    };
  }

  resetCounts(): void {
    for (const shard of this.#shards) shard.resetCounts();
  }

  /** Pages that the secondary lacks. */
  get missingPages(): number {
    return this.#shards.reduce((total, shard) => total + shard.missingPages, 0);
  }

  /** A secondary that holds nothing: it lacks every page. */
  markAllMissing(): void {
    for (const shard of this.#shards) shard.markAllMissing();
    this.#cursor = { shard: 0, page: 0 };
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

  /**
   * Encode what changed in these pages, and take them into the mirror. Each chunk is valid until the
   * next is asked for; pages behind the last chunk that was asked for are not in the mirror.
   *
   * @param chunkBytes Size of a chunk at the most
   */
  *encodeDelta(pages: PageTable): Generator<Uint8Array<ArrayBuffer>, void> {
    for (const { shard, batch } of this.#batches(pages)) {
      yield* shard.encode(ENCODE.DELTA, batch);
    }
  }

  /**
   * The next chunk of pages that the secondary lacks, as they are in the mirror now; they count as
   * held from here on. Goes round the guest until nothing is missing.
   *
   * @param fresh The secondary is a fresh VM, whose RAM is zero: pages of zeros may be left out
   * @returns The chunk (may be empty), or nothing when no page is missing
   */
  takeMissing(fresh: boolean): Uint8Array<ArrayBuffer> | undefined {
    for (let visited = 0; visited <= this.#shards.length; visited++) {
      const shard = this.#shards[this.#cursor.shard]!;
      const taken = shard.takeMissing(fresh ? ENCODE.SEED : ENCODE.WHOLE, this.#cursor.page);
      if (taken !== undefined) {
        this.#cursor = { shard: this.#cursor.shard, page: taken.next };
        return taken.chunk;
      }
      this.#cursor = { shard: (this.#cursor.shard + 1) % this.#shards.length, page: 0 };
    }
    return undefined;
  }

  /** A copy of one page, for tests and diagnosis. */
  page(page: number): Uint8Array<ArrayBuffer> {
    const shard = this.#shards.find((shard) => shard.holds(page));
    if (shard === undefined) throw new RangeError(`Cannot read page ${page}: it does not exist`);
    return shard.page(page);
  }

  /** Cut a page table into runs that belong to one shard and lie in its memory. */
  *#batches(pages: PageTable): Generator<{ shard: Shard; batch: PageTable & { from: number } }> {
    const entry = (index: number) =>
      new DataView(pages.kernels.bytes.buffer, pages.table + index * PAGE_ENTRY_BYTES);
    const single = this.#shards.length === 1 ? this.#shards[0] : undefined;
    for (let from = 0; from < pages.pageCount;) {
      const first = entry(from).getUint32(0, true);
      const shard = single ?? this.#shards.find((shard) => shard.holds(first));
      if (shard === undefined) {
        throw new LocalProtocolError(`Cannot mirror page ${first}: it does not exist`);
      }
      let to = single === undefined ? from + 1 : pages.pageCount;
      while (to < pages.pageCount && shard.holds(entry(to).getUint32(0, true))) to++;
      if (shard.kernels === pages.kernels) {
        yield { shard, batch: { ...pages, from, pageCount: to } };
        from = to;
      } else {
        const batch = shard.receive(pages, from, to);
        yield { shard, batch };
        from += batch.pageCount;
      }
    }
  }
}
