/**
 * What a client says on a connection to the demo guest's servers, and what it must hear: see
 * `engine/vm/demo_guest/server.lua`.
 *
 * @module
 */

import { ColoError } from "../../engine/errors.ts";
import { ClientConnection, formatServer, type ServerAddress } from "./client_connection.ts";
import type { SynWatch } from "./syn_watch.ts";

/** One who asks, and looks at the answers. */
export interface Session {
  /**
   * One request and its answer.
   *
   * @returns When what is measured was there, on the clock of `performance.now()`
   * @throws when the connection ends, or a byte of the answer is not what it must be
   */
  next(): Promise<number>;
  close(): void;
}

const HEADER_LINES_MAX = 32;
const LINE_BYTES = 64;
const FILLER = "the quick brown fox jumps over the lazy dog ...\n";

/** The content of `/page/N`. */
export function pageContent(sizeBytes: number): Uint8Array<ArrayBuffer> {
  const lines: string[] = [];
  for (let n = 0; n * LINE_BYTES < sizeBytes; n++) {
    lines.push(`${String(n).padStart(15, "0")} ${FILLER}`);
  }
  return new TextEncoder().encode(lines.join("")).subarray(0, sizeBytes);
}

/** An HTTP/1.1 client on one connection. */
class HttpConnection {
  readonly #connection: ClientConnection;
  readonly #host: string;

  private constructor(connection: ClientConnection, host: string) {
    this.#connection = connection;
    this.#host = host;
  }

  static async open(server: ServerAddress): Promise<HttpConnection> {
    return new HttpConnection(await ClientConnection.open(server), formatServer(server));
  }

  /** Ask for a page; `take` is given its content, piece by piece. */
  async get(path: string, take: (bytes: Uint8Array) => void): Promise<void> {
    const request = `GET ${path} HTTP/1.1\r\nHost: ${this.#host}\r\n\r\n`;
    await this.#connection.write(new TextEncoder().encode(request));
    const status = await this.#connection.readLine();
    let sizeBytes: number | undefined;
    for (let lines = 0;; lines++) {
      const line = await this.#connection.readLine();
      if (line === "\r") break;
      const length = /^content-length: (\d{1,10})\r$/i.exec(line)?.[1];
      if (length !== undefined) sizeBytes = Number(length);
      if (lines > HEADER_LINES_MAX) throw new ColoError(`${path}: its header has no end`);
    }
    if (sizeBytes === undefined) throw new ColoError(`${path}: an answer without a length`);
    if (status !== "HTTP/1.1 200 OK\r") {
      throw new ColoError(`${path}: answered by ${JSON.stringify(status)}`);
    }
    await this.#connection.readBytes(sizeBytes, take);
    if (this.#connection.hasMore) throw new ColoError(`${path}: more than was asked for`);
  }

  close(): void {
    this.#connection.close();
  }
}

/** Asks for a page whose content is known. */
export class PageSession implements Session {
  readonly #http: HttpConnection;
  readonly #content: Uint8Array;

  private constructor(http: HttpConnection, content: Uint8Array) {
    this.#http = http;
    this.#content = content;
  }

  /** @param content See {@linkcode pageContent} */
  static async open(server: ServerAddress, content: Uint8Array): Promise<PageSession> {
    return new PageSession(await HttpConnection.open(server), content);
  }

  async next(): Promise<number> {
    let at = 0;
    await this.#http.get(`/page/${this.#content.length}`, (bytes) => {
      for (let index = 0; index < bytes.length; index++) {
        if (bytes[index] !== this.#content[at + index]) {
          throw new ColoError(`byte ${at + index} of the page is wrong`);
        }
      }
      at += bytes.length;
    });
    if (at !== this.#content.length) throw new ColoError(`the page has ${at} bytes`);
    return performance.now();
  }

  close(): void {
    this.#http.close();
  }
}

const DIGITS = 32;

/** Asks for a page that is another one each time. */
export class RandomPageSession implements Session {
  readonly #http: HttpConnection;
  readonly #sizeBytes: number;
  #last = "";

  private constructor(http: HttpConnection, sizeBytes: number) {
    this.#http = http;
    this.#sizeBytes = sizeBytes;
  }

  static async open(server: ServerAddress, sizeBytes: number): Promise<RandomPageSession> {
    return new RandomPageSession(await HttpConnection.open(server), sizeBytes);
  }

  async next(): Promise<number> {
    const digits = new Uint8Array(DIGITS);
    let at = 0;
    await this.#http.get(`/random/${this.#sizeBytes}`, (bytes) => {
      for (const byte of bytes) {
        if (at < DIGITS) digits[at] = byte;
        if (digits[at % DIGITS] !== byte) throw new ColoError(`byte ${at} of the page is wrong`);
        at++;
      }
    });
    if (at !== this.#sizeBytes) throw new ColoError(`the page has ${at} bytes`);
    const text = new TextDecoder().decode(digits);
    if (text === this.#last) throw new ColoError("the page is the one before");
    this.#last = text;
    return performance.now();
  }

  close(): void {
    this.#http.close();
  }
}

const COUNT_MODULUS = 2147483647;
const COUNT_TEXT_CHARS_MAX = 200;

/** Sends lines, and knows what must be said to each. */
export class CountSession implements Session {
  readonly #connection: ClientConnection;
  #count = 0;
  #sum = 0;

  constructor(connection: ClientConnection) {
    this.#connection = connection;
  }

  static async open(server: ServerAddress): Promise<CountSession> {
    return new CountSession(await ClientConnection.open(server));
  }

  async next(): Promise<number> {
    this.#count++;
    const text = "x".repeat(1 + this.#count % COUNT_TEXT_CHARS_MAX) + this.#count;
    const line = new TextEncoder().encode(`${text}\n`);
    for (const byte of line) this.#sum = (this.#sum * 31 + byte) % COUNT_MODULUS;
    await this.#connection.write(line);
    const answer = await this.#connection.readLine();
    if (answer !== `${this.#count} ${this.#sum} ${text}`) {
      throw new ColoError(`line ${this.#count} was answered by ${JSON.stringify(answer)}`);
    }
    if (this.#connection.hasMore) throw new ColoError(`line ${this.#count} was answered twice`);
    return performance.now();
  }

  close(): void {
    this.#connection.close();
  }
}

/** Has the guest open connections to this client. */
export class GuestDialer {
  /** Where this client listens. */
  readonly own: ServerAddress;
  readonly #server: ServerAddress;
  readonly #listener: Deno.TcpListener;
  #turn: Promise<unknown> = Promise.resolve();

  /** @param own Where this client is reached; port 0 is one that nobody has knocked at before */
  constructor(server: ServerAddress, own: ServerAddress) {
    this.#server = server;
    this.#listener = Deno.listen({ hostname: own.address, port: own.port });
    this.own = { address: own.address, port: this.#listener.addr.port };
  }

  /** A connection that the guest has opened, and answers on as its counting server does. */
  async dial(): Promise<CountSession> {
    // What is accepted is what was asked for, if only one asks at a time.
    const turn = this.#turn.then(async () => {
      const http = await HttpConnection.open(this.#server);
      try {
        const [socket] = await Promise.all([this.#listener.accept(), this.#ask(http, "dial")]);
        return new CountSession(new ClientConnection(socket));
      } finally {
        http.close();
      }
    });
    this.#turn = turn.catch(() => {});
    return await turn;
  }

  /**
   * Asks for one connection after another; measured is the time until it is accepted.
   *
   * @param syns If given, the time until the guest's first packet is here
   */
  async connecting(syns?: SynWatch): Promise<Session> {
    const http = await HttpConnection.open(this.#server);
    const next = async () => {
      const syn = syns?.next();
      const accepted = this.#listener.accept().then((socket) => {
        const atMs = performance.now();
        socket.close();
        return atMs;
      });
      const [atMs] = await Promise.all([accepted, this.#ask(http, "connect")]);
      return await syn ?? atMs;
    };
    return { next, close: () => http.close() };
  }

  close(): void {
    this.#listener.close();
  }

  async #ask(http: HttpConnection, how: "dial" | "connect"): Promise<void> {
    await http.get(`/${how}/${formatServer(this.own)}`, () => {});
  }
}
