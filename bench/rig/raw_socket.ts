/**
 * Unix sockets by way of libc, without the event loop: a load generator must be faster than what it
 * loads, and know the time to the microsecond.
 *
 * @module
 */

import { ColoError } from "../../engine/errors.ts";

const LIBC = Deno.dlopen("libc.so.6", {
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  listen: { parameters: ["i32", "i32"], result: "i32" },
  accept4: { parameters: ["i32", "usize", "usize", "i32"], result: "i32" },
  send: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize" },
  recv: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize" },
  poll: { parameters: ["buffer", "usize", "i32"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
}).symbols;

const [AF_UNIX, SOCK_STREAM] = [1, 1];
const [SOCK_NONBLOCK, SOCK_CLOEXEC] = [0o4000, 0o2000000];
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const [POLLIN, POLLOUT] = [1, 4];
const PATH_BYTES_MAX = 107;

/** Where one contender connects to. */
export class RawListener {
  readonly #fd: number;

  /** @throws {ColoError} when nobody can listen there */
  constructor(readonly path: string) {
    const name = new TextEncoder().encode(path);
    if (name.length > PATH_BYTES_MAX) throw new ColoError(`Cannot listen at ${path}: too long`);
    const address = new Uint8Array(2 + PATH_BYTES_MAX + 1);
    new Uint16Array(address.buffer, 0, 1)[0] = AF_UNIX;
    address.set(name, 2);
    this.#fd = LIBC.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (LIBC.bind(this.#fd, address, address.length) !== 0 || LIBC.listen(this.#fd, 1) !== 0) {
      LIBC.close(this.#fd);
      throw new ColoError(`Cannot listen at ${path}`);
    }
  }

  /** @returns The connection, or undefined when there is none yet */
  accept(): RawSocket | undefined {
    const fd = LIBC.accept4(this.#fd, 0n, 0n, SOCK_CLOEXEC);
    return fd < 0 ? undefined : new RawSocket(fd);
  }

  close(): void {
    LIBC.close(this.#fd);
  }
}

/** A connected unix socket that never blocks but in {@linkcode RawSocket.wait}. */
export class RawSocket {
  readonly #fd: number;
  readonly #poll: Uint8Array<ArrayBuffer>;

  constructor(fd: number) {
    this.#fd = fd;
    this.#poll = new Uint8Array(8);
    new DataView(this.#poll.buffer).setInt32(0, fd, true);
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
