/**
 * fast-check arbitraries for memory contents: zeros, noise, repetitions and small changes, which are
 * what the kernels tell apart.
 *
 * @module
 */

import fc from "fast-check";

/** Noise from a seed (xorshift32; an even seed gives the same as the odd one behind it). */
export function noise(seed: number, length: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(length);
  let state = seed | 1;
  for (let i = 0; i < length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    bytes[i] = state >>> 8;
  }
  return bytes;
}

type Segment =
  | { readonly kind: "zeros" | "same"; readonly length: number; readonly seed: number }
  | { readonly kind: "noise" | "letters"; readonly length: number; readonly seed: number }
  | { readonly kind: "earlier"; readonly length: number; readonly back: number };

const segment: fc.Arbitrary<Segment> = fc.oneof(
  fc.record({
    kind: fc.constantFrom("zeros", "same", "noise", "letters"),
    length: fc.oneof(fc.nat(40), fc.nat(5000)),
    seed: fc.nat(),
  }),
  fc.record({
    kind: fc.constant("earlier"),
    length: fc.oneof(fc.nat(40), fc.nat(5000)),
    back: fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 70000 })),
  }),
);

function build(segments: readonly Segment[], lengthMax: number): Uint8Array<ArrayBuffer> {
  const total = segments.reduce((sum, { length }) => sum + length, 0);
  const bytes = new Uint8Array(Math.min(total, lengthMax));
  let at = 0;
  for (const part of segments) {
    const end = Math.min(at + part.length, bytes.length);
    if (part.kind === "earlier") {
      for (; at < end; at++) bytes[at] = bytes[Math.max(0, at - part.back)] ?? 0;
    } else {
      bytes.set(fill(part.kind, part.seed, end - at), at);
      at = end;
    }
  }
  return bytes;
}

function fill(
  kind: "zeros" | "same" | "noise" | "letters",
  seed: number,
  length: number,
): Uint8Array {
  switch (kind) {
    case "zeros":
      return new Uint8Array(length);
    case "same":
      return new Uint8Array(length).fill(seed);
    case "noise":
      return noise(seed, length);
    case "letters":
      return noise(seed, length).map((byte) => 97 + byte % 4);
  }
}

/** Bytes of any length up to `lengthMax`, made of runs of every kind. */
export function contents(lengthMax: number): fc.Arbitrary<Uint8Array<ArrayBuffer>> {
  return fc.array(segment, { maxLength: 12 }).map((segments) => build(segments, lengthMax));
}

/** Exactly `length` bytes of that kind, zeros at the end where the runs were too short. */
export function contentsOf(length: number): fc.Arbitrary<Uint8Array<ArrayBuffer>> {
  return contents(length).map((bytes) => {
    const padded = new Uint8Array(length);
    padded.set(bytes);
    return padded;
  });
}

/** A place and what is written there. */
export interface Edit {
  readonly at: number;
  readonly bytes: Uint8Array;
}

/** Changes to `length` bytes: few or many, short or long. */
export function edits(length: number): fc.Arbitrary<readonly Edit[]> {
  const edit = fc.record({
    at: fc.nat(length - 1),
    bytes: fc.oneof(
      fc.uint8Array({ minLength: 1, maxLength: 3 }),
      fc.tuple(fc.nat(), fc.integer({ min: 1, max: length })).map(([seed, n]) => noise(seed, n)),
    ),
  });
  return fc.oneof(
    { weight: 4, arbitrary: fc.array(edit, { maxLength: 6 }) },
    { weight: 1, arbitrary: fc.array(edit, { maxLength: 400, size: "max" }) },
  );
}

/** The bytes after the changes; what reaches beyond their end is dropped. */
export function edited(
  bytes: Uint8Array,
  changes: readonly Edit[],
): Uint8Array<ArrayBuffer> {
  const result = new Uint8Array(bytes);
  for (const { at, bytes: change } of changes) {
    result.set(change.subarray(0, result.length - at), at);
  }
  return result;
}

/** Positions and lengths at which ranges begin in tests: alignment must not matter. */
export const unaligned: fc.Arbitrary<number> = fc.nat(33);
