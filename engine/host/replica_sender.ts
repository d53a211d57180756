/**
 * Sends what a secondary needs over the bulk connection: the mirror once, then a delta a checkpoint.
 *
 * @module
 */

import type { Capture } from "../checkpoint/capture.ts";
import { exclusiveOr } from "../checkpoint/device_state_delta.ts";
import {
  addCounts,
  type EncodeJob,
  NO_PAGES,
  type PageCounts,
} from "../checkpoint/page_encoder.ts";
import { LinkError } from "../errors.ts";
import { FRAME_PAYLOAD_BYTES_MAX } from "../limits.ts";
import type { LinkConnection } from "../link/mod.ts";
import type { Encoder } from "./encoder.ts";

/** Section id of `ram` in the stream that the secondary QEMU reads: ours to choose. */
const RAM_SECTION_ID = 2;

/** Between two looks at whether a checkpoint that was on its way has become whole. */
const CONSISTENT_POLL_MS = 1;

/** What a secondary is seeded with. */
export interface Seed {
  /** Of the capture that it is taken from. */
  readonly lineage: string;
  /** The secondary holds what the capture has been told of ({@linkcode Capture.held}), or more. */
  readonly resumes: boolean;
}

/** What is needed of the bulk connection. */
export type BulkSender = Pick<LinkConnection, "send" | "sendFrame" | "bytesQueued">;

/** Sends one guest to one secondary. */
export class ReplicaSender {
  #pagesFrames = 0;
  #pageBytes = 0;
  #sentDeviceState: Uint8Array | undefined;
  #cancelled = false;

  constructor(
    readonly capture: Capture,
    readonly bulk: BulkSender,
    readonly encoder: Encoder,
  ) {}

  /**
   * Send the mirror, or what the secondary lacks of it, while checkpoints go on and make pages missing
   * again, until nothing is missing.
   *
   * @param onPass Called each time the mirror has been gone round, with the pages written meanwhile
   * @param onSent Called with the checkpoint that the secondary lacks nothing of. It must see to it that
   * no other is begun before {@linkcode commit}
   * @throws {LinkError} when the link breaks, or it is {@linkcode cancel}led
   */
  async seed(
    { lineage, resumes }: Seed,
    onPass: (missingPages: number) => void,
    onSent: (epoch: number) => void,
  ): Promise<void> {
    const { capture, bulk } = this;
    const { mirror } = capture;
    await bulk.send({
      type: "seedBegin",
      epoch: capture.epoch,
      lineage,
      resumes,
      machine: capture.machine,
      blocks: capture.blocks.map(({ name, sizeBytes }) => ({ name, sizeBytes })),
      ramSectionId: RAM_SECTION_ID,
    });
    if (resumes) mirror.markUnheldMissing();
    else mirror.markAllMissing();
    // What was sent is not zero any more: from the second pass on, pages of zeros must be sent as well.
    for (let fresh = !resumes;; fresh = false) {
      await this.#encode(mirror.missingJobs(fresh), capture.epoch);
      if (mirror.missingPages === 0 && capture.consistent) return onSent(capture.epoch);
      onPass(mirror.missingPages);
      if (mirror.missingPages === 0) {
        await new Promise((resolve) => setTimeout(resolve, CONSISTENT_POLL_MS));
      }
      if (this.#cancelled) throw new LinkError("Cannot seed: the link to the secondary is gone");
    }
  }

  /** The link is gone: end a seed that waits, not to send, but for a checkpoint to become whole. */
  cancel(): void {
    this.#cancelled = true;
  }

  /**
   * Send the staged checkpoint as a delta. The capture takes it in, whatever becomes of the link.
   *
   * @param load Whether the secondary VM is to run from it
   * @param onTaken Called when the capture has taken it in, whatever became of the link: the next
   * checkpoint may come
   * @returns How its pages were sent
   * @throws {LinkError} when the link breaks
   */
  async delta(epoch: number, load: boolean, onTaken: () => void): Promise<PageCounts> {
    const { capture } = this;
    const { mirror } = capture;
    let counts = NO_PAGES;
    try {
      if (capture.hasEarlyPages) counts = await this.#encode(mirror.missingJobs(false), epoch);
      const { pages, ordered } = capture.beginDelta();
      counts = addCounts(counts, await this.#encode(mirror.deltaJobs(pages), epoch, ordered));
    } catch (error) {
      capture.absorb();
      onTaken();
      throw error;
    }
    capture.endDelta();
    onTaken();
    await this.commit(epoch, load);
    return counts;
  }

  /** Send the device state and close checkpoint `epoch`; `load`: the secondary VM is to run from it. */
  async commit(epoch: number, load: boolean): Promise<void> {
    const { deviceState } = this.capture;
    const last = this.#sentDeviceState;
    const comparable = last !== undefined && last.length === deviceState.length;
    const sent = comparable ? exclusiveOr(last, deviceState) : deviceState;
    const type = comparable ? "deviceStateDelta" : "deviceState";
    this.#sentDeviceState = deviceState;
    for (let at = 0; at < deviceState.length; at += FRAME_PAYLOAD_BYTES_MAX) {
      const bytes = sent.subarray(at, at + FRAME_PAYLOAD_BYTES_MAX);
      await this.bulk.send({ type, epoch, bytes });
    }
    await this.bulk.send({
      type: "commit",
      epoch,
      pagesFrames: this.#pagesFrames,
      pageBytes: this.#pageBytes,
      deviceStateBytes: deviceState.length,
      load,
    });
    this.#pagesFrames = 0;
    this.#pageBytes = 0;
  }

  #encode(jobs: Iterable<EncodeJob>, epoch: number, ordered = false): Promise<PageCounts> {
    return this.encoder.run(jobs, epoch, ordered, async ({ bytes, recordBytes }) => {
      this.#pagesFrames++;
      this.#pageBytes += recordBytes;
      await this.bulk.sendFrame(bytes);
    });
  }
}
