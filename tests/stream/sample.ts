/**
 * Migration streams made to measure, for tests: small, and everything in them is known.
 *
 * @module
 */

import { ByteWriter } from "../../engine/stream/byte_writer.ts";
import { RAM_FLAG, type RamBlock, SECTION } from "../../engine/stream/format.ts";
import * as write from "../../engine/stream/writer.ts";

export const MACHINE = "pc-i440fx-11.1";
export const RAM_SECTION_ID = 2;
export const VM_DESCRIPTION = '{"page_size": 4096, "devices": []}';

export const BLOCKS: readonly RamBlock[] = [
  { name: "pc.ram", sizeBytes: 64 * 4096 },
  { name: "pc.bios", sizeBytes: 8 * 4096 },
];

/** A page to write: its block, its number in the block, and what fills it. */
export interface SamplePage {
  readonly block: number;
  readonly page: number;
  /** 0 for a page of zeros. */
  readonly fill: number;
}

export function concat(...parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

/**
 * The content of a sample page: no byte of it is constant. Fills 1 and 2 differ in a few bytes, as do
 * 3 and 4 and so on; others differ everywhere.
 */
export function pageContent(fill: number): Uint8Array<ArrayBuffer> {
  const page = new Uint8Array(4096);
  if (fill === 0) return page;
  const pattern = Math.ceil(fill / 2);
  page.forEach((_, at) => page[at] = (pattern * 31 + at * (pattern + 1)) & 0xff);
  if (fill % 2 === 0) { for (const at of [0, 7, 8, 100, 2047, 2048, 4095]) page[at]! ^= 0xff; }
  return page;
}

/** RAM records, the first of each block with its name, as QEMU writes them. */
export function records(pages: readonly SamplePage[]): Uint8Array<ArrayBuffer> {
  let block: number | undefined;
  return concat(...pages.map((page) => {
    const named = page.block !== block;
    block = page.block;
    const flags = (page.fill === 0 ? RAM_FLAG.ZERO : RAM_FLAG.PAGE) |
      (named ? 0 : RAM_FLAG.CONTINUE);
    const writer = new ByteWriter().u64(page.page * 4096 + flags);
    if (named) writer.name(BLOCKS[page.block]!.name);
    return concat(writer.finish(), page.fill === 0 ? Uint8Array.of(0) : pageContent(page.fill));
  }));
}

/** One FULL section as a device would write it, with its footer. */
export function device(content: Uint8Array): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u8(SECTION.FULL).u32(9).name("timer").u32(0).u32(2)
    .bytes(content).u8(SECTION.FOOTER).u32(9).finish();
}

/** The initial stream, up to where COLO's messages begin. */
export function initialStream(
  pages: readonly SamplePage[],
  deviceState: Uint8Array = device(Uint8Array.of(1, 2, 3)),
): Uint8Array<ArrayBuffer> {
  const id = RAM_SECTION_ID;
  return concat(
    write.header(),
    write.configuration(MACHINE),
    write.openReturnPath(),
    write.ping(),
    write.ramStart(id, BLOCKS),
    write.ramPart(id),
    records(pages),
    write.ramSectionEnd(id),
    write.ramEnd(id),
    write.ramSectionEnd(id),
    deviceState,
    write.endOfFile(),
    write.vmDescription(VM_DESCRIPTION),
  );
}

/** One checkpoint, as a primary sends it after the secondary's reply. */
export function checkpointStream(
  pages: readonly SamplePage[],
  deviceState: Uint8Array = device(Uint8Array.of(4, 5)),
): Uint8Array<ArrayBuffer> {
  const id = RAM_SECTION_ID;
  const blob = concat(deviceState, write.endOfFile());
  return concat(
    write.coloMessage("checkpoint-request"),
    write.coloMessage("vmstate-send"),
    write.ramEnd(id),
    records(pages),
    write.ramSectionEnd(id),
    write.endOfFile(),
    write.vmstateSize(blob.length),
    blob,
  );
}
