import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { Capture } from "../../engine/checkpoint/capture.ts";
import { IncomingCheckpoint } from "../../engine/checkpoint/incoming.ts";
import { type EncodeJob, PageEncoder } from "../../engine/checkpoint/page_encoder.ts";
import { ReferenceKernels, WasmKernels } from "../../wasm/mod.ts";
import {
  BLOCKS,
  checkpointStream,
  initialStream,
  pageContent,
  type SamplePage,
} from "../stream/sample.ts";
import { applyRecords } from "./_ram.ts";

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
  assertEquals(events.map((event) => event.type), ["stopped", "whole"]);
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
          const encoder = new PageEncoder(mirror.kernels, mirror.addEncoder());
          const loadJobs = (jobs: Iterable<EncodeJob>, incoming?: IncomingCheckpoint) => {
            for (const job of jobs) {
              for (const chunk of encoder.encode(job)) {
                incoming?.pages(chunk.slice());
                applyRecords(secondary, capture.blocks, chunk);
              }
            }
          };
          loadJobs(mirror.missingJobs(true));
          assertSame(secondary, guest);
          for (const { pages, sent } of checkpoints) {
            // QEMU sends a page once a checkpoint.
            const once = [...new Map(pages.map((p) => [p.block * 64 + p.page, p])).values()];
            apply(guest, once);
            checkpoint(capture, once);
            if (sent) {
              const incoming = new IncomingCheckpoint(BLOCKS);
              // Pages that were absorbed before and not sent yet go first.
              loadJobs(mirror.missingJobs(false));
              const { pages: staged, ordered } = capture.beginDelta();
              assertEquals(ordered, false, "no page comes twice");
              loadJobs(mirror.deltaJobs(staged), incoming);
              capture.endDelta();
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
  const { mirror } = capture;
  const encoder = new PageEncoder(mirror.kernels, mirror.addEncoder());
  for (const job of mirror.deltaJobs(capture.beginDelta().pages)) {
    for (const _ of encoder.encode(job)) break;
    break;
  }
  assertEquals(capture.consistent, false, "some pages are in the mirror, and some are not");
  capture.absorb();
  assert(capture.consistent);
  for (const { page, fill } of pages) assertEquals(capture.mirror.page(page), pageContent(fill));
  assertEquals(capture.mirror.missingPages, 60);
});

Deno.test("Capture says when a page comes twice in a checkpoint, so that order matters", () => {
  const capture = new Capture(new ReferenceKernels(), {
    createKernels: () => new ReferenceKernels(),
    staging: SMALL,
  });
  feed(capture, initialStream([]));
  capture.mirror.clearMissing();
  const twice = [1, 2].map((fill) => ({ block: 0, page: 7, fill }));
  checkpoint(capture, [...twice, { block: 0, page: 8, fill: 3 }]);
  assertEquals(capture.beginDelta().ordered, true);
  capture.absorb();
  assertEquals(capture.mirror.page(7), pageContent(2));
  // That the last checkpoint is not committed yet does not matter.
  for (const fill of [4, 5]) {
    checkpoint(capture, [7, 8, 63].map((page) => ({ block: 0, page, fill })));
    assertEquals(capture.beginDelta().ordered, false);
    capture.absorb();
  }
});
