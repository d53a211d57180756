/**
 * The writes to a disk whose checkpoint is not committed yet, in files: one a checkpoint.
 *
 * ```text
 *  NAME-log-G-S   the S-th log of generation G, which is a seed of the guest's memory
 *
 *  entry*   u32 kind (1: write, 2: zeros, 3: seal), u32 bytes of the payload,
 *           u64 offset (of a seal: epoch), u64 length (of a seal: entries before it),
 *           checksum of all this and the payload; payload
 *
 *  running epoch:  log <- writes                     acknowledged
 *  checkpoint:     log <- seal                       then the guest's memory is committed
 *  commit:         disk <- writes of the log; log removed
 * ```
 *
 * All numbers are little-endian. Each arrow may be cut anywhere. What of the guest's memory is held says
 * how far the disk must be ({@linkcode DiskLog.recover}): so the two are committed in one step, that in
 * which its memory is. Logs up to there are applied once more, which is harmless because they set bytes;
 * later ones are removed. A checkpoint before which nothing was written has no log.
 *
 * What was written survives the process, not the machine: nothing is synced to a disk.
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { LocalProtocolError } from "../errors.ts";
import { freeBuffer } from "../buffers.ts";
import type { ImageFile, ImageFiles } from "../image/files.ts";
import { CHECKSUM_BYTES, Scratch } from "../image/scratch.ts";
import { DISK_LOG_WRITE_BYTES_MIN, NBD_PAYLOAD_BYTES_MAX } from "../limits.ts";

/** One change of a disk: these bytes, or zeros. */
export interface DiskWrite {
  readonly offset: number;
  readonly length: number;
  readonly bytes?: Uint8Array;
}

/** Which checkpoint of a guest's memory is held. */
export interface HeldMemory {
  /** Number of the seed, which is never used again. */
  readonly generation: number;
  readonly epoch: number;
}

/** Where a write is in a log. */
interface Entry {
  readonly offset: number;
  readonly length: number;
  /** Of its bytes in the file; zeros have none. */
  readonly at: number | undefined;
}

/** The log of one epoch. */
interface EpochLog {
  readonly name: string;
  readonly file: ImageFile;
  readonly entries: Entry[];
  /** The checkpoint that ends it, once it is sealed. */
  epoch: number | undefined;
  endBytes: number;
  heldBytes: number;
}

const KIND = { WRITE: 1, ZEROS: 2, SEAL: 3 } as const;

const CHECKSUM_AT = 24;
const HEADER_BYTES = CHECKSUM_AT + CHECKSUM_BYTES;

/** Small writes go to the file together. */
const BUFFER_BYTES = 256 * 1024;

/** What a write counts of what may be held. */
export function heldBytesOf({ length, bytes }: DiskWrite): number {
  return Math.max(bytes === undefined ? 0 : length, DISK_LOG_WRITE_BYTES_MIN);
}

/** Keeps the logs of one disk. */
export class DiskLog {
  readonly #files: ImageFiles;
  readonly #scratch: Scratch;
  readonly #prefix: string;
  /** In the order of their epochs; the last one may be that of the running epoch. */
  #logs: EpochLog[] = [];
  #generation: number | undefined;
  #lastSequence = 0;
  readonly #buffer = new Uint8Array(BUFFER_BYTES);
  #buffered = 0;

  /**
   * @param name Of the disk: letters and digits, others in the same directory have other names
   * @param kernels Of which some MiB are taken for good
   */
  constructor(files: ImageFiles, name: string, kernels: KernelSet) {
    this.#files = files;
    this.#prefix = `${name}-log-`;
    this.#scratch = new Scratch(kernels);
  }

  /** What is held, and of how many epochs. */
  get heldBytes(): number {
    return this.#logs.reduce((sum, { heldBytes }) => sum + heldBytes, 0);
  }

  /**
   * Find what an earlier process has left: what it had committed is to be applied, and is removed when
   * all of it was taken; the rest is removed at once. The bytes of each are there until the next is taken.
   *
   * @param held The checkpoint that is held of the guest's memory, if one is
   */
  *recover(held: HeldMemory | undefined): Generator<DiskWrite, void> {
    for (const log of this.#logs) log.file.close();
    this.#logs = [];
    const found = this.#files.list().flatMap((name) => {
      const numbers = this.#numbersOf(name);
      return numbers === undefined ? [] : [{ name, ...numbers }];
    });
    for (const { name, generation } of found.sort((a, b) => a.sequence - b.sequence)) {
      const log = held?.generation === generation ? this.#open(name) : undefined;
      if (log?.epoch !== undefined && log.epoch <= held!.epoch) this.#logs.push(log);
      else {
        log?.file.close();
        this.#files.remove(name);
      }
    }
    this.#generation = held?.generation;
    this.#lastSequence = found.at(-1)?.sequence ?? 0;
    if (held !== undefined) yield* this.commit(held.epoch);
  }

  /** What is written from now on belongs to the next seed of the guest's memory. */
  begin(generation: number): void {
    this.drop();
    this.#generation = generation;
  }

  /**
   * Hold one change.
   *
   * @throws when there is no room for it; nothing of the running epoch is of any use then
   */
  write({ offset, length, bytes }: DiskWrite): void {
    const log = this.#running();
    const at = log.endBytes + HEADER_BYTES;
    this.#append(log, bytes === undefined ? KIND.ZEROS : KIND.WRITE, offset, length, bytes);
    log.entries.push({ offset, length, at: bytes === undefined ? undefined : at });
    log.heldBytes += heldBytesOf({ offset, length, ...(bytes === undefined ? {} : { bytes }) });
  }

  /** See that all that is held survives this process. */
  flush(): void {
    const log = this.#logs.at(-1);
    if (this.#buffered === 0 || log === undefined) return;
    log.file.write(log.endBytes - this.#buffered, this.#buffer.subarray(0, this.#buffered));
    this.#buffered = 0;
  }

  /** The running epoch ends with this checkpoint; its log survives this process. */
  seal(epoch: number): void {
    const log = this.#logs.at(-1);
    if (log === undefined || log.epoch !== undefined) return;
    this.#append(log, KIND.SEAL, epoch, log.entries.length);
    this.flush();
    log.epoch = epoch;
  }

  /**
   * Checkpoint `epoch` is committed: these are the changes up to there, in order. Each log is removed
   * when all of it was taken. The bytes of each are there until the next is taken.
   */
  *commit(epoch: number): Generator<DiskWrite, void> {
    for (;;) {
      const log = this.#logs[0];
      if (log?.epoch === undefined || log.epoch > epoch) return;
      for (const { offset, length, at } of log.entries) {
        if (at === undefined) yield { offset, length };
        else {
          const bytes = readBytes(log.file, at, length);
          yield { offset, length, bytes };
          freeBuffer(bytes);
        }
      }
      log.file.close();
      this.#files.remove(log.name);
      this.#logs.shift();
    }
  }

  /** Forget all that is not committed. */
  drop(): void {
    this.#buffered = 0;
    for (const { file, name } of this.#logs.splice(0).reverse()) {
      file.close();
      this.#files.remove(name);
    }
  }

  /** Put what is held over what the disk has at `offset`. */
  overlay(offset: number, target: Uint8Array): void {
    this.flush();
    for (const { file, entries } of this.#logs) {
      for (const entry of entries) {
        const from = Math.max(offset, entry.offset);
        const to = Math.min(offset + target.length, entry.offset + entry.length);
        if (from >= to) continue;
        const part = target.subarray(from - offset, to - offset);
        if (entry.at === undefined) part.fill(0);
        else file.read(entry.at + from - entry.offset, part);
      }
    }
  }

  /** The log of the running epoch, which begins with the first write. */
  #running(): EpochLog {
    const last = this.#logs.at(-1);
    if (last !== undefined && last.epoch === undefined) return last;
    if (this.#generation === undefined) {
      throw new LocalProtocolError(
        "Cannot log a write: it belongs to no seed of the guest's memory",
      );
    }
    const name = `${this.#prefix}${this.#generation}-${++this.#lastSequence}`;
    const file = this.#files.create(name);
    const log = { name, file, entries: [], epoch: undefined, endBytes: 0, heldBytes: 0 };
    this.#logs.push(log);
    return log;
  }

  #append(log: EpochLog, kind: number, offset: number, length: number, bytes?: Uint8Array): void {
    const payloadBytes = bytes?.length ?? 0;
    const entry = new Uint8Array(HEADER_BYTES + payloadBytes);
    const view = new DataView(entry.buffer);
    view.setUint32(0, kind, true);
    view.setUint32(4, payloadBytes, true);
    view.setBigUint64(8, BigInt(offset), true);
    view.setBigUint64(16, BigInt(length), true);
    if (bytes !== undefined) entry.set(bytes, HEADER_BYTES);
    entry.set(this.#scratch.checksum(entry), CHECKSUM_AT);
    if (this.#buffered + entry.length > BUFFER_BYTES) this.flush();
    const entryBytes = entry.length;
    if (entryBytes > BUFFER_BYTES) {
      log.file.write(log.endBytes, entry);
      freeBuffer(entry);
    } else {
      this.#buffer.set(entry, this.#buffered);
      this.#buffered += entryBytes;
    }
    log.endBytes += entryBytes;
  }

  /** A log that an earlier process has sealed. */
  #open(name: string): EpochLog | undefined {
    const file = this.#files.open(name);
    if (file === undefined) return undefined;
    const log: EpochLog = { name, file, entries: [], epoch: undefined, endBytes: 0, heldBytes: 0 };
    while (log.epoch === undefined) {
      const entry = this.#read(file, log.endBytes);
      if (entry === undefined) break;
      const { kind, offset, length, payloadBytes } = entry;
      const at = kind === KIND.WRITE ? log.endBytes + HEADER_BYTES : undefined;
      log.endBytes += HEADER_BYTES + payloadBytes;
      if (kind !== KIND.SEAL) log.entries.push({ offset, length, at });
      else if (length === log.entries.length) log.epoch = offset;
      else break;
    }
    if (log.epoch !== undefined) return log;
    file.close();
    return undefined;
  }

  #read(file: ImageFile, at: number) {
    if (at + HEADER_BYTES > file.sizeBytes) return undefined;
    const payloadBytes = new DataView(readBytes(file, at, HEADER_BYTES).buffer).getUint32(4, true);
    if (payloadBytes > NBD_PAYLOAD_BYTES_MAX) return undefined;
    if (at + HEADER_BYTES + payloadBytes > file.sizeBytes) return undefined;
    const entry = readBytes(file, at, HEADER_BYTES + payloadBytes);
    const checksum = entry.slice(CHECKSUM_AT, HEADER_BYTES);
    entry.fill(0, CHECKSUM_AT, HEADER_BYTES);
    if (!this.#scratch.verify(entry, checksum)) return undefined;
    const view = new DataView(entry.buffer);
    const kind = view.getUint32(0, true);
    const [offset, length] = [8, 16].map((field) => Number(view.getBigUint64(field, true)));
    return { kind, offset: offset!, length: length!, payloadBytes };
  }

  #numbersOf(name: string) {
    if (!name.startsWith(this.#prefix)) return undefined;
    const match = /^(\d{1,15})-(\d{1,15})$/.exec(name.slice(this.#prefix.length));
    return match && { generation: Number(match[1]), sequence: Number(match[2]) } || undefined;
  }
}

function readBytes(file: ImageFile, at: number, count: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(count);
  file.read(at, bytes);
  return bytes;
}
