/**
 * The memory of a guest in a file, page after page: the main memory first, so that a QEMU can map it,
 * and the other RAM blocks behind it.
 *
 * @module
 */

import { LocalProtocolError, WireError } from "../errors.ts";
import { PAGE_BYTES } from "../limits.ts";
import { ByteWriter } from "../stream/byte_writer.ts";
import { type PlacedBlock, RAM_FLAG, type RamBlock } from "../stream/format.ts";
import { type RamRecord, RamRecords } from "../stream/ram_section.ts";
import type { ImageFile } from "./files.ts";
import type { Scratch } from "./scratch.ts";

/** Pages that are written to the file at a time, where they follow each other. */
const BATCH_PAGES = 64;

/** A chunk of records is about this large. */
const CHUNK_BYTES = 256 * 1024;

/** A page, or the change of one. */
type PageRecord = Extract<RamRecord, { type: "page" | "xbzrle" }>;

/** Blocks in the order in which they lie in an image: the largest is the main memory. */
export function placeBlocks(blocks: readonly RamBlock[]): readonly PlacedBlock[] {
  const main = blocks.toSorted((a, b) => b.sizeBytes - a.sizeBytes)[0];
  let firstPage = 0;
  return [...blocks.filter((block) => block === main), ...blocks.filter((block) => block !== main)]
    .map(({ name, sizeBytes }) => {
      const pages = sizeBytes / PAGE_BYTES;
      const placed = { name, sizeBytes, firstPage, pages };
      firstPage += pages;
      return placed;
    });
}

/** One guest's memory. */
export class GuestImage {
  readonly blocks: readonly PlacedBlock[];
  readonly pages: number;
  readonly #file: ImageFile;
  readonly #scratch: Scratch;
  readonly #records: RamRecords;
  /** Pages `from .. to` that are yet to be written to the file. */
  readonly #batch = new Uint8Array(BATCH_PAGES * PAGE_BYTES);
  #from = 0;
  #to = 0;

  /**
   * @param file Its size is made that of the guest's memory
   * @param blocks The guest's RAM blocks, in any order
   */
  constructor(file: ImageFile, blocks: readonly RamBlock[], scratch: Scratch) {
    this.blocks = placeBlocks(blocks);
    const last = this.blocks.at(-1);
    if (last === undefined) throw new LocalProtocolError("Cannot hold a guest without RAM");
    this.pages = last.firstPage + last.pages;
    this.#file = file;
    if (file.sizeBytes !== this.pages * PAGE_BYTES) file.resize(this.pages * PAGE_BYTES);
    this.#scratch = scratch;
    this.#records = new RamRecords(this.blocks);
  }

  /** Where the main memory ends. */
  get mainPages(): number {
    return this.blocks[0]!.pages;
  }

  /**
   * See whether a chunk can be applied whole, whatever the image holds.
   *
   * @throws {WireError} when it is not made of RAM records of this guest
   */
  check(chunk: Uint8Array): void {
    const page = new Uint8Array(PAGE_BYTES);
    for (const { record, at } of this.#read(chunk)) {
      if (record.type === "page") continue;
      const body = chunk.subarray(at + record.at, at + record.at + record.length);
      if (!this.#scratch.applyChange(body, page)) {
        throw new WireError("Cannot take pages: an XBZRLE record that makes no sense", at);
      }
    }
  }

  /**
   * Write what a chunk says.
   *
   * @param changed Takes the pages at or behind page `from` that were written
   */
  apply(chunk: Uint8Array, changed?: Set<number>, from = 0): void {
    for (const { record, at } of this.#read(chunk)) {
      const { page } = record;
      const target = this.#open(page, record.type === "xbzrle");
      if (record.type === "xbzrle") {
        const body = chunk.subarray(at + record.at, at + record.at + record.length);
        this.#scratch.applyChange(body, target);
      } else if (record.at === 0) {
        target.fill(0);
      } else {
        target.set(chunk.subarray(at + record.at, at + record.at + PAGE_BYTES));
      }
      if (page >= from) changed?.add(page);
    }
    this.#flush();
  }

  /**
   * Pages as RAM records, in chunks of about 256 KiB that name their blocks.
   *
   * @param pages In ascending order
   * @param zeros False to leave pages of zeros out
   */
  *records(pages: Iterable<number>, zeros: boolean): Generator<Uint8Array<ArrayBuffer>, void> {
    const chunk = new Uint8Array(CHUNK_BYTES);
    const content = new Uint8Array(PAGE_BYTES);
    let filled = 0;
    let named: PlacedBlock | undefined;
    for (const page of pages) {
      this.#file.read(page * PAGE_BYTES, content);
      const zero = this.#scratch.isZero(content);
      if (zero && !zeros) continue;
      const block = this.#blockOf(page);
      const offset = (page - block.firstPage) * PAGE_BYTES;
      const flags = (zero ? RAM_FLAG.ZERO : RAM_FLAG.PAGE) |
        (block === named ? RAM_FLAG.CONTINUE : 0);
      const writer = new ByteWriter().u64(offset + flags);
      if (block !== named) writer.name(block.name);
      named = block;
      const header = writer.finish();
      chunk.set(header, filled);
      filled += header.length;
      if (zero) chunk[filled++] = 0;
      else {
        chunk.set(content, filled);
        filled += PAGE_BYTES;
      }
      if (filled + 2 * PAGE_BYTES <= CHUNK_BYTES) continue;
      yield chunk.slice(0, filled);
      filled = 0;
      named = undefined;
    }
    if (filled > 0) yield chunk.slice(0, filled);
  }

  /** A copy of one page. */
  page(page: number): Uint8Array<ArrayBuffer> {
    const content = new Uint8Array(PAGE_BYTES);
    this.#file.read(page * PAGE_BYTES, content);
    return content;
  }

  close(): void {
    this.#file.close();
  }

  *#read(chunk: Uint8Array): Generator<{ readonly record: PageRecord; readonly at: number }, void> {
    this.#records.forget();
    for (let at = 0; at < chunk.length;) {
      const view = new DataView(chunk.buffer, chunk.byteOffset + at, chunk.length - at);
      const record = this.#records.read(view);
      if (record?.type !== "page" && record?.type !== "xbzrle") {
        const detail = record?.type === "malformed" ? record.detail : "a record is not complete";
        throw new WireError(`Cannot take pages: ${detail}`, at);
      }
      yield { record, at };
      at += record.recordBytes;
    }
  }

  /** Where the content of a page is to be written, until the next call; `read`: with what it holds. */
  #open(page: number, read: boolean): Uint8Array {
    const isNext = page === this.#to && this.#to - this.#from < BATCH_PAGES;
    if (!isNext || this.#to === this.#from) {
      this.#flush();
      this.#from = page;
    }
    this.#to = page + 1;
    const at = (page - this.#from) * PAGE_BYTES;
    const target = this.#batch.subarray(at, at + PAGE_BYTES);
    if (read) this.#file.read(page * PAGE_BYTES, target);
    return target;
  }

  #flush(): void {
    const bytes = this.#batch.subarray(0, (this.#to - this.#from) * PAGE_BYTES);
    if (bytes.length > 0) this.#file.write(this.#from * PAGE_BYTES, bytes);
    this.#from = this.#to = 0;
  }

  #blockOf(page: number): PlacedBlock {
    const block = this.blocks.find(({ firstPage, pages }) =>
      page >= firstPage && page < firstPage + pages
    );
    if (block === undefined) {
      throw new LocalProtocolError(`Cannot read page ${page}: there is none`);
    }
    return block;
  }
}
