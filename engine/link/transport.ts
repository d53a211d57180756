/**
 * Messages over a TCP or unix socket.
 *
 * @module
 */

import { WasmKernels } from "../../wasm/mod.ts";
import { LinkError, WireError } from "../errors.ts";
import { LINK_QUEUE_BYTES_MAX } from "../limits.ts";
import { formatAddress, type LinkAddress } from "./address.ts";
import { decodeMessage, encodeMessage, type Message } from "./messages.ts";
import { type Frame, FrameDecoder, FrameEncoder } from "./wire.ts";

/** What a read may bring at once. */
const READ_BYTES = 256 * 1024;

/** One connection between two engines. */
export class LinkConnection {
  /** Bytes that have been given to the socket. */
  bytesSent = 0;
  bytesReceived = 0;
  readonly #connection: Deno.Conn;
  readonly #encoder: FrameEncoder;
  readonly #decoder: FrameDecoder;
  /** Frames that nobody has taken yet. */
  readonly #arrived: Frame[] = [];
  readonly #queue: Uint8Array<ArrayBuffer>[] = [];
  #queuedBytes = 0;
  #writing: Promise<void> | undefined;
  #room: PromiseWithResolvers<void> | undefined;
  #failure: LinkError | undefined;
  #receiving = false;

  constructor(connection: Deno.Conn) {
    const kernels = WasmKernels.create();
    this.#connection = connection;
    this.#encoder = new FrameEncoder(kernels);
    this.#decoder = new FrameDecoder(kernels);
    if ("setNoDelay" in connection) (connection as Deno.TcpConn).setNoDelay();
  }

  /**
   * Queue a message. Its bytes are copied before this returns.
   *
   * @returns Fulfilled when there is room for more: await it before sending the next
   * @throws {LinkError} when the connection is closed or broken
   */
  send(message: Message): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    const bulky = message.type === "pages" || message.type === "deviceState";
    const bytes = this.#encoder.encode(encodeMessage(message), bulky);
    this.#queue.push(bytes);
    this.#queuedBytes += bytes.length;
    this.#writing ??= this.#write();
    if (this.#queuedBytes <= LINK_QUEUE_BYTES_MAX) return Promise.resolve();
    this.#room ??= Promise.withResolvers<void>();
    return this.#room.promise;
  }

  /** Fulfilled when all that was sent has been given to the socket, or the connection is broken. */
  async flush(): Promise<void> {
    await this.#writing;
  }

  /**
   * What the peer says, until it closes the connection.
   *
   * @throws {LinkError} when the connection breaks
   * @throws {WireError} when the peer's bytes are wrong; the connection is closed
   */
  async *receive(): AsyncGenerator<Message, void> {
    if (this.#receiving) throw new LinkError("Cannot read from the link: somebody does already");
    this.#receiving = true;
    const buffer = new Uint8Array(READ_BYTES);
    try {
      while (true) {
        for (let frame; (frame = this.#arrived.shift()) !== undefined;) yield decodeMessage(frame);
        // Wrong bytes behind the last frame end the connection now, not when the peer says more.
        this.#decoder.push(buffer.subarray(0, 0));
        const count = await this.#read(buffer);
        if (count === null) return;
        this.bytesReceived += count;
        this.#arrived.push(...this.#decoder.push(buffer.subarray(0, count)));
      }
    } catch (error) {
      if (error instanceof WireError) this.close();
      throw error;
    } finally {
      this.#receiving = false;
    }
  }

  /**
   * The next message alone, for a handshake.
   *
   * @throws {LinkError} when none comes in time
   */
  async next(timeoutMs: number): Promise<Message> {
    const timer = setTimeout(() => this.close(`no answer within ${timeoutMs} ms`), timeoutMs);
    try {
      const messages = this.receive();
      const { value } = await messages.next();
      if (value === undefined) {
        throw this.#failure ?? new LinkError("Cannot use the link: it was closed");
      }
      await messages.return();
      return value;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Close the connection; what was not yet given to the socket is lost. */
  close(reason = "it was closed"): void {
    if (this.#failure !== undefined) return;
    this.#failure = new LinkError(`Cannot use the link: ${reason}`);
    this.#queue.length = 0;
    this.#room?.reject(this.#failure);
    this.#room?.promise.catch(() => {});
    try {
      this.#connection.close();
    } catch {
      // Closed already.
    }
  }

  async #read(buffer: Uint8Array): Promise<number | null> {
    try {
      return await this.#connection.read(buffer);
    } catch (error) {
      this.close(reasonOf(error));
      throw this.#failure;
    }
  }

  async #write(): Promise<void> {
    try {
      for (let bytes; (bytes = this.#queue.shift()) !== undefined;) {
        for (let at = 0; at < bytes.length;) at += await this.#connection.write(bytes.subarray(at));
        this.bytesSent += bytes.length;
        this.#queuedBytes -= bytes.length;
        if (this.#queuedBytes <= LINK_QUEUE_BYTES_MAX / 2) {
          this.#room?.resolve();
          this.#room = undefined;
        }
      }
    } catch (error) {
      this.close(reasonOf(error));
    } finally {
      this.#writing = undefined;
    }
  }
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/**
 * Connect to an engine.
 *
 * @throws {LinkError} when nobody listens there
 */
export async function connectLink(address: LinkAddress): Promise<LinkConnection> {
  try {
    const connection = address.transport === "unix"
      ? await Deno.connect(address)
      : await Deno.connect(address);
    return new LinkConnection(connection);
  } catch (error) {
    throw new LinkError(
      `Cannot connect to the standby at ${formatAddress(address)}: ${reasonOf(error)}`,
      { cause: error },
    );
  }
}

/**
 * Listen for engines.
 *
 * @throws {LinkError} when the address is taken or not this machine's
 */
export function listenLink(address: LinkAddress): Deno.Listener {
  try {
    return address.transport === "unix" ? Deno.listen(address) : Deno.listen(address);
  } catch (error) {
    const detail = error instanceof Deno.errors.AddrInUse
      ? "the address is in use; choose another `replication.listen` or stop the other process"
      : reasonOf(error);
    throw new LinkError(`Cannot listen at ${formatAddress(address)}: ${detail}`, { cause: error });
  }
}
