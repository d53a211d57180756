/**
 * The memory of the reference kernels: a byte array that grows by reallocation, and the few ways
 * to read and write numbers in it.
 *
 * @module
 */

import type { LinearMemory } from "../door.ts";

/** A zeroed byte array that grows by copying itself into a longer one. */
export class ReferenceMemory implements LinearMemory {
  #bytes: Uint8Array;

  constructor(initialBytes: number) {
    this.#bytes = new Uint8Array(initialBytes);
  }

  get bytes(): Uint8Array {
    return this.#bytes;
  }

  get sizeBytes(): number {
    return this.#bytes.length;
  }

  growTo(sizeBytes: number): void {
    const grown = new Uint8Array(sizeBytes);
    grown.set(this.#bytes);
    this.#bytes = grown;
  }
}

/** Read a little-endian u32. */
export function readU32(bytes: Uint8Array, at: number): number {
  return (byteAt(bytes, at) | byteAt(bytes, at + 1) << 8 | byteAt(bytes, at + 2) << 16 |
    byteAt(bytes, at + 3) << 24) >>> 0;
}

/** Write a little-endian u32. */
export function writeU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value;
  bytes[at + 1] = value >>> 8;
  bytes[at + 2] = value >>> 16;
  bytes[at + 3] = value >>> 24;
}

/** Read one byte that is known to exist. */
export function byteAt(bytes: Uint8Array, at: number): number {
  const byte = bytes[at];
  if (byte === undefined) throw new RangeError(`Cannot read byte ${at}: the memory is shorter`);
  return byte;
}
