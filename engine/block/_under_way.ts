/**
 * What a server was given and has not answered.
 *
 * @module
 */

import { NBD_COMMAND, type NbdRequest } from "./nbd.ts";

/** The client uses its own for other requests meanwhile. */
const OWN_HANDLES = 0xc010n << 48n;

/** Changes of a disk that are under way, and that their client takes for done. */
export class ChangesUnderWay {
  readonly #requests = new Map<bigint, NbdRequest>();
  #lastHandle = OWN_HANDLES;

  get size(): number {
    return this.#requests.size;
  }

  /** One goes to the server; returns what it is to be called there. */
  add(request: NbdRequest): NbdRequest {
    const own = { ...request, handle: ++this.#lastHandle };
    this.#requests.set(own.handle, own);
    return own;
  }

  /** The one that the server has replied to, unless that was none of them. */
  get(handle: bigint): NbdRequest | undefined {
    return this.#requests.get(handle);
  }

  done(handle: bigint): void {
    this.#requests.delete(handle);
  }

  /** Whether a request must not reach the server now, which does what is under way in any order. */
  precedes({ command, offset, length }: NbdRequest): boolean {
    if (this.#requests.size === 0) return false;
    if (command === NBD_COMMAND.FLUSH || command === NBD_COMMAND.DISC) return true;
    for (const other of this.#requests.values()) {
      if (offset < other.offset + other.length && other.offset < offset + length) return true;
    }
    return false;
  }
}
