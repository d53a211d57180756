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

/** Relays the connections of one pair on loopback. */
export class LinkRelay {
  /** Called with each frame of the primary's before it goes on. */
  onFrame: (frame: PassingFrame) => void = () => {};
  /** Where the primary is to connect to. */
  readonly port: number;
  readonly #listener: Deno.TcpListener;
  readonly #sockets: Deno.Conn[] = [];
  #connections = 0;
  #hold: PendingHold | undefined;

  /** @param standbyPort Where the standby listens */
  constructor(standbyPort: number) {
    this.#listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    this.port = this.#listener.addr.port;
    this.#accept(standbyPort).catch(() => {});
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

  close(): void {
    this.#listener.close();
    for (const socket of this.#sockets) closeQuietly(socket);
  }

  async #accept(standbyPort: number): Promise<void> {
    for await (const primary of this.#listener) {
      this.#sockets.push(primary);
      try {
        const standby = await Deno.connect({ hostname: "127.0.0.1", port: standbyPort });
        this.#sockets.push(standby);
        for (const socket of [primary, standby]) socket.setNoDelay();
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
      forward().finally(() => closeQuietly(standby)),
      copy(standby, primary).finally(() => closeQuietly(primary)),
    ]);
  }

  async #pass(frame: PassingFrame, standby: Deno.Conn): Promise<void> {
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

async function copy(from: Deno.Conn, to: Deno.Conn): Promise<void> {
  const buffer = new Uint8Array(READ_BYTES);
  for (let count; (count = await from.read(buffer)) !== null;) {
    await writeAll(to, buffer.subarray(0, count));
  }
}

function closeQuietly(socket: Deno.Conn): void {
  try {
    socket.close();
  } catch {
    // Closed already.
  }
}
