/**
 * The primary's end of the way that leads from its QEMU's NBD client to the secondary.
 *
 * @module
 */

import { EarlyAnswers } from "../block/mod.ts";
import { NbdSocket } from "./nbd_socket.ts";

/** What a client says is read to; less than a frame's payload. */
const READ_BYTES = 512 * 1024;

/** Small writes, which nobody waits for, go over together: so many bytes, or those of so long. */
const SEND_BYTES = 64 * 1024;
const SEND_MS = 5;

/**
 * Where QEMU's client connects to, once: it would connect again whenever it finds its connection gone,
 * and what it wrote in between the secondary would lack.
 */
export class DiskTunnel {
  readonly #listener: Deno.UnixListener;
  readonly #say: (bytes: Uint8Array) => Promise<void>;
  readonly #answers = new EarlyAnswers();
  readonly #buffer = new Uint8Array(READ_BYTES);
  /** What of the buffer was read, and not said yet. */
  #start = 0;
  #end = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Fulfilled when there is room for more. */
  #sent: Promise<void> = Promise.resolve();
  #socket: NbdSocket | undefined;
  #closed = false;

  /**
   * @param path Of the socket, which nobody has yet
   * @param say Has something passed on to the secondary; fulfilled when there is room for more, and the
   * bytes may be used again at once
   */
  constructor(path: string, say: (bytes: Uint8Array) => Promise<void>) {
    this.#say = say;
    this.#listener = Deno.listen({ transport: "unix", path });
    this.#serve().catch(() => {}).finally(() => this.close());
  }

  /**
   * The secondary's disk has said something.
   *
   * @throws {NbdError} when it makes no sense
   */
  answered(bytes: Uint8Array): void {
    this.#answers.fromServer(bytes);
    this.#socket?.write([bytes]);
  }

  /** Say all that was read. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const bytes = this.#buffer.subarray(this.#start, this.#end);
    this.#start = this.#end;
    if (bytes.length > 0) this.#sent = this.#say(bytes);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#socket?.close();
    if (this.#socket === undefined) this.#listener.close();
  }

  async #serve(): Promise<void> {
    const connection = await this.#listener.accept();
    const socket = new NbdSocket(connection);
    this.#socket = socket;
    this.#listener.close();
    if (this.#closed) return socket.close();
    // The server speaks first: it must know that somebody is there.
    await this.#say(new Uint8Array(0));
    const buffer = this.#buffer;
    for (let count; (count = await socket.read(buffer.subarray(this.#end))) !== undefined;) {
      const bytes = buffer.subarray(this.#end, this.#end + count);
      this.#end += count;
      socket.write(this.#answers.fromClient(bytes));
      const isLarge = this.#end - this.#start >= SEND_BYTES && this.#answers.isBetween;
      if (isLarge || this.#answers.isAwaited || this.#end === buffer.length) this.flush();
      else this.#timer ??= setTimeout(() => this.flush(), SEND_MS);
      // A link that is slower than the guest slows it down.
      await this.#sent;
      if (this.#start === this.#end) this.#start = this.#end = 0;
    }
  }
}
