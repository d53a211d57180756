/**
 * Both ends of an NBD connection, as small as they can be: a client that says what it is told to, and a
 * server on a disk in memory that answers when it is told to.
 *
 * @module
 */

import { assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import {
  NBD_CHUNK,
  NBD_CHUNK_DONE,
  NBD_COMMAND,
  NBD_COMMAND_FLAG,
  NBD_OPTION,
  NBD_OPTION_REPLY,
  nbdChunk,
  nbdClientFlags,
  type NbdForm,
  nbdGreeting,
  nbdOption,
  nbdOptionReply,
  type NbdRequest,
  nbdRequest,
  nbdResult,
  nbdSimpleReply,
  requestPayloadBytes,
} from "../../engine/block/nbd.ts";
import { NbdClientReader } from "../../engine/block/nbd_reader.ts";

export const DISK_BYTES = 64 * 1024;

export function concat(...pieces: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(pieces.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

/** Cut bytes at these shares of their length. */
export function split(whole: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const positions = cuts.map((cut) => Math.floor(cut * whole.length)).sort((a, b) => a - b);
  return [0, ...positions].map((start, i) => whole.subarray(start, positions[i] ?? whole.length));
}

export const cuts: fc.Arbitrary<number[]> = fc.array(
  fc.double({ min: 0, max: 1, noNaN: true }),
  { maxLength: 12 },
);

export const form: fc.Arbitrary<NbdForm> = fc.constantFrom("simple", "structured", "extended");

/** As `assertEquals`, which takes minutes to say where large arrays differ. */
export function assertContent(found: Uint8Array, expected: Uint8Array, what = "it"): void {
  assertEquals(found.length, expected.length);
  const at = found.findIndex((byte, index) => byte !== expected[index]);
  assertEquals(at, -1, `${what} differs at byte ${at}`);
}

/** The data of a write that can be told from all others. */
export function pattern(seed: number, length: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length }, (_, at) => (seed * 37 + at * 11 + (at >> 8)) & 0xff);
}

/** A request as its client writes it, with the data of a WRITE. */
export function said(
  request: Partial<NbdRequest> & { readonly command: number },
  form: NbdForm,
  data: Uint8Array = new Uint8Array(0),
): Uint8Array<ArrayBuffer> {
  const isWrite = request.command === NBD_COMMAND.WRITE;
  const more = isWrite && form === "extended" ? NBD_COMMAND_FLAG.PAYLOAD_LEN : 0;
  const flags = (request.flags ?? 0) | more;
  const length = isWrite ? data.length : 0;
  const whole = { handle: 1n, offset: 0, length, ...request, flags };
  return concat(nbdRequest(whole, form), data);
}

/** What both sides say until requests may follow, turn by turn. */
export function handshake(
  form: NbdForm,
): { readonly side: "C" | "S"; readonly bytes: Uint8Array }[] {
  const turn = (option: number, data?: Uint8Array) => [
    { side: "C" as const, bytes: nbdOption(option, data) },
    { side: "S" as const, bytes: nbdOptionReply(option, NBD_OPTION_REPLY.ACK) },
  ];
  return [
    { side: "S", bytes: nbdGreeting() },
    { side: "C", bytes: nbdClientFlags(3) },
    ...form === "extended" ? turn(NBD_OPTION.EXTENDED_HEADERS) : [],
    ...form === "structured" ? turn(NBD_OPTION.STRUCTURED_REPLY) : [],
    ...turn(NBD_OPTION.GO, Uint8Array.of(0, 0, 0, 0, 0, 0)),
  ];
}

/** A request that the server has and has not answered. */
export interface Taken {
  readonly request: NbdRequest;
  readonly data: Uint8Array;
}

/** A server that is let in already. */
export class MemoryServer {
  readonly disk = new Uint8Array(DISK_BYTES);
  /** In the order of their arrival. */
  readonly unanswered: Taken[] = [];
  /** Every request that has arrived whole. */
  readonly seen: Taken[] = [];
  readonly #reader = new NbdClientReader();
  #arriving: { request: NbdRequest; data: Uint8Array[] } | undefined;

  constructor(readonly form: NbdForm) {}

  received(bytes: Uint8Array): void {
    for (const piece of this.#reader.push(bytes)) {
      if (piece.type === "option" && piece.option === NBD_OPTION.GO) {
        this.#reader.beginRequests(this.form);
      }
      if (piece.type === "request") {
        const { request } = piece;
        if (requestPayloadBytes(request, this.form) > 0) this.#arriving = { request, data: [] };
        else this.#take({ request, data: new Uint8Array(0) });
      }
      if (piece.type === "payload") {
        this.#arriving!.data.push(piece.raw.slice());
        if (piece.last) {
          const { request, data } = this.#arriving!;
          this.#take({ request, data: concat(...data) });
        }
      }
    }
  }

  /** Answer the request with this number of those that wait; what was asked for happens now. */
  answer(index: number, error = 0): Uint8Array<ArrayBuffer> {
    const [{ request, data }] = this.unanswered.splice(index, 1) as [Taken];
    const { command, offset, length, handle } = request;
    if (error === 0) {
      if (command === NBD_COMMAND.WRITE) this.disk.set(data, offset);
      if (command === NBD_COMMAND.WRITE_ZEROES || command === NBD_COMMAND.TRIM) {
        this.disk.fill(0, offset, offset + length);
      }
      if (command === NBD_COMMAND.READ) return this.#read(request);
    }
    return nbdResult({ handle, offset }, this.form, error);
  }

  #read({ handle, offset, length }: NbdRequest): Uint8Array<ArrayBuffer> {
    const content = this.disk.subarray(offset, offset + length);
    if (this.form === "simple") return concat(nbdSimpleReply(handle), content);
    const half = length >> 1;
    const chunk = (from: number, to: number, flags: number) => {
      const position = new DataView(new ArrayBuffer(8));
      position.setBigUint64(0, BigInt(offset + from));
      const type = NBD_CHUNK.OFFSET_DATA;
      const header = { handle, type, flags, payloadBytes: 8 + to - from, offset };
      return concat(
        nbdChunk(header, this.form),
        new Uint8Array(position.buffer),
        content.subarray(from, to),
      );
    };
    return concat(chunk(0, half, 0), chunk(half, length, NBD_CHUNK_DONE));
  }

  #take(taken: Taken): void {
    this.seen.push(taken);
    if (taken.request.command !== NBD_COMMAND.DISC) this.unanswered.push(taken);
  }
}
