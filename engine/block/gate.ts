/**
 * The gate between the primary QEMU's NBD client and the secondary QEMU's NBD server, in mode `colo`.
 * Pure: bytes and checkpoint events in, bytes and requests out.
 *
 * When the secondary loads checkpoint M, QEMU's replication driver makes all that was written to its
 * disk so far a part of M. So at that moment the server must have seen every write that the primary
 * issued before M, and none that it issued after M:
 *
 * ```text
 *   a write issued after checkpoint N, and before N+1       N = -1: before the first one
 *     the secondary has loaded N or a later one             passes
 *     it is about to load a later one than N                passes, and is waited for (`settled`)
 *     else                                                  waits, and what must not overtake it as well
 * ```
 *
 * What passes too early would be in the secondary's disk and not in its memory; what passes too late the
 * other way round.
 *
 * The writes that wait are answered by the server, when they have got there, or by the gate itself. QEMU
 * waits for all of its writes whenever it stops the guest, so without answers of the gate's the pause of
 * a checkpoint lasts until the secondary has loaded the one before, where the guest has written since.
 * An answer of the gate's promises no more than the server's: both hold the write in the memory of the
 * secondary's host, and a write whose checkpoint that host does not hold is undone by a takeover anyway.
 * Such a gate must lie on the secondary's host, therefore, and be told of checkpoints in the order of
 * the client's bytes. Behind `EarlyAnswers` it answers all writes, because their client does not wait for
 * them any more: so it is the gate that keeps those to the same place in their order.
 *
 * @module
 */

import { LocalProtocolError } from "../errors.ts";
import { DISK_GATE_BYTES_MAX } from "../limits.ts";
import { RequestsUnderWay } from "./_under_way.ts";
import { type GateEffect, type GateOptions, type HeldRequest, joined } from "./gate_effects.ts";
import {
  isWrite,
  NBD_COMMAND,
  type NbdRequest,
  nbdRequest,
  nbdResult,
  requestPayloadBytes,
} from "./nbd.ts";
import { NbdClientReader, NbdServerReader } from "./nbd_reader.ts";

/** What a request that waits costs besides its data. */
const HELD_REQUEST_BYTES = 512;

/** Requests that waited and that the server has not answered: it takes no more than 16 at a time. */
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
  readonly #client = new NbdClientReader();
  readonly #server = new NbdServerReader();
  readonly #answers: "server" | "gate" | "always";
  readonly #bytesMax: number;
  #held: HeldRequest[] = [];
  #heldBytes = 0;
  /** The request whose data are arriving, if it waits. */
  #arriving: HeldRequest | undefined;
  readonly #underWay = new RequestsUnderWay();
  #isSwallowing = false;
  #hasForm = false;
  #taken = -1;
  #loading = -1;
  #loaded = -1;
  #settles = false;
  #isFull = false;
  #isCut = false;
  #effects: GateEffect[] = [];

  constructor(options: GateOptions = {}) {
    this.#answers = options.answers ?? "server";
    this.#bytesMax = options.bytesMax ?? DISK_GATE_BYTES_MAX;
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

  /** Writes that the server has not answered, those that wait included. */
  get unansweredWrites(): number {
    return this.#underWay.size + this.#held.filter(({ request }) => isWrite(request)).length;
  }

  /** @throws {NbdError} when it is no NBD; the connection is of no further use */
  fromClient(chunk: Uint8Array): GateEffect[] {
    if (this.#isCut) return [];
    for (const piece of this.#client.push(chunk)) {
      if (piece.type === "request") this.#request(piece.request, piece.raw);
      else if (piece.type === "payload") this.#payload(piece.raw, piece.last);
      else {
        this.#server.said(piece);
        this.#toServer(piece.raw);
      }
    }
    return this.#flush();
  }

  /** @throws {NbdError} when it is no NBD; the connection is of no further use */
  fromServer(chunk: Uint8Array): GateEffect[] {
    if (this.#isCut) return [];
    for (const piece of this.#server.push(chunk)) {
      if (piece.type === "reply") {
        const { handle, done, failed } = piece.reply;
        this.#isSwallowing = this.#underWay.isOwn(handle);
        this.#replied(handle, done, failed);
      } else if (piece.type !== "payload") this.#isSwallowing = false;
      if (!this.#isSwallowing) this.#effects.push({ type: "to-client", bytes: piece.raw });
    }
    if (!this.#hasForm && this.#server.form !== undefined) {
      this.#hasForm = true;
      this.#client.beginRequests(this.#server.form);
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
    this.#settles = true;
    return this.#flush();
  }

  /** The secondary runs from this checkpoint. */
  loaded(epoch: number): GateEffect[] {
    if (this.#isCut) return [];
    this.#loaded = Math.max(this.#loaded, epoch);
    return this.#flush();
  }

  /** The secondary takes over, or is lost: what waits is dropped, and nothing passes any more. */
  cut(): void {
    this.#isCut = true;
    this.#held = [];
    this.#heldBytes = 0;
    this.#arriving = undefined;
    this.#isFull = false;
  }

  #passes(epoch: number): boolean {
    return epoch <= this.#loaded || epoch < this.#loading;
  }

  #request(request: NbdRequest, raw: Uint8Array): void {
    this.#arriving = undefined;
    if (!this.#waits(request)) return this.#forward(request, raw);
    const isWhole = requestPayloadBytes(request, this.#server.form!) === 0;
    const held = { epoch: this.#taken, request, bytes: [raw], isWhole, isAnswered: false };
    this.#held.push(held);
    this.#heldBytes += HELD_REQUEST_BYTES;
    if (isWhole) this.#answer(held);
    else this.#arriving = held;
  }

  #waits(request: NbdRequest): boolean {
    if (isWrite(request) && !this.#passes(this.#taken)) return true;
    const isChange = isWrite(request) || request.command === NBD_COMMAND.FLUSH;
    if (this.#answers === "always" && isChange) return true;
    if (this.#held.length === 0) return this.#underWay.precedes(request);
    const { command } = request;
    if (isWrite(request) || command === NBD_COMMAND.FLUSH || command === NBD_COMMAND.DISC) {
      return true;
    }
    // Whoever was told that a write is done may read it back.
    return this.#answers !== "server";
  }

  #payload(raw: Uint8Array, last: boolean): void {
    const held = this.#arriving;
    if (held === undefined) return this.#toServer(raw);
    held.bytes.push(raw.slice());
    this.#heldBytes += raw.length;
    if (!last) return;
    held.isWhole = true;
    this.#arriving = undefined;
    this.#answer(held);
  }

  #answer(held: HeldRequest): void {
    const { request } = held;
    const mayBe = isWrite(request) || request.command === NBD_COMMAND.FLUSH;
    if (this.#answers === "server" || !mayBe || this.#isFull) return;
    held.isAnswered = true;
    this.#effects.push({ type: "to-client", bytes: nbdResult(request, this.#server.form!) });
  }

  /** Let go of what may pass by now. */
  #release(): void {
    let count = 0;
    for (const held of this.#held) {
      const { epoch, request, isAnswered } = held;
      if (!this.#passes(epoch) || this.#underWay.size >= RELEASED_MAX) break;
      if (this.#underWay.precedes(request)) break;
      // Nobody knows its order but the gate, if it is the gate that answers.
      if (this.#answers === "always" && !held.isWhole) break;
      count++;
      const [header, ...data] = held.bytes;
      if (isAnswered) this.#forwardAsOwn(request);
      else this.#forward(request, header!);
      this.#heldBytes -= HELD_REQUEST_BYTES;
      for (const bytes of data) {
        this.#heldBytes -= bytes.length;
        this.#toServer(bytes);
      }
      // The rest of its data passes as it comes.
      if (this.#arriving === held) this.#arriving = undefined;
    }
    this.#held = this.#held.slice(count);
  }

  #forwardAsOwn(request: NbdRequest): void {
    const own = this.#underWay.addOwn(request);
    const raw = nbdRequest(own, this.#server.form!);
    this.#server.said({ type: "request", raw, request: own });
    this.#toServer(raw);
  }

  #forward(request: NbdRequest, raw: Uint8Array): void {
    this.#server.said({ type: "request", raw, request });
    this.#underWay.add(request);
    this.#toServer(raw);
  }

  #toServer(bytes: Uint8Array): void {
    this.#effects.push({ type: "to-server", bytes });
  }

  #replied(handle: bigint, done: boolean, failed: boolean): void {
    const request = this.#underWay.get(handle);
    if (failed && request !== undefined) this.#effects.push({ type: "failed", request });
    if (done) this.#underWay.done(handle);
  }

  #flush(): GateEffect[] {
    this.#release();
    // What may pass and still waits does so behind others that are under way.
    if (this.#settles && this.#underWay.size === 0) {
      this.#settles = false;
      this.#effects.push({ type: "settled", epoch: this.#loading });
    }
    if (!this.#isFull && this.#heldBytes > this.#bytesMax) {
      this.#isFull = true;
      this.#effects.push({ type: "full" });
    } else if (this.#heldBytes <= this.#bytesMax / 2) this.#isFull = false;
    const effects = joined(this.#effects);
    this.#effects = [];
    return effects;
  }
}
