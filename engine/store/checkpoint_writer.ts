/**
 * Writes one stored checkpoint.
 *
 * All numbers are little-endian. A file is a sequence of LZ4 frames, most of them skippable, so that
 * `lz4 -d` gets the stream out of it:
 *
 * ```text
 *  head:     u32 0x184D2A50, u32 16, "colo checkpoint\n"
 *  frame:    one LZ4 frame, whose content is a QEMU migration stream
 *              header, configuration, ram START (block list)
 *              ram PART (pages)                     while the guest went on
 *              ram END (pages)                      at the moment that is saved
 *              device state, VM description
 *  index:    u32 0x184D2A51, u32 length, then for each page in the stream, in ascending order
 *              u32 page number (all RAM blocks laid one after another), u64 XXH64 of its content
 *  trailer:  see `sealed_file.ts`; the metadata is that of `metadata.ts`
 * ```
 *
 * A page that comes twice holds what came last. A full checkpoint has no parent: what it does not have
 * of the main memory is zero, and the stream is one that QEMU loads as it is
 * (`lz4 -dc NAME.colo | qemu-system-x86_64 ... -incoming "exec:cat"`). One with a parent has the pages
 * that differ from it.
 *
 * Pure but for the file that it is given.
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { PAGE_BYTES } from "../limits.ts";
import type { RamBlock } from "../stream/format.ts";
import * as write from "../stream/writer.ts";
import type { WritableFile } from "./files.ts";
import { LZ4_SKIPPABLE_MAGIC, Lz4FrameWriter } from "./lz4_frame.ts";
import {
  type CheckpointMetadata,
  INDEX_ENTRY_BYTES,
  type ParentLink,
  placeBlocks,
  STORE_FORMAT,
} from "./metadata.ts";
import type { PageHashes } from "./page_hashes.ts";
import { BATCH_PAGES, RecordEncoder } from "./record_encoder.ts";
import { type Checksum, SealedWriter } from "./sealed_file.ts";

/** A guest's RAM, from wherever it is. */
export interface PageSource {
  /** Copy the contents of pages. They may change meanwhile: what is copied is what counts. */
  read(firstPage: number, count: number, target: Uint8Array): void;
  /** Whether any of these pages can have changed since the first pass began; unknown if absent. */
  touched?(firstPage: number, count: number): boolean;
}

/** What is known of a checkpoint before its pages are. */
export interface CheckpointFacts {
  readonly id: string;
  readonly sequence: number;
  readonly parent?: ParentLink | undefined;
  readonly vm: string;
  readonly machine: string;
  readonly blocks: readonly RamBlock[];
}

/** The moment that a checkpoint holds. */
export interface CheckpointMoment {
  readonly epoch: number;
  readonly savedAtMs: number;
  readonly deviceState: Uint8Array;
}

const HEAD_MAGIC = LZ4_SKIPPABLE_MAGIC;
const INDEX_MAGIC = LZ4_SKIPPABLE_MAGIC | 1;
const HEAD_TEXT = "colo checkpoint\n";

/** Section id of `ram` in the stream: ours to choose. */
export const RAM_SECTION_ID = 2;

/** Index entries that are written at a time. */
const INDEX_BATCH = 4096;

/** Writes one checkpoint: pages in one or more passes, then the device state. */
export class CheckpointWriter {
  readonly #kernels: KernelSet;
  readonly #facts: CheckpointFacts;
  readonly #hashes: PageHashes;
  readonly #checksum: Checksum;
  readonly #file: SealedWriter;
  readonly #frame: Lz4FrameWriter;
  readonly #records: RecordEncoder;
  readonly #contents: number;
  /** Pages that the stream has. */
  readonly #written: Uint8Array;
  #passes = 0;
  #frameFrom = 0;
  #streamBytes = 0;

  /**
   * @param kernels In whose memory it works
   * @param hashes What the parent holds, or a fresh VM where there is none; brought up to date
   */
  constructor(
    file: WritableFile,
    kernels: KernelSet,
    checksum: Checksum,
    facts: CheckpointFacts,
    hashes: PageHashes,
  ) {
    const blocks = placeBlocks(facts.blocks);
    this.#kernels = kernels;
    this.#checksum = checksum;
    this.#facts = facts;
    this.#hashes = hashes;
    this.#file = new SealedWriter(file, checksum);
    this.#frame = new Lz4FrameWriter(kernels);
    this.#records = new RecordEncoder(kernels, blocks);
    this.#contents = kernels.alloc(BATCH_PAGES * PAGE_BYTES);
    this.#written = new Uint8Array(Math.ceil(hashes.pages / 8));
    this.#begin();
  }

  #begin(): void {
    const text = new TextEncoder().encode(HEAD_TEXT);
    this.#file.write(skippable(HEAD_MAGIC, text.length));
    this.#file.write(text);
    this.#frameFrom = this.#file.position;
    this.#file.write(this.#frame.begin());
    this.#stream(write.header());
    this.#stream(write.configuration(this.#facts.machine));
    this.#stream(write.ramStart(RAM_SECTION_ID, this.#facts.blocks));
  }

  /**
   * Once over all pages: write those that differ from what is known of them.
   *
   * @param last Whether this is the moment that is saved; call {@linkcode finish} afterwards
   * @returns Pages written
   */
  pass(source: PageSource, last: boolean): number {
    const pages = this.#hashes.pages;
    const { bytes } = this.#kernels;
    let written = 0;
    this.#stream(last ? write.ramEnd(RAM_SECTION_ID) : write.ramPart(RAM_SECTION_ID));
    for (let page = 0; page < pages; page += BATCH_PAGES) {
      const count = Math.min(BATCH_PAGES, pages - page);
      if (this.#passes > 0 && source.touched?.(page, count) === false) continue;
      const target = bytes.subarray(this.#contents, this.#contents + count * PAGE_BYTES);
      source.read(page, count, target);
      this.#hashes.update(page, count, this.#contents, (changed, address) => {
        this.#records.addAt(changed, address);
        this.#written[changed >>> 3]! |= 1 << (changed & 7);
        written++;
      });
      for (const chunk of this.#records.encode()) this.#stream(chunk);
    }
    this.#stream(write.ramSectionEnd(RAM_SECTION_ID));
    this.#passes++;
    return written;
  }

  /**
   * Write pages that come one by one, as the moment that is saved; call {@linkcode finish} afterwards.
   *
   * @param pages Contents that the hashes know already; nothing stands for zeros
   */
  pages(
    pages: Iterable<{ readonly page: number; readonly content: Uint8Array | undefined }>,
  ): void {
    this.#stream(write.ramEnd(RAM_SECTION_ID));
    for (const { page, content } of pages) {
      this.#records.add(page, content);
      this.#written[page >>> 3]! |= 1 << (page & 7);
      if (this.#records.full) { for (const chunk of this.#records.encode()) this.#stream(chunk); }
    }
    for (const chunk of this.#records.encode()) this.#stream(chunk);
    this.#stream(write.ramSectionEnd(RAM_SECTION_ID));
  }

  /** Write the rest; when this returns the file is whole and would survive a loss of power. */
  finish({ epoch, savedAtMs, deviceState }: CheckpointMoment): CheckpointMetadata {
    const ramBytes = this.#streamBytes;
    this.#stream(deviceState);
    this.#stream(write.vmDescription());
    for (const part of this.#frame.finish()) this.#file.write(part);
    const frame = { from: this.#frameFrom, to: this.#file.position };
    const index = this.#index();
    const { parent, ...facts } = this.#facts;
    const metadata: CheckpointMetadata = {
      format: STORE_FORMAT,
      ...facts,
      ...(parent === undefined ? {} : { parent }),
      stateDigest: this.#hashes.digest(deviceState, this.#checksum),
      epoch,
      savedAtMs: Math.round(savedAtMs),
      pages: (index.to - index.from) / INDEX_ENTRY_BYTES,
      frame,
      index,
      ramBytes,
      deviceStateBytes: deviceState.length,
    };
    this.#file.finish(metadata);
    return metadata;
  }

  #index(): { from: number; to: number } {
    let count = 0;
    for (const _ of setBits(this.#written)) count++;
    this.#file.write(skippable(INDEX_MAGIC, count * INDEX_ENTRY_BYTES));
    const from = this.#file.position;
    const batch = new DataView(new ArrayBuffer(INDEX_BATCH * INDEX_ENTRY_BYTES));
    let at = 0;
    const flush = () => {
      this.#file.write(new Uint8Array(batch.buffer, 0, at));
      at = 0;
    };
    for (const page of setBits(this.#written)) {
      const [low, high] = this.#hashes.get(page);
      batch.setUint32(at, page, true);
      batch.setUint32(at + 4, low, true);
      batch.setUint32(at + 8, high, true);
      at += INDEX_ENTRY_BYTES;
      if (at === batch.byteLength) flush();
    }
    flush();
    return { from, to: this.#file.position };
  }

  #stream(bytes: Uint8Array): void {
    this.#streamBytes += bytes.length;
    for (const block of this.#frame.push(bytes)) this.#file.write(block);
  }
}

function skippable(magic: number, length: number): Uint8Array {
  const header = new Uint8Array(8);
  const view = new DataView(header.buffer);
  view.setUint32(0, magic, true);
  view.setUint32(4, length, true);
  return header;
}

function* setBits(bits: Uint8Array): Generator<number, void> {
  for (let byte = 0; byte < bits.length; byte++) {
    for (let rest = bits[byte]!; rest !== 0; rest &= rest - 1) {
      yield 8 * byte + 31 - Math.clz32(rest & -rest);
    }
  }
}
