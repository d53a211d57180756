import { assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { ENCODE, ENCODE_COUNTER } from "../../wasm/mod.ts";
import { contentsOf, type Edit, edited, edits, noise } from "./contents.ts";
import { applyRecord, readRecords } from "./ram_records.ts";
import { Twin } from "./twin.ts";

const PAGE_BYTES = 4096;
const PAGES = 6;
const BLOCK_FIRST_PAGE = 90;
const FIRST_PAGE = 100;
const NAME = "pc.ram";
const CAPACITY_MAX = 32768;
const twin = new Twin();
const staging = twin.alloc(PAGES * PAGE_BYTES);
const mirror = twin.alloc(PAGES * PAGE_BYTES);
const table = twin.alloc(64 * 8);
const target = twin.alloc(CAPACITY_MAX);
const name = twin.alloc(16);
const counters = twin.alloc(16);
const out = twin.alloc(8);

interface Encoded {
  readonly next: number;
  readonly bytes: Uint8Array;
  readonly counters: readonly number[];
}

function encode(
  count: number,
  { mode = ENCODE.DELTA as number, from = 0, named = true, capacity = CAPACITY_MAX } = {},
): Encoded {
  twin.set(name, new TextEncoder().encode(NAME));
  twin.fill(counters, 16, 0);
  const written = twin.run((kernels) =>
    kernels.encodePages(
      mode,
      table,
      from,
      count,
      BLOCK_FIRST_PAGE,
      FIRST_PAGE,
      PAGES,
      mirror,
      name,
      named ? NAME.length : 0,
      target,
      capacity,
      counters,
      out,
    ), (result) => ({ address: target + result, length: capacity - result }));
  assertEquals(twin.u32(out + 4), written);
  return {
    next: twin.u32(out),
    bytes: twin.get({ address: target, length: written }),
    counters: [0, 1, 2, 3].map((i) => twin.u32(counters + 4 * i)),
  };
}

/** Put contents into the staging area and a table of all of them. */
function stage(contents: readonly Uint8Array[]): void {
  for (const [i, content] of contents.entries()) {
    twin.set(staging + i * PAGE_BYTES, content);
    twin.setU32(table + 8 * i, FIRST_PAGE + i, staging + i * PAGE_BYTES);
  }
}

const mirrorPage = (page: number) =>
  twin.get({ address: mirror + page * PAGE_BYTES, length: PAGE_BYTES });

Deno.test("encodePages writes what changed, in QEMU's records", () => {
  twin.reset();
  twin.fill(mirror, PAGES * PAGE_BYTES, 0x11);
  const small = new Uint8Array(PAGE_BYTES).fill(0x11);
  small[5] = 0xaa;
  small[6] = 0xbb;
  small[300] = 0xcc;
  const whole = noise(1, PAGE_BYTES);
  const unchanged = new Uint8Array(PAGE_BYTES).fill(0x11);
  stage([unchanged, small, new Uint8Array(PAGE_BYTES), whole]);
  const encoded = encode(4);
  // The first of these pages is page 10 of its block, and it is dropped: addresses 0xb000..0xd000.
  const body = [0x05, 0x02, 0xaa, 0xbb, 0xa5, 0x02, 0x01, 0xcc];
  const expected = [
    ...[0, 0, 0, 0, 0, 0, 0xb0, 0x40, 6, ...new TextEncoder().encode(NAME)],
    ...[0x01, 0, body.length, ...body],
    ...[0, 0, 0, 0, 0, 0, 0xc0, 0x22, 0],
    ...[0, 0, 0, 0, 0, 0, 0xd0, 0x28, ...whole],
  ];
  assertEquals([...encoded.bytes], expected);
  assertEquals(encoded.next, 4);
  assertEquals(encoded.counters, [1, 1, 1, 1]);
  assertEquals([0, 1, 2, 3].map(mirrorPage), [unchanged, small, new Uint8Array(4096), whole]);
});

Deno.test("encodePages writes addresses beyond 4 GiB as 64-bit numbers", () => {
  twin.reset();
  const firstPage = 2 ** 24;
  twin.setU32(table, firstPage + 1, 0);
  const written = twin.run((kernels) =>
    kernels.encodePages(
      ENCODE.WHOLE,
      table,
      0,
      1,
      5,
      firstPage,
      PAGES,
      0,
      0,
      0,
      target,
      8192,
      counters,
      out,
    )
  );
  assertEquals([...twin.get({ address: target, length: written })], [
    0,
    0,
    0,
    0x0f,
    0xff,
    0xff,
    0xc0,
    0x22,
    0,
  ]);
});

Deno.test("encodePages drops a zero page that is zero in the mirror", () => {
  twin.reset();
  twin.fill(mirror, PAGE_BYTES, 0);
  twin.setU32(table, FIRST_PAGE, 0, FIRST_PAGE + 1, 0);
  assertEquals(encode(2).counters, [1, 1, 0, 0]);
  assertEquals(mirrorPage(1), new Uint8Array(PAGE_BYTES));
});

Deno.test("encodePages in WHOLE mode neither reads nor writes the mirror", () => {
  twin.reset();
  const content = noise(3, PAGE_BYTES);
  twin.set(mirror, content);
  stage([content, new Uint8Array(PAGE_BYTES)]);
  twin.setU32(table + 16, FIRST_PAGE + 2, 0);
  const encoded = encode(3, { mode: ENCODE.WHOLE, named: false });
  assertEquals(encoded.counters, [0, 2, 0, 1]);
  assertEquals(readRecords(encoded.bytes).map(({ flags }) => flags), [0x28, 0x22, 0x22]);
  assertEquals(mirrorPage(0), content);
  assertEquals(mirrorPage(1), new Uint8Array(PAGE_BYTES).fill(0xc7));
});

Deno.test("encodePages in SEED mode leaves out zero pages, and counts them as unchanged", () => {
  twin.reset();
  const content = noise(3, PAGE_BYTES);
  twin.set(mirror, content);
  stage([new Uint8Array(PAGE_BYTES), content]);
  twin.setU32(table + 16, FIRST_PAGE + 2, 0);
  const encoded = encode(3, { mode: ENCODE.SEED });
  assertEquals(encoded.next, 3);
  assertEquals(encoded.counters, [2, 0, 0, 1]);
  assertEquals(readRecords(encoded.bytes).map(({ flags }) => flags), [0x08]);
  assertEquals(mirrorPage(0), content);
});

Deno.test("encodePages begins no record that might not fit", () => {
  twin.reset();
  stage([noise(1, PAGE_BYTES), noise(2, PAGE_BYTES)]);
  const first = 8 + 1 + NAME.length + PAGE_BYTES;
  const both = first + 8 + PAGE_BYTES;
  for (
    const [capacity, next] of [
      [0, 0],
      [first - 1, 0],
      [first, 1],
      [first + 1, 1],
      [both - 1, 1],
      [both, 2],
      [both + 1, 2],
    ] as const
  ) {
    twin.fill(mirror, PAGES * PAGE_BYTES, 0);
    const encoded = encode(2, { capacity });
    assertEquals(encoded.next, next);
    assertEquals(encoded.bytes.length, [0, first, both][next]);
  }
});

Deno.test("encodePages stops at an entry it cannot take", () => {
  const wrong = [
    [FIRST_PAGE - 1, 0],
    [FIRST_PAGE + PAGES, 0],
    [0xffff_ffff, 0],
    [FIRST_PAGE, 0xffff_f000],
    [FIRST_PAGE, 0x7fff_ffff],
  ];
  for (const mode of [ENCODE.DELTA, ENCODE.WHOLE, ENCODE.SEED]) {
    for (const entry of wrong) {
      twin.reset();
      stage([noise(1, PAGE_BYTES)]);
      twin.setU32(table + 8, ...entry);
      assertEquals(encode(2, { mode }).next, 1);
      assertEquals(encode(2, { mode, from: 1 }).bytes.length, 0);
    }
  }
});

interface Change {
  readonly page: number;
  readonly changes: readonly Edit[] | "zero" | "zero content";
}

const change: fc.Arbitrary<Change> = fc.record({
  page: fc.nat(PAGES - 1),
  changes: fc.oneof(
    { weight: 6, arbitrary: edits(PAGE_BYTES) },
    { weight: 1, arbitrary: fc.constantFrom("zero" as const, "zero content" as const) },
  ),
});

Deno.test("encodePages writes records that turn the old pages into the new ones", () => {
  fc.assert(fc.property(
    contentsOf(PAGES * PAGE_BYTES),
    fc.uniqueArray(change, { maxLength: PAGES, selector: ({ page }) => page }),
    fc.boolean(),
    fc.integer({ min: 8 + 1 + NAME.length + PAGE_BYTES, max: CAPACITY_MAX }),
    (before, changes, named, capacity) => {
      twin.reset();
      twin.set(mirror, before);
      const after = before.slice();
      for (const [i, { page, changes: kind }] of changes.entries()) {
        const old = before.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
        const content = typeof kind === "string" ? new Uint8Array(PAGE_BYTES) : edited(old, kind);
        after.set(content, page * PAGE_BYTES);
        twin.set(staging + page * PAGE_BYTES, content);
        const address = kind === "zero" ? 0 : staging + page * PAGE_BYTES;
        twin.setU32(table + 8 * i, FIRST_PAGE + page, address);
      }
      const pages = before.slice();
      let from = 0;
      const total = [0, 0, 0, 0];
      while (from < changes.length) {
        const encoded = encode(changes.length, { from, named, capacity });
        from = encoded.next;
        for (const [i, value] of encoded.counters.entries()) total[i] = (total[i] ?? 0) + value;
        for (const [i, record] of readRecords(encoded.bytes).entries()) {
          assertEquals(record.name, named && i === 0 ? NAME : undefined);
          const page = record.page - (FIRST_PAGE - BLOCK_FIRST_PAGE);
          applyRecord(record, pages.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES));
        }
      }
      assertEquals(pages, after);
      assertEquals(twin.get({ address: mirror, length: after.length }), after);
      assertEquals(total.reduce((a, b) => a + b), changes.length);
    },
  ));
});

Deno.test("encodePages takes XBZRLE for less than three quarters of a page", () => {
  for (
    const { changed, counter } of [
      { changed: 1, counter: ENCODE_COUNTER.XBZRLE },
      { changed: 3069, counter: ENCODE_COUNTER.XBZRLE },
      { changed: 3070, counter: ENCODE_COUNTER.WHOLE },
      { changed: 4096, counter: ENCODE_COUNTER.WHOLE },
    ]
  ) {
    twin.reset();
    twin.fill(mirror, PAGE_BYTES, 0);
    stage([new Uint8Array(PAGE_BYTES).fill(1, 0, changed)]);
    const encoded = encode(1, { named: false });
    assertEquals(encoded.counters.indexOf(1), counter);
    if (counter === ENCODE_COUNTER.XBZRLE) {
      assertEquals(encoded.bytes.length, 8 + 3 + 1 + (changed < 128 ? 1 : 2) + changed);
    }
  }
});
