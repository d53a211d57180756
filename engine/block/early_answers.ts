/**
 * The primary's end of an NBD conversation with the secondary: writes are answered here as soon as they
 * are on their way, so that no write of the guest's waits for the network. Pure: bytes in, bytes out.
 *
 * That promises enough. The primary's own disk has each of them as well, and waits for its own. On the
 * secondary a write counts from the checkpoint behind it on, whose mark comes behind it; what the guest
 * says before that checkpoint is held there does not leave.
 *
 * The client uses a handle again when it is answered, so what goes on has handles of our own. The order
 * of writes to the same place is the secondary's to keep: `DiskGate` does.
 *
 * @module
 */

import { RequestsUnderWay } from "./_under_way.ts";
import { type GateEffect, joined } from "./gate_effects.ts";
import {
  isWrite,
  NBD_COMMAND,
  type NbdRequest,
  nbdRequest,
  nbdResult,
  requestPayloadBytes,
} from "./nbd.ts";
import { NbdClientReader, NbdServerReader } from "./nbd_reader.ts";

/** Not those of a gate behind it. */
const HANDLES = 0xc011n << 48n;

/** Requests that the secondary has not answered; half of what its reader takes. */
const UNDER_WAY_MAX = 512;

/** One conversation. */
export class EarlyAnswers {
  readonly #client = new NbdClientReader();
  readonly #server = new NbdServerReader();
  readonly #underWay = new RequestsUnderWay(HANDLES);
  /** The WRITE whose data are passing. */
  #passing: NbdRequest | undefined;
  #hasForm = false;
  #isSwallowing = false;
  #effects: GateEffect[] = [];

  /** Whether nothing more should be read from the client, until the server has answered. */
  get full(): boolean {
    return this.#underWay.size > UNDER_WAY_MAX;
  }

  /** @throws {NbdError} when it is no NBD; the connection is of no further use */
  fromClient(chunk: Uint8Array): GateEffect[] {
    for (const piece of this.#client.push(chunk)) {
      if (piece.type === "payload") {
        this.#toServer(piece.raw);
        if (piece.last) this.#passed();
      } else if (piece.type === "request") this.#request(piece.request, piece.raw);
      else {
        this.#server.said(piece);
        this.#toServer(piece.raw);
      }
    }
    return this.#take();
  }

  /** @throws {NbdError} when it is no NBD; the connection is of no further use */
  fromServer(chunk: Uint8Array): GateEffect[] {
    for (const piece of this.#server.push(chunk)) {
      if (piece.type === "reply") {
        const { handle, done } = piece.reply;
        this.#isSwallowing = this.#underWay.isOwn(handle);
        if (done) this.#underWay.done(handle);
      } else if (piece.type !== "payload") this.#isSwallowing = false;
      if (!this.#isSwallowing) this.#effects.push({ type: "to-client", bytes: piece.raw });
    }
    if (!this.#hasForm && this.#server.form !== undefined) {
      this.#hasForm = true;
      this.#client.beginRequests(this.#server.form);
    }
    return this.#take();
  }

  #request(request: NbdRequest, raw: Uint8Array): void {
    const form = this.#server.form!;
    if (!isWrite(request) && request.command !== NBD_COMMAND.FLUSH) {
      this.#server.said({ type: "request", raw, request });
      return this.#toServer(raw);
    }
    const own = this.#underWay.addOwn(request);
    const ownRaw = nbdRequest(own, form);
    this.#server.said({ type: "request", raw: ownRaw, request: own });
    this.#toServer(ownRaw);
    this.#passing = request;
    if (requestPayloadBytes(request, form) === 0) this.#passed();
  }

  /** All of it is on its way. */
  #passed(): void {
    const request = this.#passing;
    this.#passing = undefined;
    if (request === undefined) return;
    this.#effects.push({ type: "to-client", bytes: nbdResult(request, this.#server.form!) });
  }

  #toServer(bytes: Uint8Array): void {
    this.#effects.push({ type: "to-server", bytes });
  }

  #take(): GateEffect[] {
    const effects = this.#effects;
    this.#effects = [];
    // Whatever is answered is sent first.
    const [sent, said] = ["to-server", "to-client"].map((type) =>
      joined(effects.filter((effect) => effect.type === type))
    );
    return [...sent!, ...said!];
  }
}
