/**
 * Reference kernels on plain byte ranges: zero, equal, copy.
 *
 * @module
 */

/** Is every byte of the range zero? */
export function isZero(bytes: Uint8Array, address: number, length: number): boolean {
  for (let i = 0; i < length; i++) {
    if (bytes[address + i] !== 0) return false;
  }
  return true;
}

/** Do both ranges hold the same bytes? */
export function isEqual(bytes: Uint8Array, a: number, b: number, length: number): boolean {
  for (let i = 0; i < length; i++) {
    if (bytes[a + i] !== bytes[b + i]) return false;
  }
  return true;
}

/** Copy a range; source and target may overlap. */
export function copy(bytes: Uint8Array, target: number, source: number, length: number): void {
  bytes.copyWithin(target, source, source + length);
}
