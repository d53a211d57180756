/**
 * Cuts a stream into headers, which are collected however they come, and payloads, which are passed on
 * as they come.
 *
 * @module
 */

import { NbdError } from "../errors.ts";

const EMPTY = new Uint8Array(0);

/** More of a payload; `last` ends it. */
export interface PayloadPiece {
  readonly type: "payload";
  /** A view of what was pushed. */
  readonly raw: Uint8Array;
  readonly last: boolean;
}

/**
 * What both directions of a conversation have in common. A subclass says how long a header is, and what
 * a whole one means.
 */
export abstract class PieceReader<Piece extends { readonly raw: Uint8Array }> {
  #header: Uint8Array<ArrayBuffer> = new Uint8Array(256);
  #filled = 0;
  #payloadLeft = 0;
  #offset = 0;
  #error: NbdError | undefined;

  /** Whether what has arrived ends with the end of a header, or of the payload behind it. */
  get isBetween(): boolean {
    return this.#filled === 0 && this.#payloadLeft === 0;
  }

  /** Whether part of a header has arrived. */
  protected get isInHeader(): boolean {
    return this.#filled > 0;
  }

  /**
   * Take what has arrived.
   *
   * @returns The pieces in order: their `raw` bytes joined are the bytes taken so far but for the header
   * that is not whole. Where wrong bytes follow them, the next call throws
   * @throws {NbdError} when the bytes make no sense; every later call throws the same error
   */
  push(chunk: Uint8Array): (Piece | PayloadPiece)[] {
    if (this.#error !== undefined) throw this.#error;
    const pieces: (Piece | PayloadPiece)[] = [];
    try {
      for (let at = 0; at < chunk.length;) {
        const rest = chunk.subarray(at);
        at += this.#payloadLeft > 0 ? this.#payload(rest, pieces) : this.#collect(rest, pieces);
      }
    } catch (error) {
      if (!(error instanceof NbdError)) throw error;
      this.#error = error;
      if (pieces.length === 0) throw error;
    }
    return pieces;
  }

  /**
   * Bytes that the header has which begins with these; called again whenever there are so many of them,
   * until it says the same number twice.
   */
  protected abstract headerBytes(head: DataView): number;

  /** What a whole header means; a payload may follow, see {@linkcode PieceReader.expectPayload}. */
  protected abstract header(raw: Uint8Array<ArrayBuffer>, view: DataView): Piece;

  /** Bytes that follow the header which is being read. */
  protected expectPayload(count: number): void {
    this.#payloadLeft = count;
  }

  /** @param ahead Where in the header the mistake is */
  protected fail(detail: string, ahead = 0): never {
    throw new NbdError(`Cannot read NBD: ${detail}`, this.#offset + ahead);
  }

  #payload(rest: Uint8Array, pieces: (Piece | PayloadPiece)[]): number {
    const raw = rest.subarray(0, this.#payloadLeft);
    this.#payloadLeft -= raw.length;
    this.#offset += raw.length;
    pieces.push({ type: "payload", raw, last: this.#payloadLeft === 0 });
    return raw.length;
  }

  #collect(rest: Uint8Array, pieces: (Piece | PayloadPiece)[]): number {
    const wanted = this.headerBytes(new DataView(this.#header.buffer, 0, this.#filled));
    const piece = rest.subarray(0, wanted - this.#filled);
    this.#makeRoom(wanted);
    this.#header.set(piece, this.#filled);
    this.#filled += piece.length;
    if (this.#filled < wanted) return piece.length;
    const view = new DataView(this.#header.buffer, 0, this.#filled);
    if (this.headerBytes(view) > wanted) return piece.length;
    const raw = this.#header.slice(0, wanted);
    pieces.push(this.header(raw, view));
    this.#filled = 0;
    this.#offset += wanted;
    return piece.length;
  }

  #makeRoom(count: number): void {
    if (count <= this.#header.length) return;
    const larger = new Uint8Array(count);
    larger.set(this.#header.subarray(0, this.#filled));
    this.#header = larger;
  }
}

/** The bytes of a header behind position `from`. */
export function tail(raw: Uint8Array<ArrayBuffer>, from: number): Uint8Array<ArrayBuffer> {
  return from < raw.length ? raw.subarray(from) : EMPTY;
}
