/**
 * What stands in a `ram` section: the block list at its start, and the records that the scan kernel
 * leaves to us because they are rare. Pure functions of the bytes at hand.
 *
 * ```text
 *  block list:  be64 total|MEM_SIZE  { u8 length, name, be64 size [, be64 address] }*   sizes add up to total
 *  record:      be64 offset|flags  [ u8 length, name: only without CONTINUE ]  payload
 *               PAGE 4096 bytes; ZERO one byte 0; XBZRLE 01, be16 length, body; EOS, MULTIFD_FLUSH nothing
 * ```
 *
 * Source: QEMU `migration/ram.c` (`ram_save_setup`, `ram_load_precopy`).
 *
 * @module
 */

import {
  BLOCK_COUNT_MAX,
  BLOCK_NAME_BYTES_MAX,
  GUEST_RAM_BYTES_MAX,
  PAGE_BYTES,
} from "../limits.ts";
import { type PlacedBlock, RAM_FLAG, RAM_FLAGS_MASK, XBZRLE_ENCODING } from "./format.ts";

const text = new TextDecoder();

function nameAt(view: DataView, at: number): string | undefined {
  if (view.byteLength < at + 1) return undefined;
  const length = view.getUint8(at);
  if (view.byteLength < at + 1 + length) return undefined;
  return text.decode(new Uint8Array(view.buffer, view.byteOffset + at + 1, length));
}

function u64At(view: DataView, at: number): number {
  return view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4);
}

/** The block list, read entry by entry. */
export class BlockList {
  readonly blocks: PlacedBlock[] = [];
  #totalBytes: number | undefined;
  #listedBytes = 0;
  #pages = 0;

  /** @param addresses Whether every entry ends with an address (`x-ignore-shared`) */
  constructor(readonly addresses = false) {}

  get complete(): boolean {
    return this.#totalBytes === this.#listedBytes;
  }

  /** @returns Bytes taken, 0 when more are needed, or what is wrong */
  read(view: DataView): number | string {
    return this.#totalBytes === undefined ? this.#total(view) : this.#entry(view, this.#totalBytes);
  }

  #total(view: DataView): number | string {
    if (view.byteLength < 8) return 0;
    const flags = view.getUint32(4) & RAM_FLAGS_MASK;
    if (flags !== RAM_FLAG.MEM_SIZE) {
      return `a record with flags ${flags} in place of the block list`;
    }
    const totalBytes = u64At(view, 0) - flags;
    if (totalBytes === 0 || totalBytes > GUEST_RAM_BYTES_MAX) {
      return `guest RAM of ${totalBytes} bytes (up to ${GUEST_RAM_BYTES_MAX})`;
    }
    this.#totalBytes = totalBytes;
    return 8;
  }

  #entry(view: DataView, totalBytes: number): number | string {
    const name = nameAt(view, 0);
    if (name === undefined) return 0;
    const at = 1 + view.getUint8(0);
    const length = at + 8 + (this.addresses ? 8 : 0);
    if (view.byteLength < length) return 0;
    const sizeBytes = u64At(view, at);
    const problem = this.#problem(name, sizeBytes, totalBytes);
    if (problem !== undefined) return problem;
    const pages = sizeBytes / PAGE_BYTES;
    this.blocks.push({ name, sizeBytes, firstPage: this.#pages, pages });
    this.#pages += pages;
    this.#listedBytes += sizeBytes;
    return length;
  }

  #problem(name: string, sizeBytes: number, totalBytes: number): string | undefined {
    if (name.length === 0 || name.length > BLOCK_NAME_BYTES_MAX) {
      return "a RAM block without a name";
    }
    if (this.blocks.some((block) => block.name === name)) return `RAM block "${name}" comes twice`;
    if (this.blocks.length >= BLOCK_COUNT_MAX) return `more than ${BLOCK_COUNT_MAX} RAM blocks`;
    if (sizeBytes === 0 || sizeBytes % PAGE_BYTES !== 0) {
      return `RAM block "${name}" of ${sizeBytes} bytes, which are no whole pages`;
    }
    if (this.#listedBytes + sizeBytes > totalBytes) {
      return `RAM block "${name}" of ${sizeBytes} bytes exceeds the announced total of ${totalBytes}`;
    }
    return undefined;
  }
}

/** One record, as far as the reader needs to know it; `recordBytes` is its whole length. */
export type RamRecord =
  /** `at` is where its 4096 bytes begin, 0 for a page of zeros. */
  | {
    readonly type: "page";
    readonly page: number;
    readonly at: number;
    readonly recordBytes: number;
  }
  | {
    readonly type: "xbzrle";
    readonly page: number;
    readonly at: number;
    readonly length: number;
    readonly recordBytes: number;
  }
  | { readonly type: "end" | "none"; readonly recordBytes: number }
  | { readonly type: "malformed"; readonly detail: string };

/** Reads single records; knows the block that CONTINUE refers to. */
export class RamRecords {
  #current: PlacedBlock | undefined;
  readonly #byName: ReadonlyMap<string, PlacedBlock>;

  constructor(blocks: readonly PlacedBlock[]) {
    this.#byName = new Map(blocks.map((block) => [block.name, block]));
  }

  /** The block of the last record, across sections; none before the first. */
  get current(): PlacedBlock | undefined {
    return this.#current;
  }

  /** Begin where no block has been named yet. */
  forget(): void {
    this.#current = undefined;
  }

  /** @returns The record that the bytes begin with, or nothing while it is not complete */
  read(view: DataView): RamRecord | undefined {
    if (view.byteLength < 8) return undefined;
    const flags = view.getUint32(4) & RAM_FLAGS_MASK;
    const offset = u64At(view, 0) - flags;
    if (flags === RAM_FLAG.EOS || flags === RAM_FLAG.MULTIFD_FLUSH) {
      if (offset !== 0) {
        return { type: "malformed", detail: "a RAM record that has no page has one" };
      }
      return { type: flags === RAM_FLAG.EOS ? "end" : "none", recordBytes: 8 };
    }
    const kind = flags & ~RAM_FLAG.CONTINUE;
    if (kind !== RAM_FLAG.PAGE && kind !== RAM_FLAG.ZERO && kind !== RAM_FLAG.XBZRLE) {
      return { type: "malformed", detail: `RAM record flags ${flags} are not known` };
    }
    let at = 8;
    if ((flags & RAM_FLAG.CONTINUE) === 0) {
      const name = nameAt(view, at);
      if (name === undefined) return undefined;
      this.#current = this.#byName.get(name);
      if (this.#current === undefined) {
        return { type: "malformed", detail: `a page of RAM block "${name}", which does not exist` };
      }
      at += 1 + view.getUint8(at);
    }
    const block = this.#current;
    if (block === undefined) return { type: "malformed", detail: "a page before any RAM block" };
    if (offset >= block.sizeBytes) {
      return {
        type: "malformed",
        detail: `a page at ${offset} lies outside RAM block "${block.name}"`,
      };
    }
    return payload(view, kind, block.firstPage + offset / PAGE_BYTES, at);
  }
}

function payload(
  view: DataView,
  kind: number,
  page: number,
  at: number,
): RamRecord | undefined {
  switch (kind) {
    case RAM_FLAG.PAGE:
      if (view.byteLength < at + PAGE_BYTES) return undefined;
      return { type: "page", page, at, recordBytes: at + PAGE_BYTES };
    case RAM_FLAG.ZERO:
      if (view.byteLength < at + 1) return undefined;
      if (view.getUint8(at) !== 0) {
        return { type: "malformed", detail: `a page filled with ${view.getUint8(at)}` };
      }
      return { type: "page", page, at: 0, recordBytes: at + 1 };
    default: {
      if (view.byteLength < at + 3) return undefined;
      const length = view.getUint16(at + 1);
      if (view.getUint8(at) !== XBZRLE_ENCODING || length === 0 || length > PAGE_BYTES) {
        return { type: "malformed", detail: `an XBZRLE record of ${length} bytes` };
      }
      if (view.byteLength < at + 3 + length) return undefined;
      return { type: "xbzrle", page, at: at + 3, length, recordBytes: at + 3 + length };
    }
  }
}
