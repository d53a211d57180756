/**
 * A stored checkpoint with all that it is a difference from: read, checked, put together.
 *
 * Nothing is given out that does not add up: every byte of a file has a checksum, every page the one
 * that the save saw, and all of them together are the state that was saved.
 *
 * @module
 */

import { type KernelSet, PAGE_ENTRY_BYTES } from "../../wasm/mod.ts";
import { RemoteProtocolError, StoreError } from "../errors.ts";
import { PAGE_BYTES } from "../limits.ts";
import type { PlacedBlock } from "../stream/format.ts";
import { StreamReader } from "../stream/reader.ts";
import type { ReadableFile } from "./files.ts";
import { Lz4FrameReader } from "./lz4_frame.ts";
import {
  type CheckpointMetadata,
  INDEX_ENTRY_BYTES,
  placeBlocks,
  readMetadata,
  sameLayout,
} from "./metadata.ts";
import { PageHashes } from "./page_hashes.ts";
import { type Checksum, SealedReader } from "./sealed_file.ts";

/** One page of a checkpoint. */
export interface StoredPage {
  readonly page: number;
  /** Valid until the next page is asked for; nothing stands for zeros. */
  readonly content: Uint8Array | undefined;
}

/** One file of a store, opened. */
export class CheckpointFile {
  readonly metadata: CheckpointMetadata;
  readonly #sealed: SealedReader;

  /**
   * @param name Of the checkpoint
   * @throws {StoreError} when its end is damaged or missing; the file is closed then
   */
  constructor(readonly name: string, readonly file: ReadableFile, checksum: Checksum) {
    try {
      this.#sealed = new SealedReader(file, checksum);
      this.metadata = readMetadata(this.#sealed.metadata, this.#sealed.bodyBytes);
    } catch (error) {
      file.close();
      throw within(name, error);
    }
  }

  get sizeBytes(): number {
    return this.file.sizeBytes;
  }

  /** Call `take` with every entry of the page index: page, lower and upper word of its XXH64. */
  readIndex(take: (page: number, low: number, high: number) => void): void {
    const { from, to } = this.metadata.index;
    const entry = new Uint8Array(INDEX_ENTRY_BYTES);
    const view = new DataView(entry.buffer);
    let filled = 0;
    for (const piece of this.#read(from, to)) {
      for (let at = 0; at < piece.length;) {
        const part = piece.subarray(at, at + INDEX_ENTRY_BYTES - filled);
        entry.set(part, filled);
        filled += part.length;
        at += part.length;
        if (filled < INDEX_ENTRY_BYTES) break;
        filled = 0;
        take(view.getUint32(0, true), view.getUint32(4, true), view.getUint32(8, true));
      }
    }
  }

  /** The stream in the file, decompressed. */
  *stream(kernels: KernelSet): Generator<Uint8Array<ArrayBuffer>, void> {
    const reader = new Lz4FrameReader(kernels);
    const { from, to } = this.metadata.frame;
    try {
      for (const piece of this.#read(from, to)) yield* reader.push(piece);
      reader.finish();
    } catch (error) {
      throw within(this.name, error);
    }
  }

  /** @throws {StoreError} when any byte of the file is damaged */
  verify(): void {
    try {
      this.#sealed.verify();
    } catch (error) {
      throw within(this.name, error);
    }
  }

  close(): void {
    this.#sealed.close();
  }

  *#read(from: number, to: number): Generator<Uint8Array, void> {
    try {
      yield* this.#sealed.read(from, to);
    } catch (error) {
      throw within(this.name, error);
    }
  }
}

/** A page is in no file of a chain: it is zero. */
const NOWHERE = 0xffff;

/** A page has been given out. */
const DONE = 0xfffe;

/** Longest chain: reading each file of it takes some MiB of one kernel memory. */
const CHAIN_LENGTH_MAX = 1024;

/** Less than what a capture needs: pages are given out as they come. */
const STAGING = { segmentBytes: 1024 * 1024, segmentsMax: 1, pagesMax: 4096 } as const;

/** A checkpoint and its ancestors. */
export class Chain {
  readonly blocks: readonly PlacedBlock[];
  /** What every page holds. */
  readonly hashes: PageHashes;
  readonly #files: readonly CheckpointFile[];
  readonly #kernels: KernelSet;
  readonly #checksum: Checksum;
  /** Position in the chain of the newest file that has a page. */
  readonly #owners: Uint16Array;
  #deviceState: Uint8Array<ArrayBuffer> | undefined;

  /**
   * @param files From the full one to the checkpoint itself; {@linkcode close} closes them
   * @param kernels In whose memory it works: 8 bytes a page, and some MiB
   * @throws {StoreError} when they do not belong together, or what is read of them is damaged
   */
  constructor(files: readonly CheckpointFile[], kernels: KernelSet, checksum: Checksum) {
    this.#files = files;
    this.#kernels = kernels;
    this.#checksum = checksum;
    checkLinks(files);
    this.blocks = placeBlocks(this.metadata.blocks);
    this.hashes = new PageHashes(kernels, this.blocks);
    this.#owners = new Uint16Array(this.hashes.pages).fill(NOWHERE);
    for (const [position, file] of files.entries()) {
      file.readIndex((page, low, high) => {
        this.hashes.set(page, low, high);
        this.#owners[page] = position;
      });
    }
  }

  /** Name of the checkpoint. */
  get name(): string {
    return this.#files.at(-1)!.name;
  }

  get metadata(): CheckpointMetadata {
    return this.#files.at(-1)!.metadata;
  }

  /** From the full one to the checkpoint itself. */
  get files(): readonly CheckpointFile[] {
    return this.#files;
  }

  /** Pages that the chain has, each counted once. */
  get pageCount(): number {
    return this.#owners.reduce((count, owner) => owner === NOWHERE ? count : count + 1, 0);
  }

  /**
   * All pages but those that are zero in a fresh VM, each once, in no particular order. Call it once.
   *
   * @param from Position in the chain of the first file whose pages are wanted
   * @throws {StoreError} when a page is damaged or missing
   */
  *pages(from = 0): Generator<StoredPage, void> {
    for (const [position, file] of this.#files.entries()) {
      if (position < from) continue;
      yield* this.#pagesOf(file, position);
      const lost = this.#owners.indexOf(position);
      if (lost >= 0) {
        throw within(file.name, new StoreError(`Cannot read page ${lost}: it is not there`));
      }
    }
  }

  *#pagesOf(file: CheckpointFile, position: number): Generator<StoredPage, void> {
    const kernels = this.#kernels;
    const reader = new StreamReader(kernels, STAGING);
    const zeros = kernels.alloc(PAGE_BYTES);
    const { table } = reader.staging;
    for (const piece of this.#ramOf(file)) {
      for (const event of readStream(reader, piece, file.name)) {
        if (event.type === "blocks" && !sameBlocks(event.blocks, this.blocks)) {
          throw new StoreError(`Cannot read checkpoint ${file.name}: it contradicts itself`);
        }
        if (event.type !== "pages") continue;
        for (let index = event.from; index < event.from + event.count; index++) {
          const entry = new DataView(kernels.bytes.buffer, table + index * PAGE_ENTRY_BYTES, 8);
          const [page, address] = [entry.getUint32(0, true), entry.getUint32(4, true)];
          // A page that comes twice holds what came last, which is what the index says.
          if (this.#owners[page] !== position) continue;
          if (!this.hashes.matches(page, address === 0 ? zeros : address)) continue;
          this.#owners[page] = DONE;
          const content = kernels.bytes.subarray(address, address + PAGE_BYTES);
          yield { page, content: address === 0 ? undefined : content };
        }
      }
    }
  }

  /** The part of a file's stream that has its pages; what follows in the last file is kept. */
  *#ramOf(file: CheckpointFile): Generator<Uint8Array, void> {
    const { ramBytes, deviceStateBytes } = file.metadata;
    const deviceState = new Uint8Array(deviceStateBytes);
    let position = 0;
    for (const piece of file.stream(this.#kernels)) {
      if (position < ramBytes) yield piece.subarray(0, ramBytes - position);
      const from = Math.max(0, ramBytes - position);
      const to = Math.min(piece.length, ramBytes + deviceStateBytes - position);
      if (from < to) deviceState.set(piece.subarray(from, to), position + from - ramBytes);
      position += piece.length;
    }
    if (position < ramBytes + deviceStateBytes) {
      throw new StoreError(`Cannot read checkpoint ${file.name}: its stream is too short`);
    }
    if (file === this.#files.at(-1)) this.#deviceState = deviceState;
  }

  /**
   * The device state of the checkpoint; at hand when all {@linkcode pages} have been read.
   *
   * @throws {StoreError} when it is damaged, or the chain does not add up to the state that was saved
   */
  deviceState(): Uint8Array<ArrayBuffer> {
    const file = this.#files.at(-1)!;
    if (this.#deviceState === undefined) { for (const _ of this.#ramOf(file)); }
    const deviceState = this.#deviceState!;
    if (this.hashes.digest(deviceState, this.#checksum) !== file.metadata.stateDigest) {
      throw new StoreError(
        `Cannot read checkpoint ${file.name}: it and those before it do not add up to what was saved`,
      );
    }
    return deviceState;
  }

  close(): void {
    for (const file of this.#files) file.close();
  }
}

function checkLinks(files: readonly CheckpointFile[]): void {
  if (files.length > CHAIN_LENGTH_MAX) throw new StoreError("Cannot read so long a chain");
  for (const [position, { name, metadata }] of files.entries()) {
    const before = files[position - 1]?.metadata;
    const { parent } = metadata;
    const fits = parent === undefined
      ? before === undefined
      : parent.id === before?.id && parent.stateDigest === before.stateDigest &&
        sameLayout(metadata, before);
    if (!fits) {
      throw new StoreError(`Cannot read checkpoint ${name}: it does not follow the one before it`);
    }
  }
}

function* readStream(reader: StreamReader, piece: Uint8Array, name: string) {
  try {
    yield* reader.push(piece);
  } catch (error) {
    throw within(name, error);
  }
}

function sameBlocks(a: readonly PlacedBlock[], b: readonly PlacedBlock[]): boolean {
  return sameLayout({ machine: "", blocks: a }, { machine: "", blocks: b });
}

/** Say which checkpoint it was. */
function within(name: string, error: unknown): unknown {
  const isOurs = error instanceof StoreError || error instanceof RemoteProtocolError;
  if (!isOurs || error.message.startsWith("Cannot read checkpoint")) return error;
  const detail = error.message.replace(/^Cannot \w+ the \w+: /, "");
  return new StoreError(`Cannot read checkpoint ${name}: ${detail}`);
}
