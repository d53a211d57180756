/**
 * Reads what an NBD client says, and what a server says. Any chunking of the same bytes gives the same
 * pieces, but that a payload is cut as it came; every length is judged before it is waited for.
 *
 * Source: see `nbd.ts`.
 *
 * @module
 */

import { NBD_OPTION_BYTES_MAX, NBD_PAYLOAD_BYTES_MAX, NBD_REQUESTS_MAX } from "../limits.ts";
import { type PayloadPiece, PieceReader, tail } from "./_pieces.ts";
import {
  isChange,
  NBD_CHUNK,
  NBD_CHUNK_DONE,
  NBD_CHUNK_ERROR_FROM,
  NBD_COMMAND,
  NBD_HANDSHAKE,
  NBD_MAGIC,
  NBD_OPTION,
  NBD_OPTION_REPLY,
  type NbdForm,
  type NbdReply,
  type NbdRequest,
  requestPayloadBytes,
} from "./nbd.ts";

/** What a client says; `raw` is how it said it. */
export type NbdClientPiece =
  | { readonly type: "flags"; readonly raw: Uint8Array; readonly flags: number }
  | {
    readonly type: "option";
    readonly raw: Uint8Array;
    readonly option: number;
    readonly data: Uint8Array<ArrayBuffer>;
  }
  /** Of a WRITE, `payload` follows where its length is not 0. */
  | { readonly type: "request"; readonly raw: Uint8Array; readonly request: NbdRequest }
  | PayloadPiece;

/** What a server says; `raw` is how it said it. */
export type NbdServerPiece =
  | { readonly type: "greeting"; readonly raw: Uint8Array; readonly flags: number }
  | {
    readonly type: "option-reply";
    readonly raw: Uint8Array;
    readonly option: number;
    readonly reply: number;
    readonly data: Uint8Array<ArrayBuffer>;
  }
  /** The answer to EXPORT_NAME: requests follow. */
  | {
    readonly type: "export";
    readonly raw: Uint8Array;
    readonly sizeBytes: number;
    readonly flags: number;
  }
  /** `payload` follows where it has one. */
  | { readonly type: "reply"; readonly raw: Uint8Array; readonly reply: NbdReply }
  | PayloadPiece;

/** A payload that has more before the data: the offset of a chunk that was read, or an error's text. */
const REPLY_PAYLOAD_BYTES_MAX = NBD_PAYLOAD_BYTES_MAX + 4096;

/** Reads a client. */
export class NbdClientReader extends PieceReader<Exclude<NbdClientPiece, PayloadPiece>> {
  #phase: "flags" | "options" | NbdForm = "flags";

  /**
   * The server has let the client in: requests follow.
   *
   * @throws {NbdError} when the client has not waited for that
   */
  beginRequests(form: NbdForm): void {
    if (this.isInHeader) this.fail("the client went on before its option was answered");
    this.#phase = form;
  }

  protected override headerBytes(head: DataView): number {
    switch (this.#phase) {
      case "flags":
        return 4;
      case "options": {
        if (head.byteLength < 16) return 16;
        if (!isMagic64(head, NBD_MAGIC.OPTION)) this.fail("an option begins with another magic");
        const length = head.getUint32(12);
        if (length > NBD_OPTION_BYTES_MAX) this.fail(`an option of ${length} bytes`, 12);
        return 16 + length;
      }
      case "extended":
        return 32;
      default:
        return 28;
    }
  }

  protected override header(raw: Uint8Array<ArrayBuffer>, view: DataView) {
    if (this.#phase === "flags") {
      const flags = view.getUint32(0);
      this.#phase = "options";
      return { type: "flags", raw, flags } as const;
    }
    if (this.#phase === "options") {
      return { type: "option", raw, option: view.getUint32(8), data: tail(raw, 16) } as const;
    }
    const extended = this.#phase === "extended";
    const magic = extended ? NBD_MAGIC.EXTENDED_REQUEST : NBD_MAGIC.REQUEST;
    if (view.getUint32(0) !== magic) this.fail("a request begins with another magic");
    const request = {
      flags: view.getUint16(4),
      command: view.getUint16(6),
      handle: view.getBigUint64(8),
      offset: this.#safe(view, 16),
      length: extended ? this.#safe(view, 24) : view.getUint32(24),
    };
    const payloadBytes = requestPayloadBytes(request, this.#phase);
    const read = request.command === NBD_COMMAND.READ ? request.length : 0;
    if (Math.max(payloadBytes, read) > NBD_PAYLOAD_BYTES_MAX) {
      this.fail(`a request of ${request.length} bytes, the limit is ${NBD_PAYLOAD_BYTES_MAX}`, 24);
    }
    this.expectPayload(payloadBytes);
    return { type: "request", raw, request } as const;
  }

  #safe(view: DataView, at: number): number {
    const value = view.getBigUint64(at);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) this.fail(`a request at byte ${value}`, at);
    return Number(value);
  }
}

/** Reads a server, which cannot be understood without what its client said. */
export class NbdServerReader extends PieceReader<Exclude<NbdServerPiece, PayloadPiece>> {
  readonly #requests = new Map<bigint, NbdRequest>();
  #phase: "greeting" | "options" | "export" | "requests" = "greeting";
  #structured = false;
  #extended = false;
  #noZeroes = false;

  /** Requests that are not answered yet. */
  get requests(): ReadonlyMap<bigint, NbdRequest> {
    return this.#requests;
  }

  /** How requests and replies are written, once the server has let the client in. */
  get form(): NbdForm | undefined {
    if (this.#phase !== "requests") return undefined;
    return this.#extended ? "extended" : this.#structured ? "structured" : "simple";
  }

  /** What its client has said. */
  said(piece: NbdClientPiece): void {
    if (piece.type === "flags") this.#noZeroes = (piece.flags & NBD_HANDSHAKE.NO_ZEROES) !== 0;
    if (piece.type === "option" && piece.option === NBD_OPTION.EXPORT_NAME) this.#phase = "export";
    if (piece.type === "request" && piece.request.command !== NBD_COMMAND.DISC) {
      this.#requests.set(piece.request.handle, piece.request);
      if (this.#requests.size > NBD_REQUESTS_MAX) {
        this.fail(`more than ${NBD_REQUESTS_MAX} requests wait for an answer`);
      }
    }
  }

  protected override headerBytes(head: DataView): number {
    const has = head.byteLength;
    switch (this.#phase) {
      case "greeting":
        return 18;
      case "export":
        return this.#noZeroes ? 10 : 134;
      case "options": {
        if (has < 20) return 20;
        if (!isMagic64(head, NBD_MAGIC.OPTION_REPLY)) {
          this.fail("a reply to an option begins with another magic");
        }
        const length = head.getUint32(16);
        if (length > NBD_OPTION_BYTES_MAX) this.fail(`a reply to an option of ${length} bytes`, 16);
        return 20 + length;
      }
      case "requests":
        if (this.#extended) return 32;
        return has < 4 || head.getUint32(0) !== NBD_MAGIC.CHUNK ? 16 : 20;
    }
  }

  protected override header(raw: Uint8Array<ArrayBuffer>, view: DataView) {
    switch (this.#phase) {
      case "greeting": {
        const second = new DataView(view.buffer, 8);
        if (!isMagic64(view, NBD_MAGIC.GREETING) || !isMagic64(second, NBD_MAGIC.OPTION)) {
          this.fail("it is no server of the newstyle protocol");
        }
        this.#phase = "options";
        return { type: "greeting", raw, flags: view.getUint16(16) } as const;
      }
      case "export": {
        const sizeBytes = this.#safe(view, 0);
        this.#phase = "requests";
        return { type: "export", raw, sizeBytes, flags: view.getUint16(8) } as const;
      }
      case "options": {
        const [option, reply] = [view.getUint32(8), view.getUint32(12)];
        if (reply === NBD_OPTION_REPLY.ACK) this.#agreed(option);
        return { type: "option-reply", raw, option, reply, data: tail(raw, 20) } as const;
      }
      case "requests":
        return { type: "reply", raw, reply: this.#reply(view) } as const;
    }
  }

  #agreed(option: number): void {
    if (option === NBD_OPTION.STRUCTURED_REPLY) this.#structured = true;
    if (option === NBD_OPTION.EXTENDED_HEADERS) this.#extended = true;
    if (option === NBD_OPTION.GO) this.#phase = "requests";
  }

  #reply(view: DataView): NbdReply {
    const magic = view.getUint32(0);
    const handle = view.getBigUint64(8);
    const request = this.#requests.get(handle);
    if (request === undefined) this.fail("a reply to a request that nobody made", 8);
    let reply: NbdReply;
    if (magic === NBD_MAGIC.SIMPLE && !this.#extended) {
      const error = view.getUint32(4);
      const failed = error !== 0;
      const isRead = request.command === NBD_COMMAND.READ;
      if (isRead && this.#structured) this.fail("what was read came as a simple reply");
      const payloadBytes = isRead && !failed ? request.length : 0;
      reply = { handle, done: true, failed, error, payloadBytes };
    } else if (magic === (this.#extended ? NBD_MAGIC.EXTENDED_CHUNK : NBD_MAGIC.CHUNK)) {
      if (!this.#extended && !this.#structured) this.fail("a chunk that was not agreed upon");
      const type = view.getUint16(6);
      const payloadBytes = this.#extended ? this.#safe(view, 24) : view.getUint32(16);
      if (payloadBytes > REPLY_PAYLOAD_BYTES_MAX) {
        this.fail(`a chunk of ${payloadBytes} bytes`, this.#extended ? 24 : 16);
      }
      const done = (view.getUint16(4) & NBD_CHUNK_DONE) !== 0;
      if (type === NBD_CHUNK.NONE && !done) this.fail("an empty chunk that is not the last", 4);
      reply = { handle, done, failed: type >= NBD_CHUNK_ERROR_FROM, payloadBytes };
    } else this.fail("a reply begins with another magic");
    this.expectPayload(reply.payloadBytes);
    if (reply.done) this.#requests.delete(handle);
    return reply;
  }

  #safe(view: DataView, at: number): number {
    const value = view.getBigUint64(at);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) this.fail(`a number of ${value}`, at);
    return Number(value);
  }
}

/**
 * Both directions of one connection, put together as they come. The server answers all that does not
 * change its disk: see `EarlyAnswers`.
 */
export class NbdConversation {
  readonly #client = new NbdClientReader();
  readonly #server = new NbdServerReader();
  #form: NbdForm | undefined;

  /** How requests and replies are written, once the server has let the client in. */
  get form(): NbdForm | undefined {
    return this.#form;
  }

  /** Requests that are to be answered, and are not yet. */
  get requests(): ReadonlyMap<bigint, NbdRequest> {
    return this.#server.requests;
  }

  /** Whether all that the client has said is whole. */
  get isBetween(): boolean {
    return this.#client.isBetween;
  }

  /** @throws {NbdError} as {@linkcode PieceReader.push} */
  fromClient(chunk: Uint8Array): NbdClientPiece[] {
    const pieces = this.#client.push(chunk);
    for (const piece of pieces) {
      if (piece.type !== "request" || !isChange(piece.request)) this.#server.said(piece);
    }
    return pieces;
  }

  /** The server is asked for this by somebody else than the client, and will answer. */
  asks(request: NbdRequest): void {
    this.#server.said({ type: "request", raw: new Uint8Array(0), request });
  }

  /** @throws {NbdError} as {@linkcode PieceReader.push} */
  fromServer(chunk: Uint8Array): NbdServerPiece[] {
    const pieces = this.#server.push(chunk);
    if (this.#form === undefined && this.#server.form !== undefined) {
      this.#form = this.#server.form;
      this.#client.beginRequests(this.#form);
    }
    return pieces;
  }
}

function isMagic64(view: DataView, [high, low]: readonly [number, number]): boolean {
  return view.getUint32(0) === high && view.getUint32(4) === low;
}
