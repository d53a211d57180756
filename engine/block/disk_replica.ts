/**
 * A disk of the guest's on a secondary in mode `continuous`: an image, the log of what is not committed,
 * and the NBD server that the primary writes to.
 *
 * All calls are synchronous and belong in a worker, with the files of the guest's memory.
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { messageOf, NbdError } from "../errors.ts";
import type { ImageFile, ImageFiles } from "../image/files.ts";
import { DiskLog, type DiskWrite, type HeldMemory } from "./disk_log.ts";
import { NbdServer } from "./nbd_server.ts";
import type { NbdServerEffect } from "./nbd_server_effects.ts";

/** The image: raw, of the size of the disk, and nobody else writes to it. */
export type DiskTarget = Pick<ImageFile, "sizeBytes" | "read" | "write">;

/** What a replica is made of. */
export interface DiskReplicaOptions {
  /** Where the log is; the directory may be that of the guest's memory. */
  readonly files: ImageFiles;
  readonly kernels: KernelSet;
  /** Of the disk: letters and digits. */
  readonly name: string;
  readonly target: DiskTarget;
  /** What the primary asks for; the name by default. */
  readonly exportName?: string;
  /** Bytes of writes that are held before it is full. */
  readonly bytesMax?: number;
}

/** What is left to be done. */
export type DiskReplicaEffect =
  | Extract<NbdServerEffect, { type: "send" | "close" }>
  /** The disk cannot be kept any more: it is no copy, and takes nothing. */
  | { readonly type: "failed"; readonly reason: string };

const ZEROS = new Uint8Array(1024 * 1024);

/** Keeps one disk. */
export class DiskReplica {
  readonly #name: string;
  readonly #target: DiskTarget;
  readonly #log: DiskLog;
  readonly #server: NbdServer;
  #isDirect = false;
  #hasFailed = false;

  constructor({ files, kernels, name, target, exportName = name, bytesMax }: DiskReplicaOptions) {
    this.#name = name;
    this.#target = target;
    this.#log = new DiskLog(files, name, kernels);
    const { sizeBytes } = target;
    this.#server = new NbdServer({
      name: exportName,
      sizeBytes,
      ...(bytesMax === undefined ? {} : { bytesMax }),
    });
  }

  /** Bytes of writes that are held. */
  get heldBytes(): number {
    return this.#server.heldBytes;
  }

  /** See {@linkcode NbdServer.isBetween}. */
  get isBetween(): boolean {
    return this.#server.isBetween;
  }

  /** See {@linkcode NbdServer.full}. */
  get full(): boolean {
    return this.#server.full;
  }

  /**
   * Bring the disk to the checkpoint that is held of the guest's memory, whatever an earlier process was
   * about to do.
   *
   * @throws what the files throw; to be called again
   */
  recover(held: HeldMemory | undefined): void {
    for (const write of this.#log.recover(held)) applyWrite(this.#target, write);
  }

  /**
   * The next seed of the guest's memory begins.
   *
   * @param isDirect No checkpoint is held that this disk belongs to: until the first one everything goes
   * into the image at once. Otherwise it is held until the seed is whole, and must fit
   * @throws what the files throw
   */
  begin(generation: number, isDirect: boolean): void {
    this.#log.begin(generation);
    this.#server.begin();
    this.#hasFailed = false;
    this.#isDirect = isDirect;
  }

  /** @returns Nothing when this client is not let in: only the first after {@linkcode begin} is */
  connect(): DiskReplicaEffect[] | undefined {
    const effects = this.#server.connect();
    return effects && this.#perform(() => effects);
  }

  /** What it says, which is the replica's from now on. Never throws: a client that makes no sense is disconnected. */
  fromClient(chunk: Uint8Array): DiskReplicaEffect[] {
    return this.#perform(() => this.#server.fromClient(chunk));
  }

  /** See {@linkcode NbdServer.checkpoint}: before the guest's memory is committed. */
  checkpoint(epoch: number): DiskReplicaEffect[] {
    return this.#perform(() => this.#server.checkpoint(epoch));
  }

  /** The guest's memory as of this checkpoint is committed. */
  commit(epoch: number): DiskReplicaEffect[] {
    return this.#perform(() => this.#server.commit(epoch));
  }

  /** Somebody takes over from what is committed, or what was written is of no use any more. */
  drop(): DiskReplicaEffect[] {
    return this.#perform(() => this.#server.drop());
  }

  #perform(make: () => readonly NbdServerEffect[]): DiskReplicaEffect[] {
    const left: DiskReplicaEffect[] = [];
    if (this.#hasFailed) return left;
    try {
      this.#do(make(), left);
    } catch (error) {
      const reason = error instanceof NbdError
        ? error.message
        : `Cannot keep the disk ${this.#name}: ${messageOf(error)}`;
      this.#hasFailed = true;
      left.push({ type: "failed", reason }, { type: "close" });
    }
    return left;
  }

  #do(effects: readonly NbdServerEffect[], left: DiskReplicaEffect[]): void {
    for (const effect of effects) {
      switch (effect.type) {
        case "log":
          if (this.#isDirect) applyWrite(this.#target, effect.write);
          else this.#log.write(effect.write);
          break;
        case "read":
          this.#do(this.#server.readDone(effect, this.#read(effect.offset, effect.length)), left);
          break;
        case "seal":
          this.#isDirect = false;
          this.#log.seal(effect.epoch);
          break;
        case "apply":
          for (const write of this.#log.commit(effect.epoch)) applyWrite(this.#target, write);
          break;
        case "drop":
          this.#log.drop();
          break;
        default:
          left.push(effect);
      }
    }
  }

  #read(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#target.read(offset, bytes);
    this.#log.overlay(offset, bytes);
    return bytes;
  }
}

/** Make a change to a disk. */
export function applyWrite(target: DiskTarget, { offset, length, bytes }: DiskWrite): void {
  if (bytes !== undefined) return target.write(offset, bytes);
  for (let at = 0; at < length; at += ZEROS.length) {
    const zeros = ZEROS.subarray(0, Math.min(ZEROS.length, length - at));
    const found = new Uint8Array(zeros.length);
    target.read(offset + at, found);
    // A hole in the file stays one.
    if (!isZero(found)) target.write(offset + at, zeros);
  }
}

function isZero(bytes: Uint8Array<ArrayBuffer>): boolean {
  const words = new Uint32Array(bytes.buffer, 0, bytes.length >> 2);
  for (const word of words) if (word !== 0) return false;
  return bytes.subarray(words.byteLength).every((byte) => byte === 0);
}
