/**
 * Device state as its difference from the last one. From one checkpoint to the next only a few bytes of
 * it change, and they stay where they are: the exclusive or of both is nearly all zeros, of which LZ4
 * makes nearly nothing.
 *
 * @module
 */

/**
 * The exclusive or of two device states of the same length: applied once it makes the difference,
 * applied again it makes the state.
 *
 * @example
 * ```ts
 * import { exclusiveOr } from "./device_state_delta.ts";
 *
 * const [before, after] = [Uint8Array.of(1, 2, 3), Uint8Array.of(1, 7, 3)];
 * const difference = exclusiveOr(before, after);
 * if (difference.join() !== "0,5,0") throw new Error("not the difference");
 * if (exclusiveOr(before, difference).join() !== "1,7,3") throw new Error("not the state");
 * ```
 *
 * @throws {RangeError} when the lengths differ
 */
export function exclusiveOr(a: Uint8Array, b: Uint8Array): Uint8Array<ArrayBuffer> {
  if (a.length !== b.length) {
    throw new RangeError(`Cannot compare ${a.length} bytes with ${b.length} bytes`);
  }
  const result = new Uint8Array(a.length);
  for (let at = 0; at < a.length; at++) result[at] = a[at]! ^ b[at]!;
  return result;
}
