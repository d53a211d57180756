/**
 * Pairs of frames whose headers agree, until the kernel has compared their payloads: one call for many.
 *
 * @module
 */

import { FRAME, PAIR_ENTRY_BYTES } from "../../wasm/mod.ts";
import { type FrameStore, NONE } from "./frame_store.ts";

/** Pairs that are compared at once. */
const PAIRS_MAX = 1024;

/** Scratch memory that a batch needs. */
export const PAIR_BATCH_BYTES = PAIRS_MAX * PAIR_ENTRY_BYTES;

const PAIR_WORDS = PAIR_ENTRY_BYTES / 4;

/** A batch. */
export class PairBatch {
  count = 0;
  readonly #store: FrameStore;
  readonly #table: number;
  readonly #pairs: Int32Array;
  /** The frames of a pair. */
  readonly #frames = new Int32Array(2 * PAIRS_MAX);

  constructor(store: FrameStore) {
    this.#store = store;
    this.#table = store.scratch(PAIR_BATCH_BYTES);
    const { buffer } = store.kernels.bytes;
    this.#pairs = new Int32Array(buffer, this.#table, PAIRS_MAX * PAIR_WORDS);
  }

  get isFull(): boolean {
    return this.count === PAIRS_MAX;
  }

  /** @param secondary NONE when there is nothing to compare: an acknowledgment */
  add(primary: number, secondary: number): void {
    const { entries } = this.#store;
    const pair = this.count * PAIR_WORDS;
    const other = secondary === NONE ? primary : secondary;
    this.#pairs[pair] = entries[primary + FRAME.PAYLOAD]!;
    this.#pairs[pair + 1] = entries[other + FRAME.PAYLOAD]!;
    this.#pairs[pair + 2] = secondary === NONE ? 0 : entries[primary + FRAME.LENGTH]!;
    this.#frames[2 * this.count] = primary;
    this.#frames[2 * this.count + 1] = secondary;
    this.count++;
  }

  /** Compare. @returns How many pairs are not equal */
  compare(): number {
    return this.#store.kernels.comparePairs(this.#table, this.count);
  }

  /** The primary's frame of a pair. */
  primaryOf(index: number): number {
    return this.#frames[2 * index]!;
  }

  /** The secondary's frame of a pair, or NONE. */
  secondaryOf(index: number): number {
    return this.#frames[2 * index + 1]!;
  }

  /** Whether {@linkcode compare} found a pair equal. */
  isEqual(index: number): boolean {
    return this.#pairs[index * PAIR_WORDS + 3] === 1;
  }
}
