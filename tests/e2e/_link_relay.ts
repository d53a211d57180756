/**
 * Stands between the two engines of a pair, and can watch, hold up or spoil what passes.
 *
 * @module
 */

import { assert } from "@std/assert/mod.js";
import { writeAll } from "../../engine/host/capture_port.ts";
import {
  decodeMessage,
  FRAME_HEADER_BYTES,
  FRAME_TYPE_AT,
  type LinkRole,
  type Message,
} from "../../engine/link/mod.ts";

/** Where a frame says what it is: `engine/link/wire.ts`. */
const EPOCH_AT = 8;
/** The payload's length, big-endian. */
export const LENGTH_AT = 16;

const READ_BYTES = 256 * 1024;

/** One frame on its way from the primary's engine to the standby's. */
export interface PassingFrame {
  /** Counts the connections, two for each time that the engines find each other. */
  readonly connection: number;
  readonly role: LinkRole;
  readonly type: Message["type"];
  readonly epoch: number;
  /** Header and payload, valid while it is looked at; what is changed in it arrives changed. */
  readonly bytes: Uint8Array;
}

/** A frame that is kept back, with all that comes behind it on its connection. */
export interface Hold {
  /** Settled with the frame when it is there. */
  readonly frame: Promise<PassingFrame>;
  release(): void;
}

interface PendingHold {
  readonly matches: (frame: PassingFrame) => boolean;
  readonly share: number;
  readonly reached: PromiseWithResolvers<PassingFrame>;
  readonly released: Promise<void>;
}

/** A port of loopback, or the path of a unix socket, which processes in any network can reach. */
export type RelayEnd = { readonly port: number } | { readonly path: string };

/** Relays the connections of one pair. */
export class LinkRelay {
  /** Called with each frame of the primary's before it goes on. */
  onFrame: (frame: PassingFrame) => void = () => {};
  /** Where the primary is to connect to, if that is a port. */
  readonly port: number;
  readonly #listener: Deno.TcpListener | Deno.UnixListener;
  readonly #sockets: Deno.Conn[] = [];
  #connections = 0;
  #isCut = false;
  #hold: PendingHold | undefined;
  /** Settled while the cable is in. */
  #cable = Promise.withResolvers<void>();

  /**
   * @param standby Where the standby listens
   * @param at Where the primary connects to
   */
  constructor(standby: RelayEnd, at: RelayEnd = { port: 0 }) {
    this.#listener = "port" in at
      ? Deno.listen({ hostname: "127.0.0.1", port: at.port })
      : Deno.listen({ transport: "unix", path: at.path });
    const { addr } = this.#listener;
    this.port = addr.transport === "tcp" ? addr.port : 0;
    this.#cable.resolve();
    this.#accept(standby).catch(() => {});
  }

  /** Nothing passes any more, either way, and nobody is told: as where a cable is pulled out. */
  cut(): void {
    this.#cable = Promise.withResolvers();
  }

  /** What was kept back passes, and all that comes. */
  heal(): void {
    this.#cable.resolve();
  }

  /**
   * Keep back the next frame that matches.
   *
   * @param share How much of its bytes goes on nevertheless, below 1
   */
  hold(matches: (frame: PassingFrame) => boolean, share = 0): Hold {
    const reached = Promise.withResolvers<PassingFrame>();
    const { promise: released, resolve: release } = Promise.withResolvers<void>();
    this.#hold = { matches, share, reached, released };
    return { frame: reached.promise, release };
  }

  /** No connection there is, and none can be made. */
  set isCut(isCut: boolean) {
    this.#isCut = isCut;
    if (isCut) { for (const socket of this.#sockets.splice(0)) closeQuietly(socket); }
  }

  close(): void {
    this.#listener.close();
    for (const socket of this.#sockets) closeQuietly(socket);
  }

  async #accept(end: RelayEnd): Promise<void> {
    for await (const primary of this.#listener) {
      if (this.#isCut) {
        closeQuietly(primary);
        continue;
      }
      this.#sockets.push(primary);
      await this.#cable.promise;
      try {
        const standby = await connect(end);
        this.#sockets.push(standby);
        for (const socket of [primary, standby]) {
          if ("setNoDelay" in socket) socket.setNoDelay();
        }
        this.#relay(primary, standby, this.#connections++);
      } catch {
        // No standby listens yet: the primary finds its connection closed, and comes again.
        closeQuietly(primary);
      }
    }
  }

  async #relay(primary: Deno.Conn, standby: Deno.Conn, connection: number): Promise<void> {
    const forward = async () => {
      let role: LinkRole | undefined;
      for await (const bytes of framesOf(primary)) {
        const message = messageIn(bytes);
        if (message.type === "hello") role = message.role;
        assert(role !== undefined, "the connection begins without a hello");
        const epoch = Number(view(bytes).getBigUint64(EPOCH_AT));
        await this.#pass({ connection, role, type: message.type, epoch, bytes }, standby);
      }
    };
    // Where one side ends, so does the other: a primary that is gone must be seen to be gone.
    await Promise.allSettled([
      forward().finally(() => this.#end(standby)),
      this.#back(standby, primary).finally(() => this.#end(primary)),
    ]);
  }

  /** The end of a connection is told over the cable as well. */
  async #end(socket: Deno.Conn): Promise<void> {
    await this.#cable.promise;
    closeQuietly(socket);
  }

  async #back(standby: Deno.Conn, primary: Deno.Conn): Promise<void> {
    const buffer = new Uint8Array(READ_BYTES);
    for (let count; (count = await standby.read(buffer)) !== null;) {
      await this.#cable.promise;
      await writeAll(primary, buffer.subarray(0, count));
    }
  }

  async #pass(frame: PassingFrame, standby: Deno.Conn): Promise<void> {
    await this.#cable.promise;
    this.onFrame(frame);
    let passed = 0;
    if (this.#hold?.matches(frame)) {
      const { share, reached, released } = this.#hold;
      this.#hold = undefined;
      passed = Math.floor(share * frame.bytes.length);
      await writeAll(standby, frame.bytes.subarray(0, passed));
      reached.resolve(frame);
      await released;
    }
    await writeAll(standby, frame.bytes.subarray(passed));
  }
}

/** Whole frames, each a view that is valid until the next is asked for. */
async function* framesOf(connection: Deno.Conn): AsyncGenerator<Uint8Array> {
  let buffer = new Uint8Array(4 * READ_BYTES);
  let [start, end] = [0, 0];
  const needed = () =>
    end - start < FRAME_HEADER_BYTES
      ? FRAME_HEADER_BYTES
      : FRAME_HEADER_BYTES + view(buffer.subarray(start, end)).getUint32(LENGTH_AT);
  while (true) {
    for (let size; end - start >= (size = needed()); start += size) {
      yield buffer.subarray(start, start + size);
    }
    buffer.copyWithin(0, start, end);
    [start, end] = [0, end - start];
    if (buffer.length < needed() + READ_BYTES) {
      const larger = new Uint8Array(needed() + READ_BYTES);
      larger.set(buffer.subarray(0, end));
      buffer = larger;
    }
    const count = await connection.read(buffer.subarray(end, end + READ_BYTES));
    if (count === null) return;
    end += count;
  }
}

/** The message of a frame; where it has records or device state, those are as compressed as they came. */
function messageIn(bytes: Uint8Array): Message {
  const payload = bytes.subarray(FRAME_HEADER_BYTES);
  return decodeMessage({ type: bytes[FRAME_TYPE_AT]!, epoch: 0, payload, offset: 0 });
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

function connect(end: RelayEnd): Promise<Deno.TcpConn | Deno.UnixConn> {
  return "port" in end
    ? Deno.connect({ hostname: "127.0.0.1", port: end.port })
    : Deno.connect({ transport: "unix", path: end.path });
}

function closeQuietly(socket: Deno.Conn): void {
  try {
    socket.close();
  } catch {
    // Closed already.
  }
}
