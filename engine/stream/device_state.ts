/**
 * Device state, collected until its end is known.
 *
 * In a checkpoint the primary says how long it is. In the initial stream nobody does, and only a parser
 * of every device could tell where it ends. So its end is found by what surrounds it:
 *
 * ```text
 *   ... 7e be32 section id   00   nothing, until the primary is answered; or
 *       footer of a device   EOF  06 be32 length {"page_size": ...}; or
 *                                 00000001 00000003, when it was answered (in a recording)
 * ```
 *
 * A QEMU that was started with `suppress-vmdesc=on` sends no VM description, and says elsewhere that all
 * of the stream is out. Of one that does, a place where the JSON is an object of exactly the given length
 * is the end. The guest can put such bytes into its devices' state, and spoils nothing but its own
 * protection.
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
  /** JSON text; undefined where there is none. */
  readonly vmDescription: string | undefined;
  /** Bytes of the last piece that belong to it; the rest is COLO messages. */
  readonly consumed: number;
}

interface Candidate {
  /** Where the EOF byte is. */
  readonly eof: number;
  /** Behind the last byte that tells. */
  readonly end: number;
  /** Whether that is COLO's first word, and not a VM description. */
  readonly isMessage: boolean;
}

const FOOTER_BYTES = 5;
const DESCRIPTION_HEADER_BYTES = 5;

/** A checkpoint is asked for, and begun: what comes first when the primary has been answered. */
const FIRST_MESSAGES_BYTES = 8;
const [REQUEST, SEND] = [1, 3];

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
    for (const { eof, end, isMessage } of complete.sort((a, b) => a.end - b.end)) {
      const behind = piece.length - (bytes.length - end);
      if (isMessage) {
        const deviceState = bytes.slice(0, eof + 1);
        return { deviceState, vmDescription: undefined, consumed: behind - FIRST_MESSAGES_BYTES };
      }
      const json = jsonObject(bytes.subarray(eof + 1 + DESCRIPTION_HEADER_BYTES, end));
      if (json === undefined) continue;
      return {
        deviceState: bytes.slice(0, eof + 1),
        vmDescription: json,
        consumed: behind,
      };
    }
    return undefined;
  }

  /** QEMU has said elsewhere that all of it is out: the state, if what has come looks like one. */
  finish(): Uint8Array<ArrayBuffer> | undefined {
    const bytes = this.#collected.view();
    const eof = bytes.length - 1;
    if (bytes[eof] !== SECTION.EOF) return undefined;
    return eof === 0 || bytes[eof - FOOTER_BYTES] === SECTION.FOOTER ? bytes.slice() : undefined;
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
    if (view.getUint8(eof) !== SECTION.EOF) return true;
    const behind = eof + 1;
    if (view.getUint8(behind) === SECTION.VM_DESCRIPTION) {
      const length = view.getUint32(behind + 1);
      if (length >= 2 && length <= VM_DESCRIPTION_BYTES_MAX) {
        const end = behind + DESCRIPTION_HEADER_BYTES + length;
        this.#candidates.push({ eof, end, isMessage: false });
      }
    } else if (view.getUint32(behind) === REQUEST) {
      if (view.byteLength < behind + FIRST_MESSAGES_BYTES) return false;
      if (view.getUint32(behind + 4) !== SEND) return true;
      this.#candidates.push({ eof, end: behind + FIRST_MESSAGES_BYTES, isMessage: true });
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
