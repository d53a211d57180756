/**
 * What a stored checkpoint says about itself. Pure.
 *
 * @module
 */

import { StoreError } from "../errors.ts";
import {
  BLOCK_COUNT_MAX,
  BLOCK_NAME_BYTES_MAX,
  CONFIGURATION_BYTES_MAX,
  DEVICE_STATE_BYTES_MAX,
  GUEST_RAM_BYTES_MAX,
  PAGE_BYTES,
} from "../limits.ts";
import type { PlacedBlock, RamBlock } from "../stream/format.ts";

/** Version of the format. */
export const STORE_FORMAT = 1;

/** Another checkpoint, and what its state must be. */
export interface ParentLink {
  readonly id: string;
  /** {@linkcode CheckpointMetadata.stateDigest} of the parent. */
  readonly stateDigest: string;
}

/** The metadata of one checkpoint. */
export interface CheckpointMetadata {
  readonly format: typeof STORE_FORMAT;
  /** A UUID. It stays when the checkpoint is folded together with those before it. */
  readonly id: string;
  /** Grows from each checkpoint of a VM to the next. */
  readonly sequence: number;
  /** What this one is a difference from; absent in a full one. */
  readonly parent?: ParentLink;
  /** XXH64 of the checksums of all pages and of the device state, 16 hexadecimal digits. */
  readonly stateDigest: string;
  /** Name of the VM. */
  readonly vm: string;
  /** Versioned machine name, such as `pc-i440fx-11.1`. */
  readonly machine: string;
  /** RAM blocks in QEMU's order. */
  readonly blocks: readonly RamBlock[];
  /** Number of the engine's checkpoint that was saved. */
  readonly epoch: number;
  /** When the guest's state was taken, in milliseconds since the epoch. */
  readonly savedAtMs: number;
  /** Pages that this file holds. */
  readonly pages: number;
  /** Where the LZ4 frame lies in the file. */
  readonly frame: { readonly from: number; readonly to: number };
  /** Where the page index lies in the file: entries of 12 bytes. */
  readonly index: { readonly from: number; readonly to: number };
  /** Bytes of the stream in the frame up to the end of its RAM. */
  readonly ramBytes: number;
  /** Bytes of device state, which follow. */
  readonly deviceStateBytes: number;
}

/** Bytes of one entry of the page index: u32 page, u64 XXH64. */
export const INDEX_ENTRY_BYTES = 12;

/** A stored checkpoint's name is also a file's. */
const NAME = /^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,62}$/;

/** @throws {StoreError} when it cannot be the name of a checkpoint */
export function checkName(name: string): void {
  if (NAME.test(name)) return;
  throw new StoreError(
    `Cannot use ${JSON.stringify(name.slice(0, 80))} as the name of a checkpoint: ` +
      "it must be 1 to 63 letters, digits, _ . or -, the first of them no . or -",
  );
}

/** RAM blocks with their place in the guest-wide page numbering. */
export function placeBlocks(blocks: readonly RamBlock[]): PlacedBlock[] {
  let firstPage = 0;
  return blocks.map(({ name, sizeBytes }) => {
    const pages = sizeBytes / PAGE_BYTES;
    const placed = { name, sizeBytes, firstPage, pages };
    firstPage += pages;
    return placed;
  });
}

/** The guest's main memory, which is zero in a fresh VM: the first of the largest blocks. */
export function mainBlock(blocks: readonly PlacedBlock[]): PlacedBlock {
  const [first, ...others] = blocks;
  if (first === undefined) throw new StoreError("Cannot store a guest without RAM");
  return others.reduce((main, block) => block.pages > main.pages ? block : main, first);
}

/** Pages of all blocks together. */
export function countPages(blocks: readonly PlacedBlock[]): number {
  return blocks.reduce((sum, { pages }) => sum + pages, 0);
}

/** Whether two guests have the same RAM blocks under the same machine. */
export function sameLayout(
  a: Pick<CheckpointMetadata, "machine" | "blocks">,
  b: Pick<CheckpointMetadata, "machine" | "blocks">,
): boolean {
  return a.machine === b.machine && a.blocks.length === b.blocks.length &&
    a.blocks.every(({ name, sizeBytes }, index) =>
      name === b.blocks[index]!.name && sizeBytes === b.blocks[index]!.sizeBytes
    );
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const DIGEST = /^[0-9a-f]{16}$/;

/**
 * Read the metadata of a file.
 *
 * @param bodyBytes Length of the file's body, which what it says must fit
 * @throws {StoreError} when it makes no sense
 */
export function readMetadata(value: unknown, bodyBytes: number): CheckpointMetadata {
  const root = members(value);
  if (root.format !== STORE_FORMAT) {
    throw new StoreError(
      `Cannot read the checkpoint: its format is ${shown(root.format)}, ` +
        `this release of colo knows ${STORE_FORMAT}`,
    );
  }
  const blocks = readBlocks(root.blocks);
  const pagesMax = countPages(placeBlocks(blocks));
  const index = readRange("index", root.index, bodyBytes);
  const pages = integer("pages", root.pages, 0, pagesMax);
  if (index.to - index.from !== pages * INDEX_ENTRY_BYTES) fail("index", root.index);
  return {
    format: STORE_FORMAT,
    id: text("id", root.id, UUID),
    sequence: integer("sequence", root.sequence, 1),
    ...(root.parent === undefined ? {} : { parent: readParent(root.parent) }),
    stateDigest: text("stateDigest", root.stateDigest, DIGEST),
    vm: text("vm", root.vm),
    machine: text("machine", root.machine),
    blocks,
    epoch: integer("epoch", root.epoch, 0),
    savedAtMs: integer("savedAtMs", root.savedAtMs, 0),
    pages,
    frame: readRange("frame", root.frame, bodyBytes),
    index,
    ramBytes: integer("ramBytes", root.ramBytes, 0),
    deviceStateBytes: integer(
      "deviceStateBytes",
      root.deviceStateBytes,
      0,
      DEVICE_STATE_BYTES_MAX,
    ),
  };
}

function readParent(value: unknown): ParentLink {
  const { id, stateDigest } = members(value);
  return {
    id: text("parent.id", id, UUID),
    stateDigest: text("parent.stateDigest", stateDigest, DIGEST),
  };
}

function readBlocks(value: unknown): RamBlock[] {
  if (!Array.isArray(value) || value.length === 0 || value.length > BLOCK_COUNT_MAX) {
    return fail("blocks", value);
  }
  let totalBytes = 0;
  const names = new Set<string>();
  return value.map((entry: unknown) => {
    const { name, sizeBytes } = members(entry);
    const block = {
      name: text("blocks.name", name),
      sizeBytes: integer("blocks.sizeBytes", sizeBytes, PAGE_BYTES, GUEST_RAM_BYTES_MAX),
    };
    totalBytes += block.sizeBytes;
    const nameBytes = new TextEncoder().encode(block.name).length;
    if (
      block.sizeBytes % PAGE_BYTES !== 0 || totalBytes > GUEST_RAM_BYTES_MAX ||
      nameBytes > BLOCK_NAME_BYTES_MAX || names.has(block.name)
    ) fail("blocks", entry);
    names.add(block.name);
    return block;
  });
}

function readRange(name: string, value: unknown, end: number): { from: number; to: number } {
  const range = members(value);
  const from = integer(`${name}.from`, range.from, 0, end);
  return { from, to: integer(`${name}.to`, range.to, from, end) };
}

function members(value: unknown): Readonly<Record<string, unknown>> {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) {
    return value as Readonly<Record<string, unknown>>;
  }
  throw new StoreError("Cannot read the checkpoint: its metadata is incomplete");
}

function integer(
  name: string,
  value: unknown,
  min: number,
  max: number = Number.MAX_SAFE_INTEGER,
): number {
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= min && value <= max) {
    return value;
  }
  return fail(name, value);
}

function text(name: string, value: unknown, allowed: RegExp = /^[^\p{Cc}]+$/u): string {
  if (typeof value === "string" && value.length <= CONFIGURATION_BYTES_MAX && allowed.test(value)) {
    return value;
  }
  return fail(name, value);
}

function fail(name: string, value: unknown): never {
  throw new StoreError(`Cannot read the checkpoint: its ${name} is ${shown(value)}`);
}

function shown(value: unknown): string {
  return (JSON.stringify(value) ?? "missing").slice(0, 80);
}
