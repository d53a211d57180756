/**
 * A mirror as a plain migration stream, from which any QEMU of the same machine goes on.
 *
 * @module
 */

import * as write from "../stream/writer.ts";
import type { Capture } from "./capture.ts";
import { PageEncoder } from "./page_encoder.ts";

/** Ours to choose. */
const RAM_SECTION_ID = 2;

/**
 * What a QEMU is to read that goes on from the last checkpoint of a capture, which is over: it must be
 * {@linkcode Capture.restorable}, and is of no further use afterwards.
 *
 * @returns Pieces of the stream, each a copy
 */
export function* mirrorStream(
  capture: Pick<Capture, "machine" | "blocks" | "mirror" | "deviceState">,
): Generator<Uint8Array<ArrayBuffer>, void> {
  const { machine, blocks, mirror, deviceState } = capture;
  const id = RAM_SECTION_ID;
  yield write.header();
  yield write.configuration(machine);
  yield write.ramStart(id, blocks);
  const encoder = new PageEncoder(mirror.kernels, mirror.addEncoder());
  mirror.markAllMissing();
  for (const job of mirror.missingJobs(true)) {
    for (const chunk of encoder.encode(job)) {
      yield write.ramPart(id);
      yield Uint8Array.from(chunk);
      yield write.ramSectionEnd(id);
    }
  }
  yield write.ramEnd(id);
  yield write.ramSectionEnd(id);
  yield deviceState;
}
