/**
 * Bytes of a packet chardev that are passed on as they are, in whole records.
 *
 * @module
 */

import { FRAME_BYTES_MAX } from "../../wasm/mod.ts";
import { PacketError } from "../errors.ts";

/** What is read at once at most: some of the longest records. */
const BUFFER_BYTES = 256 * 1024;

/** Length of a record, and of the vnet header where there is one. */
const LENGTH_BYTES = 4;

/**
 * Reads one chardev.
 *
 * @example
 * ```ts
 * import { RecordBuffer } from "./record_buffer.ts";
 *
 * const buffer = new RecordBuffer("the mirror", 4);
 * buffer.space().set([0, 0, 0, 1, 7, 0, 0]);
 * buffer.filled(7);
 * if (buffer.take().length !== 5) throw new Error("not cut at the end of a record");
 * ```
 */
export class RecordBuffer {
  readonly #bytes = new Uint8Array(BUFFER_BYTES);
  readonly #view = new DataView(this.#bytes.buffer);
  readonly #name: string;
  readonly #prefixBytes: number;
  #end = 0;
  #offset = 0;

  /**
   * @param name For messages: which chardev it is
   * @param prefixBytes Of a record, before what its length counts: 8 with a vnet header, or 4
   */
  constructor(name: string, prefixBytes: number) {
    this.#name = name;
    this.#prefixBytes = prefixBytes;
  }

  /** The place for the next bytes; tell how many came with {@linkcode filled}. Never empty. */
  space(): Uint8Array {
    return this.#bytes.subarray(this.#end);
  }

  /** `count` bytes have been written to the start of what {@linkcode space} gave. */
  filled(count: number): void {
    this.#end += count;
  }

  /**
   * All whole records that have come.
   *
   * @returns A copy of its own, empty when there are none
   * @throws {PacketError} when what has come is no record: nothing more can be read of this connection
   */
  take(): Uint8Array<ArrayBuffer> {
    let at = 0;
    while (at + LENGTH_BYTES <= this.#end) {
      const length = this.#view.getUint32(at);
      if (length === 0 || length > FRAME_BYTES_MAX) {
        throw new PacketError(
          `Cannot read frames from ${this.#name}: a length must be 1 to ${FRAME_BYTES_MAX} bytes; ` +
            "connect anew",
          this.#offset + at,
        );
      }
      if (at + this.#prefixBytes + length > this.#end) break;
      at += this.#prefixBytes + length;
    }
    const records = this.#bytes.slice(0, at);
    this.#bytes.copyWithin(0, at, this.#end);
    this.#end -= at;
    this.#offset += at;
    return records;
  }

  /** A new connection: what was left of a record is forgotten. */
  reset(): void {
    this.#end = 0;
    this.#offset = 0;
  }
}
