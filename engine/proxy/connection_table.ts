/**
 * Connections: what is known of each flow that the guest sends, in one table of fixed size.
 *
 * A connection is a number, the index of its first word in {@linkcode ConnectionTable.records}. Flows
 * are found by the kernel's hash, whose seed nobody outside knows; the whole key is compared. When the
 * table is full, one is evicted that nothing waits in and that only began (a SYN flood is full of
 * those), then one that was not used of late, then any.
 *
 * @module
 */

import { FRAME, FRAME_IPV6 } from "../../wasm/mod.ts";
import { type FrameStore, NONE } from "./frame_store.ts";

/** The words of a connection. */
export const CONNECTION = {
  HASH: 0,
  SOURCE: 1,
  DESTINATION: 2,
  PORTS: 3,
  PROTOCOL: 4,
  VLAN: 5,
  /** The next of the same bucket. */
  CHAIN: 6,
  /** Of {@linkcode STATE}. */
  STATE: 7,
  /** Queue of the primary's frames that wait to be compared. */
  PRIMARY_FIRST: 8,
  PRIMARY_LAST: 9,
  /** Queue of the secondary's frames that were not compared yet. */
  SECONDARY_FIRST: 10,
  SECONDARY_LAST: 11,
  /** Everything before this sequence number was compared. */
  COMPARED: 12,
  /** Nothing from here on was: above COMPARED when there is a hole. */
  HIGHEST: 13,
  /** Highest acknowledgment of the secondary's. */
  ACKNOWLEDGED: 14,
  /** Which time of the secondary's its words here are of. */
  GENERATION: 15,
  /** Highest acknowledgment of the primary's that has left. */
  LEFT_ACKNOWLEDGMENT: 16,
  /** The last frame that left, and its segment's generation. */
  HISTORY: 17,
  HISTORY_GENERATION: 18,
  /** Initial sequence numbers of the SYN-ACKs that were matched. */
  PRIMARY_ISN: 19,
  SECONDARY_ISN: 20,
  SECONDARY_COUNT: 21,
  /** When the last frame came, as a frame's arrival. */
  SEEN: 22,
  /** How often the sides have differed since something was equal. */
  DIFFERENCES: 23,
  /** Frames with data that are expected to differ. */
  DISTRUSTED: 24,
} as const;

/** Bits of a connection's state. */
export const STATE = {
  /** COMPARED and HIGHEST say something. */
  KNOWN: 1,
  ACKNOWLEDGED: 2,
  LEFT_ACKNOWLEDGMENT: 4,
  /** The two sides differ: all of it waits for a checkpoint. */
  DIFFERS: 8,
  /** PRIMARY_ISN and SECONDARY_ISN say something. */
  SYN_MATCHED: 16,
  /** A SYN-ACK of the secondary's is in its queue. */
  SECONDARY_SYN: 32,
  /** A rule says not to compare it. */
  EXCLUDED: 64,
  /** More than a SYN was seen. */
  ESTABLISHED: 128,
  /** A frame was seen since the hand of the clock came by. */
  USED: 256,
} as const;

/** The state of a record that is no connection. */
const FREE = -1;

const RECORD_SHIFT = 5;
const ADDRESS_BYTES = 32;

/** Connections looked at to find one that can be evicted. */
const EVICTION_STEPS = 128;

/** Scratch memory that a table needs. */
export function connectionScratchBytes(connectionsMax: number): number {
  return connectionsMax * ADDRESS_BYTES;
}

/** All connections. */
export class ConnectionTable {
  readonly records: Int32Array;
  /** Connections in the table. */
  count = 0;
  readonly #store: FrameStore;
  readonly #buckets: Int32Array;
  readonly #max: number;
  /** IPv6 addresses, which the words hold a hash of. */
  readonly #addresses: number;
  #free = NONE;
  #fresh = 0;
  #hand = 0;

  /** @param max Connections at most */
  constructor(store: FrameStore, max: number) {
    this.#store = store;
    this.#max = max;
    this.records = new Int32Array(max << RECORD_SHIFT);
    this.#buckets = new Int32Array(2 ** Math.ceil(Math.log2(2 * max))).fill(NONE);
    this.#addresses = store.scratch(connectionScratchBytes(max));
  }

  /** True when the next {@linkcode create} needs an eviction before. */
  get isFull(): boolean {
    return this.count === this.#max;
  }

  /** The connection of a frame, or NONE. */
  find(frame: number): number {
    const { entries } = this.#store;
    const { records } = this;
    const hash = entries[frame + FRAME.HASH]!;
    let connection = this.#buckets[hash & this.#buckets.length - 1]!;
    while (connection !== NONE) {
      if (records[connection + CONNECTION.HASH] === hash && this.#isOf(connection, frame)) break;
      connection = records[connection + CONNECTION.CHAIN]!;
    }
    return connection;
  }

  #isOf(connection: number, frame: number): boolean {
    const { entries, kernels } = this.#store;
    const { records } = this;
    const protocol = entries[frame + FRAME.PROTOCOL]!;
    return records[connection + CONNECTION.SOURCE] === entries[frame + FRAME.SOURCE] &&
      records[connection + CONNECTION.DESTINATION] === entries[frame + FRAME.DESTINATION] &&
      records[connection + CONNECTION.PORTS] === entries[frame + FRAME.PORTS] &&
      records[connection + CONNECTION.PROTOCOL] === protocol &&
      records[connection + CONNECTION.VLAN] === entries[frame + FRAME.VLAN] &&
      ((protocol & FRAME_IPV6) === 0 ||
        kernels.isEqual(
            this.#addressOf(connection),
            entries[frame + FRAME.ADDRESSES]!,
            ADDRESS_BYTES,
          ) === 1);
  }

  /** Make a connection for a frame that has none; the table must not be full. */
  create(frame: number): number {
    const { entries, kernels } = this.#store;
    const { records } = this;
    const connection = this.#take();
    records.fill(0, connection, connection + (1 << RECORD_SHIFT));
    for (let word = 0; word < CONNECTION.CHAIN; word++) {
      records[connection + word] = entries[frame + FRAME.HASH + word]!;
    }
    records[connection + CONNECTION.PRIMARY_FIRST] = NONE;
    records[connection + CONNECTION.SECONDARY_FIRST] = NONE;
    records[connection + CONNECTION.HISTORY] = NONE;
    if ((entries[frame + FRAME.PROTOCOL]! & FRAME_IPV6) !== 0) {
      const addresses = entries[frame + FRAME.ADDRESSES]!;
      kernels.copy(this.#addressOf(connection), addresses, ADDRESS_BYTES);
    }
    const bucket = entries[frame + FRAME.HASH]! & this.#buckets.length - 1;
    records[connection + CONNECTION.CHAIN] = this.#buckets[bucket]!;
    this.#buckets[bucket] = connection;
    this.count++;
    return connection;
  }

  #take(): number {
    if (this.#free === NONE) return this.#fresh++ << RECORD_SHIFT;
    const connection = this.#free;
    this.#free = this.records[connection + CONNECTION.CHAIN]!;
    return connection;
  }

  /** Forget a connection. */
  remove(connection: number): void {
    const { records } = this;
    const bucket = records[connection + CONNECTION.HASH]! & this.#buckets.length - 1;
    const behind = records[connection + CONNECTION.CHAIN]!;
    let before = this.#buckets[bucket]!;
    if (before === connection) this.#buckets[bucket] = behind;
    else {
      while (records[before + CONNECTION.CHAIN] !== connection) {
        before = records[before + CONNECTION.CHAIN]!;
      }
      records[before + CONNECTION.CHAIN] = behind;
    }
    records[connection + CONNECTION.CHAIN] = this.#free;
    records[connection + CONNECTION.STATE] = FREE;
    this.#free = connection;
    this.count--;
  }

  /** Forget all connections. */
  clear(): void {
    this.#buckets.fill(NONE);
    this.#free = NONE;
    this.#fresh = 0;
    this.#hand = 0;
    this.count = 0;
  }

  /**
   * Which connection a full table is to lose. Looks at a bounded number of them.
   *
   * @param isIdle Whether nothing waits in a connection
   */
  victim(isIdle: (connection: number) => boolean): number {
    const { records } = this;
    let idle = NONE;
    let connection = NONE;
    for (let step = 0; step < EVICTION_STEPS; step++) {
      connection = this.#step();
      const state = records[connection + CONNECTION.STATE]!;
      if (!isIdle(connection)) continue;
      if ((state & STATE.ESTABLISHED) === 0) return connection;
      if ((state & STATE.USED) === 0) idle = connection;
      else records[connection + CONNECTION.STATE] = state & ~STATE.USED;
    }
    return idle === NONE ? connection : idle;
  }

  /** The hand of the clock goes to the next connection there is. */
  #step(): number {
    do {
      this.#hand = (this.#hand + 1) % this.#fresh;
    } while (this.records[(this.#hand << RECORD_SHIFT) + CONNECTION.STATE] === FREE);
    return this.#hand << RECORD_SHIFT;
  }

  /**
   * Look at some connections, and forget those that saw no frame for a while.
   *
   * @param isIdle Whether nothing waits in a connection
   */
  sweep(
    now: number,
    idleMs: number,
    steps: number,
    isIdle: (connection: number) => boolean,
  ): void {
    for (let step = 0; step < steps && this.count > 0; step++) {
      const connection = this.#step();
      const ageMs = now - this.records[connection + CONNECTION.SEEN]! | 0;
      if (ageMs > idleMs && isIdle(connection)) this.remove(connection);
    }
  }

  #addressOf(connection: number): number {
    return this.#addresses + (connection >>> RECORD_SHIFT) * ADDRESS_BYTES;
  }
}
