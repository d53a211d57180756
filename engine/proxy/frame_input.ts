/**
 * One packet chardev's bytes, read straight into the {@linkcode FrameStore} and cut into frames where
 * they lie. Any chunking of the same bytes gives the same frames.
 *
 * A QEMU whose chardev nobody reads stands still altogether, its monitor with it. So there is always
 * room: when all segments are in use, what comes is read to a spare one, and is lost.
 *
 * @module
 */

import { FRAME_BYTES_MAX, FRAME_SCAN } from "../../wasm/mod.ts";
import { PacketError } from "../errors.ts";
import { PACKET_SEGMENT_BYTES, PACKET_SEGMENT_FRAMES } from "../limits.ts";
import { type FrameStore, NONE, type SegmentPool } from "./frame_store.ts";

/** Room that a segment must have left to be read into. */
const READ_BYTES_MIN = 32 * 1024;

/** Scratch memory that an input needs: what the kernel says of a scan. */
export const FRAME_INPUT_BYTES = 16;

/** What a {@linkcode FrameInput} must know. */
export interface FrameInputOptions {
  /** For messages: which chardev it is. */
  readonly name: string;
  /** Whether records carry a vnet header (`vnet_hdr_support=true`). */
  readonly vnetHeader: boolean;
  /** Seed of the flow hash: 32 random bits. */
  readonly seed: number;
}

/** Reads one chardev. */
export class FrameInput {
  /** The frames that {@linkcode next} found: `count` of them from `first` on. */
  first = 0;
  count = 0;
  readonly #store: FrameStore;
  readonly #pool: SegmentPool;
  readonly #options: FrameInputOptions;
  readonly #scan: number;
  #segment: number;
  /** Entries of the segment's table that are in use. */
  #entries = 0;
  /** Address of the first byte that belongs to no frame yet, and behind the last one that came. */
  #position: number;
  #end: number;
  /** Offset of the position in this connection. */
  #offset = 0;
  #error: PacketError | undefined;

  constructor(store: FrameStore, pool: SegmentPool, options: FrameInputOptions) {
    this.#store = store;
    this.#pool = pool;
    this.#options = options;
    this.#scan = store.scratch(FRAME_INPUT_BYTES);
    store.renew(pool.spare);
    this.#segment = pool.take();
    this.#position = this.#end = store.addressOf(this.#segment);
  }

  /** Bytes of a record that has not arrived as a whole. */
  get partialBytes(): number {
    return this.#end - this.#position;
  }

  /** True when there was no room for the frames that came last: they are to be dropped. */
  get isOverflowing(): boolean {
    return this.#segment === this.#pool.spare;
  }

  /** All of its frames are out of use. */
  dropFrames(): void {
    this.#store.dropPool(this.#pool, this.#segment);
  }

  /** The place for the next bytes; tell how many came with {@linkcode filled}. Never empty. */
  space(): Uint8Array {
    this.#makeRoom();
    return this.#store.kernels.bytes.subarray(this.#end, this.#segmentEnd);
  }

  /** `count` bytes have been written to the start of what {@linkcode space} gave. */
  filled(count: number): void {
    if (!(count >= 0 && this.#end + count <= this.#segmentEnd)) {
      throw new RangeError(`Cannot take ${count} bytes: they are outside the space`);
    }
    this.#end += count;
  }

  /**
   * Look for more frames in what has come.
   *
   * @returns Whether there are: see {@linkcode first}
   * @throws {PacketError} when what comes next is no record; so does every call until {@linkcode reset}
   */
  next(): boolean {
    if (this.#error !== undefined) throw this.#error;
    const { kernels } = this.#store;
    while (true) {
      this.first = this.#store.frameAt(this.#segment, this.#entries);
      const result = kernels.scanFrames(
        this.#position,
        this.#end,
        Number(this.#options.vnetHeader),
        this.#options.seed,
        this.#store.entryAddress(this.first),
        PACKET_SEGMENT_FRAMES - this.#entries,
        this.#scan,
      );
      const out = new Uint32Array(kernels.bytes.buffer, this.#scan, 2);
      this.#offset += out[0]! - this.#position;
      this.#position = out[0]!;
      this.count = out[1]!;
      this.#entries += this.count;
      if (result < 0) this.#error = this.#errorOf(result);
      if (this.count > 0) {
        this.#store.use(this.#segment, this.count);
        return true;
      }
      if (this.#error !== undefined) throw this.#error;
      if (result !== FRAME_SCAN.FULL) return false;
      this.#moveOn();
    }
  }

  /** A new connection: what was left of a record is forgotten. Frames that were found stay. */
  reset(): void {
    this.#position = this.#end;
    this.#offset = 0;
    this.#error = undefined;
  }

  #errorOf(result: number): PacketError {
    const what = result === FRAME_SCAN.BAD_LENGTH
      ? `a length must be 1 to ${FRAME_BYTES_MAX} bytes`
      : "a vnet header must not be longer than its frame";
    return new PacketError(
      `Cannot read frames from ${this.#options.name}: ${what}; connect anew`,
      this.#offset,
    );
  }

  get #segmentEnd(): number {
    return this.#store.addressOf(this.#segment) + PACKET_SEGMENT_BYTES;
  }

  #makeRoom(): void {
    if (this.isOverflowing) return this.#moveOn();
    const isFull = this.#segmentEnd - this.#end < READ_BYTES_MIN ||
      this.#entries === PACKET_SEGMENT_FRAMES;
    if (!isFull) return;
    const isFree = this.#pool.keep === 0 && this.#store.isUnused(this.#segment);
    if (isFree) this.#beginAt(this.#segment);
    else this.#moveOn();
  }

  #moveOn(): void {
    const taken = this.#pool.take();
    const segment = taken === NONE ? this.#pool.spare : taken;
    const left = this.#segment;
    this.#beginAt(segment);
    if (left !== this.#pool.spare) this.#store.leave(left);
  }

  /** Go on at the start of a segment, with the bytes that belong to no frame yet. */
  #beginAt(segment: number): void {
    const unread = this.partialBytes;
    const start = this.#store.addressOf(segment);
    this.#store.kernels.copy(start, this.#position, unread);
    if (segment === this.#segment || segment === this.#pool.spare) this.#store.renew(segment);
    this.#segment = segment;
    this.#entries = 0;
    this.#position = start;
    this.#end = start + unread;
  }
}
