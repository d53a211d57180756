/**
 * The gate between the primary QEMU's NBD client and the secondary QEMU's NBD server, in mode `colo`, on
 * the secondary's host. Pure: bytes and checkpoint events in, bytes and requests out.
 *
 * When the secondary loads checkpoint M, QEMU's replication driver makes all that was written to its
 * disk so far a part of M. So at that moment the server must have seen every write that the primary
 * issued before M, and none that it issued after M:
 *
 * ```text
 *   a write issued after checkpoint N, and before N+1       N = -1: before the first one
 *     the secondary has loaded N or a later one             passes
 *     it is about to load a later one than N                passes, and is waited for (`settled`)
 *     else                                                  waits
 * ```
 *
 * Until the seed is loaded nothing passes that comes while QEMU loads it (`entering`): on its way into COLO
 * it puts its overlays into place, and a request that it is given meanwhile fails, or makes it abort.
 *
 * What passes too early would be in the secondary's disk and not in its memory; what passes too late the
 * other way round.
 *
 * The client was told by `EarlyAnswers` that its changes are done, so nobody answers them here, and it is
 * the gate that keeps those to the same place in their order: whatever waits is passed in the order of its
 * coming. A write whose checkpoint this host does not hold is undone by a takeover anyway.
 *
 * @module
 */

import { LocalProtocolError } from "../errors.ts";
import { DISK_GATE_BYTES_MAX } from "../limits.ts";
import { ChangesUnderWay } from "./_under_way.ts";
import {
  isChange,
  isWrite,
  nbdErrorReason,
  nbdErrorText,
  type NbdReply,
  type NbdRequest,
  nbdRequest,
  requestPayloadBytes,
} from "./nbd.ts";
import { NbdConversation } from "./nbd_reader.ts";

/** One thing to do, in the order of the array. Bytes may be views of what the gate was given. */
export type GateEffect =
  | { readonly type: "to-server"; readonly bytes: Uint8Array }
  | { readonly type: "to-client"; readonly bytes: Uint8Array }
  /** All that was written before the checkpoint has been answered by the server: it may be loaded. */
  | { readonly type: "settled"; readonly epoch: number }
  /**
   * More waits than should: have the secondary load the last checkpoint that was taken, and meanwhile,
   * as long as `DiskGate.full`, read nothing from the client.
   */
  | { readonly type: "full" }
  /** The server did not do it, and says why: the secondary's disk is no copy any more. */
  | { readonly type: "failed"; readonly request: NbdRequest; readonly reason: string };

/** A request that waits. */
interface HeldRequest {
  /** The checkpoint that it was issued after. */
  readonly epoch: number;
  readonly request: NbdRequest;
  readonly raw: Uint8Array;
  /** As far as they have come. */
  readonly data: Uint8Array[];
  isWhole: boolean;
}

/** What a request that waits costs besides its data. */
const HELD_REQUEST_BYTES = 512;

/** Changes that the server has not answered: it takes no more than 16 at a time. */
const RELEASED_MAX = 64;

/**
 * One NBD connection of one disk. QEMU connects again when a connection breaks, and its writes in
 * between are lost to the server: a second connection must not be let in before the disk was
 * synchronised again.
 *
 * @example
 * ```ts
 * import { DiskGate } from "./gate.ts";
 *
 * const gate = new DiskGate();
 * gate.checkpoint(1);
 * if (gate.isOpen) throw new Error("writes must wait until the secondary has loaded");
 * gate.loaded(1);
 * if (!gate.isOpen) throw new Error("and no longer");
 * ```
 */
export class DiskGate {
  readonly #conversation = new NbdConversation();
  readonly #bytesMax: number;
  #held: HeldRequest[] = [];
  #heldBytes = 0;
  readonly #underWay = new ChangesUnderWay();
  #isSwallowing = false;
  /** A request that has failed, until it is known why. */
  #failure: NbdRequest | undefined;
  #taken = -1;
  #loading = -1;
  #loaded = -1;
  #isEntering = false;
  /** The checkpoint that `settled` is due for. */
  #settles: number | undefined;
  #isFull = false;
  #isCut = false;
  #effects: GateEffect[] = [];

  /** @param bytesMax Bytes that wait before it is full */
  constructor(bytesMax = DISK_GATE_BYTES_MAX) {
    this.#bytesMax = bytesMax;
  }

  /** Whether a write would pass. */
  get isOpen(): boolean {
    return this.#passes(this.#taken);
  }

  /** Bytes that wait. */
  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** Whether more waits than should. */
  get full(): boolean {
    return this.#isFull;
  }

  /** Whether the server has answered all that the client has changed. */
  get isIdle(): boolean {
    return this.#underWay.size === 0 && this.#held.length === 0;
  }

  /**
   * @param chunk The gate's from now on
   * @throws {NbdError} when it is no NBD; the connection is of no further use
   */
  fromClient(chunk: Uint8Array): GateEffect[] {
    if (this.#isCut) return [];
    for (const piece of this.#conversation.fromClient(chunk)) {
      if (piece.type === "request") this.#request(piece.request, piece.raw);
      else if (piece.type === "payload") this.#payload(piece.raw, piece.last);
      else this.#toServer(piece.raw);
    }
    return this.#flush();
  }

  /**
   * @param chunk The gate's from now on
   * @throws {NbdError} when it is no NBD; the connection is of no further use
   */
  fromServer(chunk: Uint8Array): GateEffect[] {
    if (this.#isCut) return [];
    for (const piece of this.#conversation.fromServer(chunk)) {
      if (piece.type === "reply") {
        this.#reply(piece.reply);
      } else if (piece.type === "payload") this.#failed(piece.raw);
      else this.#isSwallowing = false;
      if (!this.#isSwallowing) this.#effects.push({ type: "to-client", bytes: piece.raw });
    }
    return this.#flush();
  }

  /**
   * The primary stands still for this checkpoint, and all that its client said before has been given to
   * {@linkcode fromClient}.
   */
  checkpoint(epoch: number): void {
    if (epoch <= this.#taken) {
      throw new LocalProtocolError(`Cannot take checkpoint ${epoch}: it follows ${this.#taken}`);
    }
    this.#taken = epoch;
  }

  /**
   * The secondary is about to load this checkpoint, when `settled` has said that it may. A checkpoint
   * that is loaded without this call must be the one after that which was loaded last.
   */
  loading(epoch: number): GateEffect[] {
    if (this.#isCut) return [];
    if (epoch > this.#taken) {
      throw new LocalProtocolError(
        `Cannot load checkpoint ${epoch}: only ${this.#taken} was taken`,
      );
    }
    this.#loading = epoch;
    this.#settles = epoch;
    return this.#flush();
  }

  /** The secondary is about to load its seed, when `settled` has said that it may. */
  entering(epoch: number): GateEffect[] {
    if (this.#isCut) return [];
    this.#isEntering = true;
    this.#settles = epoch;
    return this.#flush();
  }

  /** The secondary runs from this checkpoint. */
  loaded(epoch: number): GateEffect[] {
    if (this.#isCut) return [];
    this.#isEntering = false;
    this.#loaded = Math.max(this.#loaded, epoch);
    return this.#flush();
  }

  /** The secondary takes over, or is lost: what waits is dropped, and nothing passes any more. */
  cut(): void {
    this.#isCut = true;
    this.#held = [];
    this.#heldBytes = 0;
    this.#isFull = false;
  }

  #passes(epoch: number): boolean {
    return epoch <= this.#loaded || epoch < this.#loading;
  }

  #request(request: NbdRequest, raw: Uint8Array): void {
    const isWhole = requestPayloadBytes(request, this.#conversation.form!) === 0;
    this.#held.push({ epoch: this.#taken, request, raw, data: [], isWhole });
    this.#heldBytes += HELD_REQUEST_BYTES;
  }

  #payload(raw: Uint8Array, last: boolean): void {
    // Nothing passes before it is whole, and nothing overtakes it.
    const held = this.#held.at(-1)!;
    held.data.push(raw);
    held.isWhole = last;
    this.#heldBytes += raw.length;
  }

  #reply({ handle, done, failed, error, payloadBytes }: NbdReply): void {
    const request = this.#underWay.get(handle);
    this.#isSwallowing = request !== undefined;
    if (failed && request !== undefined) {
      if (payloadBytes > 0) this.#failure = request;
      else this.#effects.push({ type: "failed", request, reason: nbdErrorText(error) });
    }
    if (done) this.#underWay.done(handle);
  }

  /** What follows a reply, which says why if that was of a request that has failed. */
  #failed(payload: Uint8Array): void {
    if (this.#failure === undefined) return;
    // Reported with what has come of it: a few bytes, which no server sends apart.
    const reason = nbdErrorReason(payload);
    this.#effects.push({ type: "failed", request: this.#failure, reason });
    this.#failure = undefined;
  }

  /** Let go of what may pass by now. */
  #release(): void {
    if (this.#isEntering) return;
    let count = 0;
    for (const { epoch, request, raw, data, isWhole } of this.#held) {
      if (!isWhole || (isWrite(request) && !this.#passes(epoch))) break;
      if (this.#underWay.size >= RELEASED_MAX || this.#underWay.precedes(request)) break;
      count++;
      this.#toServer(isChange(request) ? this.#own(request) : raw);
      this.#heldBytes -= HELD_REQUEST_BYTES;
      for (const bytes of data) {
        this.#heldBytes -= bytes.length;
        this.#toServer(bytes);
      }
    }
    this.#held.splice(0, count);
  }

  /** The header of a request whose answer is not for the client. */
  #own(request: NbdRequest): Uint8Array {
    const own = this.#underWay.add(request);
    this.#conversation.asks(own);
    return nbdRequest(own, this.#conversation.form!);
  }

  #toServer(bytes: Uint8Array): void {
    this.#effects.push({ type: "to-server", bytes });
  }

  #flush(): GateEffect[] {
    this.#release();
    // What may pass and still waits does so behind others that are under way.
    if (this.#settles !== undefined && this.#underWay.size === 0) {
      this.#effects.push({ type: "settled", epoch: this.#settles });
      this.#settles = undefined;
    }
    if (!this.#isFull && this.#heldBytes > this.#bytesMax) {
      this.#isFull = true;
      this.#effects.push({ type: "full" });
    } else if (this.#heldBytes <= this.#bytesMax / 2) this.#isFull = false;
    return this.#effects.splice(0);
  }
}
