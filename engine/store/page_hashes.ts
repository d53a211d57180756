/**
 * What a guest's RAM holds, as one XXH64 a page: 2 MiB for each GiB of it. Compared with these a save
 * finds what has changed since the last one, whatever has happened meanwhile, and a chain of
 * checkpoints proves that it adds up to what was saved.
 *
 * A change that keeps the XXH64 of a page would go unnoticed. By chance that takes 2^64 changes; a guest
 * that builds one on purpose spoils nothing but its own checkpoint.
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { StoreError } from "../errors.ts";
import { PAGE_BYTES } from "../limits.ts";
import type { PlacedBlock } from "../stream/format.ts";
import { countPages, mainBlock } from "./metadata.ts";
import type { Checksum } from "./sealed_file.ts";

const HASH_BYTES = 8;

/** Stands for a page that nothing is known of: all bits set. */
const UNKNOWN = 0xffff_ffff;

/** The XXH64 of every page of a guest, in kernel memory. */
export class PageHashes {
  readonly pages: number;
  readonly #kernels: KernelSet;
  readonly #table: number;
  readonly #out: number;
  #words: Uint32Array;
  #found: Uint32Array;

  /**
   * Those of a fresh VM: its main memory is zero, of other blocks (a ROM, a video memory) nothing is
   * known.
   */
  constructor(kernels: KernelSet, blocks: readonly PlacedBlock[]) {
    this.pages = countPages(blocks);
    this.#kernels = kernels;
    const zeros = kernels.alloc(PAGE_BYTES);
    this.#out = kernels.alloc(HASH_BYTES);
    this.#table = kernels.alloc((this.pages + 1) * HASH_BYTES);
    this.#words = this.#found = new Uint32Array(0);
    this.#view();
    this.#words.fill(UNKNOWN);
    kernels.xxh64(zeros, PAGE_BYTES, this.#out);
    const main = mainBlock(blocks);
    for (let page = main.firstPage; page < main.firstPage + main.pages; page++) {
      this.#words[2 * page] = this.#found[0]!;
      this.#words[2 * page + 1] = this.#found[1]!;
    }
  }

  /**
   * Compare pages with what is known of them, and know them from here on.
   *
   * @param address Where their contents lie in the kernels' memory, one after another
   * @param changed Called with the number of each page that differs, and its address
   */
  update(
    firstPage: number,
    count: number,
    address: number,
    changed: (page: number, address: number) => void,
  ): void {
    this.#view();
    const [kernels, words, found, out] = [this.#kernels, this.#words, this.#found, this.#out];
    for (let index = 0; index < count; index++) {
      const at = address + index * PAGE_BYTES;
      kernels.xxh64(at, PAGE_BYTES, out);
      const word = 2 * (firstPage + index);
      if (words[word] === found[0] && words[word + 1] === found[1]) continue;
      words[word] = found[0]!;
      words[word + 1] = found[1]!;
      changed(firstPage + index, at);
    }
  }

  /** Whether a page at an address is the one that is known. */
  matches(page: number, address: number): boolean {
    this.#view();
    this.#kernels.xxh64(address, PAGE_BYTES, this.#out);
    return this.#words[2 * page] === this.#found[0] && this.#words[2 * page + 1] === this.#found[1];
  }

  /** The hash of a page as two words, the lower one first. */
  get(page: number): readonly [number, number] {
    this.#view();
    return [this.#words[2 * page]!, this.#words[2 * page + 1]!];
  }

  set(page: number, low: number, high: number): void {
    if (page >= this.pages) {
      throw new StoreError(`Cannot read the checkpoint: it has no page ${page}`);
    }
    this.#view();
    this.#words[2 * page] = low;
    this.#words[2 * page + 1] = high;
  }

  /** One checksum of all the guest's state, as 16 hexadecimal digits. */
  digest(deviceState: Uint8Array, checksum: Checksum): string {
    const end = this.#table + this.pages * HASH_BYTES;
    this.#kernels.bytes.set(checksum.of(deviceState), end);
    this.#kernels.xxh64(this.#table, (this.pages + 1) * HASH_BYTES, this.#out);
    this.#view();
    return [this.#found[1]!, this.#found[0]!]
      .map((word) => word.toString(16).padStart(8, "0")).join("");
  }

  /** A copy, in the memory of other kernels too. */
  copyTo(other: PageHashes): void {
    this.#view();
    other.#view();
    other.#words.set(this.#words);
  }

  /** The memory may have been replaced by a larger one. */
  #view(): void {
    const { buffer } = this.#kernels.bytes;
    if (this.#words.buffer === buffer) return;
    this.#words = new Uint32Array(buffer, this.#table, 2 * this.pages);
    this.#found = new Uint32Array(buffer, this.#out, 2);
  }
}
