/**
 * What comes in: frames that the primary VM has received, for the secondary VM to receive as well. Pure:
 * records and checkpoint events in, bytes to write out.
 *
 * Frames belong to epochs, as those that leave do (see `outbound_proxy.ts`). What the primary received
 * after checkpoint N reaches the secondary after it has loaded N, or the load would wipe it out; what it
 * received before, and the secondary did not get in time, is part of N.
 *
 * ```text
 *   tag of a frame      the secondary VM runs from N          it is being stopped for N
 *   before N            dropped                               dropped
 *   N                   written                               waits for loaded(N)
 *   after N             waits                                 waits
 * ```
 *
 * The network may lose frames, so this may too, where there is no room: the two VMs then differ, which
 * the comparison of what they send brings to light.
 *
 * @module
 */

import { INBOUND_QUEUE_BYTES_MAX } from "../limits.ts";

/** Whole records of one epoch. */
interface Piece {
  readonly epoch: number;
  readonly records: Uint8Array;
}

/**
 * The incoming side of one network card of a secondary VM.
 *
 * @example
 * ```ts
 * import { InboundGate } from "./inbound_gate.ts";
 *
 * const gate = new InboundGate(4);
 * gate.loaded(1);
 * gate.received(2, Uint8Array.of(0, 0, 0, 1, 7));
 * if (gate.peek().length !== 0) throw new Error("too early");
 * gate.loaded(2);
 * if (gate.peek().length !== 5) throw new Error("too late");
 * gate.sent(5);
 * ```
 */
export class InboundGate {
  /** Bytes of records that were dropped because too many wait. */
  lostBytes = 0;
  readonly #bytesMax: number;
  readonly #prefixBytes: number;
  #waiting: Piece[] = [];
  #waitingBytes = 0;
  /** The first bytes of the first piece that were written already. */
  #sentBytes = 0;
  #epoch = -1;
  #isStopped = false;

  /** @param prefixBytes Of a record, before what its length counts: 8 with a vnet header, or 4 */
  constructor(prefixBytes: number, bytesMax: number = INBOUND_QUEUE_BYTES_MAX) {
    this.#prefixBytes = prefixBytes;
    this.#bytesMax = bytesMax;
  }

  /** Bytes that wait, those that may be written included. */
  get waitingBytes(): number {
    return this.#waitingBytes - this.#sentBytes;
  }

  /** @param records Whole records that the primary VM received in this epoch */
  received(epoch: number, records: Uint8Array): void {
    if (records.length === 0 || epoch < this.#epoch) return;
    if (this.#waitingBytes + records.length > this.#bytesMax) {
      this.lostBytes += records.length;
      return;
    }
    this.#waiting.push({ epoch, records });
    this.#waitingBytes += records.length;
  }

  /** The VM stands still: whatever it is given now is wiped out by the load. */
  stopped(): void {
    this.#isStopped = true;
  }

  /** The VM runs from this checkpoint. */
  loaded(epoch: number): void {
    this.#epoch = epoch;
    this.#isStopped = false;
    const [first, ...others] = this.#waiting;
    if (first === undefined) return;
    const kept = others.filter((piece) => piece.epoch >= epoch);
    if (first.epoch >= epoch) kept.unshift(first);
    else if (this.#sentBytes > 0) {
      // A record of which a part has been written must be ended, or what follows would be no record.
      const end = this.#endOfRecord(first.records, this.#sentBytes);
      if (end > this.#sentBytes) kept.unshift({ epoch, records: first.records.subarray(0, end) });
      else this.#sentBytes = 0;
    }
    this.#waiting = kept;
    this.#waitingBytes = kept.reduce((sum, { records }) => sum + records.length, 0);
  }

  /** Bytes to write next, up to the end of a record; empty when nothing may be. */
  peek(): Uint8Array {
    const [first] = this.#waiting;
    if (first === undefined || this.#isStopped || first.epoch > this.#epoch) {
      return new Uint8Array(0);
    }
    return first.records.subarray(this.#sentBytes);
  }

  /** The first `count` bytes of {@linkcode peek} have been written. */
  sent(count: number): void {
    const [first] = this.#waiting;
    this.#sentBytes += count;
    if (first === undefined || this.#sentBytes < first.records.length) return;
    this.#waiting.shift();
    this.#waitingBytes -= first.records.length;
    this.#sentBytes = 0;
  }

  /**
   * All that waits, of whatever epoch: the VM has taken over, and no load will wipe anything out.
   *
   * @returns Pieces that begin where what was written before has ended
   */
  take(): Uint8Array[] {
    const pieces = this.#waiting.map(({ records }, index) =>
      index === 0 ? records.subarray(this.#sentBytes) : records
    );
    this.#waiting = [];
    this.#waitingBytes = 0;
    this.#sentBytes = 0;
    return pieces;
  }

  /** Where the record ends that byte `at` is in the middle of; `at` itself between two records. */
  #endOfRecord(records: Uint8Array, at: number): number {
    const view = new DataView(records.buffer, records.byteOffset, records.length);
    let end = 0;
    while (end < at && end + 4 <= records.length) end += this.#prefixBytes + view.getUint32(end);
    return Math.min(end, records.length);
  }
}
