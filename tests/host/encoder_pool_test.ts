import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert/mod.js";
import { Capture } from "../../engine/checkpoint/capture.ts";
import type { EncodeJob } from "../../engine/checkpoint/page_encoder.ts";
import { LinkError, LocalProtocolError } from "../../engine/errors.ts";
import { defaultEncoders, EncoderPool } from "../../engine/host/encoder_pool.ts";
import { decodeMessage, FrameDecoder } from "../../engine/link/mod.ts";
import { ReferenceKernels, WasmKernels } from "../../wasm/mod.ts";
import { applyRecords } from "../checkpoint/_ram.ts";
import { checkpointStream, initialStream, pageContent, type SamplePage } from "../stream/sample.ts";

const PAGES = 72;

function feed(capture: Capture, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) {
    const space = capture.space();
    const piece = bytes.subarray(at, at + Math.min(space.length, 100_000));
    space.set(piece);
    at += piece.length;
    capture.received(piece.length);
  }
}

function newCapture(firstShardBytes = 2 ** 30): Capture {
  const capture = new Capture(WasmKernels.create(), {
    createKernels: () => WasmKernels.create(),
    firstShardBytes,
    jobPages: 3,
  });
  const rom = Array.from({ length: 8 }, (_, page) => ({ block: 1, page, fill: 0 }));
  feed(capture, initialStream(rom));
  return capture;
}

/** A whole checkpoint, staged. */
function checkpoint(capture: Capture, pages: readonly SamplePage[]): void {
  const bytes = checkpointStream(pages);
  feed(capture, bytes.subarray(0, 4));
  capture.reply();
  feed(capture, bytes.subarray(4));
  capture.acknowledge();
}

for (const workers of [1, 2, 3]) {
  for (const firstShardBytes of [2 ** 30, 40 * 4096]) {
    const shards = firstShardBytes === 2 ** 30 ? "one shard" : "two shards";
    Deno.test(`EncoderPool of ${workers} makes of the guest what it is: ${shards}`, async () => {
      const capture = newCapture(firstShardBytes);
      const { mirror } = capture;
      const pool = new EncoderPool(workers);
      try {
        pool.attach(mirror);
        const decoder = new FrameDecoder(new ReferenceKernels());
        const ram = Array.from({ length: PAGES }, () => new Uint8Array(4096));
        const guest = ram.slice();
        const send = async (jobs: Iterable<EncodeJob>) =>
          await pool.run(jobs, 7, false, ({ bytes, recordBytes }) => {
            for (const frame of decoder.push(bytes)) {
              const message = decodeMessage(frame);
              assert(message.type === "pages" && message.epoch === 7);
              assertEquals(message.records.length, recordBytes);
              applyRecords(ram, capture.blocks, message.records);
            }
            return Promise.resolve();
          });
        mirror.markAllMissing();
        await send(mirror.missingJobs(true));
        for (let round = 0; round < 5; round++) {
          const pages = Array.from({ length: 60 }, (_, index) => ({
            block: 0,
            page: (index + round) % 64,
            fill: (index * round) % 5,
          }));
          for (const { page, fill } of pages) guest[page] = pageContent(fill);
          checkpoint(capture, pages);
          const counts = await send(mirror.deltaJobs(capture.beginDelta().pages));
          capture.endDelta();
          assertEquals(counts.unchanged + counts.zero + counts.xbzrle + counts.whole, 60);
          for (let page = 0; page < PAGES; page++) {
            assertEquals(mirror.page(page), guest[page], `mirror, page ${page}`);
            assertEquals(ram[page], guest[page], `secondary, page ${page}`);
          }
        }
      } finally {
        pool.close();
      }
    });
  }
}

Deno.test("EncoderPool ends with the link's error, and no job under way", async () => {
  const capture = newCapture();
  const pool = new EncoderPool(2);
  try {
    pool.attach(capture.mirror);
    const pages = Array.from({ length: 64 }, (_, page) => ({ block: 0, page, fill: 1 + page % 4 }));
    checkpoint(capture, pages);
    let frames = 0;
    const taken = pool.run(
      capture.mirror.deltaJobs(capture.beginDelta().pages),
      1,
      false,
      () => ++frames > 3 ? Promise.reject(new LinkError("Cannot use the link")) : Promise.resolve(),
    );
    await assertRejects(() => taken, LinkError);
    const framesThen = frames;
    capture.absorb();
    for (const { page, fill } of pages) assertEquals(capture.mirror.page(page), pageContent(fill));
    await new Promise((resolve) => setTimeout(resolve, 50));
    assertEquals(frames, framesThen, "an encoder went on");
    // It serves on.
    checkpoint(capture, pages.slice(0, 5));
    const { pages: staged } = capture.beginDelta();
    const counts = await pool.run(
      capture.mirror.deltaJobs(staged),
      2,
      false,
      () => Promise.resolve(),
    );
    assertEquals(counts.unchanged, 5);
  } finally {
    pool.close();
  }
});

Deno.test("EncoderPool refuses a job that makes no sense, and what comes after its end", async () => {
  const capture = newCapture();
  const pool = new EncoderPool(1);
  pool.attach(capture.mirror);
  const run = (job: EncodeJob) => pool.run([job], 1, false, () => Promise.resolve());
  const entries = Uint32Array.of(9999, 0);
  const job = { mode: 0, shard: 0, entries, foreign: false };
  await assertRejects(() => run(job), LocalProtocolError, "page 9999");
  const nowhere = { mode: 0, shard: 5, entries: Uint32Array.of(0, 0), foreign: false };
  await assertRejects(() => run(nowhere), LocalProtocolError, "no shard 5");
  const outside = { mode: 0, shard: 0, entries: Uint32Array.of(1, 0xffff_f000), foreign: false };
  await assertRejects(() => run(outside), LocalProtocolError, "page 1");
  pool.close();
  const late = { mode: 0, shard: 0, entries: Uint32Array.of(1, 0), foreign: false };
  await assertRejects(() => run(late), LocalProtocolError, "closed");
});

Deno.test("EncoderPool rejects a run that it is closed under", async () => {
  const capture = newCapture();
  const pool = new EncoderPool(2);
  pool.attach(capture.mirror);
  capture.mirror.markAllMissing();
  const run = pool.run(capture.mirror.missingJobs(false), 1, false, () => Promise.resolve());
  pool.close();
  await assertRejects(() => run, LocalProtocolError, "closed");
});

Deno.test("EncoderPool refuses to be without workers: it would encode nothing, and say nothing", () => {
  for (const count of [0, -1, 1.5, NaN]) {
    assertThrows(() => new EncoderPool(count), RangeError, "Cannot encode");
  }
});

Deno.test("EncoderPool leaves a core to the thread that reads", () => {
  assertEquals([1, 2, 3, 5, 64].map(defaultEncoders), [1, 1, 2, 4, 4]);
});
