/**
 * Who encodes: pages go in as jobs, sealed frames of the link come out.
 *
 * @module
 */

import {
  addCounts,
  type EncodeJob,
  NO_PAGES,
  type PageCounts,
  PageEncoder,
} from "../checkpoint/page_encoder.ts";
import type { Mirror } from "../checkpoint/mirror.ts";
import { encodeMessage } from "../link/messages.ts";
import { FrameEncoder } from "../link/wire.ts";
import type { KernelSet } from "../../wasm/mod.ts";

/** A `pages` message, ready for the link. */
export interface PagesFrame {
  readonly bytes: Uint8Array;
  /** Length of the records in it, before compression. */
  readonly recordBytes: number;
}

/** What became of a job. */
export interface EncodedJob {
  readonly frames: readonly PagesFrame[];
  readonly counts: PageCounts;
}

/** Encodes the pages of one mirror. */
export interface Encoder {
  /**
   * Encode jobs, at the pace at which their frames are taken. When it settles no job is under way.
   *
   * @param ordered One after another; otherwise frames come in any order
   * @param take Called with each frame; the encoding stops when it rejects
   * @returns How the pages were encoded
   */
  run(
    jobs: Iterable<EncodeJob>,
    epoch: number,
    ordered: boolean,
    take: (frame: PagesFrame) => Promise<void>,
  ): Promise<PageCounts>;
}

/** Encode one job and seal its chunks as frames. */
export function encodeJob(
  encoder: PageEncoder,
  sealer: FrameEncoder,
  job: EncodeJob,
  epoch: number,
): EncodedJob {
  const frames: PagesFrame[] = [];
  for (const records of encoder.encode(job)) {
    const bytes = sealer.encode(encodeMessage({ type: "pages", epoch, records }), true);
    frames.push({ bytes, recordBytes: records.length });
  }
  return { frames, counts: encoder.counts(job) };
}

/** Encodes in this thread, between whatever else it does. */
export class InlineEncoder implements Encoder {
  readonly #encoder: PageEncoder;
  readonly #sealer: FrameEncoder;

  /** @param sealing Kernels over a memory of their own, in which frames are made */
  constructor(mirror: Mirror, sealing: KernelSet) {
    this.#encoder = new PageEncoder(mirror.kernels, mirror.addEncoder());
    this.#sealer = new FrameEncoder(sealing);
  }

  async run(
    jobs: Iterable<EncodeJob>,
    epoch: number,
    _ordered: boolean,
    take: (frame: PagesFrame) => Promise<void>,
  ): Promise<PageCounts> {
    let counts = NO_PAGES;
    for (const job of jobs) {
      const encoded = encodeJob(this.#encoder, this.#sealer, job, epoch);
      counts = addCounts(counts, encoded.counts);
      for (const frame of encoded.frames) await take(frame);
    }
    return counts;
  }
}
