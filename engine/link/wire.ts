/**
 * Frames: how messages lie on the wire between two engines. Pure.
 *
 * All numbers are big-endian.
 *
 * ```text
 *    0       1       2       3       4       5       6       7
 *  +-------+-------+-------+-------+-------+-------+-------+-------+
 *  |  'C'     'O'     'L'     'O'  |version| type  | flags |   0   |   0
 *  +-------+-------+-------+-------+-------+-------+-------+-------+
 *  |                             epoch                             |   8
 *  +-------+-------+-------+-------+-------+-------+-------+-------+
 *  |        payload length         |          raw length           |  16
 *  +-------+-------+-------+-------+-------+-------+-------+-------+
 *  |        checksum: XXH64 of bytes 0..24 and the payload         |  24
 *  +-------+-------+-------+-------+-------+-------+-------+-------+
 *  |  payload: as it is, or one LZ4 block                              32
 *  +- - -
 * ```
 *
 * - `version` is 2; `type` is one of those in `messages.ts`, which refuses the others.
 * - `flags` bit 0: the payload is one LZ4 block that holds `raw length` bytes; no other bit is set.
 * - `raw length` equals `payload length` when the payload is not compressed. Neither exceeds
 *   {@linkcode FRAME_PAYLOAD_BYTES_MAX}.
 * - The checksum's 8 bytes follow what it covers of the header, so that a payload with the 24 bytes
 *   copied in front of it is one range to the kernel.
 *
 * Sources: xxHash `doc/xxhash_spec.md` (XXH64, seed 0), lz4 `doc/lz4_Block_format.md`.
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { copyOf, skewFor } from "../buffers.ts";
import { LocalProtocolError, WireError } from "../errors.ts";
import { FRAME_PAYLOAD_BYTES_MAX } from "../limits.ts";

/** Size of a frame without its payload. */
export const FRAME_HEADER_BYTES = 32;

/** Where the type is in a frame. */
export const FRAME_TYPE_AT = 5;

const MAGIC = 0x434f_4c4f;
const VERSION = 2;
const COMPRESSED = 1;

const VERSION_AT = 4;
const FLAGS_AT = 6;
const RESERVED_AT = 7;
const EPOCH_AT = 8;
const LENGTH_AT = 16;
const RAW_LENGTH_AT = 20;
const CHECKSUM_AT = 24;

const FRAME_BYTES_MAX = FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX;

/** See `skewFor`. */
const SKEW_BYTES_MAX = 8;

const NOTHING = new Uint8Array(0);

/** Room for a frame at any place in the first half, so unread bytes are seldom moved. */
const BUFFER_BYTES = 2 * FRAME_BYTES_MAX;

/** One frame. */
export interface Frame {
  /** Number of the kind of message, 0 to 255. */
  readonly type: number;
  /** Number of the checkpoint that it belongs to; 0 where it belongs to none. */
  readonly epoch: number;
  /** Not compressed. */
  readonly payload: Uint8Array;
}

/** A frame to be made; `head` is the beginning of its payload, if it is not in one piece. */
export interface FrameParts extends Frame {
  readonly head?: Uint8Array;
}

/** A frame that has arrived; its payload is a copy of its own, but need not be all of its buffer. */
export interface ReceivedFrame extends Frame {
  /** Position of its first byte, in bytes from the start of the connection. */
  readonly offset: number;
}

/**
 * Makes frames. It keeps no state from one frame to the next: connections may share one.
 *
 * @example
 * ```ts
 * import { ReferenceKernels } from "../../wasm/mod.ts";
 * import { FrameDecoder, FrameEncoder } from "./wire.ts";
 *
 * const kernels = new ReferenceKernels();
 * const frame = { type: 6, epoch: 7, payload: new Uint8Array(4096) };
 * const bytes = new FrameEncoder(kernels).encode(frame, true);
 * if (bytes.length > 100) throw new Error("4096 equal bytes must become few");
 *
 * const [decoded] = new FrameDecoder(kernels).push(bytes);
 * if (decoded?.epoch !== 7 || decoded.payload.length !== 4096) throw new Error("lost");
 * ```
 */
export class FrameEncoder {
  readonly #kernels: KernelSet;
  readonly #input: number;
  readonly #output: number;
  readonly #checksum: number;

  /** @param kernels Whose memory the frames are made in; some 2 MiB of it are taken for good */
  constructor(kernels: KernelSet) {
    this.#kernels = kernels;
    this.#input = kernels.alloc(FRAME_PAYLOAD_BYTES_MAX + SKEW_BYTES_MAX);
    this.#output = kernels.alloc(FRAME_BYTES_MAX + SKEW_BYTES_MAX);
    this.#checksum = kernels.alloc(8);
  }

  /**
   * Make a frame.
   *
   * @param compress Try LZ4, and keep the result where it saves at least one byte in 16
   * @returns The frame, a copy of its own
   * @throws {LocalProtocolError} when a frame cannot hold this; nothing was changed
   */
  encode(
    { type, epoch, head = NOTHING, payload }: FrameParts,
    compress = false,
  ): Uint8Array<ArrayBuffer> {
    const length = head.length + payload.length;
    checkFrame(type, epoch, length);
    const kernels = this.#kernels;
    const skew = skewFor(payload, this.#output + FRAME_HEADER_BYTES + head.length);
    const frame = this.#output + skew;
    const target = frame + FRAME_HEADER_BYTES;
    // A target that has no room for a poor result makes the kernel give up on it.
    const capacity = compress ? length - Math.ceil(length / 16) : 0;
    const put = (at: number) => {
      kernels.bytes.set(head, at);
      kernels.bytes.set(payload, at + head.length);
    };
    let compressed = -1;
    if (capacity > 0) {
      const input = this.#input + skewFor(payload, this.#input + head.length);
      put(input);
      compressed = kernels.lz4Compress(input, length, target, capacity);
    }
    if (compressed < 0) put(target);
    const sentBytes = compressed < 0 ? length : compressed;
    return this.#seal(frame, type, epoch, sentBytes, length, compressed >= 0);
  }

  #seal(
    frame: number,
    type: number,
    epoch: number,
    length: number,
    rawLength: number,
    compressed: boolean,
  ): Uint8Array<ArrayBuffer> {
    const { bytes } = this.#kernels;
    const header = new DataView(bytes.buffer, frame, FRAME_HEADER_BYTES);
    header.setUint32(0, MAGIC);
    header.setUint8(VERSION_AT, VERSION);
    header.setUint8(FRAME_TYPE_AT, type);
    header.setUint8(FLAGS_AT, compressed ? COMPRESSED : 0);
    header.setUint8(RESERVED_AT, 0);
    header.setUint32(EPOCH_AT, Math.floor(epoch / 2 ** 32));
    header.setUint32(EPOCH_AT + 4, epoch >>> 0);
    header.setUint32(LENGTH_AT, length);
    header.setUint32(RAW_LENGTH_AT, rawLength);
    const checksum = frameChecksum(this.#kernels, frame, length, this.#checksum);
    header.setUint32(CHECKSUM_AT, checksum.high);
    header.setUint32(CHECKSUM_AT + 4, checksum.low);
    return copyOf(bytes, frame, frame + FRAME_HEADER_BYTES + length);
  }
}

/**
 * Cuts a stream of bytes into frames. Any chunking of the same bytes gives the same frames, and the
 * same error behind them. Its memory is of fixed size and allocated at the start.
 */
export class FrameDecoder {
  readonly #kernels: KernelSet;
  readonly #buffer: number;
  readonly #raw: number;
  readonly #checksum: number;
  /** Unread bytes, relative to the buffer. */
  #start = 0;
  #end = 0;
  /** Position of `#start` in the connection. */
  #offset = 0;
  #header: Header | undefined;
  #error: WireError | undefined;

  /** @param kernels Whose memory bytes are read to; some 3 MiB of it are taken for good */
  constructor(kernels: KernelSet) {
    this.#kernels = kernels;
    this.#buffer = kernels.alloc(BUFFER_BYTES);
    this.#raw = kernels.alloc(FRAME_PAYLOAD_BYTES_MAX);
    this.#checksum = kernels.alloc(8);
  }

  /** Bytes of a frame that has not arrived as a whole; never more than one frame has. */
  get bufferedBytes(): number {
    return this.#end - this.#start;
  }

  /**
   * Take what has arrived.
   *
   * @returns The frames that are complete now; where wrong bytes follow them, the next call throws
   * @throws {WireError} when the bytes are no frame; every later call throws the same error
   */
  push(chunk: Uint8Array): ReceivedFrame[] {
    const frames: ReceivedFrame[] = [];
    for (let at = 0; at < chunk.length && this.#error === undefined;) {
      const space = this.space();
      const piece = chunk.subarray(at, at + space.length);
      space.set(piece);
      at += piece.length;
      this.#take(piece.length, frames);
    }
    return this.#checked(frames);
  }

  /** Where bytes may be read to without being copied; then call {@linkcode filled}. */
  space(): Uint8Array {
    this.#makeRoom();
    return this.#kernels.bytes.subarray(this.#buffer + this.#end, this.#buffer + BUFFER_BYTES);
  }

  /** As {@linkcode push}, with what is in {@linkcode space}. */
  filled(count: number): ReceivedFrame[] {
    const frames: ReceivedFrame[] = [];
    if (this.#error === undefined) this.#take(count, frames);
    return this.#checked(frames);
  }

  #checked(frames: ReceivedFrame[]): ReceivedFrame[] {
    if (frames.length === 0 && this.#error !== undefined) throw this.#error;
    return frames;
  }

  #take(count: number, frames: ReceivedFrame[]): void {
    this.#end += count;
    try {
      for (let frame = this.#next(); frame !== undefined; frame = this.#next()) frames.push(frame);
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      this.#error = error;
    }
  }

  /** Whatever is left of one frame fits behind the unread bytes. */
  #makeRoom(): void {
    if (this.#start === this.#end) {
      this.#start = this.#end = 0;
    } else if (this.#start + FRAME_BYTES_MAX > BUFFER_BYTES) {
      this.#kernels.copy(this.#buffer, this.#buffer + this.#start, this.bufferedBytes);
      this.#end -= this.#start;
      this.#start = 0;
    }
  }

  #next(): ReceivedFrame | undefined {
    if (this.bufferedBytes < FRAME_HEADER_BYTES) return undefined;
    this.#header ??= this.#readHeader();
    if (this.bufferedBytes < FRAME_HEADER_BYTES + this.#header.length) return undefined;
    return this.#takeFrame(this.#header);
  }

  /** Judges a header before any of its payload is waited for. */
  #readHeader(): Header {
    const { buffer } = this.#kernels.bytes;
    const view = new DataView(buffer, this.#buffer + this.#start, FRAME_HEADER_BYTES);
    const refuse = (at: number, detail: string): never => {
      throw new WireError(`Cannot read the frame: ${detail}`, this.#offset + at);
    };
    const magic = view.getUint32(0);
    if (magic !== MAGIC) refuse(0, `it begins with 0x${hex(magic)}, not with "COLO"`);
    const version = view.getUint8(VERSION_AT);
    if (version !== VERSION) {
      refuse(
        VERSION_AT,
        `its version is ${version}, not ${VERSION}: run the same release of colo on both hosts`,
      );
    }
    const type = view.getUint8(FRAME_TYPE_AT);
    const flags = view.getUint8(FLAGS_AT);
    if ((flags & ~COMPRESSED) !== 0) refuse(FLAGS_AT, `its flags are 0x${flags.toString(16)}`);
    const reserved = view.getUint8(RESERVED_AT);
    if (reserved !== 0) refuse(RESERVED_AT, `its reserved byte is ${reserved}, not 0`);
    const epoch = view.getUint32(EPOCH_AT) * 2 ** 32 + view.getUint32(EPOCH_AT + 4);
    if (!Number.isSafeInteger(epoch)) refuse(EPOCH_AT, "its epoch is 2^53 or more");
    const length = view.getUint32(LENGTH_AT);
    const rawLength = view.getUint32(RAW_LENGTH_AT);
    for (const [at, value] of [[LENGTH_AT, length], [RAW_LENGTH_AT, rawLength]] as const) {
      if (value > FRAME_PAYLOAD_BYTES_MAX) {
        refuse(at, `its length is ${value}, the limit is ${FRAME_PAYLOAD_BYTES_MAX} bytes`);
      }
    }
    const compressed = flags === COMPRESSED;
    if (!compressed && length !== rawLength) {
      refuse(
        RAW_LENGTH_AT,
        `its raw length is ${rawLength}, but ${length} bytes follow as they are`,
      );
    }
    const high = view.getUint32(CHECKSUM_AT);
    const low = view.getUint32(CHECKSUM_AT + 4);
    return { type, epoch, length, rawLength, compressed, checksum: { high, low } };
  }

  #takeFrame(header: Header): ReceivedFrame {
    const { length, rawLength, checksum, compressed, type, epoch } = header;
    const kernels = this.#kernels;
    const at = this.#buffer + this.#start;
    const found = frameChecksum(kernels, at, length, this.#checksum);
    if (found.high !== checksum.high || found.low !== checksum.low) {
      throw new WireError(
        "Cannot read the frame: its checksum is wrong, it was damaged on the way",
        this.#offset + CHECKSUM_AT,
      );
    }
    let payload = at + FRAME_HEADER_BYTES;
    if (compressed) {
      const count = kernels.lz4Decompress(payload, length, this.#raw, rawLength);
      if (count !== rawLength) {
        throw new WireError(
          `Cannot read the frame: its payload is no LZ4 block of ${rawLength} bytes`,
          this.#offset + FRAME_HEADER_BYTES,
        );
      }
      payload = this.#raw;
    }
    const offset = this.#offset;
    this.#start += FRAME_HEADER_BYTES + length;
    this.#offset += FRAME_HEADER_BYTES + length;
    this.#header = undefined;
    return { type, epoch, payload: copyOf(kernels.bytes, payload, payload + rawLength), offset };
  }
}

interface Checksum {
  readonly high: number;
  readonly low: number;
}

interface Header {
  readonly type: number;
  readonly epoch: number;
  readonly length: number;
  readonly rawLength: number;
  readonly compressed: boolean;
  readonly checksum: Checksum;
}

/** The checksum of the frame at address `frame`, which is left as it was. */
function frameChecksum(
  kernels: KernelSet,
  frame: number,
  length: number,
  out: number,
): Checksum {
  // The kernel takes one range: what is covered of the header moves up to the payload for a moment.
  const gap = FRAME_HEADER_BYTES - CHECKSUM_AT;
  const saved = kernels.bytes.slice(frame, frame + FRAME_HEADER_BYTES);
  kernels.copy(frame + gap, frame, CHECKSUM_AT);
  kernels.xxh64(frame + gap, CHECKSUM_AT + length, out);
  kernels.bytes.set(saved, frame);
  const view = new DataView(kernels.bytes.buffer, out, 8);
  return { high: view.getUint32(4, true), low: view.getUint32(0, true) };
}

function checkFrame(type: number, epoch: number, length: number): void {
  if (type >>> 0 !== type || type > 255) {
    throw new LocalProtocolError(`Cannot make a frame: ${type} is no type`);
  }
  if (!Number.isSafeInteger(epoch) || epoch < 0) {
    throw new LocalProtocolError(`Cannot make a frame: ${epoch} is no epoch`);
  }
  if (length > FRAME_PAYLOAD_BYTES_MAX) {
    throw new LocalProtocolError(
      `Cannot make a frame of ${length} bytes: the limit is ${FRAME_PAYLOAD_BYTES_MAX}`,
    );
  }
}

function hex(value: number): string {
  return value.toString(16).padStart(8, "0");
}
