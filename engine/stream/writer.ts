/**
 * Writes every part of QEMU's migration stream that the engine says to a QEMU, except the RAM records
 * themselves: those come ready-made from the `encodePages` kernel.
 *
 * The stream a COLO primary sends, which a secondary accepts:
 *
 * ```text
 * primary                                                     secondary
 *   header, configuration, OPEN_RETURN_PATH, PING ------------->
 *   ram START (block list), ram PART* (pages) ----------------->
 *   ram END, device state, VM description --------------------->
 *   <----------------------------------- PONG, SHUT, checkpoint-ready
 *   checkpoint-request ---------------------------------------->
 *   <---------------------------------------------- checkpoint-reply
 *   vmstate-send, ram END (pages), EOF, vmstate-size, state --->
 *   <---------------------------- vmstate-received, vmstate-loaded
 * ```
 *
 * Sources: QEMU `migration/savevm.c`, `migration/colo.c`.
 *
 * @module
 */

import { ByteWriter } from "./byte_writer.ts";
import {
  CAPABILITIES_SUBSECTION,
  type ColoMessage,
  coloMessageNumber,
  COMMAND,
  IGNORE_SHARED,
  RAM_FLAG,
  RAM_SECTION_VERSION,
  type RamBlock,
  SECTION,
  STREAM_MAGIC,
  STREAM_VERSION,
} from "./format.ts";

/** The first eight bytes of a stream. */
export function header(): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u32(STREAM_MAGIC).u32(STREAM_VERSION).finish();
}

/**
 * The configuration section: the destination refuses a stream of another machine.
 *
 * @param machine Versioned machine name, such as `pc-i440fx-11.1`
 * @param capabilities Capabilities that both sides must agree on; the subsection is left out when empty
 */
export function configuration(
  machine: string,
  capabilities: readonly string[] = [],
): Uint8Array<ArrayBuffer> {
  const name = new TextEncoder().encode(machine);
  const writer = new ByteWriter().u8(SECTION.CONFIGURATION).u32(name.length).bytes(name);
  if (capabilities.length > 0) {
    writer.u8(SECTION.SUBSECTION).name(CAPABILITIES_SUBSECTION).u32(1).u32(capabilities.length);
    for (const capability of capabilities) writer.name(capability);
  }
  return writer.finish();
}

/** Ask the destination to open the way back. */
export function openReturnPath(): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u8(SECTION.COMMAND).u16(COMMAND.OPEN_RETURN_PATH).u16(0).finish();
}

/** Ask the destination for a PONG with the same value. */
export function ping(value = 1): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u8(SECTION.COMMAND).u16(COMMAND.PING).u16(4).u32(value).finish();
}

/**
 * The START section of `ram`, with the block list.
 *
 * @param sectionId Any number that is unique in the stream
 * @param blocks All RAM blocks, in the order of the primary
 * @param capabilities Those of {@linkcode configuration}: `x-ignore-shared` adds an address per block
 */
export function ramStart(
  sectionId: number,
  blocks: readonly RamBlock[],
  capabilities: readonly string[] = [],
): Uint8Array<ArrayBuffer> {
  const totalBytes = blocks.reduce((sum, block) => sum + block.sizeBytes, 0);
  const writer = new ByteWriter().u8(SECTION.START).u32(sectionId).name("ram")
    .u32(0).u32(RAM_SECTION_VERSION).u64(totalBytes + RAM_FLAG.MEM_SIZE);
  for (const block of blocks) {
    writer.name(block.name).u64(block.sizeBytes);
    if (capabilities.includes(IGNORE_SHARED)) writer.u64(0);
  }
  return writer.bytes(ramSectionEnd(sectionId)).finish();
}

/** Opens a PART section of `ram`; records follow, then {@linkcode ramSectionEnd}. */
export function ramPart(sectionId: number): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u8(SECTION.PART).u32(sectionId).finish();
}

/** Opens the END section of `ram`; records follow, then {@linkcode ramSectionEnd}. */
export function ramEnd(sectionId: number): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u8(SECTION.END).u32(sectionId).finish();
}

/** Closes any section of `ram`: the end-of-section record and the footer. */
export function ramSectionEnd(sectionId: number): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u64(RAM_FLAG.EOS).u8(SECTION.FOOTER).u32(sectionId).finish();
}

/** The JSON description of the device state; QEMU reads it and does nothing with it. */
export function vmDescription(json = "{}"): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(json);
  return new ByteWriter().u8(SECTION.VM_DESCRIPTION).u32(text.length).bytes(text).finish();
}

/** End of the sections of one checkpoint. */
export function endOfFile(): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u8(SECTION.EOF).finish();
}

/** A COLO message without a value. */
export function coloMessage(message: ColoMessage): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u32(coloMessageNumber(message)).finish();
}

/** `vmstate-size`: that many bytes of device state follow. */
export function vmstateSize(sizeBytes: number): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u32(coloMessageNumber("vmstate-size")).u64(sizeBytes).finish();
}
