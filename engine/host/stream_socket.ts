/**
 * Sockets by way of libc, without the event loop. QEMU's packet chardevs are read with them, because at
 * a checkpoint all that QEMU has written must be read _now_, until nothing is left: an asynchronous read
 * cannot tell "nothing yet" from "nothing". And a packet that has come to a thread that waits for
 * nothing else is on its way again within microseconds.
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
  eventfd: { parameters: ["u32", "i32"], result: "i32" },
  read: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  write: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  dup: { parameters: ["i32"], result: "i32" },
  getsockname: { parameters: ["i32", "buffer", "buffer"], result: "i32" },
  getpeername: { parameters: ["i32", "buffer", "buffer"], result: "i32" },
  epoll_ctl: { parameters: ["i32", "i32", "i32", "buffer"], result: "i32" },
  ioctl: { parameters: ["i32", "usize", "buffer"], result: "i32" },
  close: { parameters: ["i32"], result: "i32" },
}).symbols;

const [AF_UNIX, AF_INET, AF_INET6] = [1, 2, 10];
const SOCK_STREAM = 1;
const SOCK_CLOEXEC = 0o2000000;
const [EFD_CLOEXEC, EFD_NONBLOCK] = [0o2000000, 0o4000];
const [SIOCOUTQ, FIOCLEX] = [0x5411n, 0x5451n];
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const [POLLIN, POLLOUT, POLLERR, POLLHUP] = [1, 4, 8, 16];
const EPOLL_CTL_DEL = 2;
/** Of a `struct sockaddr`, of whichever kind. */
const [ADDRESS_BYTES, PORT_AT] = [128, 2];
const PATH_BYTES_MAX = 107;
const DESCRIPTORS = "/proc/self/fd";

/** Of a `struct pollfd`: be it the descriptor, what is waited for, what is there. */
const POLL_BYTES = 8;
const [POLL_EVENTS_AT, POLL_REVENTS_AT] = [4, 6];

/** How long a peer may take to read the last of what it was sent, and how often that is looked at. */
const [READ_TIMEOUT_MS, READ_POLL_MS] = [200, 1];

/** What a {@linkcode SocketLoop} can wait for. */
export interface Pollable {
  readonly fd: number;
  close(): void;
}

/** What {@linkcode StreamSocket.receive} says of a connection that the peer has closed. */
export const CLOSED = -1;

/** A connected socket that never blocks but in {@linkcode StreamSocket.wait}. */
export class StreamSocket implements Pollable {
  readonly fd: number;
  #open = true;

  /** @param fd Of a connected socket, which is this one's to close from now on */
  constructor(fd: number) {
    this.fd = fd;
  }

  /**
   * Connect to a unix socket.
   *
   * @throws {QemuError} when nobody listens there
   */
  static connect(path: string): StreamSocket {
    const name = new TextEncoder().encode(path);
    if (name.length > PATH_BYTES_MAX) {
      throw new QemuError(`Cannot connect to ${path}: the path is longer than a socket's can be`);
    }
    const address = new Uint8Array(2 + PATH_BYTES_MAX + 1);
    new Uint16Array(address.buffer, 0, 1)[0] = AF_UNIX;
    address.set(name, 2);
    const fd = LIBC.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (LIBC.connect(fd, address, address.length) !== 0) {
      LIBC.close(fd);
      throw new QemuError(`Cannot connect to ${path}: nobody listens there`);
    }
    return new StreamSocket(fd);
  }

  /**
   * A copy of a TCP connection of Deno's, which Deno does not read or write, and is told nothing of from now
   * on. Deno keeps descriptors to itself, so it is found by its ports.
   *
   * @returns Nothing where it cannot be told from others
   */
  static copyOf({ localAddr, remoteAddr }: Deno.Conn): StreamSocket | undefined {
    if (localAddr.transport !== "tcp" || remoteAddr.transport !== "tcp") return undefined;
    const ports = `${localAddr.port} ${remoteAddr.port}`;
    const { sockets, pollers } = openDescriptors();
    const found = sockets.filter((fd) =>
      `${portOf(LIBC.getsockname, fd)} ${portOf(LIBC.getpeername, fd)}` === ports
    );
    if (found.length !== 1) return undefined;
    const [fd] = found as [number];
    const copy = LIBC.dup(fd);
    if (copy < 0) return undefined;
    LIBC.ioctl(copy, FIOCLEX, null);
    // Or the main thread would be woken up by everything that comes.
    for (const poller of pollers) LIBC.epoll_ctl(poller, EPOLL_CTL_DEL, fd, null);
    return new StreamSocket(copy);
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

/** By which one thread wakes another that waits in a {@linkcode SocketLoop}: an eventfd(2). */
export class Doorbell implements Pollable {
  readonly #counter = Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0);

  /** @param fd The same one's in another thread */
  constructor(readonly fd: number = LIBC.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  ring(): void {
    LIBC.write(this.fd, this.#counter, 8n);
  }

  /** Whoever has rung until now was heard. */
  answer(): void {
    LIBC.read(this.fd, new Uint8Array(8), 8n);
  }

  close(): void {
    LIBC.close(this.fd);
  }
}

/** Who is told about a socket. */
export interface SocketWatcher {
  /** There is something to read; called again as long as there is. Left out: nothing ever is. */
  readonly readable?: () => void;
  /** There is room to write again; called once for each {@linkcode SocketLoop.awaitRoom}. */
  readonly writable?: () => void;
  /**
   * The peer is gone, which whoever reads finds out by reading, or another function of this watcher has
   * thrown, and the socket was closed for it. The socket is watched no more.
   */
  closed(error?: unknown): void;
}

interface Watched {
  readonly socket: Pollable;
  readonly watcher: SocketWatcher;
  awaitsRoom: boolean;
}

/** Waits for many sockets at once, and for nothing else: it is for a thread of its own. */
export class SocketLoop {
  readonly #watched = new Map<Pollable, Watched>();
  /** What poll(2) is given, and whom its entries are of; undefined when something has changed. */
  #waitedFor: { readonly entries: DataView; readonly watched: readonly Watched[] } | undefined;
  #ticker: { readonly intervalMs: number; readonly tick: () => void } | undefined;
  #tickAtMs = Infinity;
  #isStopped = false;

  watch(socket: Pollable, watcher: SocketWatcher): void {
    this.#watched.set(socket, { socket, watcher, awaitsRoom: false });
    this.#waitedFor = undefined;
  }

  unwatch(socket: Pollable): void {
    if (this.#watched.delete(socket)) this.#waitedFor = undefined;
  }

  /** Tell the watcher as soon as the socket can be written to. */
  awaitRoom(socket: Pollable): void {
    const watched = this.#watched.get(socket);
    if (watched === undefined || watched.awaitsRoom) return;
    watched.awaitsRoom = true;
    this.#waitedFor = undefined;
  }

  /** Call this at intervals from now on, and nothing else; nothing at all when left out. */
  every(intervalMs: number, tick?: () => void): void {
    this.#ticker = tick && { intervalMs, tick };
    this.#tickAtMs = tick === undefined ? Infinity : performance.now() + intervalMs;
  }

  /** Wait and tell, until {@linkcode stop} is called. */
  run(): void {
    while (!this.#isStopped) this.turn(Infinity);
  }

  stop(): void {
    this.#isStopped = true;
  }

  /** Wait for something, this long at the most, and tell whom it concerns. */
  turn(timeoutMs: number): void {
    const { entries, watched } = this.#waitedFor ??= this.#conditions();
    const waitMs = Math.min(timeoutMs, this.#tickAtMs - performance.now());
    const limitMs = waitMs === Infinity ? -1 : Math.max(0, Math.ceil(waitMs));
    let found = LIBC.poll(entries, BigInt(watched.length), limitMs);
    for (let index = 0; found > 0 && index < watched.length; index++) {
      const events = entries.getInt16(index * POLL_BYTES + POLL_REVENTS_AT, true);
      if (events === 0) continue;
      found--;
      const one = watched[index]!;
      // Whoever was told before may have ended the watch over this one.
      if (this.#watched.get(one.socket) === one) this.#tell(one, events);
    }
    const nowMs = performance.now();
    if (nowMs < this.#tickAtMs) return;
    const { intervalMs, tick } = this.#ticker!;
    this.#tickAtMs = nowMs + intervalMs;
    tick();
  }

  #conditions(): { readonly entries: DataView; readonly watched: readonly Watched[] } {
    const watched = [...this.#watched.values()];
    const entries = new DataView(new ArrayBuffer(watched.length * POLL_BYTES));
    watched.forEach(({ socket, watcher, awaitsRoom }, index) => {
      entries.setInt32(index * POLL_BYTES, socket.fd, true);
      const events = (watcher.readable ? POLLIN : 0) | (awaitsRoom ? POLLOUT : 0);
      entries.setInt16(index * POLL_BYTES + POLL_EVENTS_AT, events, true);
    });
    return { entries, watched };
  }

  #tell(one: Watched, found: number): void {
    const { socket, watcher } = one;
    try {
      if ((found & POLLOUT) !== 0) {
        one.awaitsRoom = false;
        this.#waitedFor = undefined;
        watcher.writable?.();
      }
      if ((found & POLLIN) !== 0) watcher.readable?.();
      else if ((found & (POLLERR | POLLHUP)) !== 0) {
        this.unwatch(socket);
        watcher.closed();
      }
    } catch (error) {
      // The others go on, and QEMU must not write to a socket that nobody reads.
      this.unwatch(socket);
      socket.close();
      watcher.closed(error);
    }
  }
}

/** Descriptors of this process: of sockets, and of what waits for many at once. */
function openDescriptors(): Record<"sockets" | "pollers", readonly number[]> {
  const found = { sockets: [] as number[], pollers: [] as number[] };
  for (const { name } of Deno.readDirSync(DESCRIPTORS)) {
    try {
      const target = Deno.readLinkSync(`${DESCRIPTORS}/${name}`);
      if (target.startsWith("socket:")) found.sockets.push(Number(name));
      else if (target === "anon_inode:[eventpoll]") found.pollers.push(Number(name));
    } catch {
      // It was the one that the directory was read with.
    }
  }
  return found;
}

/** The port of one end of a TCP socket; nothing where there is none. */
function portOf(nameOf: typeof LIBC.getsockname, fd: number): number | undefined {
  const name = new DataView(new ArrayBuffer(ADDRESS_BYTES));
  if (nameOf(fd, name, Uint32Array.of(ADDRESS_BYTES)) !== 0) return undefined;
  const isTcp = [AF_INET, AF_INET6].includes(name.getUint16(0, true));
  return isTcp ? name.getUint16(PORT_AT) : undefined;
}
