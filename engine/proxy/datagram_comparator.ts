/**
 * UDP, ICMP and every other protocol over IP are compared datagram by datagram. Equal ones may be some
 * places apart in the order of either side; a datagram that has no equal among those the other side has
 * waiting differs.
 *
 * @module
 */

import { PACKET_LOOKAHEAD_MAX, PACKET_SECONDARY_AHEAD_MAX } from "../limits.ts";
import type { Comparison } from "./comparison.ts";
import { CONNECTION } from "./connection_table.ts";
import { LINK, NONE } from "./frame_store.ts";

/** Compares datagrams. */
export class DatagramComparator {
  readonly #comparison: Comparison;
  readonly #timeoutMs: number;
  readonly #records: Int32Array;
  readonly #links: Int32Array;

  /** @param timeoutMs How long a datagram of the secondary's waits for the primary's */
  constructor(comparison: Comparison, timeoutMs: number) {
    this.#comparison = comparison;
    this.#timeoutMs = timeoutMs;
    this.#records = comparison.table.records;
    this.#links = comparison.store.links;
  }

  /** A datagram of the primary has come. */
  primary(connection: number, frame: number): void {
    const comparison = this.#comparison;
    if (this.#links[frame + LINK.EPOCH] !== comparison.epoch) {
      return comparison.appendPrimary(connection, frame);
    }
    this.#forgetOld(connection, this.#links[frame + LINK.ARRIVAL]!);
    const first = this.#records[connection + CONNECTION.SECONDARY_FIRST]!;
    const before = this.#find(first, frame);
    if (before === undefined) {
      comparison.appendPrimary(connection, frame);
      if (first !== NONE) comparison.differs(connection, frame);
      return;
    }
    const equal = before === NONE ? first : this.#links[before + LINK.NEXT]!;
    comparison.unlinkSecondary(connection, equal, before);
    comparison.store.drop(equal);
    this.#links[frame + LINK.CONNECTION] = connection;
    comparison.release(connection, frame);
  }

  /** A datagram of the secondary has come. */
  secondary(connection: number, frame: number): void {
    const comparison = this.#comparison;
    const waiting = this.#records[connection + CONNECTION.PRIMARY_FIRST]!;
    const first = this.#isComparable(waiting) ? waiting : NONE;
    const before = this.#find(first, frame);
    if (before !== undefined) {
      const equal = before === NONE ? first : this.#links[before + LINK.NEXT]!;
      comparison.unlinkPrimary(connection, equal, before);
      comparison.store.drop(frame);
      comparison.release(connection, equal);
    } else if (first !== NONE) {
      comparison.store.drop(frame);
      comparison.differs(connection, first);
    } else this.#queue(connection, frame);
  }

  #queue(connection: number, frame: number): void {
    const comparison = this.#comparison;
    if (this.#records[connection + CONNECTION.SECONDARY_COUNT]! < PACKET_SECONDARY_AHEAD_MAX) {
      return comparison.appendSecondary(connection, frame);
    }
    comparison.gate.want("queue-full", frame);
    comparison.store.drop(frame);
  }

  #isComparable(frame: number): boolean {
    return frame !== NONE && this.#links[frame + LINK.EPOCH] === this.#comparison.epoch;
  }

  /**
   * Look for an equal datagram in the first ones of a queue, up to those of a later epoch.
   *
   * @returns The one in front of it, NONE when it is the first, undefined when there is none
   */
  #find(first: number, frame: number): number | undefined {
    let before: number = NONE;
    let other = first;
    for (let step = 0; step < PACKET_LOOKAHEAD_MAX && this.#isComparable(other); step++) {
      if (this.#comparison.store.isSamePayload(other, frame)) return before;
      before = other;
      other = this.#links[other + LINK.NEXT]!;
    }
    return undefined;
  }

  /** What the primary has not said in this time it will not say: nothing of it waits for that. */
  #forgetOld(connection: number, now: number): void {
    const comparison = this.#comparison;
    while (true) {
      const first = this.#records[connection + CONNECTION.SECONDARY_FIRST]!;
      if (first === NONE) return;
      const ageMs = now - this.#links[first + LINK.ARRIVAL]! | 0;
      if (ageMs < this.#timeoutMs) return;
      comparison.unlinkSecondary(connection, first, NONE);
      comparison.store.drop(first);
    }
  }
}
