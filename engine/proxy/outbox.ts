/**
 * Frames that may leave, until the chardev has taken them. Frames that lie one behind another leave as
 * one run, straight from where they were read; short runs are gathered, so that a write is worth its
 * cost.
 *
 * @module
 */

import { FRAME } from "../../wasm/mod.ts";
import type { FrameStore } from "./frame_store.ts";

/** Runs shorter than this are gathered. */
const RUN_BYTES_MIN = 16 * 1024;

/** Largest piece that is gathered. */
export const GATHER_BYTES = 64 * 1024;

/** The words of a run. */
const RUN = {
  /** Address of its first record. */
  START: 0,
  /** Address of the first byte that was not written, and behind the last. */
  POSITION: 1,
  END: 2,
  /** The last of its frames, and how many they are. */
  FRAME: 3,
  FRAMES: 4,
} as const;

const RUN_WORDS = 8;

/** A queue of bytes to write. */
export class Outbox {
  /** Bytes that wait. */
  bytes = 0;
  readonly #store: FrameStore;
  readonly #gathered: number;
  /** Ring of runs. */
  #runs = new Int32Array(256 * RUN_WORDS);
  #first = 0;
  #count = 0;

  readonly #prefixBytes: number;

  /**
   * @param store Of whose scratch memory {@linkcode GATHER_BYTES} are taken
   * @param prefixBytes Of a record, before what its length counts: 8 with a vnet header, or 4
   */
  constructor(store: FrameStore, prefixBytes: number) {
    this.#store = store;
    this.#prefixBytes = prefixBytes;
    this.#gathered = store.scratch(GATHER_BYTES);
  }

  /** A frame may leave. It stays in use until it has. */
  push(frame: number): void {
    const { entries } = this.#store;
    const address = entries[frame + FRAME.START]!;
    const size = entries[frame + FRAME.SIZE]!;
    this.bytes += size;
    if (this.#count > 0) {
      const runs = this.#runs;
      const last = this.#runAt(this.#count - 1);
      // Of different segments, a segment's end and the next one's start may be neighbors as well.
      if (runs[last + RUN.END] === address && runs[last + RUN.FRAME]! >>> 16 === frame >>> 16) {
        runs[last + RUN.END] = address + size;
        runs[last + RUN.FRAME] = frame;
        runs[last + RUN.FRAMES] = runs[last + RUN.FRAMES]! + 1;
        return;
      }
    }
    if ((this.#count + 1) * RUN_WORDS > this.#runs.length) this.#grow();
    const run = this.#runAt(this.#count++);
    this.#runs[run + RUN.START] = address;
    this.#runs[run + RUN.POSITION] = address;
    this.#runs[run + RUN.END] = address + size;
    this.#runs[run + RUN.FRAME] = frame;
    this.#runs[run + RUN.FRAMES] = 1;
  }

  /**
   * Bytes to write next, valid until {@linkcode sent}. They end anywhere in a record.
   *
   * @returns Empty when nothing waits
   */
  peek(): Uint8Array {
    if (this.#count === 0) return new Uint8Array();
    const run = this.#runAt(0);
    const [position, end] = [this.#runs[run + RUN.POSITION]!, this.#runs[run + RUN.END]!];
    if (this.#count > 1 && end - position < RUN_BYTES_MIN) return this.#gather();
    return this.#store.kernels.bytes.subarray(position, end);
  }

  #gather(): Uint8Array {
    const { kernels } = this.#store;
    let length = 0;
    for (let index = 0; index < this.#count && length < GATHER_BYTES; index++) {
      const run = this.#runAt(index);
      const position = this.#runs[run + RUN.POSITION]!;
      const size = Math.min(this.#runs[run + RUN.END]! - position, GATHER_BYTES - length);
      kernels.copy(this.#gathered + length, position, size);
      length += size;
    }
    return kernels.bytes.subarray(this.#gathered, this.#gathered + length);
  }

  /** The first `count` bytes of what waits have been written. */
  sent(count: number): void {
    if (!(count >= 0 && count <= this.bytes)) {
      throw new RangeError(`Cannot have sent ${count} bytes: ${this.bytes} wait`);
    }
    this.bytes -= count;
    let left = count;
    while (left > 0) {
      const run = this.#runAt(0);
      const position = this.#runs[run + RUN.POSITION]!;
      const size = this.#runs[run + RUN.END]! - position;
      if (left < size) {
        this.#runs[run + RUN.POSITION] = position + left;
        return;
      }
      left -= size;
      this.#store.dropAll(this.#runs[run + RUN.FRAME]!, this.#runs[run + RUN.FRAMES]!);
      this.#first = (this.#first + RUN_WORDS) % this.#runs.length;
      this.#count--;
    }
  }

  /** A new connection: the record of which a part was written is written anew, from its start. */
  restart(): void {
    if (this.#count === 0) return;
    const run = this.#runAt(0);
    const position = this.#runs[run + RUN.POSITION]!;
    const { bytes } = this.#store.kernels;
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    let record = this.#runs[run + RUN.START]!;
    while (record < position) {
      const behind = record + this.#prefixBytes + view.getUint32(record);
      if (behind > position) break;
      record = behind;
    }
    this.#runs[run + RUN.POSITION] = record;
    this.bytes += position - record;
  }

  #runAt(index: number): number {
    return (this.#first + index * RUN_WORDS) % this.#runs.length;
  }

  #grow(): void {
    const runs = new Int32Array(2 * this.#runs.length);
    for (let index = 0; index < this.#count; index++) {
      const run = this.#runAt(index);
      runs.set(this.#runs.subarray(run, run + RUN_WORDS), index * RUN_WORDS);
    }
    this.#runs = runs;
    this.#first = 0;
  }
}
