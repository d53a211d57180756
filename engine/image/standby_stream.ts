/**
 * What a QEMU is told that stands by for a held checkpoint, and runs from it when the stream ends: a
 * plain migration, whose end is held back until the VM is to run.
 *
 * ```text
 *  header, configuration, ram START (block list)      when it is started
 *  ram PART (pages)                                   then, and as they change
 *  ram END, device state, VM description              to let it run
 * ```
 *
 * With shared memory (`x-ignore-shared`) QEMU has mapped the main memory, and is told only the pages of
 * the other blocks; without, all of them. XBZRLE has no place in such a stream: pages go whole.
 *
 * @module
 */

import { IGNORE_SHARED, type RamBlock } from "../stream/format.ts";
import * as write from "../stream/writer.ts";

/** Ours to choose: it must differ from those in the device state, which QEMU numbers upwards. */
const RAM_SECTION_ID = 2;

/** Migration capabilities to set on the QEMU. */
export function standbyCapabilities(shared: boolean): readonly string[] {
  return shared ? [IGNORE_SHARED] : [];
}

/**
 * How the stream begins.
 *
 * @param machine Versioned machine name, such as `pc-i440fx-11.1`
 * @param blocks In the order of the primary
 */
export function standbyBegin(
  machine: string,
  blocks: readonly RamBlock[],
  shared: boolean,
): readonly Uint8Array[] {
  const capabilities = standbyCapabilities(shared);
  return [
    write.header(),
    write.configuration(machine, capabilities),
    write.ramStart(RAM_SECTION_ID, blocks, capabilities),
  ];
}

/** Pages for it: records that name their blocks. */
export function standbyPages(chunk: Uint8Array): readonly Uint8Array[] {
  return [write.ramPart(RAM_SECTION_ID), chunk, write.ramSectionEnd(RAM_SECTION_ID)];
}

/** Let it run. In one piece: each write would cost a turn of the event loop. */
export function standbyEnd(deviceState: Uint8Array): Uint8Array<ArrayBuffer> {
  const ramEnd = write.ramEnd(RAM_SECTION_ID);
  const parts = [ramEnd, write.ramSectionEnd(RAM_SECTION_ID), deviceState];
  const bytes = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
