import { assertEquals } from "@std/assert/mod.js";
import { Capture } from "../../engine/checkpoint/capture.ts";
import { mirrorStream } from "../../engine/checkpoint/mirror_stream.ts";
import { ReferenceKernels } from "../../wasm/mod.ts";
import { ModelSecondary } from "../failover/model_secondary.ts";
import { checkpointStream, initialStream, MACHINE } from "../stream/sample.ts";

const ROM = Array.from({ length: 8 }, (_, page) => ({ block: 1, page, fill: 3 }));
const MAIN = [{ block: 0, page: 3, fill: 1 }, { block: 0, page: 9, fill: 5 }];

function captured(pagesMax = 64): Capture {
  const capture = new Capture(new ReferenceKernels(), {
    createKernels: () => new ReferenceKernels(),
    staging: { segmentBytes: 64 * 1024, segmentsMax: 4, pagesMax },
  });
  feed(capture, initialStream([...MAIN, ...ROM]));
  return capture;
}

function feed(capture: Capture, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) {
    const space = capture.space();
    const piece = bytes.subarray(at, at + space.length);
    space.set(piece);
    at += piece.length;
    capture.received(piece.length);
  }
}

/** QEMU's next checkpoint, as much of it as arrives. */
function begin(capture: Capture, share: number): void {
  const stream = checkpointStream([{ block: 0, page: 3, fill: 0 }, { block: 0, page: 5, fill: 7 }]);
  feed(capture, stream.subarray(0, 4));
  capture.reply();
  feed(capture, stream.subarray(4, 4 + Math.floor((stream.length - 4) * share)));
}

function assertGoesOn(capture: Capture): void {
  const qemu = new ModelSecondary();
  for (const piece of mirrorStream(capture)) qemu.write(piece);
  assertEquals(qemu.machine, MACHINE);
  const [load] = qemu.loads;
  assertEquals(load?.deviceState, capture.deviceState);
  load?.ram.forEach((content, page) => assertEquals(content, capture.mirror.page(page), `${page}`));
}

Deno.test("a QEMU that is read the mirror goes on from the last checkpoint", () => {
  const capture = captured();
  begin(capture, 1);
  capture.acknowledge();
  capture.absorb();
  assertEquals(capture.mirror.page(3), new Uint8Array(4096));
  assertEquals(capture.restorable, true);
  assertGoesOn(capture);
});

Deno.test("half of another checkpoint is not in the mirror", () => {
  const capture = captured();
  const before = capture.mirror.page(3);
  begin(capture, 0.6);
  assertEquals([capture.restorable, capture.consistent], [true, false]);
  assertEquals(capture.mirror.page(3), before);
  assertGoesOn(capture);
});

Deno.test("a mirror into which half of a checkpoint had to flow is not restorable", () => {
  const capture = captured(1);
  begin(capture, 0.99);
  assertEquals(capture.restorable, false);
});
