/**
 * Sends what a secondary needs over the bulk connection: the mirror once, then a delta a checkpoint.
 *
 * @module
 */

import type { Capture } from "../checkpoint/capture.ts";
import { exclusiveOr } from "../checkpoint/device_state_delta.ts";
import type { PageCounts } from "../checkpoint/mirror.ts";
import { LinkError } from "../errors.ts";
import { FRAME_PAYLOAD_BYTES_MAX } from "../limits.ts";
import type { LinkConnection } from "../link/mod.ts";

/** Section id of `ram` in the stream that the secondary QEMU reads: ours to choose. */
const RAM_SECTION_ID = 2;

/** How long the mirror is walked before other work gets its turn. */
const SLICE_MS = 4;

/** What is needed of the bulk connection. */
export type BulkSender = Pick<LinkConnection, "send" | "bytesSent">;

/** Sends one guest to one secondary. */
export class ReplicaSender {
  #pagesFrames = 0;
  #pageBytes = 0;
  #sentDeviceState: Uint8Array | undefined;
  #cancelled = false;

  constructor(readonly capture: Capture, readonly bulk: BulkSender) {}

  /**
   * Send the mirror, while checkpoints go on and make pages missing again, until nothing is missing.
   * Follow it with {@linkcode commit}, before anything else happens.
   *
   * @param onPass Called each time the mirror has been gone round, with the pages written meanwhile
   * @throws {LinkError} when the link breaks, or it is {@linkcode cancel}led
   */
  async seed(onPass: (missingPages: number) => void): Promise<void> {
    const { capture, bulk } = this;
    const { mirror } = capture;
    await bulk.send({
      type: "seedBegin",
      epoch: capture.epoch,
      machine: capture.machine,
      blocks: capture.blocks.map(({ name, sizeBytes }) => ({ name, sizeBytes })),
      ramSectionId: RAM_SECTION_ID,
    });
    mirror.markAllMissing();
    let passPages = mirror.missingPages;
    // What was sent is not zero any more: from the second pass on, pages of zeros must be sent as well.
    let fresh = true;
    let sliceEnd = performance.now() + SLICE_MS;
    while (true) {
      const before = mirror.missingPages;
      const chunk = mirror.takeMissing(fresh);
      passPages -= before - mirror.missingPages;
      if (chunk !== undefined && chunk.length > 0) await this.#sendPages(capture.epoch, chunk);
      if (chunk === undefined && capture.consistent) return;
      if (passPages <= 0) {
        fresh = false;
        passPages = mirror.missingPages;
        onPass(passPages);
      }
      if (chunk === undefined || performance.now() > sliceEnd) {
        await new Promise((resolve) => setTimeout(resolve, 0));
        sliceEnd = performance.now() + SLICE_MS;
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
   * @returns How its pages were sent
   * @throws {LinkError} when the link breaks
   */
  async delta(epoch: number): Promise<PageCounts> {
    this.capture.mirror.resetCounts();
    try {
      for (const chunk of this.capture.encodeDelta()) await this.#sendPages(epoch, chunk);
    } catch (error) {
      this.capture.absorb();
      throw error;
    }
    await this.commit(epoch);
    return this.capture.mirror.counts;
  }

  /** Send the device state and close checkpoint `epoch`. */
  async commit(epoch: number): Promise<void> {
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
    });
    this.#pagesFrames = 0;
    this.#pageBytes = 0;
  }

  async #sendPages(epoch: number, chunk: Uint8Array): Promise<void> {
    this.#pagesFrames++;
    this.#pageBytes += chunk.length;
    await this.bulk.send({ type: "pages", epoch, records: chunk });
  }
}
