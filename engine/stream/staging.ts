/**
 * Where bytes from QEMU are read to, straight into kernel memory, and where the pages of a checkpoint
 * stay until it is whole. Pages are never moved: the page table keeps their addresses.
 *
 * Bytes arrive in segments. A segment that is nearly full is left behind with its pages, and the few
 * bytes that are not yet read move to the next one; releasing the pages makes all segments free again.
 * Memory is bounded: when every segment or the page table is used up, {@linkcode Staging.full} says so
 * and the owner has to take the pages away before it reads on.
 *
 * @module
 */

import { type KernelSet, PAGE_ENTRY_BYTES } from "../../wasm/mod.ts";
import { LocalProtocolError } from "../errors.ts";

/** Sizes of a {@linkcode Staging}. */
export interface StagingOptions {
  /** Size of one segment, in bytes. */
  readonly segmentBytes?: number;
  /** Segments at most. */
  readonly segmentsMax?: number;
  /** Pages held at most. */
  readonly pagesMax?: number;
}

/** Room that a segment must have left to be read into: the largest piece a socket read gives. */
const READ_BYTES_MIN = 256 * 1024;

/** Largest item that is read as a whole: a RAM record with its block name, with room to spare. */
const ITEM_BYTES_MAX = 16 * 1024;

/** Room for what is said while pages are kept: a few bytes are, of a peer in order. */
const INTERLUDE_BYTES = 2 * ITEM_BYTES_MAX;

/** Stands for the interlude among the segments. */
const INTERLUDE = -1;

/** Bytes that have arrived and pages that wait. */
export class Staging {
  /** Address of the page table. */
  readonly table: number;
  /** Entries that fit the page table. */
  readonly pagesMax: number;
  /** Entries in the page table. */
  pageCount = 0;
  /** Address of the first byte not yet read. */
  position: number;
  /** Address behind the last byte that has arrived. */
  end: number;

  readonly #segmentBytes: number;
  readonly #segmentsMax: number;
  readonly #segments: number[] = [];
  #current = 0;
  /**
   * For what is said while pages are kept. There are two of them: a read that was begun in one may bring
   * the first pages of the next checkpoint, and while these are kept it is the other one's turn.
   */
  readonly #interludes: readonly [number, number];
  #interlude: number;
  #kept = false;

  constructor(readonly kernels: KernelSet, options: StagingOptions = {}) {
    this.#segmentBytes = options.segmentBytes ?? 4 * 1024 * 1024;
    this.#segmentsMax = options.segmentsMax ?? 18;
    this.pagesMax = options.pagesMax ?? 64 * 1024;
    if (this.#segmentBytes < ITEM_BYTES_MAX + 1) {
      throw new RangeError(`Cannot stage: segments must be larger than ${ITEM_BYTES_MAX} bytes`);
    }
    this.table = kernels.alloc(this.pagesMax * PAGE_ENTRY_BYTES);
    this.#segments.push(kernels.alloc(this.#segmentBytes));
    this.#interludes = [kernels.alloc(INTERLUDE_BYTES), kernels.alloc(INTERLUDE_BYTES)];
    this.#interlude = this.#interludes[0];
    this.position = this.end = this.#segments[0]!;
  }

  /** Bytes that have arrived and are not yet read. */
  get unread(): number {
    return this.end - this.position;
  }

  /** True when the pages must be taken away before more can be read. */
  get full(): boolean {
    if (this.#kept) return false;
    return this.pageCount >= this.pagesMax ||
      (this.#roomBytes < this.#readBytesMin && this.#current + 1 >= this.#segmentsMax &&
        this.pageCount > 0);
  }

  /**
   * The place for the next bytes; tell how many came with {@linkcode filled}.
   *
   * @throws {LocalProtocolError} when {@linkcode full}: nothing was changed
   */
  space(): Uint8Array {
    if (this.full) throw new LocalProtocolError("Cannot read on: the staging area is full");
    if (this.#kept) this.#moveUnread(INTERLUDE);
    else if (this.pageCount === 0) this.#restart();
    else if (this.#roomBytes < this.#readBytesMin) this.#nextSegment();
    return this.kernels.bytes.subarray(this.end, this.#segmentEnd);
  }

  /** `count` bytes have been written to the start of what {@linkcode space} gave. */
  filled(count: number): void {
    if (count < 0 || this.end + count > this.#segmentEnd) {
      throw new LocalProtocolError(`Cannot take ${count} bytes: they are outside the segment`);
    }
    this.end += count;
  }

  /** Put one page into the table; the caller has checked that there is room. */
  addPage(page: number, address: number): void {
    const entry = new DataView(
      this.kernels.bytes.buffer,
      this.table + this.pageCount * PAGE_ENTRY_BYTES,
    );
    entry.setUint32(0, page, true);
    entry.setUint32(4, address, true);
    this.pageCount++;
  }

  /** The pages are all of one checkpoint: they stay until they are released, whatever is said. */
  keepPages(): void {
    this.#kept = true;
    const [one, other] = this.#interludes;
    this.#interlude = this.#interlude === one ? other : one;
  }

  /** Forget the pages: their bytes may be overwritten from the next {@linkcode space} on. */
  releasePages(): void {
    this.pageCount = 0;
    this.#kept = false;
  }

  get #readBytesMin(): number {
    return Math.min(READ_BYTES_MIN, this.#segmentBytes >>> 2);
  }

  get #segmentEnd(): number {
    if (this.#current === INTERLUDE) return this.#interlude + INTERLUDE_BYTES;
    return this.#segments[this.#current]! + this.#segmentBytes;
  }

  get #roomBytes(): number {
    return this.#segmentEnd - this.end;
  }

  #restart(): void {
    if (this.#current === 0 && this.#roomBytes >= this.#readBytesMin) return;
    this.#moveUnread(0);
  }

  #nextSegment(): void {
    if (this.#current + 1 === this.#segments.length) {
      this.#segments.push(this.kernels.alloc(this.#segmentBytes));
    }
    this.#moveUnread(this.#current + 1);
  }

  #moveUnread(segment: number): void {
    const unread = this.unread;
    if (unread > ITEM_BYTES_MAX) {
      throw new LocalProtocolError(`Cannot stage: ${unread} bytes were left unread`);
    }
    const target = segment === INTERLUDE ? this.#interlude : this.#segments[segment]!;
    this.kernels.copy(target, this.position, unread);
    this.#current = segment;
    this.position = target;
    this.end = target + unread;
  }
}
