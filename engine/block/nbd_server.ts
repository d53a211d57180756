/**
 * An NBD server on the secondary for mode `continuous`: it takes the primary's writes, which become the
 * disk's when the checkpoint is committed that ends their epoch. Pure: bytes and checkpoint events in,
 * effects out; {@linkcode DiskReplica} performs them.
 *
 * ```text
 *   WRITE, TRIM, WRITE_ZEROES   held in the log of the running epoch, then answered
 *   FLUSH                       answered when all that is held survives this process
 *   READ                        what the disk has, with what is held over it
 *   checkpoint(N)               the log is that of N from now on, and another one begins
 *   commit(N)                   the logs up to N become the disk's
 *   drop()                      a takeover: what is not committed never was
 * ```
 *
 * When more is held than should be, answers are withheld, which slows the guest down, and a checkpoint
 * is asked for. A guest is never told of an error. QEMU waits for its answers when it stops the guest for
 * that checkpoint, so they must be given then: see {@linkcode NbdServer.drain}.
 *
 * @module
 */

import { DISK_LOG_BYTES_MAX } from "../limits.ts";
import { heldBytesOf } from "./disk_log.ts";
import {
  isWrite,
  NBD_CHUNK,
  NBD_CHUNK_DONE,
  NBD_COMMAND,
  NBD_COMMAND_FLAG,
  NBD_ERROR,
  nbdChunk,
  type NbdForm,
  nbdGreeting,
  type NbdRequest,
  nbdResult,
  nbdSimpleReply,
  requestPayloadBytes,
} from "./nbd.ts";
import { NbdServerHandshake } from "./nbd_handshake.ts";
import { NbdClientReader } from "./nbd_reader.ts";
import type { NbdServerEffect, NbdServerOptions } from "./nbd_server_effects.ts";

/** A WRITE whose data are arriving. */
interface Arriving {
  readonly request: NbdRequest;
  readonly data: Uint8Array;
  filled: number;
}

/** One disk. */
export class NbdServer {
  readonly #options: NbdServerOptions;
  readonly #bytesMax: number;
  #reader = new NbdClientReader();
  #handshake: NbdServerHandshake;
  #form: NbdForm = "simple";
  #arriving: Arriving | undefined;
  #isClosed = true;
  /** A client may connect. */
  #isExpecting = false;
  /** Bytes in the log of the running epoch, and in those of checkpoints that are not committed. */
  #runningBytes = 0;
  #sealed: { readonly epoch: number; readonly bytes: number }[] = [];
  #withheld: Uint8Array[] = [];
  #isFull = false;
  #isDraining = false;
  #effects: NbdServerEffect[] = [];

  constructor(options: NbdServerOptions) {
    this.#options = options;
    this.#bytesMax = options.bytesMax ?? DISK_LOG_BYTES_MAX;
    this.#handshake = new NbdServerHandshake(options);
  }

  /** Bytes of writes that are held. */
  get heldBytes(): number {
    return this.#sealed.reduce((sum, { bytes }) => sum + bytes, this.#runningBytes);
  }

  /** Whether more is held than should be: nothing more should be read from the connection. */
  get full(): boolean {
    return this.#isFull && !this.#isDraining;
  }

  /**
   * The disk is about to be synchronised: one client may connect. QEMU connects again when its connection
   * breaks, and what it wrote in between is lost: such a one must not be let in.
   */
  begin(): void {
    this.#isExpecting = true;
    this.#isClosed = true;
    this.#sealed = [];
    this.#runningBytes = 0;
    this.#isFull = false;
  }

  /** @returns Nothing when this client is not let in */
  connect(): NbdServerEffect[] | undefined {
    if (!this.#isExpecting) return undefined;
    this.#isExpecting = false;
    this.#reader = new NbdClientReader();
    this.#handshake = new NbdServerHandshake(this.#options);
    this.#form = "simple";
    this.#arriving = undefined;
    this.#withheld = [];
    this.#isClosed = false;
    this.#send(nbdGreeting());
    return this.#take();
  }

  /** @throws {NbdError} when it is no NBD; the connection is of no further use */
  fromClient(chunk: Uint8Array): NbdServerEffect[] {
    for (const piece of this.#isClosed ? [] : this.#reader.push(chunk)) {
      if (piece.type === "flags") this.#answer(this.#handshake.flags(piece.flags));
      else if (piece.type === "option") {
        this.#answer(this.#handshake.option(piece.option, piece.data));
      } else if (piece.type === "request") this.#request(piece.request);
      else this.#data(piece.raw, piece.last);
      if (this.#isClosed) break;
    }
    return this.#take();
  }

  /** What was read, or nothing where that failed. */
  readDone(
    { handle, offset }: { readonly handle: bigint; readonly offset: number },
    bytes: Uint8Array | undefined,
  ): NbdServerEffect[] {
    if (this.#isClosed) return [];
    if (bytes === undefined) this.#send(nbdResult({ handle, offset }, this.#form, NBD_ERROR.EIO));
    else {
      for (const header of readHeaders(handle, offset, bytes.length, this.#form)) {
        this.#send(header);
      }
      this.#send(bytes);
    }
    return this.#take();
  }

  /**
   * The primary is about to stand still for a checkpoint: all its writes are answered until
   * {@linkcode checkpoint} is called.
   */
  drain(): NbdServerEffect[] {
    this.#isDraining = true;
    this.#release();
    return this.#take();
  }

  /** The primary stands still for this checkpoint, and all that it said before was taken. */
  checkpoint(epoch: number): NbdServerEffect[] {
    this.#isDraining = false;
    this.#sealed.push({ epoch, bytes: this.#runningBytes });
    this.#runningBytes = 0;
    this.#effects.push({ type: "seal", epoch });
    return this.#take();
  }

  /** The guest's memory as of this checkpoint is committed. */
  commit(epoch: number): NbdServerEffect[] {
    this.#sealed = this.#sealed.filter((log) => log.epoch > epoch);
    this.#effects.push({ type: "apply", epoch });
    this.#reconsider();
    return this.#take();
  }

  /** Somebody takes over from what is committed, or what was written is of no use any more. */
  drop(): NbdServerEffect[] {
    this.#sealed = [];
    this.#runningBytes = 0;
    this.#withheld = [];
    this.#isFull = false;
    this.#isExpecting = false;
    this.#effects.push({ type: "drop" });
    this.#close();
    return this.#take();
  }

  #answer({ bytes, form, isEnd }: ReturnType<NbdServerHandshake["option"]>): void {
    this.#send(bytes);
    if (form !== undefined) {
      this.#form = form;
      this.#reader.beginRequests(form);
    }
    if (isEnd) this.#close();
  }

  #request(request: NbdRequest): void {
    const { command } = request;
    if (command === NBD_COMMAND.DISC) return this.#close();
    if (requestPayloadBytes(request, this.#form) > 0) {
      this.#arriving = { request, data: new Uint8Array(request.length), filled: 0 };
    } else this.#do(request);
  }

  #data(raw: Uint8Array, last: boolean): void {
    const arriving = this.#arriving!;
    arriving.data.set(raw, arriving.filled);
    arriving.filled += raw.length;
    if (last) this.#do(arriving.request, arriving.data);
  }

  #do(request: NbdRequest, bytes?: Uint8Array): void {
    const { command, handle, offset, length, flags } = request;
    const error = this.#mistake(request);
    if (error !== 0) return this.#send(nbdResult(request, this.#form, error));
    if (command === NBD_COMMAND.READ) {
      this.#effects.push({ type: "read", handle, offset, length });
      return;
    }
    if (isWrite(request) && length > 0) {
      const write = bytes === undefined ? { offset, length } : { offset, length, bytes };
      this.#effects.push({ type: "log", write });
      this.#runningBytes += heldBytesOf(write);
      this.#reconsider();
    }
    const isSafe = command === NBD_COMMAND.FLUSH || (flags & NBD_COMMAND_FLAG.FUA) !== 0;
    if (isSafe) this.#effects.push({ type: "flush" });
    const result = nbdResult(request, this.#form);
    if (this.full && command !== NBD_COMMAND.CACHE) this.#withheld.push(result);
    else this.#send(result);
  }

  /** The error number of a request that cannot be meant, or 0. */
  #mistake({ command, offset, length, flags }: NbdRequest): number {
    const { FUA, NO_HOLE, DF } = NBD_COMMAND_FLAG;
    const known = new Map<number, number>([
      [NBD_COMMAND.READ, this.#form === "structured" ? FUA | DF : FUA],
      [NBD_COMMAND.WRITE, FUA],
      [NBD_COMMAND.FLUSH, FUA],
      [NBD_COMMAND.TRIM, FUA],
      [NBD_COMMAND.CACHE, FUA],
      [NBD_COMMAND.WRITE_ZEROES, FUA | NO_HOLE],
    ]).get(command);
    if (known === undefined || (flags & ~known) !== 0) return NBD_ERROR.EINVAL;
    const isInside = command === NBD_COMMAND.FLUSH || offset + length <= this.#options.sizeBytes;
    if (isInside) return 0;
    return isWrite({ command }) ? NBD_ERROR.ENOSPC : NBD_ERROR.EINVAL;
  }

  #reconsider(): void {
    const isTooMuch = this.heldBytes > this.#bytesMax;
    if (isTooMuch && !this.#isFull) this.#effects.push({ type: "full" });
    this.#isFull = isTooMuch;
    if (!isTooMuch) this.#release();
  }

  #release(): void {
    for (const bytes of this.#withheld.splice(0)) this.#send(bytes);
  }

  #send(bytes: Uint8Array): void {
    if (bytes.length > 0) this.#effects.push({ type: "send", bytes });
  }

  #close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#effects.push({ type: "close" });
  }

  #take(): NbdServerEffect[] {
    return this.#effects.splice(0);
  }
}

/** What comes before the data that were read; where nothing was, that is all. */
function readHeaders(
  handle: bigint,
  offset: number,
  length: number,
  form: NbdForm,
): readonly Uint8Array[] {
  if (form === "simple") return [nbdSimpleReply(handle)];
  const chunk = { handle, flags: NBD_CHUNK_DONE };
  if (length === 0) return [nbdChunk({ ...chunk, type: NBD_CHUNK.NONE, payloadBytes: 0 }, form)];
  const at = new DataView(new ArrayBuffer(8));
  at.setBigUint64(0, BigInt(offset));
  const header = { ...chunk, type: NBD_CHUNK.OFFSET_DATA, payloadBytes: 8 + length };
  return [nbdChunk(header, form), new Uint8Array(at.buffer)];
}
