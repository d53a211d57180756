/**
 * Makes chunks of QEMU's RAM records out of pages. Several encoders may work on one mirror at the same
 * time, each in a thread of its own: each has its own buffers, and no page is given to two of them.
 *
 * Every chunk starts with a record that names its block, so it can be written into any `ram` section.
 *
 * @module
 */

import { ENCODE, ENCODE_COUNTER, type KernelSet, PAGE_ENTRY_BYTES } from "../../wasm/mod.ts";
import { LocalProtocolError } from "../errors.ts";
import { BLOCK_NAME_BYTES_MAX, PAGE_BYTES } from "../limits.ts";

/** How pages were sent. */
export interface PageCounts {
  /** Written by the guest with what they held already: not sent. */
  readonly unchanged: number;
  readonly zero: number;
  /** Sent as the change within the page. */
  readonly xbzrle: number;
  readonly whole: number;
}

/** The part of a RAM block that a shard holds. Addresses are in the shard's memory. */
export interface Piece {
  /** Page number of the block's first page, which may lie before the shard. */
  readonly blockFirstPage: number;
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

/** Where one encoder works within a shard's memory. */
export interface EncoderBuffers {
  readonly chunk: number;
  readonly table: number;
  readonly counters: number;
  readonly out: number;
  /** For contents that lie in another memory; 0 where they never do. */
  readonly inbox: number;
}

/** What an encoder needs to know of one shard. Plain data: it can be sent to another thread. */
export interface EncoderShard {
  readonly pieces: readonly Piece[];
  readonly buffers: EncoderBuffers;
}

/** Pages to encode, at most {@linkcode JOB_PAGES}, all of one shard. Plain data. */
export interface EncodeJob {
  /** One of `ENCODE`. */
  readonly mode: number;
  /** Index of the shard. */
  readonly shard: number;
  /** Page number and address of the content (0: zeros), page after page. */
  readonly entries: Uint32Array;
  /** The contents lie in the first shard's memory, though the pages belong to another shard. */
  readonly foreign: boolean;
}

/** Pages of one job: up to 8 MiB, so that encoding one takes milliseconds and the rest can be shared out. */
export const JOB_PAGES = 2048;

/** A chunk is about this large: big enough to compress well, small enough to travel soon. */
export const CHUNK_BYTES = 256 * 1024;

/** The longest record: header, block name, a whole page. */
const RECORD_BYTES_MAX = 8 + 1 + BLOCK_NAME_BYTES_MAX + PAGE_BYTES;

const COUNTER_BYTES = 4 * Object.keys(ENCODE_COUNTER).length;

/** Reserve the buffers of one encoder; `foreign` where contents may lie in another memory. */
export function allocateBuffers(kernels: KernelSet, foreign: boolean): EncoderBuffers {
  return {
    chunk: kernels.alloc(CHUNK_BYTES),
    table: kernels.alloc(JOB_PAGES * PAGE_ENTRY_BYTES),
    counters: kernels.alloc(COUNTER_BYTES),
    out: kernels.alloc(8),
    inbox: foreign ? kernels.alloc(JOB_PAGES * PAGE_BYTES) : 0,
  };
}

/** Encodes pages of one mirror. */
export class PageEncoder {
  readonly #kernels: readonly KernelSet[];
  readonly #shards: readonly EncoderShard[];

  /**
   * @param kernels Over the memory of each shard
   * @param shards The shards, in the same order
   */
  constructor(kernels: readonly KernelSet[], shards: readonly EncoderShard[]) {
    this.#kernels = kernels;
    this.#shards = shards;
  }

  /** Encode a job as chunks; each is valid until the next is asked for. */
  *encode(job: EncodeJob): Generator<Uint8Array, void> {
    const [kernels, shard] = [this.#kernels[job.shard], this.#shards[job.shard]];
    if (kernels === undefined || shard === undefined) {
      throw new LocalProtocolError(`Cannot encode: there is no shard ${job.shard}`);
    }
    const { chunk, counters } = shard.buffers;
    kernels.bytes.fill(0, counters, counters + COUNTER_BYTES);
    this.#fillTable(kernels, shard.buffers, job);
    const count = job.entries.length / 2;
    for (let from = 0; from < count;) {
      const { next, bytes } = encodeChunk(kernels, shard, job.mode, from, count);
      from = next;
      if (bytes > 0) yield kernels.bytes.subarray(chunk, chunk + bytes);
    }
  }

  /** How the pages of the last job went that was encoded to its end. */
  counts({ shard }: EncodeJob): PageCounts {
    const { counters } = this.#shards[shard]!.buffers;
    const count = (counter: number) => u32(this.#kernels[shard]!, counters + counter * 4);
    return {
      unchanged: count(ENCODE_COUNTER.UNCHANGED),
      zero: count(ENCODE_COUNTER.ZERO),
      xbzrle: count(ENCODE_COUNTER.XBZRLE),
      whole: count(ENCODE_COUNTER.WHOLE),
    };
  }

  #fillTable(kernels: KernelSet, buffers: EncoderBuffers, { entries, foreign }: EncodeJob): void {
    const { bytes } = kernels;
    const table = new DataView(bytes.buffer, buffers.table, JOB_PAGES * PAGE_ENTRY_BYTES);
    const there = this.#kernels[0]!.bytes;
    for (let at = 0; at < entries.length; at += 2) {
      let content = entries[at + 1]!;
      if (foreign && content !== 0) {
        const copy = buffers.inbox + (at / 2) * PAGE_BYTES;
        bytes.set(there.subarray(content, content + PAGE_BYTES), copy);
        content = copy;
      }
      table.setUint32(at * 4, entries[at]!, true);
      table.setUint32(at * 4 + 4, content, true);
    }
  }
}

/** Encode entries `from .. count` of the shard's table, until they end or the chunk is full. */
function encodeChunk(
  kernels: KernelSet,
  { pieces, buffers }: EncoderShard,
  mode: number,
  from: number,
  count: number,
): { readonly next: number; readonly bytes: number } {
  let next = from;
  let bytes = 0;
  let piece: Piece | undefined;
  while (next < count && CHUNK_BYTES - bytes >= RECORD_BYTES_MAX) {
    const page = u32(kernels, buffers.table + next * PAGE_ENTRY_BYTES);
    const here = pieceOf(pieces, page);
    const named = here !== piece;
    const before = next;
    piece = here;
    const written = kernels.encodePages(
      mode === ENCODE.SEED && !piece.isMain ? ENCODE.WHOLE : mode,
      buffers.table,
      next,
      count,
      piece.blockFirstPage,
      piece.firstPage,
      piece.pages,
      piece.mirror,
      piece.name,
      named ? piece.nameLength : 0,
      buffers.chunk + bytes,
      CHUNK_BYTES - bytes,
      buffers.counters,
      buffers.out,
    );
    next = u32(kernels, buffers.out);
    bytes += written;
    if (next === before) {
      throw new LocalProtocolError(`Cannot encode page ${page}: its content is not in memory`);
    }
    // Nothing was written: the block is yet to be named.
    if (written === 0) piece = undefined;
  }
  return { next, bytes };
}

function pieceOf(pieces: readonly Piece[], page: number): Piece {
  for (const piece of pieces) {
    if (page >= piece.firstPage && page < piece.firstPage + piece.pages) return piece;
  }
  throw new LocalProtocolError(`Cannot encode page ${page}: it is not in this shard`);
}

function u32(kernels: KernelSet, address: number): number {
  return new DataView(kernels.bytes.buffer, address, 4).getUint32(0, true);
}

/** The sum of two. */
export function addCounts(a: PageCounts, b: PageCounts): PageCounts {
  return {
    unchanged: a.unchanged + b.unchanged,
    zero: a.zero + b.zero,
    xbzrle: a.xbzrle + b.xbzrle,
    whole: a.whole + b.whole,
  };
}

/** No pages at all. */
export const NO_PAGES: PageCounts = { unchanged: 0, zero: 0, xbzrle: 0, whole: 0 };
