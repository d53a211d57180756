/**
 * Assembles a checkpoint from what comes over the link, and says when it is whole. Nothing of it is
 * used before that; a checkpoint that never becomes whole is dropped.
 *
 * @module
 */

import { WireError } from "../errors.ts";
import { BLOCK_NAME_BYTES_MAX, DEVICE_STATE_BYTES_MAX, PAGE_BYTES } from "../limits.ts";
import type { RamBlock } from "../stream/format.ts";
import { RamRecords } from "../stream/ram_section.ts";
import { exclusiveOr } from "./device_state_delta.ts";
import type { WholeCheckpoint } from "./replica.ts";

/** What a commit says about the checkpoint that it ends. */
export interface CommitTotals {
  readonly epoch: number;
  readonly pagesFrames: number;
  readonly pageBytes: number;
  readonly deviceStateBytes: number;
}

/** Length of the longest record: header, block name, a whole page. */
const RECORD_BYTES_MAX = 8 + 1 + BLOCK_NAME_BYTES_MAX + PAGE_BYTES;

/** The checkpoint that is arriving. */
export class IncomingCheckpoint {
  readonly #records: RamRecords;
  /** Every page twice: once as it was already missing, once as the guest has written it since. */
  readonly #heldPageBytesMax: number;
  #chunks: Uint8Array[] = [];
  #pagesFrames = 0;
  #pageBytes = 0;
  #deviceState: Uint8Array[] = [];
  #deviceStateBytes = 0;
  #deviceStateIsDelta = false;
  #lastDeviceState = new Uint8Array(0);

  /** @param blocks The RAM blocks of the guest: pages outside them are refused */
  constructor(blocks: readonly RamBlock[]) {
    let firstPage = 0;
    this.#records = new RamRecords(blocks.map(({ name, sizeBytes }) => {
      const pages = sizeBytes / PAGE_BYTES;
      const placed = { name, sizeBytes, firstPage, pages };
      firstPage += pages;
      return placed;
    }));
    this.#heldPageBytesMax = 2 * firstPage * RECORD_BYTES_MAX;
  }

  /** Bytes held. */
  get heldBytes(): number {
    return this.#pageBytes + this.#deviceStateBytes;
  }

  /**
   * @param keep False when the chunk goes elsewhere at once, as it does while seeding
   * @throws {WireError} when it is not made of RAM records of this guest, or there is no end of them
   */
  pages(chunk: Uint8Array, keep = true): void {
    checkRecords(chunk, this.#records);
    this.#pagesFrames++;
    this.#pageBytes += chunk.length;
    if (!keep || chunk.length === 0) return;
    if (this.#pageBytes > this.#heldPageBytesMax) {
      throw new WireError(
        `Cannot take pages: ${this.#pageBytes} bytes are more than the guest's memory can need`,
        0,
      );
    }
    this.#chunks.push(chunk);
  }

  /**
   * @param delta Whether it is the exclusive or with the device state of the last checkpoint
   * @throws {WireError} when the device state exceeds its limit
   */
  deviceState(piece: Uint8Array, delta = false): void {
    if (this.#deviceStateBytes > 0 && delta !== this.#deviceStateIsDelta) {
      throw new WireError("Cannot take device state: whole and difference in one checkpoint", 0);
    }
    this.#deviceStateIsDelta = delta;
    this.#deviceStateBytes += piece.length;
    if (this.#deviceStateBytes > DEVICE_STATE_BYTES_MAX) {
      throw new WireError(`Cannot take device state: more than ${DEVICE_STATE_BYTES_MAX} bytes`, 0);
    }
    if (piece.length > 0) this.#deviceState.push(piece);
  }

  /**
   * The checkpoint is whole; what comes next belongs to another.
   *
   * @throws {WireError} when it is not what the commit says
   */
  commit(totals: CommitTotals): WholeCheckpoint {
    if (
      totals.pagesFrames !== this.#pagesFrames || totals.pageBytes !== this.#pageBytes ||
      totals.deviceStateBytes !== this.#deviceStateBytes || this.#deviceStateBytes === 0
    ) {
      throw new WireError(
        `Cannot commit checkpoint ${totals.epoch}: ${this.#pagesFrames} frames, ` +
          `${this.#pageBytes} + ${this.#deviceStateBytes} bytes arrived of ${totals.pagesFrames} ` +
          `frames, ${totals.pageBytes} + ${totals.deviceStateBytes} bytes`,
        0,
      );
    }
    const deviceState = new Uint8Array(this.#deviceStateBytes);
    let at = 0;
    for (const piece of this.#deviceState) {
      deviceState.set(piece, at);
      at += piece.length;
    }
    const whole = {
      epoch: totals.epoch,
      chunks: this.#chunks,
      deviceState: this.#undelta(deviceState),
    };
    this.#lastDeviceState = whole.deviceState;
    this.drop();
    return whole;
  }

  #undelta(deviceState: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
    if (!this.#deviceStateIsDelta) return deviceState;
    if (deviceState.length !== this.#lastDeviceState.length) {
      throw new WireError("Cannot take device state: it is the difference from another", 0);
    }
    return exclusiveOr(this.#lastDeviceState, deviceState);
  }

  /** Forget what has arrived. */
  drop(): void {
    this.#chunks = [];
    this.#pagesFrames = 0;
    this.#pageBytes = 0;
    this.#deviceState = [];
    this.#deviceStateBytes = 0;
  }
}

/** A chunk must be whole RAM records that name their block, or QEMU would be led astray by a peer. */
function checkRecords(chunk: Uint8Array, records: RamRecords): void {
  const buffer = chunk.buffer;
  if (!(buffer instanceof ArrayBuffer)) {
    throw new WireError("Cannot take pages: the chunk is in shared memory", 0);
  }
  let at = 0;
  records.forget();
  while (at < chunk.length) {
    const rest = new DataView(buffer, chunk.byteOffset + at, chunk.length - at);
    const record = records.read(rest);
    if (record?.type === "page" || record?.type === "xbzrle") {
      at += record.recordBytes;
      continue;
    }
    const detail = record?.type === "malformed" ? record.detail : "a record is not complete";
    throw new WireError(`Cannot take pages: ${detail}`, at);
  }
}
