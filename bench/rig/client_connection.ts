/**
 * A TCP connection of a client that looks at every byte it receives.
 *
 * @module
 */

import { ColoError } from "../../engine/errors.ts";

/** Where a server is. */
export interface ServerAddress {
  /** IPv4 or IPv6, without brackets. */
  readonly address: string;
  readonly port: number;
}

const BUFFER_BYTES = 64 * 1024;

/** A line that is longer is none that a server of ours sends. */
const LINE_BYTES_MAX = 16 * 1024;

const LINE_END = 10;

/** `address:port`, an IPv6 address in brackets. */
export function formatServer({ address, port }: ServerAddress): string {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

/** A connection, read in lines and in blocks. */
export class ClientConnection {
  readonly #socket: Deno.TcpConn;
  readonly #buffer = new Uint8Array(BUFFER_BYTES);
  #from = 0;
  #to = 0;

  constructor(socket: Deno.TcpConn) {
    socket.setNoDelay();
    this.#socket = socket;
  }

  static async open({ address, port }: ServerAddress): Promise<ClientConnection> {
    return new ClientConnection(await Deno.connect({ hostname: address, port }));
  }

  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length;) at += await this.#socket.write(bytes.subarray(at));
  }

  /** The next line, without its end. */
  async readLine(): Promise<string> {
    const parts: Uint8Array[] = [];
    for (let sizeBytes = 0;;) {
      const bytes = await this.#available();
      const end = bytes.indexOf(LINE_END);
      const taken = bytes.slice(0, end < 0 ? bytes.length : end + 1);
      this.#from += taken.length;
      sizeBytes += taken.length;
      parts.push(taken);
      if (end >= 0) break;
      if (sizeBytes > LINE_BYTES_MAX) throw new ColoError("the server sends no lines");
    }
    const decoder = new TextDecoder();
    const line = parts.map((part) => decoder.decode(part, { stream: true })).join("");
    return line.slice(0, -1);
  }

  /** The next bytes, of which `take` is given one piece after another, valid until it returns. */
  async readBytes(sizeBytes: number, take: (bytes: Uint8Array) => void): Promise<void> {
    for (let left = sizeBytes; left > 0;) {
      const bytes = (await this.#available()).subarray(0, left);
      take(bytes);
      this.#from += bytes.length;
      left -= bytes.length;
    }
  }

  /** Whether something was received that nobody has asked for. */
  get hasMore(): boolean {
    return this.#from < this.#to;
  }

  close(): void {
    try {
      this.#socket.close();
    } catch {
      // Closed already.
    }
  }

  async #available(): Promise<Uint8Array<ArrayBuffer>> {
    if (this.#from === this.#to) {
      const count = await this.#socket.read(this.#buffer);
      if (count === null) throw new ColoError("the server has closed the connection");
      this.#from = 0;
      this.#to = count;
    }
    return this.#buffer.subarray(this.#from, this.#to);
  }
}
