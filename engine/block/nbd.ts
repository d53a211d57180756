/**
 * The NBD protocol: how a client and the server of a disk speak. What there is to say, and how it is
 * written; `nbd_reader.ts` reads it. Pure.
 *
 * All numbers are big-endian. Server (S) and client (C) first agree on an export, with options, and then
 * the client gives requests that are answered in any order:
 *
 * ```text
 *  S  "NBDMAGIC" "IHAVEOPT" u16 handshake flags          C  u32 client flags
 *  C  "IHAVEOPT" u32 option, u32 length, data            S  OPTION_REPLY u32 option, u32 reply, u32 length, data
 *     ... until the server has answered GO with ACK, or EXPORT_NAME with
 *                                                        S  u64 size, u16 transmission flags, [124 zeros]
 *
 *  request         REQUEST    u16 flags, u16 command, u64 handle, u64 offset, u32 length, [data of a WRITE]
 *  simple reply    SIMPLE     u32 error, u64 handle, [data that was read]
 *  chunk           CHUNK      u16 flags, u16 type, u64 handle, u32 length, payload
 *
 *  with extended headers, in place of these three:
 *  request         EXTENDED_REQUEST  u16 flags, u16 command, u64 handle, u64 offset, u64 length, [data]
 *  chunk           EXTENDED_CHUNK    u16 flags, u16 type, u64 handle, u64 offset, u64 length, payload
 * ```
 *
 * A reply is one simple reply, or chunks of which the last one has the flag DONE.
 *
 * Source: the NBD project's `doc/proto.md`; QEMU `nbd/client.c`, `nbd/server.c`, `include/block/nbd.h`.
 *
 * @module
 */

import { LocalProtocolError } from "../errors.ts";
import { ByteWriter } from "../stream/byte_writer.ts";

/** First bytes of everything that is said; those of 64 bits in two halves. */
export const NBD_MAGIC = {
  /** "NBDMAGIC" */
  GREETING: [0x4e42444d, 0x41474943],
  /** "IHAVEOPT" */
  OPTION: [0x49484156, 0x454f5054],
  OPTION_REPLY: [0x0003e889, 0x045565a9],
  REQUEST: 0x25609513,
  SIMPLE: 0x67446698,
  CHUNK: 0x668e33ef,
  EXTENDED_REQUEST: 0x21e41c71,
  EXTENDED_CHUNK: 0x6e8a278c,
} as const;

/** Flags of the handshake: the server's, and the client's with the same numbers. */
export const NBD_HANDSHAKE = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const;

/** Options that are known here. */
export const NBD_OPTION = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;

/** Answers to an option. */
export const NBD_OPTION_REPLY = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  UNSUPPORTED: 0x80000001,
  INVALID: 0x80000003,
  UNKNOWN: 0x80000006,
} as const;

/** What an INFO reply is about. */
export const NBD_INFO = { EXPORT: 0, BLOCK_SIZE: 3 } as const;

/** What a server says of an export. */
export const NBD_EXPORT_FLAG = {
  HAS_FLAGS: 1,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
} as const;

/** What a client asks for. */
export const NBD_COMMAND = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const;

/** Flags of a request. */
export const NBD_COMMAND_FLAG = {
  FUA: 1,
  NO_HOLE: 1 << 1,
  DF: 1 << 2,
  REQ_ONE: 1 << 3,
  FAST_ZERO: 1 << 4,
  PAYLOAD_LEN: 1 << 5,
} as const;

/** Flag of the last chunk of a reply. */
export const NBD_CHUNK_DONE = 1;

/** Types of chunks; those from {@linkcode NBD_CHUNK_ERROR_FROM} on say that the request has failed. */
export const NBD_CHUNK = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  ERROR: 0x8001,
};

/** The first type of a chunk that is an error. */
export const NBD_CHUNK_ERROR_FROM = 0x8000;

/** Error numbers on the wire. */
export const NBD_ERROR = { EPERM: 1, EIO: 5, EINVAL: 22, ENOSPC: 28, ENOTSUP: 95 } as const;

/** How requests and replies are written once the handshake is over. */
export type NbdForm = "simple" | "structured" | "extended";

/** One request, without the data of a WRITE. */
export interface NbdRequest {
  /** One of {@linkcode NBD_COMMAND}, or a number that is not known here. */
  readonly command: number;
  readonly flags: number;
  /** Whatever the client chose to find its answer by: nothing is ever computed with it. */
  readonly handle: bigint;
  readonly offset: number;
  readonly length: number;
}

/** One piece of an answer, without its payload. */
export interface NbdReply {
  readonly handle: bigint;
  /** Whether the request has no further replies. */
  readonly done: boolean;
  /** Whether it says that the request has failed. */
  readonly failed: boolean;
  /** Why, where that is in the reply itself and not in its payload. */
  readonly error?: number;
  readonly payloadBytes: number;
}

const EMPTY = new Uint8Array(0);

/** Whether a request changes the disk. */
export function isWrite({ command }: Pick<NbdRequest, "command">): boolean {
  return command === NBD_COMMAND.WRITE || command === NBD_COMMAND.TRIM ||
    command === NBD_COMMAND.WRITE_ZEROES;
}

/** Whether a request is one of those that are answered early: see `EarlyAnswers`. */
export function isChange({ command }: Pick<NbdRequest, "command">): boolean {
  return isWrite({ command }) || command === NBD_COMMAND.FLUSH;
}

/** How many bytes follow a request. */
export function requestPayloadBytes(
  { command, flags, length }: NbdRequest,
  form: NbdForm,
): number {
  const said = form === "extended" && (flags & NBD_COMMAND_FLAG.PAYLOAD_LEN) !== 0;
  return command === NBD_COMMAND.WRITE || said ? length : 0;
}

/** The server's first words. */
export function nbdGreeting(
  flags: number = NBD_HANDSHAKE.FIXED_NEWSTYLE | NBD_HANDSHAKE.NO_ZEROES,
): Uint8Array<ArrayBuffer> {
  return magic64(NBD_MAGIC.GREETING, NBD_MAGIC.OPTION).u16(flags).finish();
}

/** The client's first words. */
export function nbdClientFlags(flags: number): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u32(flags).finish();
}

/** An option, with what belongs to it. */
export function nbdOption(option: number, data: Uint8Array = EMPTY): Uint8Array<ArrayBuffer> {
  return magic64(NBD_MAGIC.OPTION).u32(option).u32(data.length).bytes(data).finish();
}

/** An answer to an option. */
export function nbdOptionReply(
  option: number,
  reply: number,
  data: Uint8Array = EMPTY,
): Uint8Array<ArrayBuffer> {
  return magic64(NBD_MAGIC.OPTION_REPLY).u32(option).u32(reply).u32(data.length).bytes(data)
    .finish();
}

/** The answer to EXPORT_NAME. */
export function nbdExport(
  sizeBytes: number,
  flags: number,
  zeroes: boolean,
): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u64(sizeBytes).u16(flags).bytes(new Uint8Array(zeroes ? 124 : 0))
    .finish();
}

/** A request; the data of a WRITE follow it. */
export function nbdRequest(request: NbdRequest, form: NbdForm): Uint8Array<ArrayBuffer> {
  const { flags, command, handle, offset, length } = request;
  const extended = form === "extended";
  if (!extended && length > 0xffffffff) {
    throw new LocalProtocolError(
      `Cannot make a request of ${length} bytes without extended headers`,
    );
  }
  const bytes = new Uint8Array(extended ? 32 : 28);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, extended ? NBD_MAGIC.EXTENDED_REQUEST : NBD_MAGIC.REQUEST);
  view.setUint16(4, flags);
  view.setUint16(6, command);
  view.setBigUint64(8, handle);
  view.setBigUint64(16, BigInt(offset));
  if (extended) view.setBigUint64(24, BigInt(length));
  else view.setUint32(24, length);
  return bytes;
}

/** A simple reply; what was read follows it. */
export function nbdSimpleReply(handle: bigint, error = 0): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, NBD_MAGIC.SIMPLE);
  view.setUint32(4, error);
  view.setBigUint64(8, handle);
  return bytes;
}

/** A chunk's header; its payload follows it. `offset` is that of the request, in extended form alone. */
export function nbdChunk(
  chunk: {
    readonly handle: bigint;
    readonly type: number;
    readonly flags: number;
    readonly payloadBytes: number;
    readonly offset?: number;
  },
  form: NbdForm,
): Uint8Array<ArrayBuffer> {
  const extended = form === "extended";
  const bytes = new Uint8Array(extended ? 32 : 20);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, extended ? NBD_MAGIC.EXTENDED_CHUNK : NBD_MAGIC.CHUNK);
  view.setUint16(4, chunk.flags);
  view.setUint16(6, chunk.type);
  view.setBigUint64(8, chunk.handle);
  if (extended) {
    view.setBigUint64(16, BigInt(chunk.offset ?? 0));
    view.setBigUint64(24, BigInt(chunk.payloadBytes));
  } else view.setUint32(16, chunk.payloadBytes);
  return bytes;
}

/** The answer to a request that has nothing to say but how it went. */
export function nbdResult(
  { handle, offset }: Pick<NbdRequest, "handle" | "offset">,
  form: NbdForm,
  error = 0,
): Uint8Array<ArrayBuffer> {
  // Where chunks were agreed upon, a read that fails must not be answered otherwise.
  if (form === "simple" || (form === "structured" && error === 0)) {
    return nbdSimpleReply(handle, error);
  }
  const chunk = { handle, offset, flags: NBD_CHUNK_DONE };
  if (error === 0) return nbdChunk({ ...chunk, type: NBD_CHUNK.NONE, payloadBytes: 0 }, form);
  const header = nbdChunk({ ...chunk, type: NBD_CHUNK.ERROR, payloadBytes: 6 }, form);
  return Uint8Array.from([...header, ...new ByteWriter().u32(error).u16(0).finish()]);
}

/** Why a request has failed, for people. */
export function nbdErrorText(error = 0): string {
  const [name] = Object.entries(NBD_ERROR).find(([, number]) => number === error) ?? [];
  return name ?? `error ${error}`;
}

/** Why a request has failed, from the payload of a chunk that says so; of a cut one, what it has. */
export function nbdErrorReason(payload: Uint8Array): string {
  if (payload.length < 4) return nbdErrorText();
  const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
  const text = new TextDecoder().decode(
    payload.length < 6 ? undefined : payload.subarray(6, 6 + view.getUint16(4)),
  );
  return [nbdErrorText(view.getUint32(0)), ...text === "" ? [] : [text]].join(", ");
}

function magic64(...magics: readonly (readonly [number, number])[]): ByteWriter {
  const writer = new ByteWriter();
  for (const [high, low] of magics) writer.u32(high).u32(low);
  return writer;
}
