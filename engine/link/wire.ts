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
 * - `version` is 1, `type` one of {@linkcode FRAME_TYPES}.
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
import { LocalProtocolError, WireError } from "../errors.ts";
import { FRAME_PAYLOAD_BYTES_MAX } from "../limits.ts";
import { FRAME_TYPES, type FrameType, frameTypeOf } from "./frame_types.ts";

/** Size of a frame without its payload. */
export const FRAME_HEADER_BYTES = 32;

const MAGIC = 0x434f_4c4f;
const VERSION = 1;
const COMPRESSED = 1;

const VERSION_AT = 4;
const TYPE_AT = 5;
const FLAGS_AT = 6;
const RESERVED_AT = 7;
const EPOCH_AT = 8;
const LENGTH_AT = 16;
const RAW_LENGTH_AT = 20;
const CHECKSUM_AT = 24;

const FRAME_BYTES_MAX = FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX;

/** What a frame is made of. */
export interface FrameContent {
  readonly type: FrameType;
  /** Number of the checkpoint that it belongs to; 0 where it belongs to none. */
  readonly epoch: number;
  readonly payload: Uint8Array;
  /** Try LZ4, and keep the result where it saves at least one byte in 16. */
  readonly compress?: boolean;
}

/** A frame that has arrived. */
export interface Frame {
  readonly type: FrameType;
  readonly epoch: number;
  /** Decompressed; a copy of its own. */
  readonly payload: Uint8Array<ArrayBuffer>;
  /** Where the frame began, in bytes from the start of the connection. */
  readonly offset: number;
}

/**
 * Makes frames. It keeps no state from one frame to the next: connections may share one.
 *
 * @example
 * ```ts
 * import { ReferenceKernels } from "../../wasm/mod.ts";
 * import { type Frame, FrameDecoder, FrameEncoder } from "./wire.ts";
 *
 * const kernels = new ReferenceKernels();
 * const bytes = new FrameEncoder(kernels).encode({
 *   type: "pages",
 *   epoch: 7,
 *   payload: new Uint8Array(4096),
 *   compress: true,
 * });
 * if (bytes.length > 100) throw new Error("4096 equal bytes must become few");
 *
 * const frames: Frame[] = [];
 * new FrameDecoder(kernels).push(bytes, (frame) => frames.push(frame));
 * if (frames[0]?.epoch !== 7 || frames[0].payload.length !== 4096) throw new Error("lost");
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
    this.#input = kernels.alloc(FRAME_PAYLOAD_BYTES_MAX);
    this.#output = kernels.alloc(FRAME_BYTES_MAX);
    this.#checksum = kernels.alloc(8);
  }

  /**
   * Make a frame. A payload that lies in the memory of this encoder's kernels is read where it lies.
   *
   * @returns The frame, valid until the next call
   * @throws {LocalProtocolError} when the payload or the epoch is too large; nothing was changed
   */
  encode({ type, epoch, payload, compress = false }: FrameContent): Uint8Array<ArrayBuffer> {
    checkLength(payload.length);
    const { bytes } = this.#kernels;
    let address = payload.byteOffset;
    if (payload.buffer !== bytes.buffer) {
      address = compress ? this.#input : this.#output + FRAME_HEADER_BYTES;
      bytes.set(payload, address);
    }
    return this.encodeAt(type, epoch, address, payload.length, compress);
  }

  /**
   * Make a frame of a payload in the kernels' memory.
   *
   * @param address Where the payload lies
   * @param length Its length, in bytes
   * @returns The frame, valid until the next call
   * @throws {LocalProtocolError} when the payload or the epoch is too large; nothing was changed
   */
  encodeAt(
    type: FrameType,
    epoch: number,
    address: number,
    length: number,
    compress: boolean,
  ): Uint8Array<ArrayBuffer> {
    checkLength(length);
    checkEpoch(epoch);
    const kernels = this.#kernels;
    const target = this.#output + FRAME_HEADER_BYTES;
    // A target that has no room for a poor result makes the kernel give up on it early.
    const capacity = compress ? length - Math.ceil(length / 16) : 0;
    const compressed = capacity > 0 ? kernels.lz4Compress(address, length, target, capacity) : -1;
    if (compressed < 0) kernels.copy(target, address, length);
    return this.#seal(type, epoch, compressed < 0 ? length : compressed, length, compressed >= 0);
  }

  #seal(
    type: FrameType,
    epoch: number,
    length: number,
    rawLength: number,
    compressed: boolean,
  ): Uint8Array<ArrayBuffer> {
    const { bytes } = this.#kernels;
    const header = new DataView(bytes.buffer, this.#output, FRAME_HEADER_BYTES);
    header.setUint32(0, MAGIC);
    header.setUint8(VERSION_AT, VERSION);
    header.setUint8(TYPE_AT, FRAME_TYPES[type]);
    header.setUint8(FLAGS_AT, compressed ? COMPRESSED : 0);
    header.setUint8(RESERVED_AT, 0);
    header.setUint32(EPOCH_AT, Math.floor(epoch / 2 ** 32));
    header.setUint32(EPOCH_AT + 4, epoch >>> 0);
    header.setUint32(LENGTH_AT, length);
    header.setUint32(RAW_LENGTH_AT, rawLength);
    const checksum = frameChecksum(this.#kernels, this.#output, length, this.#checksum);
    header.setUint32(CHECKSUM_AT, checksum.high);
    header.setUint32(CHECKSUM_AT + 4, checksum.low);
    return bytes.subarray(this.#output, this.#output + FRAME_HEADER_BYTES + length);
  }
}

/**
 * Cuts a stream of bytes into frames. Any chunking of the same bytes gives the same frames, and the
 * same error behind them.
 *
 * Bytes can be read straight into its memory: {@linkcode FrameDecoder.space}, then
 * {@linkcode FrameDecoder.filled}. Its memory is of fixed size and allocated at the start.
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

  /** The place for the next bytes, never empty; tell how many came with {@linkcode filled}. */
  space(): Uint8Array<ArrayBuffer> {
    const { bytes } = this.#kernels;
    if (this.#start === this.#end) {
      this.#start = this.#end = 0;
    } else if (this.#start + FRAME_BYTES_MAX > BUFFER_BYTES) {
      this.#kernels.copy(this.#buffer, this.#buffer + this.#start, this.bufferedBytes);
      this.#end -= this.#start;
      this.#start = 0;
    }
    return bytes.subarray(this.#buffer + this.#end, this.#buffer + BUFFER_BYTES);
  }

  /**
   * `count` bytes have been written to the start of what {@linkcode space} gave.
   *
   * @param take Called for every frame that is complete now, in order
   * @throws {WireError} when the bytes are no frame; frames before it have been given to `take`, and
   * every later call throws the same error
   */
  filled(count: number, take: (frame: Frame) => void): void {
    if (this.#error !== undefined) throw this.#error;
    if (count < 0 || this.#end + count > BUFFER_BYTES) {
      throw new LocalProtocolError(`Cannot take ${count} bytes: there is no room for them`);
    }
    this.#end += count;
    for (let frame = this.#next(); frame !== undefined; frame = this.#next()) take(frame);
  }

  /** As {@linkcode filled}, with bytes that lie elsewhere. */
  push(chunk: Uint8Array, take: (frame: Frame) => void): void {
    for (let at = 0; at < chunk.length;) {
      const space = this.space();
      const piece = chunk.subarray(at, at + space.length);
      space.set(piece);
      at += piece.length;
      this.filled(piece.length, take);
    }
  }

  #next(): Frame | undefined {
    if (this.bufferedBytes < FRAME_HEADER_BYTES) return undefined;
    try {
      this.#header ??= this.#readHeader();
      if (this.bufferedBytes < FRAME_HEADER_BYTES + this.#header.length) return undefined;
      return this.#takeFrame(this.#header);
    } catch (error) {
      if (error instanceof WireError) this.#error = error;
      throw error;
    }
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
    if (version !== VERSION) refuse(VERSION_AT, `its version is ${version}, not ${VERSION}`);
    const typeNumber = view.getUint8(TYPE_AT);
    const type = frameTypeOf(typeNumber);
    if (type === undefined) return refuse(TYPE_AT, `there is no frame type ${typeNumber}`);
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

  #takeFrame(header: Header): Frame {
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
    return { type, epoch, payload: kernels.bytes.slice(payload, payload + rawLength), offset };
  }
}

/** Room for a frame at any place in the first half, so unread bytes are seldom moved. */
const BUFFER_BYTES = 2 * FRAME_BYTES_MAX;

interface Checksum {
  readonly high: number;
  readonly low: number;
}

interface Header {
  readonly type: FrameType;
  readonly epoch: number;
  readonly length: number;
  readonly rawLength: number;
  readonly compressed: boolean;
  readonly checksum: Checksum;
}

/**
 * The checksum of the frame at `frame`. Overwrites the second to fourth word of its header, which must
 * have been read, or be written again.
 */
function frameChecksum(
  kernels: KernelSet,
  frame: number,
  length: number,
  out: number,
): Checksum {
  const gap = FRAME_HEADER_BYTES - CHECKSUM_AT;
  const saved = kernels.bytes.slice(frame, frame + FRAME_HEADER_BYTES);
  kernels.copy(frame + gap, frame, CHECKSUM_AT);
  kernels.xxh64(frame + gap, CHECKSUM_AT + length, out);
  kernels.bytes.set(saved, frame);
  const view = new DataView(kernels.bytes.buffer, out, 8);
  return { high: view.getUint32(4, true), low: view.getUint32(0, true) };
}

function checkLength(length: number): void {
  if (length > FRAME_PAYLOAD_BYTES_MAX) {
    throw new LocalProtocolError(
      `Cannot make a frame of ${length} bytes: the limit is ${FRAME_PAYLOAD_BYTES_MAX}`,
    );
  }
}

function checkEpoch(epoch: number): void {
  if (!Number.isSafeInteger(epoch) || epoch < 0) {
    throw new LocalProtocolError(`Cannot make a frame: ${epoch} is no epoch`);
  }
}

function hex(value: number): string {
  return value.toString(16).padStart(8, "0");
}
