import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { Capture, type CaptureEvent } from "../../engine/checkpoint/capture.ts";
import { PageEncoder } from "../../engine/checkpoint/page_encoder.ts";
import { ColoError, StateError, StreamError } from "../../engine/errors.ts";
import { ByteWriter } from "../../engine/stream/byte_writer.ts";
import { RAM_FLAG, XBZRLE_ENCODING } from "../../engine/stream/format.ts";
import * as write from "../../engine/stream/writer.ts";
import { ReferenceKernels } from "../../wasm/mod.ts";
import {
  checkpointStream,
  concat,
  device,
  initialStream,
  MACHINE,
  RAM_SECTION_ID,
  VM_DESCRIPTION,
} from "../stream/sample.ts";

const PAGES = [{ block: 0, page: 3, fill: 1 }, { block: 1, page: 2, fill: 2 }];
const REQUEST = write.coloMessage("checkpoint-request");
const SEND = write.coloMessage("vmstate-send");

function newCapture(): Capture {
  return new Capture(new ReferenceKernels(), {
    createKernels: () => new ReferenceKernels(),
    staging: { segmentBytes: 64 * 1024, segmentsMax: 4, pagesMax: 64 },
  });
}

function feed(capture: Capture, bytes: Uint8Array): CaptureEvent[] {
  const events: CaptureEvent[] = [];
  for (let at = 0; at < bytes.length;) {
    const space = capture.space();
    const piece = bytes.subarray(at, at + Math.min(space.length, 20_000));
    space.set(piece);
    at += piece.length;
    events.push(...capture.received(piece.length));
  }
  return events;
}

/** A capture that has taken its initial stream. */
function running(): Capture {
  const capture = newCapture();
  assertEquals(feed(capture, initialStream(PAGES)), [{ type: "initial" }]);
  return capture;
}

Deno.test("Capture answers a primary in the order that QEMU expects", () => {
  const capture = newCapture();
  assertEquals(capture.accept(), Uint8Array.of(0, 1, 0, 4, 0, 0, 0, 0));
  assertEquals(feed(capture, initialStream(PAGES)), [{ type: "initial" }]);
  assertEquals(capture.machine, MACHINE);
  assertEquals(capture.ready(), Uint8Array.of(0, 0, 0, 0));
  assertEquals(feed(capture, REQUEST), [{ type: "request" }]);
  assertEquals(capture.reply(), Uint8Array.of(0, 0, 0, 2));
  const checkpoint = checkpointStream(PAGES.slice(1));
  assertEquals(feed(capture, checkpoint.subarray(4)), [
    { type: "stopped", epoch: 1 },
    { type: "whole", epoch: 1, pages: 1 },
  ]);
  assertEquals(capture.acknowledge(), [Uint8Array.of(0, 0, 0, 5), Uint8Array.of(0, 0, 0, 6)]);
  assertEquals(capture.state, "idle");
});

Deno.test("Capture takes an initial stream without a mark at its end once QEMU has entered COLO", () => {
  const capture = newCapture();
  const bytes = initialStream(PAGES);
  feed(capture, bytes.subarray(0, bytes.length - write.vmDescription(VM_DESCRIPTION).length));
  assertEquals(capture.state, "initial");
  assertEquals(capture.entered(), [{ type: "initial" }]);
  assertEquals([capture.state, capture.consistent], ["idle", true]);
  assertEquals(capture.entered(), []);
});

Deno.test("Capture keeps device state and memory of the same checkpoint, taken in or not", () => {
  const capture = running();
  const [first, second] = [[1, 2, 3], [4, 5]].map((content) =>
    concat(device(Uint8Array.from(content)), write.endOfFile())
  );
  assertEquals(capture.deviceState, first);
  feed(capture, REQUEST);
  capture.reply();
  assertEquals(capture.consistent, false, "a checkpoint is arriving");
  feed(capture, checkpointStream([{ block: 0, page: 3, fill: 0 }]).subarray(4));
  assertEquals(capture.deviceState, first, "not yet taken in");
  assertEquals(capture.stagedDeviceState, second);
  assertEquals(capture.mirror.page(3)[0], 31, "nor is the page");
  capture.acknowledge();
  capture.absorb();
  assertEquals(capture.deviceState, second);
  assertEquals(capture.mirror.page(3)[0], 0);
  assertEquals(capture.consistent, true);
});

Deno.test("Capture tells a primary that has been let begin from one that stands still", () => {
  const capture = running();
  feed(capture, REQUEST);
  capture.reply();
  assertEquals(capture.state, "replied");
  feed(capture, SEND);
  assertEquals([capture.state, capture.consistent], ["sending", false]);
});

Deno.test("Capture refuses to go on out of turn, and stays as it was", () => {
  const capture = newCapture();
  for (const step of ["ready", "reply", "acknowledge"] as const) {
    assertThrows(() => capture[step](), StateError);
    assertEquals(capture.state, "initial");
  }
  const idle = running();
  assertThrows(() => idle.accept(), StateError);
  assertThrows(() => idle.reply(), StateError);
  assertThrows(() => idle.acknowledge(), StateError);
  assertThrows(() => newCapture().mirror, StateError);
});

Deno.test("Capture leaves a whole checkpoint where it is, whatever is said before it is taken", () => {
  const pages = [0, 1, 2].map((page) => ({ block: 0, page, fill: 9 }));
  // Of some of these sizes the next message is what fills the staging area.
  for (let size = 1; size < 6000; size += 3) {
    const capture = new Capture(new ReferenceKernels(), {
      createKernels: () => new ReferenceKernels(),
      staging: { segmentBytes: 20 * 1024, segmentsMax: 1, pagesMax: 64 },
    });
    feed(capture, initialStream([]));
    feed(capture, REQUEST);
    capture.reply();
    feed(capture, checkpointStream(pages, device(new Uint8Array(size))).subarray(4));
    capture.acknowledge();
    const early = capture.hasEarlyPages;
    const staged = capture.reader.staging.pageCount;
    assertEquals(feed(capture, REQUEST), [{ type: "request" }]);
    assertEquals(capture.hasEarlyPages, early, `${size} bytes of device state`);
    assertEquals(capture.reader.staging.pageCount, staged);
    assertThrows(() => capture.reply(), StateError, "Cannot begin");
    encode(capture);
    capture.reply();
  }
});

Deno.test("Capture takes what a QEMU must not say for a StreamError", () => {
  const change = concat(
    new ByteWriter().u64(RAM_FLAG.XBZRLE).name("pc.ram").u8(XBZRLE_ENCODING).u16(3).finish(),
    Uint8Array.of(0, 1, 7),
  );
  const cases: [string, (capture: Capture) => void][] = [
    ["vmstate-send", (capture) => feed(capture, concat(REQUEST, SEND))],
    ["checkpoint-request", (capture) => {
      feed(capture, REQUEST);
      capture.reply();
      feed(capture, concat(checkpointStream(PAGES).subarray(4), REQUEST));
    }],
    ["xbzrle", (capture) => {
      feed(capture, REQUEST);
      capture.reply();
      feed(capture, concat(SEND, write.ramEnd(RAM_SECTION_ID), change));
    }],
  ];
  for (const [what, say] of cases) {
    const error = assertThrows(() => say(running()), StreamError);
    assert(error.message.toLowerCase().includes(what), error.message);
  }
});

Deno.test("Capture refuses an initial stream that has no memory", () => {
  const bytes = concat(
    write.header(),
    write.configuration(MACHINE),
    device(Uint8Array.of(1)),
    write.endOfFile(),
    write.vmDescription(),
  );
  assertThrows(() => feed(newCapture(), bytes), StreamError, "not expected here");
});

Deno.test("Capture survives 4,000 mutated streams with nothing but its own errors", () => {
  const initial = initialStream(PAGES);
  const checkpoint = checkpointStream(PAGES);
  const seed = Number(Deno.env.get("COLO_FUZZ_SEED") ?? 20260102);
  console.log(`seed ${seed}: replay with COLO_FUZZ_SEED=${seed}`);
  const random = generator(seed);
  // The block list decides how much memory is taken, and page contents may be anything.
  const spared = (at: number) => at >= 40 && at < 90;
  let [refused, whole] = [0, 0];
  for (let round = 0; round < 4_000; round++) {
    const capture = small();
    const bytes = concat(initial, checkpoint, checkpoint);
    // QEMU waits for our answer behind a request, and behind a whole checkpoint.
    const waits = [0, 4, checkpoint.length].map((length) => initial.length + length)
      .concat(initial.length + checkpoint.length + 4, bytes.length);
    for (let count = random(3); count > 0; count--) {
      const near = [initial.length, initial.length + checkpoint.length, 0][random(3)]!;
      const at = random(2) === 0
        ? random(bytes.length)
        : Math.min(near + random(40), bytes.length - 1);
      if (!spared(at)) bytes[at] = random(256);
    }
    try {
      for (let at = 0; at < bytes.length;) {
        const space = capture.space();
        const wait = waits.find((wait) => wait > at)!;
        const piece = bytes.subarray(at, Math.min(wait, at + space.length, at + 1 + random(9000)));
        space.set(piece);
        at += piece.length;
        for (const event of capture.received(piece.length)) {
          if (event.type === "request") capture.reply();
          if (event.type === "whole") {
            whole++;
            capture.acknowledge();
            if (random(2) === 0) capture.absorb();
            else encode(capture);
          }
        }
      }
    } catch (error) {
      if (!(error instanceof StreamError)) throw error;
      assert(error instanceof ColoError);
      refused++;
    }
  }
  assert(refused > 400 && whole > 400, `${refused} refused, ${whole} whole`);
});

/** Take the staged checkpoint as if it went to a secondary. */
function encode(capture: Capture): void {
  const { mirror } = capture;
  const encoder = new PageEncoder(mirror.kernels, mirror.addEncoder());
  for (const job of mirror.deltaJobs(capture.beginDelta().pages)) {
    for (const _ of encoder.encode(job));
  }
  capture.endDelta();
}

/** As small as the sample allows, so that thousands can be made. */
function small(): Capture {
  return new Capture(new ReferenceKernels(), {
    createKernels: () => new ReferenceKernels(),
    staging: { segmentBytes: 20 * 1024, segmentsMax: 2, pagesMax: 4 },
  });
}

/** xorshift32: small, seeded, good enough to hit every branch. */
function generator(seed: number): (below: number) => number {
  let state = seed | 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}
