/**
 * Makes QEMU's RAM records of pages, in chunks that each begin by naming their block.
 *
 * @module
 */

import { ENCODE, type KernelSet } from "../../wasm/mod.ts";
import { allocateBuffers, JOB_PAGES, PageEncoder } from "../checkpoint/page_encoder.ts";
import { PAGE_BYTES } from "../limits.ts";
import type { PlacedBlock } from "../stream/format.ts";

/** Pages whose contents are gathered at a time. */
export const BATCH_PAGES = 256;

/** Encodes pages whose contents lie in a memory of its own. */
export class RecordEncoder {
  readonly #encoder: PageEncoder;
  readonly #contents: number;
  readonly #kernels: KernelSet;
  readonly #entries = new Uint32Array(2 * Math.min(BATCH_PAGES, JOB_PAGES));
  #count = 0;

  constructor(kernels: KernelSet, blocks: readonly PlacedBlock[]) {
    this.#kernels = kernels;
    this.#contents = kernels.alloc(BATCH_PAGES * PAGE_BYTES);
    const pieces = blocks.map(({ name, firstPage, pages }) => {
      const bytes = new TextEncoder().encode(name);
      const address = kernels.alloc(bytes.length);
      kernels.bytes.set(bytes, address);
      return {
        blockFirstPage: firstPage,
        firstPage,
        pages,
        isMain: false,
        // Pages are sent as they are, so there is nothing to compare with.
        mirror: 0,
        name: address,
        nameLength: bytes.length,
      };
    });
    this.#encoder = new PageEncoder([kernels], [{
      pieces,
      buffers: allocateBuffers(kernels, false),
    }]);
  }

  /** Whether no more can be added before {@linkcode encode}. */
  get full(): boolean {
    return this.#count === BATCH_PAGES;
  }

  /** Where the next page's content may be put, for {@linkcode add} without a copy. */
  get space(): number {
    return this.#contents + this.#count * PAGE_BYTES;
  }

  /**
   * Add a page.
   *
   * @param address Where its content lies until {@linkcode encode}
   */
  addAt(page: number, address: number): void {
    this.#entries[2 * this.#count] = page;
    this.#entries[2 * this.#count + 1] = address;
    this.#count++;
  }

  /**
   * Add a page.
   *
   * @param content Its bytes, which are copied; nothing stands for zeros
   */
  add(page: number, content: Uint8Array | undefined): void {
    const address = this.space;
    if (content !== undefined) this.#kernels.bytes.set(content, address);
    this.addAt(page, content === undefined ? 0 : address);
  }

  /** The records of all pages added; each chunk is valid until the next is asked for. */
  *encode(): Generator<Uint8Array, void> {
    if (this.#count === 0) return;
    const entries = this.#entries.slice(0, 2 * this.#count);
    this.#count = 0;
    yield* this.#encoder.encode({ mode: ENCODE.WHOLE, shard: 0, entries, foreign: false });
  }
}
