/**
 * Compares what the primary VM says with what the secondary VM says, frame by frame and stream by
 * stream, and lets go what both have said.
 *
 * @module
 */

import { FRAME, FRAME_KIND } from "../../wasm/mod.ts";
import { Comparison, type Gate } from "./comparison.ts";
import { CONNECTION, connectionScratchBytes, ConnectionTable, STATE } from "./connection_table.ts";
import { DatagramComparator } from "./datagram_comparator.ts";
import { flowOf } from "./flow.ts";
import type { Flow } from "./flow_rules.ts";
import { Reassembler, REASSEMBLER_BYTES } from "./fragments.ts";
import { type FrameStore, LINK, NONE } from "./frame_store.ts";
import { PAIR_BATCH_BYTES } from "./pair_batch.ts";
import { TcpComparator } from "./tcp_comparator.ts";
import { TCP_FLAG } from "./tcp_flags.ts";

/** What a {@linkcode Comparator} must know. */
export interface ComparatorOptions {
  readonly connectionsMax: number;
  readonly connectionIdleMs: number;
  readonly timeoutMs: number;
  readonly vnetHeader: boolean;
  readonly seed: number;
  /** Flows that are not compared. */
  readonly isExcluded: (flow: Flow) => boolean;
}

/** What the comparator tells its owner. */
export interface ComparatorGate extends Gate {
  /** Hold a frame of the primary back. */
  hold(frame: number): void;
  /** The frame may leave. It was not held back. */
  pass(frame: number): void;
}

/** Connections looked at for age, each time. */
const SWEEP_STEPS = 256;

/** Scratch memory that a comparator needs. */
export function comparatorScratchBytes(connectionsMax: number): number {
  return connectionScratchBytes(connectionsMax) + PAIR_BATCH_BYTES + 2 * REASSEMBLER_BYTES;
}

/** The comparator. */
export class Comparator {
  /** Frames whose headers contradict themselves; they are treated like those that are not IP. */
  malformed = 0;
  readonly #store: FrameStore;
  readonly #gate: ComparatorGate;
  readonly #options: ComparatorOptions;
  readonly #table: ConnectionTable;
  readonly #comparison: Comparison;
  readonly #tcp: TcpComparator;
  readonly #datagrams: DatagramComparator;
  readonly #primaryFragments: Reassembler;
  readonly #secondaryFragments: Reassembler;

  constructor(store: FrameStore, gate: ComparatorGate, options: ComparatorOptions) {
    this.#store = store;
    this.#gate = gate;
    this.#options = options;
    this.#table = new ConnectionTable(store, options.connectionsMax);
    this.#comparison = new Comparison(store, this.#table, gate);
    this.#tcp = new TcpComparator(this.#comparison);
    this.#datagrams = new DatagramComparator(this.#comparison, options.timeoutMs);
    this.#primaryFragments = new Reassembler(store, store.primaryWhole, {
      ...options,
      // They are held back, and a checkpoint lets them go.
      abandon: () => {},
    });
    this.#secondaryFragments = new Reassembler(store, store.secondaryWhole, {
      ...options,
      abandon: (fragment) => store.drop(fragment),
    });
  }

  /** Connections known. */
  get connections(): number {
    return this.#table.count;
  }

  /** Connections in which the sides differed. */
  get mismatches(): number {
    return this.#comparison.mismatches;
  }

  /** A frame of the primary has come; its words of {@linkcode LINK} are set. */
  primary(frame: number): void {
    const kind = this.#store.entries[frame + FRAME.KIND]!;
    if (kind <= FRAME_KIND.MALFORMED) {
      if (kind === FRAME_KIND.MALFORMED) this.malformed++;
      return this.#gate.pass(frame);
    }
    this.#gate.hold(frame);
    if (kind !== FRAME_KIND.FRAGMENT) return this.#primaryWhole(frame);
    const whole = this.#primaryFragments.add(frame);
    if (whole === NONE) return;
    this.#gate.hold(whole);
    if (this.#store.entries[whole + FRAME.KIND]! > FRAME_KIND.MALFORMED) this.#primaryWhole(whole);
    else this.#gate.release(whole);
  }

  #primaryWhole(frame: number): void {
    const connection = this.#connectionOf(frame);
    const state = this.#table.records[connection + CONNECTION.STATE]!;
    if ((state & STATE.EXCLUDED) !== 0) return this.#gate.release(frame);
    if (this.#store.entries[frame + FRAME.KIND] === FRAME_KIND.TCP) {
      this.#tcp.primary(connection, frame);
    } else this.#datagrams.primary(connection, frame);
  }

  /** A frame of the secondary has come; it is at the epoch that frames are compared in. */
  secondary(frame: number): void {
    const kind = this.#store.entries[frame + FRAME.KIND]!;
    if (kind === FRAME_KIND.FRAGMENT) return this.#secondaryFragment(frame);
    if (kind <= FRAME_KIND.MALFORMED) {
      if (kind === FRAME_KIND.MALFORMED) this.malformed++;
      return this.#store.drop(frame);
    }
    const connection = this.#connectionOf(frame);
    const state = this.#table.records[connection + CONNECTION.STATE]!;
    if ((state & (STATE.EXCLUDED | STATE.DIFFERS)) !== 0) return this.#store.drop(frame);
    if (kind === FRAME_KIND.TCP) this.#tcp.secondary(connection, frame);
    else this.#datagrams.secondary(connection, frame);
  }

  #secondaryFragment(fragment: number): void {
    const { links } = this.#store;
    const whole = this.#secondaryFragments.add(fragment);
    if (whole === NONE) return;
    let part = links[whole + LINK.PARTS]!;
    while (part !== NONE) {
      const next = links[part + LINK.NEXT]!;
      this.#store.drop(part);
      part = next;
    }
    this.secondary(whole);
  }

  /** Compare all that can be; call it when a batch of frames has been given. */
  flush(): void {
    this.#comparison.flush();
  }

  /** From now on the primary's frames come after another checkpoint. */
  beginEpoch(): void {
    this.flush();
    this.#primaryFragments.forget();
  }

  /**
   * The secondary is, or will be, at a checkpoint: what it said before is forgotten, and frames of this
   * epoch can be compared.
   *
   * @param epoch NONE when nothing can be compared until further notice
   */
  restart(epoch: number): void {
    this.flush();
    this.#comparison.generation++;
    this.#comparison.epoch = epoch;
    this.#secondaryFragments.dropFrames();
  }

  /** A frame that was held back leaves with the checkpoint; call it after {@linkcode restart}. */
  committed(frame: number): void {
    const connection = this.#store.links[frame + LINK.CONNECTION]!;
    if (connection === NONE) return;
    this.#comparison.touch(connection);
    // Both the queue and all that is held back are in the order of arrival: it is the first.
    this.#comparison.unlinkPrimary(connection, frame, NONE);
    if (this.#store.entries[frame + FRAME.KIND] === FRAME_KIND.TCP) {
      this.#tcp.committed(connection, frame);
    }
  }

  /** A frame still held back may be of those that need no more of the secondary than it has said. */
  reconsider(frame: number): void {
    const connection = this.#store.links[frame + LINK.CONNECTION]!;
    if (connection === NONE || this.#store.entries[frame + FRAME.KIND] !== FRAME_KIND.TCP) return;
    this.#comparison.touch(connection);
    this.#tcp.advance(connection);
  }

  /** Forget all connections; nothing is held back. */
  clear(): void {
    this.restart(NONE);
    this.#table.clear();
    this.#primaryFragments.forget();
  }

  /** Time has passed: connections grow old. @param now As {@linkcode LINK.ARRIVAL} */
  tick(now: number): void {
    const { connectionIdleMs } = this.#options;
    this.#table.sweep(now, connectionIdleMs, SWEEP_STEPS, this.#comparison.isIdle);
  }

  #connectionOf(frame: number): number {
    const { entries, links } = this.#store;
    const { records } = this.#table;
    let connection = this.#table.find(frame);
    if (connection === NONE) connection = this.#create(frame);
    this.#comparison.touch(connection);
    records[connection + CONNECTION.SEEN] = links[frame + LINK.ARRIVAL]!;
    const isTcp = entries[frame + FRAME.KIND] === FRAME_KIND.TCP;
    const isSyn = isTcp && (entries[frame + FRAME.FLAGS]! & TCP_FLAG.SYN) !== 0;
    if (!isSyn) {
      records[connection + CONNECTION.STATE] = records[connection + CONNECTION.STATE]! |
        STATE.ESTABLISHED | STATE.USED;
    }
    return connection;
  }

  #create(frame: number): number {
    if (this.#table.isFull) this.#evict(frame);
    const connection = this.#table.create(frame);
    const { records } = this.#table;
    records[connection + CONNECTION.GENERATION] = this.#comparison.generation;
    if (this.#options.isExcluded(flowOf(this.#store, frame))) {
      records[connection + CONNECTION.STATE] = STATE.EXCLUDED;
    }
    return connection;
  }

  /** What waits in the victim goes on waiting, for a checkpoint. */
  #evict(frame: number): void {
    this.flush();
    const { records } = this.#table;
    const { links } = this.#store;
    const victim = this.#table.victim(this.#comparison.isIdle);
    if (!this.#comparison.isIdle(victim)) this.#gate.want("queue-full", frame);
    let primary = records[victim + CONNECTION.PRIMARY_FIRST]!;
    for (; primary !== NONE; primary = links[primary + LINK.NEXT]!) {
      links[primary + LINK.CONNECTION] = NONE;
    }
    if (records[victim + CONNECTION.GENERATION] === this.#comparison.generation) {
      let secondary = records[victim + CONNECTION.SECONDARY_FIRST]!;
      while (secondary !== NONE) {
        const next = links[secondary + LINK.NEXT]!;
        this.#store.drop(secondary);
        secondary = next;
      }
    }
    this.#table.remove(victim);
  }
}
