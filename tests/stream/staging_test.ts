import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { LocalProtocolError } from "../../engine/errors.ts";
import { Staging } from "../../engine/stream/staging.ts";
import { ReferenceKernels } from "../../wasm/mod.ts";

const SEGMENT = 32 * 1024;
/** A segment is left behind when it has less room than this. */
const ROOM_MIN = SEGMENT / 4;

function staging(segmentsMax = 3, pagesMax = 8): Staging {
  return new Staging(new ReferenceKernels(), { segmentBytes: SEGMENT, segmentsMax, pagesMax });
}

function fill(area: Staging, count: number, byte: number): void {
  area.space().fill(byte, 0, count);
  area.filled(count);
}

Deno.test("Staging refuses segments that a single record could fill", () => {
  const make = (segmentBytes: number) => new Staging(new ReferenceKernels(), { segmentBytes });
  assertThrows(() => make(16 * 1024), RangeError, "larger than 16384");
  assertEquals(make(16 * 1024 + 1).unread, 0);
});

Deno.test("Staging refuses more bytes than it gave room for", () => {
  const area = staging();
  const { length } = area.space();
  assertEquals(length, SEGMENT);
  assertThrows(() => area.filled(length + 1), LocalProtocolError);
  assertThrows(() => area.filled(-1), LocalProtocolError);
  assertEquals(area.unread, 0, "nothing was changed");
  area.filled(length);
  assertEquals(area.unread, SEGMENT);
});

Deno.test("Staging moves what is unread to the next segment, and leaves pages where they are", () => {
  const area = staging();
  fill(area, SEGMENT - 100, 1);
  const page = area.position;
  area.addPage(7, page);
  area.position += SEGMENT - 300;
  fill(area, 10, 2);
  assertEquals(area.unread, 210, "200 bytes and the 10 behind them");
  const { bytes } = area.kernels;
  assertEquals(bytes[area.position], 1);
  assertEquals(bytes[area.end - 1], 2);
  assertEquals(bytes[page], 1, "the page is still there");
  assert(area.position < page || area.position >= page + SEGMENT, "in another segment");
});

Deno.test("Staging is full when its last segment has no room for another read", () => {
  const area = staging(2);
  for (const byte of [1, 2]) {
    fill(area, SEGMENT - ROOM_MIN + 1, byte);
    area.addPage(byte, area.position);
    area.position = area.end;
  }
  assert(area.full);
  assertThrows(() => area.space(), LocalProtocolError, "full");
  area.releasePages();
  assertEquals(area.full, false);
  assertEquals(area.space().length, SEGMENT, "it begins anew");
});

Deno.test("Staging is full when its page table is", () => {
  const area = staging(3, 2);
  fill(area, 10, 1);
  area.addPage(1, 0);
  assertEquals(area.full, false);
  area.addPage(2, 0);
  assert(area.full);
  assertThrows(() => area.space(), LocalProtocolError, "full");
});

Deno.test("Staging keeps pages that came while the last ones were still kept", () => {
  const area = staging();
  for (let round = 1; round <= 4; round++) {
    // A read that was begun while the pages of the last checkpoint were kept brings some of the next.
    const space = area.space();
    area.releasePages();
    space.fill(round, 0, 5000);
    area.filled(5000);
    const page = area.position;
    area.addPage(1, page);
    area.position = area.end;
    area.keepPages();
    for (let message = 0; message < 3; message++) {
      fill(area, 4, 0xee);
      area.position = area.end;
    }
    const kept = area.kernels.bytes.subarray(page, page + 4096);
    assert(kept.every((byte) => byte === round), `round ${round}: a page was written over`);
  }
});

Deno.test("Staging keeps every page and every unread byte, whatever is read when", () => {
  fc.assert(
    fc.property(
      fc.array(fc.record({ bytes: fc.integer({ min: 1, max: SEGMENT }), pages: fc.nat(3) }), {
        maxLength: 60,
      }),
      (reads) => {
        const area = staging(4, 16);
        const pages: { address: number; byte: number }[] = [];
        reads.forEach((read, index) => {
          if (area.full) {
            for (const { address, byte } of pages) {
              assertEquals(area.kernels.bytes[address], byte, "a page was written over");
            }
            pages.length = 0;
            area.releasePages();
          }
          const space = area.space();
          assert(space.length >= ROOM_MIN || area.pageCount === 0);
          const byte = index % 256;
          const count = Math.min(read.bytes, space.length);
          space.fill(byte, 0, count);
          area.filled(count);
          assertEquals(area.kernels.bytes[area.end - 1], byte);
          for (let page = 0; page < read.pages && !area.full; page++) {
            area.addPage(page, area.end - 1);
            pages.push({ address: area.end - 1, byte });
          }
          // At most one record is left unread.
          area.position = Math.max(area.position, area.end - 4000);
        });
        for (const { address, byte } of pages) assertEquals(area.kernels.bytes[address], byte);
      },
    ),
    { numRuns: 60 },
  );
});
