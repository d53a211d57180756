/**
 * What a server was given and has not answered.
 *
 * @module
 */

import { isWrite, NBD_COMMAND, type NbdRequest } from "./nbd.ts";

/** Handles of requests that were answered already: the client may use its own for another meanwhile. */
const OWN_HANDLES = 0xc010n << 48n;

/** Writes that are under way, and requests whose answer is not for the client. */
export class RequestsUnderWay {
  readonly #requests = new Map<bigint, NbdRequest>();
  readonly #own = new Set<bigint>();
  #lastOwn: bigint;

  /** @param handles Our own follow this one */
  constructor(handles = OWN_HANDLES) {
    this.#lastOwn = handles;
  }

  get size(): number {
    return this.#requests.size;
  }

  /** A request of the client's goes to the server. */
  add(request: NbdRequest): void {
    if (isWrite(request)) this.#requests.set(request.handle, request);
  }

  /** One that the client takes for done goes there; returns what it is to be called. */
  addOwn(request: NbdRequest): NbdRequest {
    const own = { ...request, handle: ++this.#lastOwn };
    this.#own.add(own.handle);
    this.#requests.set(own.handle, own);
    return own;
  }

  /** The write, or one of our own, that the server has replied to. */
  get(handle: bigint): NbdRequest | undefined {
    return this.#requests.get(handle);
  }

  isOwn(handle: bigint): boolean {
    return this.#own.has(handle);
  }

  done(handle: bigint): void {
    this.#requests.delete(handle);
    this.#own.delete(handle);
  }

  /**
   * Whether a request must not reach the server now. It does what is under way in any order, which a
   * client knows of; but of ours it believes that they are done.
   */
  precedes({ command, offset, length }: NbdRequest): boolean {
    if (this.#own.size === 0) return false;
    if (command === NBD_COMMAND.FLUSH || command === NBD_COMMAND.DISC) return true;
    for (const handle of this.#own) {
      const other = this.#requests.get(handle)!;
      if (offset < other.offset + other.length && other.offset < offset + length) return true;
    }
    return false;
  }
}
