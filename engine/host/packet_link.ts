/**
 * The packet connection of a link, in the thread that looks after the network.
 *
 * @module
 */

import { WasmKernels } from "../../wasm/mod.ts";
import { messageOf, WireError } from "../errors.ts";
import { PACKET_LINK_BYTES_MAX } from "../limits.ts";
import { decodeMessage, encodeMessage, type Message } from "../link/messages.ts";
import { FrameDecoder, FrameEncoder } from "../link/wire.ts";
import { CLOSED, type SocketLoop, type StreamSocket } from "./stream_socket.ts";

/** What one VM has received, or said. */
export type FramesMessage = Extract<Message, { type: "frames" }>;

/** Whom a {@linkcode PacketLink} tells. */
export interface PacketLinkEvents {
  /** @throws {WireError} when it makes no sense, which ends the connection */
  frames(message: FramesMessage): void;
  notice(text: string): void;
  /** Nothing more comes or goes, and not because of {@linkcode PacketLink.close}; said once. */
  ended(reason: string): void;
}

/** One connection to the other side's engine. */
export class PacketLink {
  readonly #socket: StreamSocket;
  readonly #loop: SocketLoop;
  readonly #events: PacketLinkEvents;
  readonly #encoder: FrameEncoder;
  readonly #decoder: FrameDecoder;
  readonly #queue: Uint8Array[] = [];
  #queuedBytes = 0;
  #isOpen = true;

  constructor(socket: StreamSocket, loop: SocketLoop, events: PacketLinkEvents) {
    const kernels = WasmKernels.create();
    this.#socket = socket;
    this.#loop = loop;
    this.#events = events;
    this.#encoder = new FrameEncoder(kernels);
    this.#decoder = new FrameDecoder(kernels);
    loop.watch(socket, {
      readable: () => this.#read(),
      writable: () => this.#flush(),
      closed: (error) => this.#end(error === undefined ? "the peer closed it" : messageOf(error)),
    });
  }

  /** Whether more waits than should: frames are better lost, as in any network. */
  get isFull(): boolean {
    return this.#queuedBytes > PACKET_LINK_BYTES_MAX;
  }

  send(message: FramesMessage): void {
    if (!this.#isOpen) return;
    // Packets are not worth the time that compressing them takes.
    const bytes = this.#encoder.encode(encodeMessage(message));
    this.#queue.push(bytes);
    this.#queuedBytes += bytes.length;
    if (this.#queue.length === 1) this.#flush();
  }

  /** What has come by now is told, and nothing more. */
  close(): void {
    try {
      for (let count = 1; this.#isOpen && count > 0;) count = this.#read();
    } finally {
      this.#shut();
    }
  }

  /** @returns Bytes read */
  #read(): number {
    const count = this.#socket.receive(this.#decoder.space());
    if (count === CLOSED) {
      this.#end("the peer closed it");
      return 0;
    }
    try {
      for (const frame of this.#decoder.filled(count)) {
        const message = decodeMessage(frame);
        if (message.type === "frames") this.#events.frames(message);
      }
      // Wrong bytes behind the last frame end the connection now, not when the peer says more.
      this.#decoder.filled(0);
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      this.#events.notice(error.message);
      this.#end("the peer's bytes were wrong");
    }
    return count;
  }

  #flush(): void {
    for (let bytes; (bytes = this.#queue[0]) !== undefined;) {
      const count = this.#socket.send(bytes);
      this.#queuedBytes -= count;
      if (count < bytes.length) {
        this.#queue[0] = bytes.subarray(count);
        return this.#loop.awaitRoom(this.#socket);
      }
      this.#queue.shift();
    }
  }

  #end(reason: string): void {
    if (!this.#isOpen) return;
    this.#shut();
    this.#events.ended(reason);
  }

  #shut(): void {
    this.#isOpen = false;
    this.#loop.unwatch(this.#socket);
    this.#socket.close();
  }
}
