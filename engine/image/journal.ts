/**
 * Where a checkpoint is written before it goes into an image, so that a crash in the middle of that can
 * be mended: what is in a whole journal can be applied again and again.
 *
 * ```text
 *  entry*   u32 kind (1: RAM records, 2: device state, 3: commit), u32 bytes of the payload,
 *           u64 sequence of the journal, checksum of the payload; payload
 *  commit:  u64 epoch, u32 entries before it
 * ```
 *
 * All numbers are little-endian. A new journal is written over the last one, whose entries have another
 * sequence, so nothing has to be removed in between.
 *
 * @module
 */

import { FRAME_PAYLOAD_BYTES_MAX, JOURNAL_KEPT_BYTES_MAX } from "../limits.ts";
import type { ImageFile } from "./files.ts";
import { CHECKSUM_BYTES, type Scratch } from "./scratch.ts";

const KIND = { PAGES: 1, DEVICE_STATE: 2, COMMIT: 3 } as const;

const CHECKSUM_AT = 16;
const ENTRY_HEADER_BYTES = CHECKSUM_AT + CHECKSUM_BYTES;
const COMMIT_BYTES = 12;

/** A checkpoint that a whole journal holds. */
export interface JournaledCheckpoint {
  readonly epoch: number;
  readonly sequence: number;
  readonly deviceState: Uint8Array<ArrayBuffer>;
  /** Where its entries of pages begin, and how long they are. */
  readonly pages: readonly { readonly at: number; readonly bytes: number }[];
}

/** Writes journals over each other in one file, and reads the last one. */
export class Journal {
  readonly #file: ImageFile;
  readonly #scratch: Scratch;
  #sequence = 0;
  #end = 0;
  #entries = 0;

  constructor(file: ImageFile, scratch: Scratch) {
    this.#file = file;
    this.#scratch = scratch;
  }

  /** Begin anew; what was there is no journal any more with the first entry that is written. */
  begin(sequence: number): void {
    if (this.#file.sizeBytes > JOURNAL_KEPT_BYTES_MAX) this.#file.resize(0);
    this.#sequence = sequence;
    this.#end = 0;
    this.#entries = 0;
  }

  /** RAM records, at most 1 MiB. */
  append(chunk: Uint8Array): void {
    this.#write(KIND.PAGES, chunk);
  }

  /** From the end of this on the journal is whole. */
  commit(epoch: number, deviceState: Uint8Array): void {
    for (let at = 0; at < deviceState.length; at += FRAME_PAYLOAD_BYTES_MAX) {
      this.#write(KIND.DEVICE_STATE, deviceState.subarray(at, at + FRAME_PAYLOAD_BYTES_MAX));
    }
    const commit = new DataView(new ArrayBuffer(COMMIT_BYTES));
    commit.setBigUint64(0, BigInt(epoch), true);
    commit.setUint32(8, this.#entries, true);
    this.#write(KIND.COMMIT, new Uint8Array(commit.buffer));
  }

  /** What the journal holds, if it is whole: nothing of it counts otherwise. */
  read(): JournaledCheckpoint | undefined {
    const pages: { at: number; bytes: number }[] = [];
    const deviceState: Uint8Array[] = [];
    let sequence: bigint | undefined;
    for (let at = 0, entries = 0;; entries++) {
      const entry = this.#entry(at, sequence);
      if (entry === undefined) return undefined;
      sequence = entry.sequence;
      const { kind, payload } = entry;
      if (kind === KIND.PAGES) pages.push({ at: at + ENTRY_HEADER_BYTES, bytes: payload.length });
      else if (kind === KIND.DEVICE_STATE) deviceState.push(payload);
      else if (kind !== KIND.COMMIT || payload.length !== COMMIT_BYTES) return undefined;
      else {
        const commit = new DataView(payload.buffer);
        if (commit.getUint32(8, true) !== entries) return undefined;
        return {
          epoch: Number(commit.getBigUint64(0, true)),
          sequence: Number(sequence),
          deviceState: concatenate(deviceState),
          pages,
        };
      }
      at += ENTRY_HEADER_BYTES + payload.length;
    }
  }

  /** One entry of pages of a journal that was found to be whole. */
  pages({ at, bytes }: JournaledCheckpoint["pages"][number]): Uint8Array<ArrayBuffer> {
    const chunk = new Uint8Array(bytes);
    this.#file.read(at, chunk);
    return chunk;
  }

  close(): void {
    this.#file.close();
  }

  #write(kind: number, payload: Uint8Array): void {
    const entry = new Uint8Array(ENTRY_HEADER_BYTES + payload.length);
    const header = new DataView(entry.buffer);
    header.setUint32(0, kind, true);
    header.setUint32(4, payload.length, true);
    header.setBigUint64(8, BigInt(this.#sequence), true);
    entry.set(this.#scratch.checksum(payload), CHECKSUM_AT);
    entry.set(payload, ENTRY_HEADER_BYTES);
    this.#file.write(this.#end, entry);
    this.#end += entry.length;
    this.#entries++;
  }

  #entry(at: number, sequence: bigint | undefined) {
    if (at + ENTRY_HEADER_BYTES > this.#file.sizeBytes) return undefined;
    const header = new Uint8Array(ENTRY_HEADER_BYTES);
    this.#file.read(at, header);
    const view = new DataView(header.buffer);
    const length = view.getUint32(4, true);
    const found = view.getBigUint64(8, true);
    if (sequence !== undefined && found !== sequence) return undefined;
    if (length > FRAME_PAYLOAD_BYTES_MAX) return undefined;
    if (at + ENTRY_HEADER_BYTES + length > this.#file.sizeBytes) return undefined;
    const payload = new Uint8Array(length);
    this.#file.read(at + ENTRY_HEADER_BYTES, payload);
    if (!this.#scratch.verify(payload, header.subarray(CHECKSUM_AT))) return undefined;
    return { kind: view.getUint32(0, true), sequence: found, payload };
  }
}

function concatenate(pieces: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const joined = new Uint8Array(pieces.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const piece of pieces) {
    joined.set(piece, at);
    at += piece.length;
  }
  return joined;
}
