/**
 * What the comparison of every protocol shares: the queues of a connection, what is released and what
 * differs, and the batch of pairs whose payloads are still to be compared.
 *
 * @module
 */

import { FRAME, FRAME_KIND } from "../../wasm/mod.ts";
import { PACKET_DISTRUSTED_FRAMES } from "../limits.ts";
import { CONNECTION, type ConnectionTable, STATE } from "./connection_table.ts";
import { type FrameStore, LINK, NONE } from "./frame_store.ts";
import { PairBatch } from "./pair_batch.ts";
import { seqAfter } from "./seq.ts";
import { TCP_FLAG } from "./tcp_flags.ts";

/** Why a checkpoint is asked for. */
export type CheckpointReason =
  /** The two sides say different things, or did so of late and are expected to. */
  | "mismatch"
  /** The secondary has not said the same in time. */
  | "timeout"
  /** There is no room for more frames or connections. */
  | "queue-full"
  /** A handshake whose sequence numbers only a checkpoint makes equal. */
  | "handshake";

/** Where the frames of the primary go. */
export interface Gate {
  /** The frame may leave. It was held back. */
  release(frame: number): void;
  /** Ask for a checkpoint on behalf of a frame. */
  want(reason: CheckpointReason, frame: number): void;
}

/** The common ground of {@linkcode TcpComparator} and {@linkcode DatagramComparator}. */
export class Comparison {
  /** Frames of this epoch can be compared: the secondary is at the same checkpoint. */
  epoch = NONE;
  /** Goes up whenever the secondary's frames are forgotten. */
  generation = 0;
  /** Connections in which the sides differed. */
  mismatches = 0;
  readonly #batch: PairBatch;

  constructor(readonly store: FrameStore, readonly table: ConnectionTable, readonly gate: Gate) {
    this.#batch = new PairBatch(store);
  }

  /** Bring a connection's words of the secondary up to date: a checkpoint may have come between. */
  touch(connection: number): void {
    const { records } = this.table;
    if (records[connection + CONNECTION.GENERATION] === this.generation) return;
    records[connection + CONNECTION.GENERATION] = this.generation;
    records[connection + CONNECTION.SECONDARY_FIRST] = NONE;
    records[connection + CONNECTION.SECONDARY_COUNT] = 0;
    // The secondary is where the primary was, which acknowledged and sent this much.
    let state = records[connection + CONNECTION.STATE]!;
    state &= ~(STATE.DIFFERS | STATE.SECONDARY_SYN | STATE.ACKNOWLEDGED);
    if ((state & STATE.LEFT_ACKNOWLEDGMENT) !== 0) state |= STATE.ACKNOWLEDGED;
    records[connection + CONNECTION.STATE] = state;
    records[connection + CONNECTION.ACKNOWLEDGED] =
      records[connection + CONNECTION.LEFT_ACKNOWLEDGMENT]!;
    records[connection + CONNECTION.COMPARED] = records[connection + CONNECTION.HIGHEST]!;
  }

  /** Does nothing wait in a connection? Right only when all pairs have been compared. */
  readonly isIdle = (connection: number): boolean => {
    const { records } = this.table;
    return records[connection + CONNECTION.PRIMARY_FIRST] === NONE &&
      (records[connection + CONNECTION.SECONDARY_FIRST] === NONE ||
        records[connection + CONNECTION.GENERATION] !== this.generation);
  };

  /** A frame of the primary waits in its connection. */
  appendPrimary(connection: number, frame: number): void {
    const { records } = this.table;
    const { links } = this.store;
    links[frame + LINK.CONNECTION] = connection;
    links[frame + LINK.NEXT] = NONE;
    if (records[connection + CONNECTION.PRIMARY_FIRST] === NONE) {
      records[connection + CONNECTION.PRIMARY_FIRST] = frame;
    } else links[records[connection + CONNECTION.PRIMARY_LAST]! + LINK.NEXT] = frame;
    records[connection + CONNECTION.PRIMARY_LAST] = frame;
  }

  /** A frame of the secondary waits in its connection. */
  appendSecondary(connection: number, frame: number): void {
    const { records } = this.table;
    const { links } = this.store;
    links[frame + LINK.NEXT] = NONE;
    if (records[connection + CONNECTION.SECONDARY_FIRST] === NONE) {
      records[connection + CONNECTION.SECONDARY_FIRST] = frame;
    } else links[records[connection + CONNECTION.SECONDARY_LAST]! + LINK.NEXT] = frame;
    records[connection + CONNECTION.SECONDARY_LAST] = frame;
    records[connection + CONNECTION.SECONDARY_COUNT] =
      records[connection + CONNECTION.SECONDARY_COUNT]! + 1;
  }

  /** Take a frame out of the primary's queue. @param before The one in front of it, or NONE */
  unlinkPrimary(connection: number, frame: number, before: number): void {
    const first = connection + CONNECTION.PRIMARY_FIRST;
    this.#unlink(first, connection + CONNECTION.PRIMARY_LAST, frame, before);
  }

  /** Take a frame out of the secondary's queue. @param before The one in front of it, or NONE */
  unlinkSecondary(connection: number, frame: number, before: number): void {
    const { records } = this.table;
    const first = connection + CONNECTION.SECONDARY_FIRST;
    this.#unlink(first, connection + CONNECTION.SECONDARY_LAST, frame, before);
    records[connection + CONNECTION.SECONDARY_COUNT] =
      records[connection + CONNECTION.SECONDARY_COUNT]! - 1;
  }

  #unlink(first: number, last: number, frame: number, before: number): void {
    const { records } = this.table;
    const { links } = this.store;
    const behind = links[frame + LINK.NEXT]!;
    if (before === NONE) records[first] = behind;
    else links[before + LINK.NEXT] = behind;
    if (behind === NONE) records[last] = before;
  }

  /** The payloads of two frames whose headers agree are to be compared; the primary's leaves if equal. */
  compareLater(primary: number, secondary: number): void {
    if (this.#batch.isFull) this.flush();
    this.#batch.add(primary, secondary);
  }

  /** Compare what is to be compared. */
  flush(): void {
    const batch = this.#batch;
    const { count } = batch;
    if (count === 0) return;
    const { links } = this.store;
    const allEqual = batch.compare() === 0;
    batch.count = 0;
    for (let index = 0; index < count; index++) {
      const secondary = batch.secondaryOf(index);
      if (secondary !== NONE) this.store.drop(secondary);
    }
    if (!allEqual) return this.#releaseEqual(count);
    for (let index = 0; index < count; index++) {
      const primary = batch.primaryOf(index);
      this.release(links[primary + LINK.CONNECTION]!, primary);
    }
  }

  /** What differs, and what comes behind it in its connection, goes on waiting in its place. */
  #releaseEqual(count: number): void {
    const batch = this.#batch;
    const { records } = this.table;
    const { links } = this.store;
    const waiting: number[] = [];
    for (let index = 0; index < count; index++) {
      const primary = batch.primaryOf(index);
      const connection = links[primary + LINK.CONNECTION]!;
      const differs = (records[connection + CONNECTION.STATE]! & STATE.DIFFERS) !== 0;
      if (!differs && batch.isEqual(index)) this.release(connection, primary);
      else {
        this.differs(connection, primary);
        waiting.push(primary);
      }
    }
    for (const primary of waiting.reverse()) this.#prependPrimary(primary);
  }

  #prependPrimary(frame: number): void {
    const { records } = this.table;
    const { links } = this.store;
    const connection = links[frame + LINK.CONNECTION]!;
    const first = records[connection + CONNECTION.PRIMARY_FIRST]!;
    links[frame + LINK.NEXT] = first;
    records[connection + CONNECTION.PRIMARY_FIRST] = frame;
    if (first === NONE) records[connection + CONNECTION.PRIMARY_LAST] = frame;
  }

  /** A frame of the primary is out of the queue of its connection, and may leave. */
  release(connection: number, frame: number): void {
    this.remember(connection, frame);
    if (this.store.entries[frame + FRAME.LENGTH]! > 0) {
      this.table.records[connection + CONNECTION.DIFFERENCES] = 0;
    }
    this.gate.release(frame);
  }

  /** A frame of a connection leaves: note what that says, and keep it for comparison. */
  remember(connection: number, frame: number): void {
    const { records } = this.table;
    const { entries, links } = this.store;
    if (entries[frame + FRAME.KIND] !== FRAME_KIND.TCP) return;
    const flags = entries[frame + FRAME.FLAGS]!;
    if ((flags & TCP_FLAG.ACK) !== 0) {
      this.#rememberAcknowledgment(connection, entries[frame + FRAME.ACKNOWLEDGMENT]!);
    }
    if (entries[frame + FRAME.LENGTH] === 0 && (flags & TCP_FLAG.FIN) === 0) return;
    if ((flags & TCP_FLAG.SYN) !== 0) return;
    links[frame + LINK.OLDER] = records[connection + CONNECTION.HISTORY]!;
    links[frame + LINK.OLDER_GENERATION] = records[connection + CONNECTION.HISTORY_GENERATION]!;
    records[connection + CONNECTION.HISTORY] = frame;
    records[connection + CONNECTION.HISTORY_GENERATION] = this.store.generationOf(frame);
  }

  #rememberAcknowledgment(connection: number, acknowledgment: number): void {
    const { records } = this.table;
    const state = records[connection + CONNECTION.STATE]!;
    const last = records[connection + CONNECTION.LEFT_ACKNOWLEDGMENT]!;
    if ((state & STATE.LEFT_ACKNOWLEDGMENT) !== 0 && !seqAfter(acknowledgment, last)) return;
    records[connection + CONNECTION.STATE] = state | STATE.LEFT_ACKNOWLEDGMENT;
    records[connection + CONNECTION.LEFT_ACKNOWLEDGMENT] = acknowledgment;
  }

  /** The two sides say different things: all of the connection waits for a checkpoint. */
  differs(connection: number, frame: number): void {
    const { records } = this.table;
    const state = records[connection + CONNECTION.STATE]!;
    if ((state & STATE.DIFFERS) !== 0) return;
    records[connection + CONNECTION.STATE] = state | STATE.DIFFERS;
    this.mismatches++;
    const differences = records[connection + CONNECTION.DIFFERENCES]! + 1;
    records[connection + CONNECTION.DIFFERENCES] = differences;
    if (differences > 1) records[connection + CONNECTION.DISTRUSTED] = PACKET_DISTRUSTED_FRAMES;
    this.gate.want("mismatch", frame);
  }

  /**
   * A frame of the primary with data has come: what has differed again and again will differ, and a secondary
   * that is slow after a load need not be waited for to learn that.
   */
  distrust(connection: number, frame: number): void {
    const { records } = this.table;
    const left = records[connection + CONNECTION.DISTRUSTED]!;
    if (left === 0) return;
    records[connection + CONNECTION.DISTRUSTED] = left - 1;
    this.gate.want("mismatch", frame);
  }
}
