/**
 * Unix sockets by way of libc, without the event loop: a load generator must be faster than what it
 * loads, and know the time to the microsecond.
 *
 * @module
 */

import { ColoError } from "../../engine/errors.ts";

const LIBC = Deno.dlopen("libc.so.6", {
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  send: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize" },
  recv: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize" },
  poll: { parameters: ["buffer", "usize", "i32"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
}).symbols;

const [AF_UNIX, SOCK_STREAM] = [1, 1];
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const [POLLIN, POLLOUT] = [1, 4];
const PATH_BYTES_MAX = 107;

/** A connected unix socket that never blocks but in {@linkcode RawSocket.wait}. */
export class RawSocket {
  readonly #fd: number;
  readonly #poll: Uint8Array<ArrayBuffer>;

  /** @throws {ColoError} when nobody listens there */
  constructor(path: string) {
    const name = new TextEncoder().encode(path);
    if (name.length > PATH_BYTES_MAX) throw new ColoError(`Cannot connect to ${path}: too long`);
    const address = new Uint8Array(2 + PATH_BYTES_MAX + 1);
    new Uint16Array(address.buffer, 0, 1)[0] = AF_UNIX;
    address.set(name, 2);
    this.#fd = LIBC.socket(AF_UNIX, SOCK_STREAM, 0);
    if (LIBC.connect(this.#fd, address, address.length) !== 0) {
      LIBC.close(this.#fd);
      throw new ColoError(`Cannot connect to ${path}: nobody listens there`);
    }
    this.#poll = new Uint8Array(8);
    new DataView(this.#poll.buffer).setInt32(0, this.#fd, true);
  }

  /** @returns Bytes taken, 0 when none can be now */
  send(bytes: Uint8Array<ArrayBuffer>): number {
    const sent = LIBC.send(this.#fd, bytes, BigInt(bytes.length), MSG_DONTWAIT | MSG_NOSIGNAL);
    return Math.max(0, Number(sent));
  }

  /** @returns Bytes read, 0 when there are none now */
  receive(bytes: Uint8Array<ArrayBuffer>): number {
    return Math.max(0, Number(LIBC.recv(this.#fd, bytes, BigInt(bytes.length), MSG_DONTWAIT)));
  }

  /** Wait until there is something to read, or room to write. */
  wait(what: "read" | "write", timeoutMs: number): void {
    const events = what === "read" ? POLLIN : POLLOUT;
    new DataView(this.#poll.buffer).setInt16(4, events, true);
    LIBC.poll(this.#poll, 1n, timeoutMs);
  }

  close(): void {
    LIBC.close(this.#fd);
  }
}
