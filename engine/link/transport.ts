/**
 * Messages over a TCP or unix socket.
 *
 * @module
 */

import { WasmKernels } from "../../wasm/mod.ts";
import { LinkError, messageOf, WireError } from "../errors.ts";
import { freeBuffer } from "../buffers.ts";
import { LINK_QUEUE_BYTES_MAX, LINK_UNSENT_BYTES_MAX } from "../limits.ts";
import { formatAddress, type LinkAddress } from "./address.ts";
import { decodeMessage, encodeMessage, type Message } from "./messages.ts";
import { FrameDecoder, FrameEncoder, type ReceivedFrame } from "./wire.ts";

/** What a read may bring at once. */
const READ_BYTES = 1024 * 1024;

/** The longest a host may take to accept a connection. */
const CONNECT_MS = 5000;

/** One connection between two engines. */
export class LinkConnection {
  /** Bytes that have been given to the socket. */
  bytesSent = 0;
  /** Bytes that were taken for sending: those given to the socket, and those that wait for it. */
  bytesQueued = 0;
  bytesReceived = 0;
  readonly #connection: Deno.Conn;
  readonly #encoder: FrameEncoder;
  readonly #decoder: FrameDecoder;
  /** Frames that nobody has taken yet. */
  readonly #arrived: ReceivedFrame[] = [];
  readonly #queue: { readonly bytes: Uint8Array; readonly isOwn: boolean }[] = [];
  #queuedBytes = 0;
  #writing: Promise<void> | undefined;
  #room: PromiseWithResolvers<void> | undefined;
  #failure: LinkError | undefined;
  readonly #closed = Promise.withResolvers<LinkError>();
  /** Tells whoever has been given the connection that he has it no more. */
  #takeBack: (() => void) | undefined;
  #hasReader = false;

  constructor(connection: Deno.Conn) {
    const kernels = WasmKernels.create();
    this.#connection = connection;
    this.#encoder = new FrameEncoder(kernels);
    this.#decoder = new FrameDecoder(kernels);
    if ("setNoDelay" in connection) (connection as Deno.TcpConn).setNoDelay();
  }

  /**
   * Queue a message. Its bytes are copied before this returns, and it never throws but rejects.
   *
   * Await it before sending the next: beyond {@linkcode LINK_QUEUE_BYTES_MAX} it waits until the peer
   * has read, and beyond {@linkcode LINK_UNSENT_BYTES_MAX}, which a caller that does not await can
   * reach, the connection is closed.
   *
   * @returns Fulfilled when there is room for more
   * @throws {LinkError} when the connection is closed or broken, or was just closed for the bound
   * @throws {LocalProtocolError} when no frame can hold the message; the connection stays usable
   */
  async send(message: Message): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    // Packets and writes to disks are not worth the time that compressing them takes.
    const bulky = message.type !== "frames" && message.type !== "nbd" &&
      ("records" in message || "bytes" in message);
    await this.#enqueue(this.#encoder.encode(encodeMessage(message), bulky), true);
  }

  /**
   * Queue a frame that was made elsewhere; as {@linkcode send}, but the bytes are not copied.
   *
   * @param bytes One whole frame
   */
  async sendFrame(bytes: Uint8Array): Promise<void> {
    await this.#enqueue(bytes, false);
  }

  /** @param isOwn Nobody else has these bytes */
  async #enqueue(bytes: Uint8Array, isOwn: boolean): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#queuedBytes + bytes.length > LINK_UNSENT_BYTES_MAX) {
      throw this.#break(`${this.#queuedBytes} bytes wait already: every send must be awaited`);
    }
    this.#queue.push({ bytes, isOwn });
    this.#queuedBytes += bytes.length;
    this.bytesQueued += bytes.length;
    this.#writing ??= this.#write();
    if (this.#queuedBytes <= LINK_QUEUE_BYTES_MAX) return;
    this.#room ??= Promise.withResolvers<void>();
    await this.#room.promise;
  }

  /** Fulfilled when all that was sent has been given to the socket, or the connection is broken. */
  async flush(): Promise<void> {
    await this.#writing;
  }

  /**
   * What the peer says, until it closes the connection.
   *
   * @throws {LinkError} when the connection breaks, or the peer closes it in the middle of a message
   * @throws {WireError} when the peer's bytes are wrong; the connection is closed
   */
  async *receive(): AsyncGenerator<Message, void> {
    this.#becomeReader();
    try {
      for (let message; (message = await this.#take()) !== undefined;) yield message;
    } catch (error) {
      if (error instanceof WireError) this.close("the peer's bytes were wrong");
      throw error;
    } finally {
      this.#hasReader = false;
    }
  }

  /**
   * The next message alone, for a handshake. What comes behind it is left for the next reader.
   *
   * @throws {LinkError} when none comes in time; the connection is closed
   * @throws {WireError} when the peer's bytes are wrong; it was told so, and the connection is closed
   */
  async next(timeoutMs: number): Promise<Message> {
    this.#becomeReader();
    const timer = setTimeout(() => this.close(`no answer within ${timeoutMs} ms`), timeoutMs);
    try {
      const message = await this.#take();
      if (message === undefined) throw this.#break("the peer closed it");
      return message;
    } catch (error) {
      if (error instanceof WireError) await this.refuse(error.message);
      throw error;
    } finally {
      clearTimeout(timer);
      this.#hasReader = false;
    }
  }

  /**
   * Tell the peer why there is no link, and close.
   *
   * @param generation The one in which this side runs the VM itself, if it does
   */
  async refuse(reason: string, generation = 0): Promise<void> {
    await this.send({ type: "refuse", reason, generation }).catch(() => {});
    await this.flush();
    this.close();
  }

  /** Fulfilled when the connection is closed, with the reason. */
  get closed(): Promise<LinkError> {
    return this.#closed.promise;
  }

  /**
   * Give the connection away, which nobody reads or writes now: nothing is sent or received here any more.
   * It is still closed here.
   *
   * @param takenBack Called when it is about to be closed, or to be given to somebody else
   * @throws {LinkError} when it is closed or broken, or the peer has spoken too early
   */
  giveAway(takenBack: () => void): Deno.Conn {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#arrived.length > 0 || this.#decoder.bufferedBytes > 0) {
      throw this.#break("the peer spoke before its time");
    }
    this.#takeBack?.();
    this.#takeBack = takenBack;
    return this.#connection;
  }

  /** Close the connection; what was not yet given to the socket is lost. */
  close(reason = "it was closed"): void {
    if (this.#failure !== undefined) return;
    this.#failure = new LinkError(`Cannot use the link: ${reason}`);
    this.#closed.resolve(this.#failure);
    this.#queue.length = 0;
    this.#room?.reject(this.#failure);
    this.#takeBack?.();
    try {
      this.#connection.close();
    } catch {
      // Closed already.
    }
  }

  #break(reason: string): LinkError {
    this.close(reason);
    return this.#failure!;
  }

  #becomeReader(): void {
    if (this.#hasReader) throw new LinkError("Cannot read from the link: somebody does already");
    this.#hasReader = true;
  }

  /** The next message, or nothing at the end of the connection. */
  async #take(): Promise<Message | undefined> {
    while (true) {
      const frame = this.#arrived.shift();
      if (frame !== undefined) return decodeMessage(frame);
      // Wrong bytes behind the last frame end the connection now, not when the peer says more.
      this.#decoder.filled(0);
      const count = await this.#read();
      if (count === null) {
        if (this.#decoder.bufferedBytes === 0) return undefined;
        throw this.#break("the peer broke off in the middle of a message");
      }
      this.bytesReceived += count;
      this.#arrived.push(...this.#decoder.filled(count));
    }
  }

  async #read(): Promise<number | null> {
    try {
      return await this.#connection.read(this.#decoder.space().subarray(0, READ_BYTES));
    } catch (error) {
      throw this.#break(messageOf(error));
    }
  }

  async #write(): Promise<void> {
    try {
      for (let next; (next = this.#queue.shift()) !== undefined;) {
        const { bytes, isOwn } = next;
        const count = bytes.length;
        for (let at = 0; at < bytes.length;) at += await this.#connection.write(bytes.subarray(at));
        if (isOwn) freeBuffer(bytes);
        this.bytesSent += count;
        this.#queuedBytes -= count;
        if (this.#queuedBytes <= LINK_QUEUE_BYTES_MAX / 2) {
          this.#room?.resolve();
          this.#room = undefined;
        }
      }
    } catch (error) {
      this.close(messageOf(error));
    } finally {
      this.#writing = undefined;
    }
  }
}

/**
 * Connect to an engine.
 *
 * @throws {LinkError} when nobody listens there, or the host does not answer in time
 */
export async function connectLink(
  address: LinkAddress,
  timeoutMs = CONNECT_MS,
): Promise<LinkConnection> {
  const controller = new AbortController();
  const { signal } = controller;
  const timer = setTimeout(() => controller.abort(), timeoutMs);
  try {
    const connection = address.transport === "unix"
      // The system takes or refuses it at once, a full backlog included.
      ? await Deno.connect(address)
      : await Deno.connect({ ...address, signal });
    return new LinkConnection(connection);
  } catch (error) {
    const detail = signal.aborted ? `no answer within ${timeoutMs} ms` : messageOf(error);
    throw new LinkError(
      `Cannot connect to the standby at ${formatAddress(address)}: ${detail}`,
      { cause: error },
    );
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Listen for engines. A unix socket that a killed process left behind is replaced.
 *
 * @throws {LinkError} when the address is taken or not this machine's
 */
export async function listenLink(address: LinkAddress): Promise<Deno.Listener> {
  try {
    if (address.transport === "tcp") return Deno.listen(address);
    await removeStaleSocket(address.path);
    return Deno.listen(address);
  } catch (error) {
    const detail = error instanceof Deno.errors.AddrInUse
      ? "the address is in use; choose another `replication.listen` or stop the other process"
      : messageOf(error);
    throw new LinkError(`Cannot listen at ${formatAddress(address)}: ${detail}`, { cause: error });
  }
}

/** A killed process leaves its socket behind: one that nobody answers on is nobody's. */
async function removeStaleSocket(path: string): Promise<void> {
  const info = await Deno.lstat(path).catch(() => undefined);
  // Connecting to an ordinary file is refused as well, and that is not ours to remove.
  if (!info?.isSocket) return;
  try {
    (await Deno.connect({ transport: "unix", path })).close();
  } catch (error) {
    if (error instanceof Deno.errors.ConnectionRefused) await Deno.remove(path);
  }
}
