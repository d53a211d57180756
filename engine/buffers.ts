/**
 * Memory of bytes that pass by in large pieces.
 *
 * @module
 */

/** Of less than this the garbage collector takes care at no cost. */
const FREED_BYTES_MIN = 64 * 1024;

/** V8 copies from and to shared memory in such words, and otherwise byte by byte. */
const WORD_BYTES = 8;

/**
 * Give back the buffer of bytes that nobody needs any more. Left to the garbage collector, hundreds of
 * such buffers a second are what it runs for, and each new one is fresh memory that has to be cleared,
 * which costs three times as much as what is copied into it.
 *
 * @param bytes And whatever else views their buffer: empty from now on
 */
export function freeBuffer({ buffer }: Uint8Array): void {
  if (buffer instanceof ArrayBuffer && buffer.byteLength >= FREED_BYTES_MIN) buffer.transfer(0);
}

/**
 * A copy of its own of part of a kernel's memory, which is shared: it lies in its buffer as the original
 * does in words, or it would be copied byte by byte, a fifth as fast. {@linkcode ownsBuffer} tells it.
 */
export function copyOf(memory: Uint8Array, from: number, to: number): Uint8Array<ArrayBuffer> {
  const skew = from % WORD_BYTES;
  const copy = new Uint8Array(new ArrayBuffer(skew + to - from), skew);
  copy.set(memory.subarray(from, to));
  return copy;
}

/** What to add to an address, so that these bytes lie in words there as they do in their buffer. */
export function skewFor(bytes: Uint8Array, address: number): number {
  return (((bytes.byteOffset - address) % WORD_BYTES) + WORD_BYTES) % WORD_BYTES;
}

/** Whether the buffer of these bytes holds nothing else but for less than a word. */
export function ownsBuffer(bytes: Uint8Array): bytes is Uint8Array<ArrayBuffer> {
  const { buffer, byteLength } = bytes;
  return buffer instanceof ArrayBuffer && buffer.byteLength < byteLength + WORD_BYTES;
}
