/**
 * The numbers of QEMU's migration stream and of COLO's messages in it.
 *
 * Sources: QEMU `migration/savevm.c` (sections, commands), `migration/ram.c` (RAM records),
 * `migration/migration.c` (return path), `qapi/migration.json` (`COLOMessage`).
 *
 * @module
 */

/** "QEVM", the first four bytes of a stream. */
export const STREAM_MAGIC = 0x5145564d;
/** The only version of the file format since 2010. */
export const STREAM_VERSION = 3;

/** The byte that opens a section. */
export const SECTION = {
  EOF: 0x00,
  START: 0x01,
  PART: 0x02,
  END: 0x03,
  FULL: 0x04,
  SUBSECTION: 0x05,
  VM_DESCRIPTION: 0x06,
  CONFIGURATION: 0x07,
  COMMAND: 0x08,
  FOOTER: 0x7e,
} as const;

/** Commands of the source to the destination (section type COMMAND). */
export const COMMAND = {
  OPEN_RETURN_PATH: 1,
  PING: 2,
  ENABLE_COLO: 10,
  SWITCHOVER_START: 11,
} as const;

/** Low bits of the be64 that opens a RAM record; the rest is the page's offset in its block. */
export const RAM_FLAG = {
  ZERO: 0x02,
  MEM_SIZE: 0x04,
  PAGE: 0x08,
  EOS: 0x10,
  CONTINUE: 0x20,
  XBZRLE: 0x40,
  MULTIFD_FLUSH: 0x200,
} as const;

/** The mask of all RAM record flags: the bits below a page's offset. */
export const RAM_FLAGS_MASK = 0xfff;

/** Version of the `ram` section. */
export const RAM_SECTION_VERSION = 4;

/** First byte of an XBZRLE record's body (`ENCODING_FLAG_XBZRLE`). */
export const XBZRLE_ENCODING = 0x01;

/** Types of return path messages. */
export const RETURN_PATH = { SHUT: 1, PONG: 2 } as const;

/** COLO's messages, by their number on the wire (`COLOMessage` in QAPI). */
export const COLO_MESSAGES = [
  "checkpoint-ready",
  "checkpoint-request",
  "checkpoint-reply",
  "vmstate-send",
  "vmstate-size",
  "vmstate-received",
  "vmstate-loaded",
] as const;

/** Name of a COLO message, as in QAPI. */
export type ColoMessage = typeof COLO_MESSAGES[number];

/** Number of a COLO message on the wire. */
export function coloMessageNumber(message: ColoMessage): number {
  return COLO_MESSAGES.indexOf(message);
}

/** Capability subsection of the configuration section. */
export const CAPABILITIES_SUBSECTION = "configuration/capabilities";

/** Capability with which RAM pages of shared blocks stay out of the stream. */
export const IGNORE_SHARED = "x-ignore-shared";

/** One RAM block of the guest, as the stream announces it. */
export interface RamBlock {
  /** QEMU's id of the block, such as `pc.ram`. */
  readonly name: string;
  readonly sizeBytes: number;
}

/** A RAM block with its place in the guest-wide page numbering: blocks one after another. */
export interface PlacedBlock extends RamBlock {
  /** Number of its first page. */
  readonly firstPage: number;
  /** Its length in pages. */
  readonly pages: number;
}
