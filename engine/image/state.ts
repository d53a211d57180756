/**
 * What is known of a checkpoint besides its memory, as one file.
 *
 * ```text
 *  u32 bytes of the JSON (little-endian); JSON; device state; checksum of all before it
 * ```
 *
 * @module
 */

import { PAGE_BYTES } from "../limits.ts";
import type { RamBlock } from "../stream/format.ts";
import { CHECKSUM_BYTES, type Scratch } from "./scratch.ts";

/** All but the memory. */
export interface StoredState {
  /** Of the primary's capture; empty where it is not known. */
  readonly lineage: string;
  readonly epoch: number;
  /** Of the last journal that has gone into the image. */
  readonly sequence: number;
  /** Versioned machine name, such as `pc-i440fx-11.1`. */
  readonly machine: string;
  /** In the order of the primary. */
  readonly blocks: readonly RamBlock[];
  readonly deviceState: Uint8Array<ArrayBuffer>;
}

/** The bytes of the file. */
export function encodeState(state: StoredState, scratch: Scratch): Uint8Array<ArrayBuffer> {
  const { deviceState, ...described } = state;
  const json = new TextEncoder().encode(JSON.stringify(described));
  const bytes = new Uint8Array(4 + json.length + deviceState.length + CHECKSUM_BYTES);
  new DataView(bytes.buffer).setUint32(0, json.length, true);
  bytes.set(json, 4);
  bytes.set(deviceState, 4 + json.length);
  const covered = bytes.length - CHECKSUM_BYTES;
  bytes.set(scratch.checksum(bytes.subarray(0, covered)), covered);
  return bytes;
}

/** What a file says, or nothing when it is damaged or of another version. */
export function decodeState(
  bytes: Uint8Array<ArrayBuffer>,
  scratch: Scratch,
): StoredState | undefined {
  const covered = bytes.length - CHECKSUM_BYTES;
  if (covered < 4) return undefined;
  if (!scratch.verify(bytes.subarray(0, covered), bytes.subarray(covered))) return undefined;
  const end = 4 + new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  if (end > covered) return undefined;
  let described: unknown;
  try {
    described = JSON.parse(new TextDecoder().decode(bytes.subarray(4, end)));
    // A release that knew of no lineage has left it.
    if (typeof described === "object") described = { lineage: "", ...described };
  } catch {
    return undefined;
  }
  if (!isDescription(described)) return undefined;
  return { ...described, deviceState: bytes.slice(end, covered) };
}

function isDescription(value: unknown): value is Omit<StoredState, "deviceState"> {
  if (typeof value !== "object" || value === null) return false;
  const { lineage, epoch, sequence, machine, blocks } = value as Record<string, unknown>;
  return typeof lineage === "string" && isCount(epoch) && isCount(sequence) &&
    typeof machine === "string" &&
    Array.isArray(blocks) && blocks.length > 0 && blocks.every(isBlock);
}

function isBlock(value: unknown): value is RamBlock {
  if (typeof value !== "object" || value === null) return false;
  const { name, sizeBytes } = value as Record<string, unknown>;
  return typeof name === "string" && isCount(sizeBytes) && sizeBytes > 0 &&
    sizeBytes % PAGE_BYTES === 0;
}

function isCount(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}
