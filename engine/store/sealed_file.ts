/**
 * A file in which no byte can change unnoticed, and which does not count before its last byte is there.
 *
 * All numbers are little-endian.
 *
 * ```text
 *  body:     anything
 *  trailer:  u32 0x184D2A5C, u32 bytes of the trailer that follow       an LZ4 skippable frame
 *            metadata, JSON
 *            u64 XXH64 of each MiB of the body, the last one shorter
 *            u32 bytes of the metadata, u32 segments
 *            u64 XXH64 of the trailer up to here
 *            "COLOsave"
 * ```
 *
 * A file is written from its beginning to its end, so that one that was cut short has no trailer. The
 * checksums find damage; they are no protection against someone who means to forge a file.
 *
 * Pure but for the file that it is given.
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { StoreError } from "../errors.ts";
import { STORE_METADATA_BYTES_MAX, STORE_TRAILER_BYTES_MAX } from "../limits.ts";
import type { ReadableFile, WritableFile } from "./files.ts";
import { LZ4_SKIPPABLE_MAGIC } from "./lz4_frame.ts";

const SEGMENT_BYTES = 1024 * 1024;
const CHECKSUM_BYTES = 8;
const FRAME_HEADER_BYTES = 8;
const TRAILER_MAGIC = LZ4_SKIPPABLE_MAGIC | 0xc;
const END_MAGIC = new TextEncoder().encode("COLOsave");
const TRAILER_END_BYTES = 4 + 4 + CHECKSUM_BYTES + END_MAGIC.length;

/** XXH64 of anything, computed in a kernel's memory, of which it takes what the largest needs. */
export class Checksum {
  readonly #kernels: KernelSet;
  readonly #out: number;
  #memory = 0;
  #capacity = 0;

  constructor(kernels: KernelSet) {
    this.#kernels = kernels;
    this.#out = kernels.alloc(CHECKSUM_BYTES);
  }

  /** @returns 8 bytes, little-endian */
  of(bytes: Uint8Array): Uint8Array {
    if (bytes.length > this.#capacity) {
      this.#capacity = Math.max(bytes.length, SEGMENT_BYTES);
      this.#memory = this.#kernels.alloc(this.#capacity);
    }
    this.#kernels.bytes.set(bytes, this.#memory);
    this.#kernels.xxh64(this.#memory, bytes.length, this.#out);
    return this.#kernels.bytes.slice(this.#out, this.#out + CHECKSUM_BYTES);
  }
}

/** Writes one. */
export class SealedWriter {
  readonly #file: WritableFile;
  readonly #checksum: Checksum;
  readonly #segment = new Uint8Array(SEGMENT_BYTES);
  #filled = 0;
  #position = 0;
  readonly #checksums: Uint8Array[] = [];

  constructor(file: WritableFile, checksum: Checksum) {
    this.#file = file;
    this.#checksum = checksum;
  }

  /** Bytes of the body so far. */
  get position(): number {
    return this.#position;
  }

  /** Append to the body. */
  write(bytes: Uint8Array): void {
    this.#position += bytes.length;
    for (let at = 0; at < bytes.length;) {
      const piece = bytes.subarray(at, at + SEGMENT_BYTES - this.#filled);
      this.#segment.set(piece, this.#filled);
      this.#filled += piece.length;
      at += piece.length;
      if (this.#filled === SEGMENT_BYTES) this.#flush();
    }
  }

  /** Write the trailer; when this returns the file would survive a loss of power. */
  finish(metadata: object): void {
    this.#flush();
    const text = new TextEncoder().encode(JSON.stringify(metadata));
    const bytes = trailerBytes(text.length, this.#checksums.length);
    const trailer = new Uint8Array(bytes);
    const view = new DataView(trailer.buffer);
    view.setUint32(0, TRAILER_MAGIC, true);
    view.setUint32(4, bytes - FRAME_HEADER_BYTES, true);
    trailer.set(text, FRAME_HEADER_BYTES);
    let at = FRAME_HEADER_BYTES + text.length;
    for (const checksum of this.#checksums) {
      trailer.set(checksum, at);
      at += CHECKSUM_BYTES;
    }
    view.setUint32(at, text.length, true);
    view.setUint32(at + 4, this.#checksums.length, true);
    at += 8;
    trailer.set(this.#checksum.of(trailer.subarray(0, at)), at);
    trailer.set(END_MAGIC, at + CHECKSUM_BYTES);
    this.#file.write(trailer);
    this.#file.sync();
  }

  #flush(): void {
    if (this.#filled === 0) return;
    const segment = this.#segment.subarray(0, this.#filled);
    this.#filled = 0;
    this.#checksums.push(this.#checksum.of(segment));
    this.#file.write(segment);
  }
}

/** Reads one; nothing is given out that has not been checked. */
export class SealedReader {
  /** As it was written; its members are to be checked by whoever knows what they mean. */
  readonly metadata: unknown;
  readonly bodyBytes: number;
  readonly #file: ReadableFile;
  readonly #checksum: Checksum;
  readonly #checksums: Uint8Array;

  /** @throws {StoreError} when the file was cut short, or its trailer is damaged */
  constructor(file: ReadableFile, checksum: Checksum) {
    this.#file = file;
    this.#checksum = checksum;
    const trailer = readTrailer(file, checksum);
    this.metadata = trailer.metadata;
    this.#checksums = trailer.checksums;
    this.bodyBytes = trailer.bodyBytes;
  }

  /**
   * Bytes `from .. to` of the body.
   *
   * @returns Pieces of at most a MiB; each is valid until the next is asked for
   * @throws {StoreError} when they are damaged, or the file has no such bytes
   */
  *read(from: number, to: number): Generator<Uint8Array, void> {
    if (from < 0 || from > to || to > this.bodyBytes) {
      throw new StoreError(`Cannot read bytes ${from} to ${to}: the file has ${this.bodyBytes}`);
    }
    const buffer = new Uint8Array(SEGMENT_BYTES);
    for (let at = from; at < to;) {
      const index = Math.floor(at / SEGMENT_BYTES);
      const start = index * SEGMENT_BYTES;
      const segment = buffer.subarray(0, Math.min(SEGMENT_BYTES, this.bodyBytes - start));
      this.#file.read(start, segment);
      this.#check(index, segment);
      const end = Math.min(to, start + segment.length);
      yield segment.subarray(at - start, end - start);
      at = end;
    }
  }

  /** @throws {StoreError} when any byte of the body is damaged */
  verify(): void {
    for (const _ of this.read(0, this.bodyBytes));
  }

  close(): void {
    this.#file.close();
  }

  #check(index: number, segment: Uint8Array): void {
    const at = index * CHECKSUM_BYTES;
    if (!isEqual(this.#checksum.of(segment), this.#checksums.subarray(at, at + CHECKSUM_BYTES))) {
      const start = index * SEGMENT_BYTES;
      throw new StoreError(
        `Cannot read the file: bytes ${start} to ${start + segment.length} are damaged`,
      );
    }
  }
}

interface Trailer {
  readonly metadata: unknown;
  readonly checksums: Uint8Array;
  readonly bodyBytes: number;
}

function readTrailer(file: ReadableFile, checksum: Checksum): Trailer {
  const cutShort = "Cannot read the file: it was cut short, or is none of ours";
  const { sizeBytes } = file;
  if (sizeBytes < TRAILER_END_BYTES) throw new StoreError(cutShort);
  const end = new Uint8Array(TRAILER_END_BYTES);
  file.read(sizeBytes - TRAILER_END_BYTES, end);
  if (!isEqual(end.subarray(-END_MAGIC.length), END_MAGIC)) throw new StoreError(cutShort);
  const lengths = new DataView(end.buffer);
  const [textBytes, segments] = [lengths.getUint32(0, true), lengths.getUint32(4, true)];
  const bytes = trailerBytes(textBytes, segments);
  const bodyBytes = sizeBytes - bytes;
  if (
    textBytes > STORE_METADATA_BYTES_MAX || bytes > STORE_TRAILER_BYTES_MAX || bodyBytes < 0 ||
    segments !== Math.ceil(bodyBytes / SEGMENT_BYTES)
  ) throw new StoreError("Cannot read the file: the lengths at its end are damaged");
  const trailer = new Uint8Array(bytes);
  file.read(bodyBytes, trailer);
  const covered = bytes - CHECKSUM_BYTES - END_MAGIC.length;
  const found = checksum.of(trailer.subarray(0, covered));
  if (!isEqual(found, trailer.subarray(covered, covered + CHECKSUM_BYTES))) {
    throw new StoreError("Cannot read the file: its trailer is damaged");
  }
  const text = trailer.subarray(FRAME_HEADER_BYTES, FRAME_HEADER_BYTES + textBytes);
  const from = FRAME_HEADER_BYTES + textBytes;
  return {
    metadata: parseJson(text),
    checksums: trailer.subarray(from, from + segments * CHECKSUM_BYTES),
    bodyBytes,
  };
}

function trailerBytes(textBytes: number, segments: number): number {
  return FRAME_HEADER_BYTES + textBytes + segments * CHECKSUM_BYTES + TRAILER_END_BYTES;
}

function parseJson(text: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(text));
  } catch {
    throw new StoreError("Cannot read the file: its metadata is no JSON");
  }
}

function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}
