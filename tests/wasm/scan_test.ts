import { assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { SCAN } from "../../wasm/mod.ts";
import { contentsOf, noise } from "./contents.ts";
import { concat, writeRecord } from "./ram_records.ts";
import { Twin } from "./twin.ts";

const PAGE_BYTES = 4096;
const PAGES = 12;
const FIRST_PAGE = 1000;
const STAGING_BYTES = 40000;
const twin = new Twin();
const staging = twin.alloc(STAGING_BYTES);
const table = twin.alloc(64 * 8);
const out = twin.alloc(8);
const mirror = twin.alloc(PAGES * PAGE_BYTES);
const bitmap = twin.alloc(2);

const pageRecord = (page: number) =>
  writeRecord({ flags: 0x28, page, body: noise(page + 1, PAGE_BYTES) });
const zeroRecord = (page: number, fill = 0) =>
  writeRecord({ flags: 0x22, page, body: Uint8Array.of(fill) });

/** Scan `bytes` from `staging` on; where it stopped is relative to that. */
function scan(
  bytes: Uint8Array,
  { used = 0, capacity = 64, pages = PAGES } = {},
): { result: number; position: number; used: number } {
  twin.set(staging, bytes);
  const end = staging + bytes.length;
  const result = twin.run((kernels) =>
    kernels.scanRam(staging, end, FIRST_PAGE, pages, table, used, capacity, out)
  );
  return { result, position: twin.u32(out) - staging, used: twin.u32(out + 4) };
}

Deno.test("scanRam enters pages with their content and zero pages with none", () => {
  twin.reset();
  const bytes = concat([pageRecord(3), zeroRecord(0), pageRecord(11)]);
  assertEquals(scan(bytes), { result: SCAN.MORE, position: bytes.length, used: 3 });
  const entries = [0, 1, 2, 3, 4, 5].map((i) => twin.u32(table + 4 * i));
  const second = staging + 8 + PAGE_BYTES + 9 + 8;
  assertEquals(entries, [1003, staging + 8, 1000, 0, 1011, second]);
});

Deno.test("scanRam leaves a record that is not complete", () => {
  const bytes = concat([zeroRecord(1), pageRecord(2)]);
  for (const length of [0, 7, 8, 9, 10, 16, 17, 18, bytes.length - 1, bytes.length]) {
    twin.reset();
    const isWhole = length === bytes.length;
    const position = isWhole ? length : length < 9 ? 0 : 9;
    assertEquals(scan(bytes.subarray(0, length)), {
      result: SCAN.MORE,
      position,
      used: isWhole ? 2 : position === 9 ? 1 : 0,
    });
  }
});

Deno.test("scanRam leaves every other record to the caller", () => {
  const other = [0x02, 0x08, 0x10, 0x04, 0x60, 0x62, 0x2a, 0x20, 0x228, 0x128];
  for (const flags of other) {
    twin.reset();
    const record = writeRecord({ flags, page: 1, body: new Uint8Array(PAGE_BYTES) });
    const bytes = concat([zeroRecord(1), record]);
    assertEquals(scan(bytes), { result: SCAN.OTHER, position: 9, used: 1 });
  }
  twin.reset();
  assertEquals(scan(zeroRecord(1, 0xff)), { result: SCAN.OTHER, position: 0, used: 0 });
});

Deno.test("scanRam refuses a page outside the block, however large its address", () => {
  for (const page of [PAGES, PAGES + 1, 2 ** 20, 2 ** 32, 2 ** 32 + 1, 2 ** 51]) {
    twin.reset();
    assertEquals(scan(zeroRecord(page)), { result: SCAN.BAD_ADDRESS, position: 0, used: 0 });
    assertEquals(scan(pageRecord(page)), { result: SCAN.BAD_ADDRESS, position: 0, used: 0 });
  }
  assertEquals(scan(zeroRecord(0), { pages: 0 }).result, SCAN.BAD_ADDRESS);
});

Deno.test("scanRam stops when the table is full, and goes on in another", () => {
  twin.reset();
  const bytes = concat([zeroRecord(1), zeroRecord(2), zeroRecord(3)]);
  assertEquals(scan(bytes, { capacity: 2 }), { result: SCAN.FULL, position: 18, used: 2 });
  assertEquals(scan(bytes.subarray(18)), { result: SCAN.MORE, position: 9, used: 1 });
  assertEquals(scan(bytes, { used: 2, capacity: 2 }), { result: SCAN.FULL, position: 0, used: 2 });
});

const record = fc.oneof(
  { weight: 4, arbitrary: fc.nat(PAGES - 1).map((page) => zeroRecord(page)) },
  { weight: 2, arbitrary: fc.nat(PAGES - 1).map(pageRecord) },
  { weight: 1, arbitrary: fc.uint8Array({ minLength: 1, maxLength: 12 }) },
);

Deno.test("scanRam agrees with the reference on records and rubbish", () => {
  fc.assert(fc.property(
    fc.array(record, { maxLength: 9 }),
    fc.array(fc.record({ at: fc.nat(STAGING_BYTES), value: fc.nat(255) }), { maxLength: 3 }),
    fc.nat(8),
    fc.nat(PAGES),
    (records, mutations, capacity, pages) => {
      twin.reset();
      const bytes = concat(records);
      for (const { at, value } of mutations) if (bytes.length > 0) bytes[at % bytes.length] = value;
      scan(bytes, { capacity, pages });
    },
  ));
});

Deno.test("scanRam finds the same pages however the bytes arrive", () => {
  fc.assert(fc.property(
    fc.array(
      fc.oneof(fc.nat(PAGES - 1).map(pageRecord), fc.nat(PAGES - 1).map((p) => zeroRecord(p))),
      {
        maxLength: 8,
      },
    ),
    fc.array(fc.nat(STAGING_BYTES), { maxLength: 8 }),
    (records, cuts) => {
      twin.reset();
      const bytes = concat(records);
      assertEquals(scan(bytes).used, records.length);
      const whole = twin.get({ address: table, length: 64 * 8 });
      twin.fill(table, 64 * 8, 0xc7);
      const ends = [...cuts.filter((cut) => cut < bytes.length), bytes.length].sort((a, b) =>
        a - b
      );
      let position = staging;
      let used = 0;
      for (const end of ends) {
        twin.run((kernels) =>
          kernels.scanRam(position, staging + end, FIRST_PAGE, PAGES, table, used, 64, out)
        );
        position = twin.u32(out);
        used = twin.u32(out + 4);
      }
      assertEquals(twin.get({ address: table, length: 64 * 8 }), whole);
    },
  ));
});

/** Entries of a page table, some of them wrong. */
const entries = fc.array(
  fc.record({
    page: fc.oneof(
      { weight: 12, arbitrary: fc.nat(PAGES - 1).map((page) => FIRST_PAGE + page) },
      fc.constantFrom(0, FIRST_PAGE - 1, FIRST_PAGE + PAGES, 0xffff_ffff),
    ),
    content: fc.oneof(
      { weight: 6, arbitrary: fc.nat(STAGING_BYTES - PAGE_BYTES).map((at) => staging + at) },
      { weight: 6, arbitrary: fc.constant(0) },
      fc.constantFrom(0x7fff_f000, 0xffff_f000, 0xffff_ffff),
    ),
  }),
  { maxLength: 12 },
);

Deno.test("applyPages and markPages agree with the reference on right and wrong entries", () => {
  fc.assert(fc.property(
    entries,
    contentsOf(STAGING_BYTES),
    contentsOf(PAGES * PAGE_BYTES),
    (list, staged, mirrored) => {
      twin.reset();
      twin.set(staging, staged);
      twin.set(mirror, mirrored);
      twin.fill(bitmap, 2, 0);
      twin.setU32(table, ...list.flatMap(({ page, content }) => [page, content]));
      const applied = twin.run((kernels) =>
        kernels.applyPages(table, list.length, mirror, FIRST_PAGE, PAGES)
      );
      const marked = twin.run((kernels) =>
        kernels.markPages(table, list.length, bitmap, FIRST_PAGE, PAGES)
      );
      assertEquals([-1, list.length].includes(applied), true);
      if (marked < 0) return;
      const pages = new Set(list.map(({ page }) => page));
      assertEquals(twin.run((kernels) => kernels.bitmapCount(bitmap, PAGES)), pages.size);
    },
  ));
});

Deno.test("applyPages copies what a table points to and clears its zero pages", () => {
  twin.reset();
  const content = noise(7, PAGE_BYTES);
  twin.set(staging, content);
  twin.setU32(table, FIRST_PAGE + 1, staging, FIRST_PAGE + 2, 0);
  assertEquals(twin.run((k) => k.applyPages(table, 2, mirror, FIRST_PAGE, PAGES)), 2);
  assertEquals(twin.get({ address: mirror + PAGE_BYTES, length: PAGE_BYTES }), content);
  const cleared = twin.get({ address: mirror + 2 * PAGE_BYTES, length: PAGE_BYTES });
  assertEquals(cleared, new Uint8Array(PAGE_BYTES));
});

Deno.test("collectPages gives every set bit once, through a table of any size", () => {
  fc.assert(fc.property(
    fc.uniqueArray(fc.nat(PAGES - 1), { maxLength: PAGES }),
    fc.integer({ min: 1, max: 5 }),
    fc.nat(PAGES),
    (bits, capacity, from) => {
      twin.reset();
      twin.fill(bitmap, 2, 0);
      for (const bit of bits) twin.run((kernels) => kernels.bitmapSet(bitmap, PAGES, bit, 1));
      const found: number[] = [];
      let next = from;
      while (next < PAGES) {
        const used = twin.run((kernels) =>
          kernels.collectPages(bitmap, next, PAGES, FIRST_PAGE, mirror, table, capacity, out)
        );
        assertEquals(twin.u32(out + 4), used);
        next = twin.u32(out);
        for (let i = 0; i < used; i++) {
          const page = twin.u32(table + 8 * i) - FIRST_PAGE;
          assertEquals(twin.u32(table + 8 * i + 4), mirror + page * PAGE_BYTES);
          found.push(page);
        }
      }
      assertEquals(found, bits.filter((bit) => bit >= from).sort((a, b) => a - b));
    },
  ));
});
