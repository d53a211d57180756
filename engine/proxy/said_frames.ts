/**
 * What a secondary VM has said of late, for the moment that it takes over. The primary let go what both
 * VMs had said; what it had not let go when it died is the survivor's word, and nobody has heard it. Said
 * again, it saves a client from waiting until the guest's TCP does so.
 *
 * Which frames those are only the dead primary knew. So all of them are said, and some twice: TCP takes
 * a doubled segment for a retransmission. Other protocols may lose a frame, and are not told twice.
 *
 * @module
 */

import { FRAME, FRAME_ENTRY_BYTES, FRAME_KIND, type KernelSet } from "../../wasm/mod.ts";
import { PACKET_SEGMENT_FRAMES, SAID_BYTES_MAX, SAID_MS_MAX } from "../limits.ts";
import { TCP_FLAG } from "./tcp_flags.ts";

/** Whole records that were said at once. */
interface Piece {
  readonly atMs: number;
  readonly records: Uint8Array;
}

/**
 * The last words of one network card. Pure.
 *
 * @example
 * ```ts
 * import { WasmKernels } from "../../wasm/mod.ts";
 * import { SaidFrames } from "./said_frames.ts";
 *
 * const said = new SaidFrames(WasmKernels.create(), false);
 * said.add(Uint8Array.of(0, 0, 0, 1, 7), 0);
 * if (said.take(1).length !== 0) throw new Error("said twice, and not TCP");
 * ```
 */
export class SaidFrames {
  readonly #kernels: KernelSet;
  readonly #hasVnetHeader: boolean;
  readonly #records: number;
  readonly #table: number;
  readonly #out: number;
  #pieces: Piece[] = [];
  #bytes = 0;

  /** @param kernels Of whose memory some is taken for good */
  constructor(kernels: KernelSet, hasVnetHeader: boolean) {
    this.#kernels = kernels;
    this.#hasVnetHeader = hasVnetHeader;
    this.#records = kernels.alloc(SAID_BYTES_MAX);
    this.#table = kernels.alloc(PACKET_SEGMENT_FRAMES * FRAME_ENTRY_BYTES);
    this.#out = kernels.alloc(8);
  }

  /** @param records Whole records, which must not change any more; where they are too many, the oldest go */
  add(records: Uint8Array, nowMs: number): void {
    this.#pieces.push({ atMs: nowMs, records });
    this.#bytes += records.length;
    while (this.#bytes > SAID_BYTES_MAX) this.#bytes -= this.#pieces.shift()!.records.length;
  }

  /** The VM goes on from a checkpoint: what it has said was said by another life. */
  forget(): void {
    this.#pieces = [];
    this.#bytes = 0;
  }

  /** The records that are to be said again, in their order, each a piece; they are forgotten. */
  take(nowMs: number): Uint8Array[] {
    const kernels = this.#kernels;
    const recent = this.#pieces.filter(({ atMs }) => nowMs - atMs <= SAID_MS_MAX);
    this.forget();
    let end = this.#records;
    for (const { records } of recent) {
      kernels.bytes.set(records, end);
      end += records.length;
    }
    const vnetHeader = Number(this.#hasVnetHeader);
    const [table, out] = [this.#table, this.#out];
    kernels.scanFrames(this.#records, end, vnetHeader, 0, table, PACKET_SEGMENT_FRAMES, out);
    const { buffer } = kernels.bytes;
    const [count = 0] = new Uint32Array(buffer, out + 4, 1);
    const entries = new Uint32Array(buffer, table, count * FRAME_ENTRY_BYTES / 4);
    const again: Uint8Array[] = [];
    for (let entry = 0; entry < entries.length; entry += FRAME_ENTRY_BYTES / 4) {
      if (!isWorthIt(entries[entry + FRAME.KIND]!, entries[entry + FRAME.FLAGS]!)) continue;
      const start = entries[entry + FRAME.START]!;
      again.push(kernels.bytes.slice(start, start + entries[entry + FRAME.SIZE]!));
    }
    return again;
  }
}

/** A RST is the end of a connection, and may have been the answer to a segment that was meant for the primary. */
function isWorthIt(kind: number, flags: number): boolean {
  return kind === FRAME_KIND.TCP && (flags & TCP_FLAG.RST) === 0;
}
