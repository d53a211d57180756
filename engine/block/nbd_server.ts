/**
 * An NBD server on the secondary for mode `continuous`: it takes the primary's writes, which become the
 * disk's when the checkpoint is committed that ends their epoch. Pure: bytes and checkpoint events in,
 * effects out; {@linkcode DiskReplica} performs them.
 *
 * ```text
 *   WRITE, TRIM, WRITE_ZEROES   held in the log of the running epoch
 *   READ                        what the disk has, with what is held over it
 *   checkpoint(N)               the log is that of N from now on, and another one begins
 *   commit(N)                   the logs up to N become the disk's
 *   drop()                      a takeover: what is not committed never was
 * ```
 *
 * The client's changes are answered by `EarlyAnswers` at its own end, and not here. When more is held than
 * should be, nothing more is to be read from it, which slows the guest down.
 *
 * @module
 */

import { NbdError } from "../errors.ts";
import { DISK_LOG_BYTES_MAX } from "../limits.ts";
import { type DiskWrite, heldBytesOf } from "./disk_log.ts";
import {
  isChange,
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
  /** As they came. */
  readonly pieces: Uint8Array[];
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

  /**
   * Whether more is held than should be, of which a commit will take some: nothing more should be read
   * from the connection until then.
   */
  get full(): boolean {
    return this.#sealed.length > 0 && this.heldBytes > this.#bytesMax;
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
    // What a client that made no sense has left undone.
    this.#effects.splice(0);
  }

  /** Whether nothing is needed any more of what it was given, once its effects are done. */
  get isBetween(): boolean {
    return this.#arriving === undefined;
  }

  /** @returns Nothing when this client is not let in */
  connect(): NbdServerEffect[] | undefined {
    if (!this.#isExpecting) return undefined;
    this.#isExpecting = false;
    this.#reader = new NbdClientReader();
    this.#handshake = new NbdServerHandshake(this.#options);
    this.#form = "simple";
    this.#arriving = undefined;
    this.#isClosed = false;
    this.#send(nbdGreeting());
    return this.#take();
  }

  /**
   * @param chunk The server's from now on
   * @throws {NbdError} when it is no NBD; the connection is of no further use
   */
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

  /** The primary stands still for this checkpoint, and all that it said before was taken. */
  checkpoint(epoch: number): NbdServerEffect[] {
    this.#sealed.push({ epoch, bytes: this.#runningBytes });
    this.#runningBytes = 0;
    this.#effects.push({ type: "seal", epoch });
    return this.#take();
  }

  /** The guest's memory as of this checkpoint is committed. */
  commit(epoch: number): NbdServerEffect[] {
    this.#sealed = this.#sealed.filter((log) => log.epoch > epoch);
    this.#effects.push({ type: "apply", epoch });
    return this.#take();
  }

  /** Somebody takes over from what is committed, or what was written is of no use any more. */
  drop(): NbdServerEffect[] {
    this.#sealed = [];
    this.#runningBytes = 0;
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
      this.#arriving = { request, pieces: [] };
    } else this.#do(request);
  }

  #data(raw: Uint8Array, last: boolean): void {
    const { request, pieces } = this.#arriving!;
    pieces.push(raw);
    if (!last) return;
    this.#arriving = undefined;
    if (pieces.length === 1) return this.#do(request, raw);
    const data = new Uint8Array(request.length);
    let at = 0;
    for (const piece of pieces) {
      data.set(piece, at);
      at += piece.length;
    }
    this.#do(request, data);
  }

  #do(request: NbdRequest, bytes?: Uint8Array): void {
    const { command, handle, offset, length } = request;
    const error = this.#mistake(request);
    if (isChange(request)) {
      // Its client believes that it is done.
      if (error !== 0) {
        throw new NbdError(`Cannot do request ${command} of ${length} bytes`, offset);
      }
      if (isWrite(request) && length > 0) this.#hold({ offset, length, ...(bytes && { bytes }) });
      return;
    }
    if (error !== 0) return this.#send(nbdResult(request, this.#form, error));
    if (command === NBD_COMMAND.READ) {
      this.#effects.push({ type: "read", handle, offset, length });
      return;
    }
    this.#send(nbdResult(request, this.#form));
  }

  #hold(write: DiskWrite): void {
    this.#effects.push({ type: "log", write });
    this.#runningBytes += heldBytesOf(write);
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
    return isInside ? 0 : NBD_ERROR.EINVAL;
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
