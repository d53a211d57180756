import { assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { contentsOf } from "./contents.ts";
import { Twin } from "./twin.ts";

const BITS_MAX = 2000;
const BYTES_MAX = BITS_MAX / 8;
const twin = new Twin();
const bitmap = twin.alloc(BYTES_MAX);
const other = twin.alloc(BYTES_MAX);
const out = twin.alloc(8);

/** A bitmap's length in bits, and a range of bits in it. */
const bitRange = fc.nat(BITS_MAX).chain((bits) =>
  fc.nat(bits).chain((first) => fc.nat(bits - first).map((count) => ({ bits, first, count })))
);

Deno.test("bitmapSet and bitmapClear change these bits and no others", () => {
  fc.assert(fc.property(
    bitRange,
    contentsOf(BYTES_MAX),
    fc.boolean(),
    ({ bits, first, count }, bytes, isSet) => {
      twin.reset();
      twin.set(bitmap, bytes);
      const before = twin.run((kernels) => kernels.bitmapCount(bitmap, BITS_MAX));
      twin.run((kernels) =>
        isSet
          ? kernels.bitmapSet(bitmap, bits, first, count)
          : kernels.bitmapClear(bitmap, bits, first, count)
      );
      const after = twin.run((kernels) => kernels.bitmapCount(bitmap, BITS_MAX));
      assertEquals(Math.sign(after - before) * (isSet ? 1 : -1) >= 0, true);
      assertEquals(Math.abs(after - before) <= count, true);
      for (const bit of [first, first + count - 1]) {
        if (count === 0) continue;
        assertEquals(twin.run((k) => k.bitmapTest(bitmap, bits, bit)), Number(isSet));
      }
    },
  ));
});

Deno.test("bitmapCount, bitmapUnion and bitmapDifference stop at the bitmap's last bit", () => {
  twin.reset();
  for (const bits of [0, 1, 7, 8, 9, 63, 64, 65, 130, 1001]) {
    twin.fill(bitmap, BYTES_MAX, 0xff);
    assertEquals(twin.run((kernels) => kernels.bitmapCount(bitmap, bits)), bits);
    twin.fill(other, BYTES_MAX, 0);
    twin.run((kernels) => kernels.bitmapUnion(other, bitmap, bits));
    assertEquals(twin.run((kernels) => kernels.bitmapCount(other, BITS_MAX)), bits);
    twin.fill(other, BYTES_MAX, 0xff);
    twin.run((kernels) => kernels.bitmapDifference(other, bitmap, bits));
    assertEquals(twin.run((kernels) => kernels.bitmapCount(other, BITS_MAX)), BITS_MAX - bits);
  }
});

Deno.test("bitmapUnion and bitmapDifference agree with the reference", () => {
  fc.assert(fc.property(
    fc.nat(BITS_MAX),
    contentsOf(BYTES_MAX),
    contentsOf(BYTES_MAX),
    (bits, bytes, otherBytes) => {
      twin.reset();
      twin.set(bitmap, bytes);
      twin.set(other, otherBytes);
      twin.run((kernels) => kernels.bitmapUnion(bitmap, other, bits));
      twin.set(bitmap, bytes);
      twin.run((kernels) => kernels.bitmapDifference(bitmap, other, bits));
    },
  ));
});

Deno.test("bitmapNextRun walks over every set bit exactly once", () => {
  fc.assert(fc.property(
    fc.nat(BITS_MAX),
    fc.array(fc.record({ first: fc.nat(BITS_MAX - 1), count: fc.nat(200) }), { maxLength: 20 }),
    (bits, runs) => {
      twin.reset();
      twin.fill(bitmap, BYTES_MAX, 0);
      const expected = new Set<number>();
      for (const { first, count } of runs) {
        const length = Math.min(count, BITS_MAX - first);
        twin.run((kernels) => kernels.bitmapSet(bitmap, BITS_MAX, first, length));
        for (let bit = first; bit < first + length; bit++) if (bit < bits) expected.add(bit);
      }
      const found: number[] = [];
      let from = 0;
      while (twin.run((kernels) => kernels.bitmapNextRun(bitmap, bits, from, out)) === 1) {
        const first = twin.u32(out);
        from = first + twin.u32(out + 4);
        for (let bit = first; bit < from; bit++) found.push(bit);
      }
      assertEquals(found, [...expected].sort((a, b) => a - b));
      assertEquals(twin.u32(out), bits);
      assertEquals(twin.u32(out + 4), 0);
    },
  ));
});

Deno.test("bitmapNextRun agrees with the reference from any bit of any bitmap", () => {
  const lengthAndFrom = fc.oneof(fc.nat(40), fc.nat(BITS_MAX)).chain((bits) =>
    fc.record({ bits: fc.constant(bits), from: fc.nat(bits) })
  );
  fc.assert(
    fc.property(contentsOf(BYTES_MAX), lengthAndFrom, (bytes, { bits, from }) => {
      twin.reset();
      twin.set(bitmap, bytes);
      twin.run((kernels) => kernels.bitmapNextRun(bitmap, bits, from, out));
    }),
    { numRuns: 500 },
  );
});
