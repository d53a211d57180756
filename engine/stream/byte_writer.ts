/**
 * Big-endian bytes, appended one field after another.
 *
 * @module
 */

/** Builds a message of a few fields; not for bulk data. */
export class ByteWriter {
  readonly #bytes: number[] = [];

  u8(value: number): this {
    this.#bytes.push(value & 0xff);
    return this;
  }

  u16(value: number): this {
    return this.u8(value >>> 8).u8(value);
  }

  u32(value: number): this {
    return this.u16(value >>> 16).u16(value);
  }

  /** @param value A safe integer, at least 0 */
  u64(value: number): this {
    return this.u32(Math.floor(value / 2 ** 32)).u32(value % 2 ** 32);
  }

  bytes(value: Uint8Array): this {
    for (const byte of value) this.#bytes.push(byte);
    return this;
  }

  /** An id as QEMU writes it: one length byte, then UTF-8. */
  name(value: string): this {
    const encoded = new TextEncoder().encode(value);
    return this.u8(encoded.length).bytes(encoded);
  }

  finish(): Uint8Array<ArrayBuffer> {
    return Uint8Array.from(this.#bytes);
  }
}
