import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { Capture } from "../../engine/checkpoint/capture.ts";
import { IncomingCheckpoint } from "../../engine/checkpoint/incoming.ts";
import type { PlacedBlock } from "../../engine/stream/format.ts";
import { RamRecords } from "../../engine/stream/ram_section.ts";
import { ReferenceKernels, WasmKernels } from "../../wasm/mod.ts";
import {
  BLOCKS,
  checkpointStream,
  initialStream,
  pageContent,
  type SamplePage,
} from "../stream/sample.ts";

const PAGES = 72;
const SMALL = { segmentBytes: 64 * 1024, segmentsMax: 64, pagesMax: 512 };

/** The guest's RAM as a plain array of pages: what every copy of it must be equal to. */
type Ram = Uint8Array[];

/** Page numbers that differ: a diff of whole memories would be longer than anyone reads. */
function assertSame(actual: Ram, expected: Ram): void {
  const differing = expected.flatMap((page, index) =>
    page.every((byte, at) => byte === actual[index]?.[at]) ? [] : [index]
  );
  assertEquals(differing, []);
}

function apply(ram: Ram, pages: readonly SamplePage[]): void {
  for (const { block, page, fill } of pages) ram[block * 64 + page] = pageContent(fill);
}

/** Apply chunks of RAM records as QEMU would. */
function load(ram: Ram, blocks: readonly PlacedBlock[], chunk: Uint8Array): void {
  const records = new RamRecords(blocks);
  const kernels = new ReferenceKernels();
  const [source, target] = [kernels.alloc(8192), kernels.alloc(4096)];
  const copy = chunk.slice();
  for (let at = 0; at < copy.length;) {
    const record = records.read(new DataView(copy.buffer, at));
    assert(record?.type === "page" || record?.type === "xbzrle", "not a whole record");
    if (record.type === "xbzrle") {
      kernels.bytes.set(copy.subarray(at + record.at, at + record.at + record.length), source);
      kernels.bytes.set(ram[record.page]!, target);
      assert(kernels.xbzrleDecode(source, record.length, target, 4096) > 0, "malformed XBZRLE");
      ram[record.page] = kernels.bytes.slice(target, target + 4096);
    } else if (record.at === 0) {
      ram[record.page] = new Uint8Array(4096);
    } else {
      ram[record.page] = copy.slice(at + record.at, at + record.at + 4096);
    }
    at += record.recordBytes;
  }
}

function feed(capture: Capture, bytes: Uint8Array) {
  const events = [];
  for (let at = 0; at < bytes.length;) {
    const space = capture.space();
    const piece = bytes.subarray(at, at + Math.min(space.length, 50_000));
    space.set(piece);
    at += piece.length;
    events.push(...capture.received(piece.length));
  }
  return events;
}

/** A checkpoint through the capture's whole way, from request to acknowledgment. */
function checkpoint(capture: Capture, pages: readonly SamplePage[]): void {
  const bytes = checkpointStream(pages);
  assertEquals(feed(capture, bytes.subarray(0, 4)), [{ type: "request" }]);
  capture.reply();
  const events = feed(capture, bytes.subarray(4));
  assertEquals(events.map((event) => event.type), ["whole"]);
  capture.acknowledge();
}

const samplePage: fc.Arbitrary<SamplePage> = fc.oneof(
  fc.record({ block: fc.constant(0), page: fc.nat(63), fill: fc.nat(4) }),
  fc.record({ block: fc.constant(1), page: fc.nat(7), fill: fc.nat(4) }),
);

for (
  const { name, kernels, firstShardBytes, shardBytes, staging } of [
    { name: "one shard", kernels: () => new ReferenceKernels(), staging: SMALL },
    { name: "one shard in WebAssembly", kernels: () => WasmKernels.create(), staging: SMALL },
    {
      name: "several shards",
      kernels: () => new ReferenceKernels(),
      firstShardBytes: 10 * 4096,
      shardBytes: 30 * 4096,
      staging: SMALL,
    },
    {
      name: "a staging area that overflows",
      kernels: () => new ReferenceKernels(),
      firstShardBytes: 40 * 4096,
      staging: { segmentBytes: 32 * 1024, segmentsMax: 2, pagesMax: 3 },
    },
  ]
) {
  Deno.test(`Mirror and secondary hold the guest's memory at every checkpoint: ${name}`, () => {
    fc.assert(
      fc.property(
        fc.array(samplePage, { maxLength: 20 }),
        fc.array(
          fc.record({ pages: fc.array(samplePage, { maxLength: 20 }), sent: fc.boolean() }),
          {
            maxLength: 6,
          },
        ),
        (initial, checkpoints) => {
          const capture = new Capture(kernels(), {
            createKernels: kernels,
            staging,
            ...(firstShardBytes === undefined ? {} : { firstShardBytes }),
            ...(shardBytes === undefined ? {} : { shardBytes }),
          });
          const guest: Ram = Array.from({ length: PAGES }, () => new Uint8Array(4096));
          apply(guest, initial);
          assertEquals(feed(capture, initialStream(initial)), [{ type: "initial" }]);
          const { mirror } = capture;
          mirror.markAllMissing();
          // A fresh VM: its main memory is zero, its ROM is not.
          const secondary: Ram = Array.from(
            { length: PAGES },
            (_, page) => new Uint8Array(4096).fill(page < 64 ? 0 : 0xee),
          );
          const seed = () => {
            for (let chunk; (chunk = mirror.takeMissing(true)) !== undefined;) {
              load(secondary, capture.blocks, chunk);
            }
          };
          seed();
          assertSame(secondary, guest);
          for (const { pages, sent } of checkpoints) {
            // QEMU sends a page once a checkpoint.
            const once = [...new Map(pages.map((p) => [p.block * 64 + p.page, p])).values()];
            apply(guest, once);
            checkpoint(capture, once);
            if (sent) {
              const incoming = new IncomingCheckpoint(BLOCKS);
              // Pages that were absorbed before and not sent yet go first.
              for (let chunk; (chunk = mirror.takeMissing(false)) !== undefined;) {
                load(secondary, capture.blocks, chunk);
              }
              for (const chunk of capture.encodeDelta()) {
                incoming.pages(chunk.slice());
                load(secondary, capture.blocks, chunk);
              }
              mirror.clearMissing();
              assertSame(secondary, guest);
            } else {
              capture.absorb();
            }
            assert(capture.consistent);
            assertSame(Array.from({ length: PAGES }, (_, page) => mirror.page(page)), guest);
          }
        },
      ),
      { numRuns: 40 },
    );
  });
}

Deno.test("Capture drops nothing when a delta is abandoned half-way", () => {
  const capture = new Capture(new ReferenceKernels(), {
    createKernels: () => new ReferenceKernels(),
    firstShardBytes: 4 * 4096,
    shardBytes: 4 * 4096,
    staging: SMALL,
  });
  feed(capture, initialStream([]));
  capture.mirror.clearMissing();
  const pages = Array.from({ length: 60 }, (_, page) => ({ block: 0, page, fill: 1 + page % 5 }));
  checkpoint(capture, pages);
  for (const _ of capture.encodeDelta()) break;
  capture.absorb();
  for (const { page, fill } of pages) assertEquals(capture.mirror.page(page), pageContent(fill));
  assertEquals(capture.mirror.missingPages, 60);
});
