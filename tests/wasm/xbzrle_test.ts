import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { contents, edited, edits, noise, unaligned } from "./contents.ts";
import { Twin } from "./twin.ts";

const LENGTH_MAX = 4200;
const CAPACITY_MAX = 8400;
const twin = new Twin();
const before = twin.alloc(LENGTH_MAX + 64);
const after = twin.alloc(LENGTH_MAX + 64);
const target = twin.alloc(CAPACITY_MAX);

function encode(length: number, capacity = CAPACITY_MAX, shift = 0): number {
  return twin.run(
    (kernels) => kernels.xbzrleEncode(before + shift, after, length, target, capacity),
    (result) => ({ address: target + Math.max(0, result), length: capacity - Math.max(0, result) }),
  );
}

Deno.test("xbzrleEncode writes runs as QEMU does", () => {
  const cases = [
    { changes: [], body: [] },
    { changes: [0], body: [0, 1, 0xff] },
    { changes: [0, 1, 3], body: [0, 2, 0xff, 0xff, 1, 1, 0xff] },
    { changes: [127], body: [127, 1, 0xff] },
    { changes: [128], body: [0x80, 1, 1, 0xff] },
    { changes: [4095], body: [0xff, 0x1f, 1, 0xff] },
  ];
  for (const { changes, body } of cases) {
    twin.reset();
    twin.fill(before, 4096, 0);
    twin.fill(after, 4096, 0);
    for (const at of changes) twin.set(after + at, [0xff]);
    assertEquals(encode(4096), body.length);
    assertEquals([...twin.get({ address: target, length: body.length })], body);
  }
});

Deno.test("xbzrleEncode writes the longest run there can be", () => {
  twin.reset();
  twin.fill(before, 4096, 0);
  twin.fill(after, 4096, 1);
  assertEquals(encode(4096), 4099);
  assertEquals([...twin.get({ address: target, length: 4 })], [0, 0x80, 0x20, 1]);
});

Deno.test("xbzrleEncode and xbzrleDecode give the changed bytes back", () => {
  fc.assert(
    fc.property(contents(LENGTH_MAX), edits(LENGTH_MAX), unaligned, (bytes, list, shift) => {
      twin.reset();
      const changed = edited(bytes, list.filter(({ at }) => at < bytes.length));
      twin.set(before + shift, bytes);
      twin.set(after, changed);
      const size = encode(bytes.length, CAPACITY_MAX, shift);
      assert(size >= 0);
      const covered = twin.run((kernels) =>
        kernels.xbzrleDecode(target, size, before + shift, bytes.length)
      );
      assert(covered <= bytes.length);
      assertEquals(twin.get({ address: before + shift, length: bytes.length }), changed);
    }),
  );
});

Deno.test("xbzrleEncode fits exactly and never writes behind its capacity", () => {
  fc.assert(fc.property(contents(LENGTH_MAX), edits(LENGTH_MAX), (bytes, list) => {
    twin.reset();
    twin.set(before, bytes);
    twin.set(after, edited(bytes, list.filter(({ at }) => at < bytes.length)));
    const size = encode(bytes.length);
    assertEquals(encode(bytes.length, size), size);
    assertEquals(encode(bytes.length, size + 1), size);
    if (size > 0) assertEquals(encode(bytes.length, size - 1), -1);
    assertEquals(encode(bytes.length, size >> 1), size === 0 ? 0 : -1);
  }));
});

function decode(source: ArrayLike<number>, length: number): number {
  twin.reset();
  twin.set(target, source);
  return twin.run((kernels) => kernels.xbzrleDecode(target, source.length, before, length));
}

Deno.test("xbzrleDecode refuses what QEMU refuses", () => {
  const malformed = {
    "a zero run alone": [5],
    "an empty non-zero run": [5, 0],
    "a zero run of none that is not the first": [0, 1, 7, 0, 1, 7],
    "bytes missing": [0, 3, 7, 7],
    "a zero run of 15 bits": [0x80, 0x80, 1, 1, 7],
    "a non-zero run of 15 bits": [0, 0x81, 0x80, 7],
    "a zero run cut off": [0x80],
    "a non-zero run cut off": [0, 0x80],
    "a zero run behind the end": [101, 1, 7],
    "a non-zero run behind the end": [99, 2, 7, 7],
  };
  for (const [what, source] of Object.entries(malformed)) {
    assertEquals(decode(source, 100), -1, what);
  }
  assertEquals(decode([], 100), 0);
  assertEquals(decode([99, 1, 7], 100), 100);
});

Deno.test("xbzrleDecode agrees with the reference on rubbish", () => {
  fc.assert(fc.property(
    fc.oneof(
      fc.array(fc.oneof(fc.nat(255), fc.nat(3)), { maxLength: 60 }),
      fc.tuple(fc.nat(), fc.nat(600)).map(([seed, length]) => [...noise(seed, length)]),
    ),
    fc.nat(LENGTH_MAX),
    (source, length) => {
      const covered = decode(source, length);
      assert(covered >= -1 && covered <= length);
    },
  ));
});
