/**
 * LZ4 frames: how LZ4 blocks lie in a file, such that the `lz4` tool reads what is written here, and
 * the other way round. Pure.
 *
 * All numbers are little-endian.
 *
 * ```text
 *  frame:       0x184D2204, FLG, BD, [u64 content size], HC, block*, u32 0, [u32 content checksum]
 *  FLG:         bits 7-6 version 01; bit 5 blocks are independent; 4 block checksums; 3 content size;
 *               2 content checksum; 1 reserved, 0; 0 dictionary
 *  BD:          bits 6-4 size of a block at most: 4 64 KiB, 5 256 KiB, 6 1 MiB, 7 4 MiB
 *  HC:          second byte of XXH32 of FLG .. content size
 *  block:       u32 length, bit 31: as it is; data, [u32 XXH32 of the data]
 *  skippable:   0x184D2A50 .. 0x184D2A5F, u32 length, that many bytes of something else
 * ```
 *
 * Blocks that depend on those before them (`lz4 -BD`), dictionaries and the legacy format are refused:
 * nothing of ours writes them.
 *
 * Source: lz4 `doc/lz4_Frame_format.md`.
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { StoreError } from "../errors.ts";
import { Xxh32, xxh32 } from "./xxh32.ts";

/** The first four bytes of a frame, as a little-endian number. */
export const LZ4_FRAME_MAGIC = 0x184d2204;

/** The first four bytes of a skippable frame; the last 4 bits are free. */
export const LZ4_SKIPPABLE_MAGIC = 0x184d2a50;

const FLAG = {
  VERSION: 0x40,
  VERSION_MASK: 0xc0,
  INDEPENDENT: 0x20,
  BLOCK_CHECKSUM: 0x10,
  CONTENT_SIZE: 0x08,
  CONTENT_CHECKSUM: 0x04,
  RESERVED: 0x02,
  DICTIONARY: 0x01,
} as const;

const UNCOMPRESSED = 0x8000_0000;

const KIB = 1024;

/** Block sizes by their code in BD. */
const BLOCK_BYTES: ReadonlyMap<number, number> = new Map([
  [4, 64 * KIB],
  [5, 256 * KIB],
  [6, 1024 * KIB],
  [7, 4096 * KIB],
]);

/** How frames are written. */
export interface Lz4FrameOptions {
  /** Bytes of a block before compression: 64 KiB, 256 KiB (the default) or 1 MiB. */
  readonly blockBytes?: number;
}

/**
 * Writes one frame, with a checksum of every block and of the whole content.
 *
 * @example
 * ```ts
 * import { WasmKernels } from "../../wasm/mod.ts";
 * import { Lz4FrameReader, Lz4FrameWriter } from "./lz4_frame.ts";
 *
 * const kernels = WasmKernels.create();
 * const writer = new Lz4FrameWriter(kernels);
 * const parts = [writer.begin()];
 * for (const part of writer.push(new Uint8Array(1_000_000))) parts.push(part.slice());
 * for (const part of writer.finish()) parts.push(part.slice());
 *
 * const reader = new Lz4FrameReader(kernels);
 * let bytes = 0;
 * for (const part of parts) for (const content of reader.push(part)) bytes += content.length;
 * reader.finish();
 * if (bytes !== 1_000_000) throw new Error("lost");
 * ```
 */
export class Lz4FrameWriter {
  readonly #kernels: KernelSet;
  readonly #blockBytes: number;
  readonly #code: number;
  readonly #input: number;
  /** A block as it is written: length, data, checksum. */
  readonly #output: number;
  #filled = 0;
  #content = new Xxh32();

  /** @param kernels In whose memory blocks are made; two blocks of it are taken for good */
  constructor(kernels: KernelSet, { blockBytes = 256 * KIB }: Lz4FrameOptions = {}) {
    const code = [...BLOCK_BYTES].find(([, bytes]) => bytes === blockBytes)?.[0];
    if (code === undefined || code > 6) {
      throw new RangeError(`Cannot write LZ4 blocks of ${blockBytes} bytes`);
    }
    this.#kernels = kernels;
    this.#blockBytes = blockBytes;
    this.#code = code;
    this.#input = kernels.alloc(blockBytes);
    this.#output = kernels.alloc(4 + blockBytes + 4);
  }

  /** The bytes that open a frame. */
  begin(): Uint8Array<ArrayBuffer> {
    const header = new Uint8Array(7);
    const view = new DataView(header.buffer);
    view.setUint32(0, LZ4_FRAME_MAGIC, true);
    header[4] = FLAG.VERSION | FLAG.INDEPENDENT | FLAG.BLOCK_CHECKSUM | FLAG.CONTENT_CHECKSUM;
    header[5] = this.#code << 4;
    header[6] = xxh32(header.subarray(4, 6)) >>> 8;
    this.#filled = 0;
    this.#content = new Xxh32();
    return header;
  }

  /**
   * Take content.
   *
   * @returns The blocks that are full; each is valid until the next is asked for
   */
  *push(content: Uint8Array): Generator<Uint8Array, void> {
    this.#content.update(content);
    for (let at = 0; at < content.length;) {
      const piece = content.subarray(at, at + this.#blockBytes - this.#filled);
      this.#kernels.bytes.set(piece, this.#input + this.#filled);
      this.#filled += piece.length;
      at += piece.length;
      if (this.#filled === this.#blockBytes) yield this.#block();
    }
  }

  /** @returns What closes the frame; each part is valid until the next is asked for */
  *finish(): Generator<Uint8Array, void> {
    if (this.#filled > 0) yield this.#block();
    const end = new Uint8Array(8);
    new DataView(end.buffer).setUint32(4, this.#content.digest(), true);
    yield end;
  }

  #block(): Uint8Array {
    const kernels = this.#kernels;
    const length = this.#filled;
    this.#filled = 0;
    const data = this.#output + 4;
    // A block that does not shrink is stored as it is: the kernel gives up when it finds no room.
    const packed = kernels.lz4Compress(this.#input, length, data, length - 1);
    if (packed < 0) kernels.copy(data, this.#input, length);
    const stored = packed < 0 ? length : packed;
    const { bytes } = kernels;
    const view = new DataView(bytes.buffer, this.#output, 4 + stored + 4);
    view.setUint32(0, packed < 0 ? length + UNCOMPRESSED : packed, true);
    view.setUint32(4 + stored, xxh32(bytes.subarray(data, data + stored)), true);
    return bytes.subarray(this.#output, data + stored + 4);
  }
}

interface FrameHeader {
  readonly blockBytes: number;
  readonly blockChecksum: boolean;
  readonly contentChecksum: boolean;
  readonly contentBytes: bigint | undefined;
}

type ReaderState = "magic" | "header" | "skip" | "block" | "data" | "end";

/**
 * Reads frames, one after another, passing over skippable ones. Any chunking of the same bytes gives
 * the same content. Memory is bounded by two blocks of 4 MiB, whatever the bytes say.
 */
export class Lz4FrameReader {
  readonly #kernels: KernelSet;
  #state: ReaderState = "magic";
  /** What is read next, as far as it has come. */
  #item = new Uint8Array(64);
  #itemBytes = 0;
  #wanted = 4;
  #skip = 0;
  /** Where the item that is being read begins. */
  #offset = 0;
  #header: FrameHeader | undefined;
  #blockIsPlain = false;
  #capacity = 0;
  #input = 0;
  #output = 0;
  #content = new Xxh32();
  #contentBytes = 0n;

  /** @param kernels In whose memory blocks are decompressed; two blocks of it are taken for good */
  constructor(kernels: KernelSet) {
    this.#kernels = kernels;
  }

  /**
   * Take the next bytes.
   *
   * @returns Content, block by block; each is a copy of its own
   * @throws {StoreError} when the bytes are no frame that can be read, or are damaged; the reader is of
   * no further use
   */
  *push(bytes: Uint8Array): Generator<Uint8Array<ArrayBuffer>, void> {
    for (let at = 0; at < bytes.length;) {
      if (this.#state === "skip") {
        const skipped = Math.min(this.#skip, bytes.length - at);
        at += skipped;
        this.#skip -= skipped;
        this.#offset += skipped;
        if (this.#skip === 0) this.#expect("magic", 4);
        continue;
      }
      const piece = bytes.subarray(at, at + this.#wanted - this.#itemBytes);
      this.#item.set(piece, this.#itemBytes);
      this.#itemBytes += piece.length;
      at += piece.length;
      if (this.#itemBytes < this.#wanted) return;
      const content = this.#take(this.#item.subarray(0, this.#itemBytes));
      if (content !== undefined) yield content;
    }
  }

  /** @throws {StoreError} when the last frame is not whole */
  finish(): void {
    if (this.#state === "magic" && this.#itemBytes === 0) return;
    this.#fail("it ends in the middle");
  }

  #take(item: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> | undefined {
    const view = new DataView(item.buffer, item.byteOffset, item.length);
    switch (this.#state) {
      case "magic":
        this.#magic(view.getUint32(0, true));
        return undefined;
      case "header":
        this.#readHeader(item, view);
        return undefined;
      case "block":
        this.#blockLength(view.getUint32(0, true));
        return undefined;
      case "data":
        return this.#data(item, view);
      case "end":
        if (view.getUint32(0, true) !== this.#content.digest()) {
          this.#fail("the checksum of its content is wrong");
        }
        this.#expect("magic", 4);
        return undefined;
      case "skip":
        return this.#fail("it was skipped already");
    }
  }

  #magic(magic: number): void {
    if ((magic & ~0xf) >>> 0 === LZ4_SKIPPABLE_MAGIC) return this.#expect("header", 8, 4);
    if (magic !== LZ4_FRAME_MAGIC) {
      this.#fail(`it begins with 0x${magic.toString(16).padStart(8, "0")}, not as a frame does`);
    }
    this.#expect("header", 7, 4);
  }

  /** The item is all of a frame from its magic on, and grows until the descriptor is whole. */
  #readHeader(item: Uint8Array<ArrayBuffer>, view: DataView): void {
    if (view.getUint32(0, true) !== LZ4_FRAME_MAGIC) {
      this.#skip = view.getUint32(4, true);
      this.#expect(this.#skip === 0 ? "magic" : "skip", 4);
      return;
    }
    const [flags, sizes] = [item[4]!, item[5]!];
    if ((flags & FLAG.VERSION_MASK) !== FLAG.VERSION) this.#fail("its version is not 01");
    if ((flags & FLAG.RESERVED) !== 0) this.#fail("a reserved bit is set");
    if ((flags & FLAG.DICTIONARY) !== 0) this.#fail("it needs a dictionary");
    if ((flags & FLAG.INDEPENDENT) === 0) {
      this.#fail("its blocks depend on each other: write it with `lz4 -BI`");
    }
    const blockBytes = BLOCK_BYTES.get(sizes >>> 4);
    if (blockBytes === undefined || (sizes & 0xf) !== 0) this.#fail("its block size is not known");
    const hasSize = (flags & FLAG.CONTENT_SIZE) !== 0;
    const length = 7 + (hasSize ? 8 : 0);
    if (item.length < length) return this.#expect("header", length, item.length);
    if (item[length - 1] !== ((xxh32(item.subarray(4, length - 1)) >>> 8) & 0xff)) {
      this.#fail("the checksum of its header is wrong");
    }
    this.#header = {
      blockBytes: blockBytes!,
      blockChecksum: (flags & FLAG.BLOCK_CHECKSUM) !== 0,
      contentChecksum: (flags & FLAG.CONTENT_CHECKSUM) !== 0,
      contentBytes: hasSize ? view.getBigUint64(6, true) : undefined,
    };
    this.#content = new Xxh32();
    this.#contentBytes = 0n;
    this.#reserve(blockBytes!);
    this.#expect("block", 4);
  }

  #reserve(blockBytes: number): void {
    if (blockBytes <= this.#capacity) return;
    this.#capacity = blockBytes;
    this.#input = this.#kernels.alloc(blockBytes);
    this.#output = this.#kernels.alloc(blockBytes);
    const item = new Uint8Array(blockBytes + 4);
    item.set(this.#item.subarray(0, this.#itemBytes));
    this.#item = item;
  }

  #blockLength(word: number): void {
    const { blockBytes, blockChecksum, contentChecksum, contentBytes } = this.#header!;
    if (word === 0) {
      if (contentBytes !== undefined && contentBytes !== this.#contentBytes) {
        this.#fail(`its content has ${this.#contentBytes} bytes, not ${contentBytes}`);
      }
      return contentChecksum ? this.#expect("end", 4) : this.#expect("magic", 4);
    }
    const length = word & ~UNCOMPRESSED;
    if (length === 0 || length > blockBytes) {
      this.#fail(`a block has ${length} bytes, the limit is ${blockBytes}`);
    }
    this.#blockIsPlain = word >= UNCOMPRESSED;
    this.#expect("data", length + (blockChecksum ? 4 : 0));
  }

  #data(item: Uint8Array<ArrayBuffer>, view: DataView): Uint8Array<ArrayBuffer> {
    const { blockBytes, blockChecksum, contentChecksum } = this.#header!;
    const length = item.length - (blockChecksum ? 4 : 0);
    const data = item.subarray(0, length);
    if (blockChecksum && view.getUint32(length, true) !== xxh32(data)) {
      this.#fail("the checksum of a block is wrong");
    }
    const content = this.#blockIsPlain ? data.slice() : this.#decompress(data, blockBytes);
    if (contentChecksum) this.#content.update(content);
    this.#contentBytes += BigInt(content.length);
    this.#expect("block", 4);
    return content;
  }

  #decompress(data: Uint8Array, blockBytes: number): Uint8Array<ArrayBuffer> {
    const kernels = this.#kernels;
    kernels.bytes.set(data, this.#input);
    const length = kernels.lz4Decompress(this.#input, data.length, this.#output, blockBytes);
    if (length < 0) this.#fail("a block is malformed");
    return kernels.bytes.slice(this.#output, this.#output + length) as Uint8Array<ArrayBuffer>;
  }

  /** @param keep Bytes of the item so far that belong to the next one too */
  #expect(state: ReaderState, bytes: number, keep = 0): void {
    this.#offset += this.#itemBytes - keep;
    this.#itemBytes = keep;
    this.#state = state;
    this.#wanted = bytes;
  }

  #fail(detail: string): never {
    throw new StoreError(`Cannot read the LZ4 frame at byte ${this.#offset}: ${detail}`);
  }
}
