/**
 * Device state, collected until its end is known.
 *
 * In a checkpoint the primary says how long it is. In the initial stream nobody does: it ends where
 * the VM description begins, and only a parser of every device could tell where that is. So its end is
 * found by what surrounds it:
 *
 * ```text
 *   ... 7e be32 section id   00   06 be32 length   {"page_size": ...}
 *       footer of a device   EOF  VM description
 * ```
 *
 * A place with these bytes where the JSON is an object of exactly the given length is the end. The
 * guest can put such bytes into its devices' state, and spoils nothing but its own protection.
 *
 * @module
 */

import { StreamError } from "../errors.ts";
import { DEVICE_STATE_BYTES_MAX, VM_DESCRIPTION_BYTES_MAX } from "../limits.ts";
import { SECTION } from "./format.ts";

/** Bytes that come in pieces and are wanted as one. */
export class GrowingBytes {
  #bytes = new Uint8Array(64 * 1024);
  length = 0;

  append(piece: Uint8Array): void {
    if (this.length + piece.length > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(this.#bytes.length * 2, this.length + piece.length));
      larger.set(this.view());
      this.#bytes = larger;
    }
    this.#bytes.set(piece, this.length);
    this.length += piece.length;
  }

  /** What has come so far; valid until the next {@linkcode append}. */
  view(): Uint8Array<ArrayBuffer> {
    return this.#bytes.subarray(0, this.length);
  }
}

/** The device state of the initial stream, with the VM description behind it. */
export interface InitialDeviceState {
  /** All FULL sections and the EOF byte: the form in which a checkpoint carries device state too. */
  readonly deviceState: Uint8Array<ArrayBuffer>;
  /** JSON text. */
  readonly vmDescription: string;
  /** Bytes of the last piece that belong to it; the rest is COLO messages. */
  readonly consumed: number;
}

interface Candidate {
  /** Where the EOF byte is. */
  readonly eof: number;
  /** Behind the last byte of the JSON. */
  readonly end: number;
}

const FOOTER_BYTES = 5;
const DESCRIPTION_HEADER_BYTES = 5;

/** Collects the device state of the initial stream. */
export class InitialDeviceStateCollector {
  readonly #collected = new GrowingBytes();
  #candidates: Candidate[] = [];
  #searched = 0;

  /** @param offset Offset in the stream at which the device state begins */
  constructor(readonly offset: number) {}

  /**
   * @returns The state once its end has arrived
   * @throws {StreamError} when it exceeds its limit
   */
  push(piece: Uint8Array): InitialDeviceState | undefined {
    this.#collected.append(piece);
    const bytes = this.#collected.view();
    if (bytes.length > DEVICE_STATE_BYTES_MAX + VM_DESCRIPTION_BYTES_MAX) {
      throw new StreamError(
        `Cannot read device state: no end within ${DEVICE_STATE_BYTES_MAX} bytes`,
        this.offset + DEVICE_STATE_BYTES_MAX,
      );
    }
    this.#search(bytes);
    const complete = this.#candidates.filter((candidate) => candidate.end <= bytes.length);
    this.#candidates = this.#candidates.filter((candidate) => candidate.end > bytes.length);
    // The one that ends first: the one that would have been found had the bytes come one by one.
    for (const { eof, end } of complete.sort((a, b) => a.end - b.end)) {
      const json = jsonObject(bytes.subarray(eof + 1 + DESCRIPTION_HEADER_BYTES, end));
      if (json === undefined) continue;
      return {
        deviceState: bytes.slice(0, eof + 1),
        vmDescription: json,
        consumed: piece.length - (bytes.length - end),
      };
    }
    return undefined;
  }

  #search(bytes: Uint8Array<ArrayBuffer>): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    // The stream may have no device at all: then EOF is the very first byte.
    if (this.#searched === 0 && !this.#take(view, 0)) return;
    while (true) {
      const footer = bytes.indexOf(SECTION.FOOTER, this.#searched);
      if (footer < 0) {
        this.#searched = bytes.length;
        return;
      }
      this.#searched = footer;
      if (!this.#take(view, footer + FOOTER_BYTES)) return;
      this.#searched = footer + 1;
    }
  }

  /** Note the place if it looks like an end; false when too little has arrived to tell. */
  #take(view: DataView, eof: number): boolean {
    if (view.byteLength < eof + 1 + DESCRIPTION_HEADER_BYTES) return false;
    if (view.getUint8(eof) !== SECTION.EOF || view.getUint8(eof + 1) !== SECTION.VM_DESCRIPTION) {
      return true;
    }
    const length = view.getUint32(eof + 2);
    if (length >= 2 && length <= VM_DESCRIPTION_BYTES_MAX) {
      this.#candidates.push({ eof, end: eof + 1 + DESCRIPTION_HEADER_BYTES + length });
    }
    return true;
  }
}

/** The text, when it is a JSON object from its first byte to its last. */
function jsonObject(bytes: Uint8Array): string | undefined {
  if (bytes[0] !== 0x7b || bytes[bytes.length - 1] !== 0x7d) return undefined;
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    JSON.parse(text);
    return text;
  } catch {
    return undefined;
  }
}
