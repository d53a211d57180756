/**
 * Unix sockets by way of libc, without the event loop. QEMU's packet chardevs are read with them,
 * because at a checkpoint all that QEMU has written must be read _now_, until nothing is left: an
 * asynchronous read cannot tell "nothing yet" from "nothing".
 *
 * @module
 */

import { QemuError } from "../errors.ts";

const LIBC = Deno.dlopen("libc.so.6", {
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  send: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize" },
  recv: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize" },
  poll: { parameters: ["buffer", "usize", "i32"], result: "i32" },
  poll_in_background: {
    name: "poll",
    parameters: ["buffer", "usize", "i32"],
    result: "i32",
    nonblocking: true,
  },
  eventfd: { parameters: ["u32", "i32"], result: "i32" },
  read: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  write: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  ioctl: { parameters: ["i32", "usize", "buffer"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
}).symbols;

const [AF_UNIX, SOCK_STREAM] = [1, 1];
const SOCK_CLOEXEC = 0o2000000;
const [EFD_CLOEXEC, EFD_NONBLOCK] = [0o2000000, 0o4000];
const SIOCOUTQ = 0x5411n;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const [POLLIN, POLLOUT, POLLERR, POLLHUP] = [1, 4, 8, 16];
const PATH_BYTES_MAX = 107;

/** Of a `struct pollfd`: be it the descriptor, what is waited for, what is there. */
const POLL_BYTES = 8;
const [POLL_EVENTS_AT, POLL_REVENTS_AT] = [4, 6];

/** How long a peer may take to read the last of what it was sent, and how often that is looked at. */
const [READ_TIMEOUT_MS, READ_POLL_MS] = [200, 1];

/**
 * To look whether there is more by now takes 1 us, a wait beside the event loop 20 us and more even when there is.
 * But the event loop has other work, so it has a turn after so many looks.
 */
const LOOKS_MAX = 8;

/** What {@linkcode UnixSocket.receive} says of a connection that the peer has closed. */
export const CLOSED = -1;

/** A connected unix socket that never blocks but in {@linkcode UnixSocket.wait}. */
export class UnixSocket {
  readonly fd: number;
  #open = true;

  /** @throws {QemuError} when nobody listens there */
  constructor(readonly path: string) {
    const name = new TextEncoder().encode(path);
    if (name.length > PATH_BYTES_MAX) {
      throw new QemuError(`Cannot connect to ${path}: the path is longer than a socket's can be`);
    }
    const address = new Uint8Array(2 + PATH_BYTES_MAX + 1);
    new Uint16Array(address.buffer, 0, 1)[0] = AF_UNIX;
    address.set(name, 2);
    this.fd = LIBC.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (LIBC.connect(this.fd, address, address.length) !== 0) {
      LIBC.close(this.fd);
      throw new QemuError(`Cannot connect to ${path}: nobody listens there`);
    }
  }

  /** @returns Bytes taken, 0 when none can be now, or ever again */
  send(bytes: Uint8Array): number {
    if (!this.#open) return 0;
    const flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    return Math.max(
      0,
      Number(LIBC.send(this.fd, bytes as BufferSource, BigInt(bytes.length), flags)),
    );
  }

  /**
   * Send pieces as one, as far as they are taken now, and close the connection when the peer has read them: QEMU
   * forgets what it has not read of a connection that is closed.
   */
  async sendLast(pieces: readonly Uint8Array[]): Promise<void> {
    const bytes = new Uint8Array(pieces.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const piece of pieces) {
      bytes.set(piece, at);
      at += piece.length;
    }
    this.send(bytes);
    const unread = new Int32Array(1);
    for (const deadline = performance.now() + READ_TIMEOUT_MS; performance.now() < deadline;) {
      if (!this.#open || LIBC.ioctl(this.fd, SIOCOUTQ, unread) !== 0 || unread[0] === 0) break;
      await new Promise((resolve) => setTimeout(resolve, READ_POLL_MS));
    }
    this.close();
  }

  /** @returns Bytes read, 0 when there are none now, {@linkcode CLOSED} when there will be no more */
  receive(space: Uint8Array): number {
    if (!this.#open) return CLOSED;
    const size = BigInt(space.length);
    const count = Number(LIBC.recv(this.fd, space as BufferSource, size, MSG_DONTWAIT));
    // A broken connection is one that poll(2) says so of; here it is as if nothing had come.
    return count > 0 ? count : count === 0 ? CLOSED : 0;
  }

  /** Wait until there is something to read, or room to write, and do nothing else meanwhile. */
  wait(what: "read" | "write", timeoutMs: number): void {
    const entry = new DataView(new ArrayBuffer(POLL_BYTES));
    entry.setInt32(0, this.fd, true);
    entry.setInt16(POLL_EVENTS_AT, what === "read" ? POLLIN : POLLOUT, true);
    LIBC.poll(entry, 1n, timeoutMs);
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    LIBC.close(this.fd);
  }
}

/** Who is told about a socket. */
export interface SocketWatcher {
  /** There is something to read; called again as long as there is. Left out: nothing ever is. */
  readonly readable?: () => void;
  /** There is room to write again; called once for each {@linkcode SocketPoller.awaitRoom}. */
  writable(): void;
  /**
   * The peer is gone, which whoever reads finds out by reading, or another function of this watcher has
   * thrown, and the socket was closed for it. The socket is watched no more.
   */
  closed(error?: unknown): void;
}

interface Watched {
  readonly socket: UnixSocket;
  readonly watcher: SocketWatcher;
  awaitsRoom: boolean;
}

/** Waits for many sockets at once, beside the event loop. */
export class SocketPoller {
  readonly #watched = new Map<UnixSocket, Watched>();
  /** An eventfd(2) that ends a wait whose conditions have changed. */
  readonly #wakeFd = LIBC.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  readonly #counter = Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0);
  /** What poll(2) is given, and whom its entries are of; undefined when something has changed. */
  #waitedFor: { readonly entries: DataView; readonly watched: readonly Watched[] } | undefined;
  #isWaiting = false;
  #polling: Promise<void> | undefined;
  #closed = false;

  watch(socket: UnixSocket, watcher: SocketWatcher): void {
    this.#watched.set(socket, { socket, watcher, awaitsRoom: false });
    this.#changed();
    this.#polling ??= this.#poll();
  }

  unwatch(socket: UnixSocket): void {
    if (this.#watched.delete(socket)) this.#changed();
  }

  /** Tell the watcher as soon as the socket can be written to. */
  awaitRoom(socket: UnixSocket): void {
    const watched = this.#watched.get(socket);
    if (watched === undefined || watched.awaitsRoom) return;
    watched.awaitsRoom = true;
    this.#changed();
  }

  /** Watch nothing any more. The sockets stay open. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#watched.clear();
    this.#changed();
    await this.#polling;
    LIBC.close(this.#wakeFd);
  }

  #changed(): void {
    this.#waitedFor = undefined;
    if (this.#isWaiting) LIBC.write(this.#wakeFd, this.#counter, 8n);
  }

  async #poll(): Promise<void> {
    let looks = 0;
    while (!this.#closed) {
      const { entries, watched } = this.#waitedFor ??= this.#conditions();
      const count = BigInt(watched.length + 1);
      if (looks++ === LOOKS_MAX || LIBC.poll(entries, count, 0) === 0) {
        looks = 0;
        this.#isWaiting = true;
        await LIBC.poll_in_background(entries, count, -1);
        this.#isWaiting = false;
      }
      if (entries.getInt16(watched.length * POLL_BYTES + POLL_REVENTS_AT, true) !== 0) {
        LIBC.read(this.#wakeFd, new Uint8Array(8), 8n);
      }
      for (const [index, one] of watched.entries()) {
        const found = entries.getInt16(index * POLL_BYTES + POLL_REVENTS_AT, true);
        // Whoever was told before may have ended the watch over this one.
        if (found !== 0 && this.#watched.get(one.socket) === one) this.#tell(one, found);
      }
    }
  }

  #conditions(): { readonly entries: DataView; readonly watched: readonly Watched[] } {
    const watched = [...this.#watched.values()];
    const entries = new DataView(new ArrayBuffer((watched.length + 1) * POLL_BYTES));
    watched.forEach(({ socket, watcher, awaitsRoom }, index) => {
      entries.setInt32(index * POLL_BYTES, socket.fd, true);
      const events = (watcher.readable ? POLLIN : 0) | (awaitsRoom ? POLLOUT : 0);
      entries.setInt16(index * POLL_BYTES + POLL_EVENTS_AT, events, true);
    });
    entries.setInt32(watched.length * POLL_BYTES, this.#wakeFd, true);
    entries.setInt16(watched.length * POLL_BYTES + POLL_EVENTS_AT, POLLIN, true);
    return { entries, watched };
  }

  #tell(one: Watched, found: number): void {
    const { socket, watcher } = one;
    try {
      if ((found & POLLOUT) !== 0) {
        one.awaitsRoom = false;
        watcher.writable();
      }
      if ((found & POLLIN) !== 0) watcher.readable?.();
      else if ((found & (POLLERR | POLLHUP)) !== 0) {
        this.#watched.delete(socket);
        watcher.closed();
      }
    } catch (error) {
      // The others go on, and QEMU must not write to a socket that nobody reads.
      this.#watched.delete(socket);
      socket.close();
      watcher.closed(error);
    }
  }
}
