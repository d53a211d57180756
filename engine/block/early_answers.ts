/**
 * The primary's end of an NBD conversation with the secondary: whatever changes the disk is answered here
 * as soon as it is on its way, so that no write of the guest's waits for the network. Pure: bytes in,
 * bytes out.
 *
 * That promises enough. The primary's own disk has each of them as well, and waits for its own. On the
 * secondary a write counts from the checkpoint behind it on, whose mark comes behind it; what the guest
 * says before that checkpoint is held there does not leave.
 *
 * What is answered here the secondary answers nobody ({@linkcode isChange}); so all bytes pass as they
 * come, in both directions. The order of writes to the same place, which the client takes for done, is
 * the secondary's to keep, and what cannot be done there makes its disk no copy any more.
 *
 * @module
 */

import { isChange, type NbdRequest, nbdResult, requestPayloadBytes } from "./nbd.ts";
import { NbdConversation } from "./nbd_reader.ts";

/** One conversation. */
export class EarlyAnswers {
  readonly #conversation = new NbdConversation();
  /** The WRITE whose data are passing. */
  #passing: NbdRequest | undefined;

  /** Whether the client waits for an answer of the server's. */
  get isAwaited(): boolean {
    return this.#conversation.form === undefined || this.#conversation.requests.size > 0;
  }

  /** Whether all that the client has said is whole. */
  get isBetween(): boolean {
    return this.#conversation.isBetween;
  }

  /**
   * The client has said this; pass it on.
   *
   * @returns What it is to be told
   * @throws {NbdError} when it is no NBD; the connection is of no further use
   */
  fromClient(chunk: Uint8Array): Uint8Array[] {
    const answers: Uint8Array[] = [];
    for (const piece of this.#conversation.fromClient(chunk)) {
      const form = this.#conversation.form!;
      if (piece.type === "request") {
        const { request } = piece;
        if (!isChange(request)) continue;
        if (requestPayloadBytes(request, form) > 0) this.#passing = request;
        else answers.push(nbdResult(request, form));
      } else if (piece.type === "payload" && piece.last && this.#passing !== undefined) {
        answers.push(nbdResult(this.#passing, form));
        this.#passing = undefined;
      }
    }
    return answers;
  }

  /**
   * The server has said this; pass it on.
   *
   * @throws {NbdError} when it is no NBD; the connection is of no further use
   */
  fromServer(chunk: Uint8Array): void {
    this.#conversation.fromServer(chunk);
  }
}
