import { assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { contents, edited, edits, unaligned } from "./contents.ts";
import { Twin } from "./twin.ts";

const LENGTH_MAX = 6000;
const twin = new Twin();
const first = twin.alloc(LENGTH_MAX + 64);
const second = twin.alloc(LENGTH_MAX + 64);

Deno.test("isZero finds a byte that is not zero at any place of a range of any length", () => {
  twin.reset();
  for (const length of [0, 1, 15, 16, 17, 63, 64, 127, 128, 129, 300, 4096]) {
    twin.fill(first, length, 0);
    assertEquals(twin.run((kernels) => kernels.isZero(first, length)), 1);
    for (const at of [0, 15, 16, 127, 128, length - 1]) {
      if (at < 0 || at >= length) continue;
      twin.set(first + at, [0x80]);
      assertEquals(twin.run((kernels) => kernels.isZero(first, length)), 0);
      twin.set(first + at, [0]);
    }
  }
});

Deno.test("isZero does not look behind the range", () => {
  twin.reset();
  for (const length of [0, 1, 16, 100, 128, 4096]) {
    twin.fill(first, length, 0);
    twin.set(first + length, [1]);
    assertEquals(twin.run((kernels) => kernels.isZero(first, length)), 1);
  }
});

Deno.test("isZero, isEqual and copy agree with the reference", () => {
  fc.assert(fc.property(
    contents(LENGTH_MAX),
    edits(LENGTH_MAX),
    unaligned,
    unaligned,
    (bytes, changes, firstShift, secondShift) => {
      twin.reset();
      const a = first + firstShift;
      const b = second + secondShift;
      const other = edited(bytes, changes.filter(({ at }) => at < bytes.length));
      twin.set(a, bytes);
      twin.set(b, other);
      const isSame = bytes.every((byte, i) => byte === other[i]);
      assertEquals(twin.run((kernels) => kernels.isEqual(a, b, bytes.length)), Number(isSame));
      twin.run((kernels) => kernels.isZero(a, bytes.length));
      twin.run((kernels) => kernels.copy(b, a, bytes.length));
      assertEquals(twin.get({ address: b, length: bytes.length }), bytes);
    },
  ));
});

Deno.test("copy keeps the source's bytes when the ranges overlap", () => {
  const bytes = Uint8Array.from({ length: 1000 }, (_, i) => i * 7);
  for (const shift of [-300, -16, -1, 0, 1, 15, 16, 300]) {
    twin.reset();
    twin.set(first + 400, bytes);
    twin.run((kernels) => kernels.copy(first + 400 + shift, first + 400, bytes.length));
    assertEquals(twin.get({ address: first + 400 + shift, length: bytes.length }), bytes);
  }
});
