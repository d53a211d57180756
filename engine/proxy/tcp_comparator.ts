/**
 * TCP is compared as a stream of bytes: however the two sides cut it, a frame of the primary leaves
 * when the secondary has said every byte of it, has ended the stream where it does, and has acknowledged
 * as much. Windows, options (SACK, timestamps), PSH and URG are the kernel's weather and are ignored.
 *
 * ```text
 *   secondary's queue      |----g1----|------g2------|        |---g4---|
 *   history (has left)  |h1|--h2--|
 *   the primary's frame             |-----f-----------F|   F: its FIN counts as a byte
 *                       ^         ^ COMPARED = HIGHEST
 * ```
 *
 * - A byte below HIGHEST was compared before, and is compared with what left then (a retransmission);
 *   the history is finite, and what it has forgotten must come from the secondary again.
 * - Of a connection the primary's frames leave in the order they came.
 * - A SYN-ACK is matched by its flags: QEMU's filter-rewriter learns from the primary's which sequence
 *   numbers to give the secondary, so before that they differ. It does so for untagged IPv4 alone;
 *   elsewhere, and for a SYN of the guest's, only a checkpoint makes the numbers equal.
 * - A RST ends a stream: whatever else the other side says there differs.
 *
 * Sources: RFC 9293; QEMU `net/filter-rewriter.c`, `net/colo-compare.c`.
 *
 * @module
 */

import { FRAME, FRAME_IPV6 } from "../../wasm/mod.ts";
import { PACKET_HISTORY_STEPS_MAX, PACKET_SECONDARY_AHEAD_MAX } from "../limits.ts";
import type { Comparison } from "./comparison.ts";
import { CONNECTION, STATE } from "./connection_table.ts";
import { LINK, NONE } from "./frame_store.ts";
import { seqAdd, seqAfter, seqBefore, seqDistance } from "./seq.ts";
import { TCP_FLAG } from "./tcp_flags.ts";

const { FIN, SYN, RST, ACK } = TCP_FLAG;

/** What becomes of the first frame in the primary's queue. */
type Verdict = "release" | "wait" | "mismatch";

/** Result of looking for a byte: it is in none of the frames there are. */
const UNKNOWN = 0;
/** Result of looking for a byte: it is another one. */
const OTHER = -1;

/** Compares TCP. */
export class TcpComparator {
  readonly #comparison: Comparison;
  readonly #records: Int32Array;
  readonly #entries: Int32Array;
  readonly #links: Int32Array;

  constructor(comparison: Comparison) {
    this.#comparison = comparison;
    this.#records = comparison.table.records;
    this.#entries = comparison.store.entries;
    this.#links = comparison.store.links;
  }

  /** A frame of the primary has come. */
  primary(connection: number, frame: number): void {
    this.#comparison.appendPrimary(connection, frame);
    const flags = this.#entries[frame + FRAME.FLAGS]!;
    if ((flags & SYN) !== 0 && this.#needsCheckpoint(frame)) {
      this.#comparison.gate.want("handshake", frame);
    }
    if (this.#entries[frame + FRAME.LENGTH]! > 0) this.#comparison.distrust(connection, frame);
    this.advance(connection);
  }

  /** A frame of the secondary has come. */
  secondary(connection: number, frame: number): void {
    const flags = this.#entries[frame + FRAME.FLAGS]!;
    const isSyn = (flags & SYN) !== 0;
    if (isSyn) {
      if (!this.#expectsSynAck(connection, frame)) return this.#comparison.store.drop(frame);
    } else if ((flags & ACK) !== 0) {
      this.#acknowledge(connection, this.#entries[frame + FRAME.ACKNOWLEDGMENT]!);
    }
    const saysNothing = this.#entries[frame + FRAME.LENGTH] === 0 &&
      (flags & (FIN | SYN | RST)) === 0;
    if (saysNothing || this.#hasLeft(connection, frame)) this.#comparison.store.drop(frame);
    else if (!this.#queue(connection, frame)) return;
    else if (isSyn) this.#noteSynAck(connection, frame);
    this.advance(connection);
  }

  /** Decide about the primary's frames, one after another, as far as that can be done. */
  advance(connection: number): void {
    const records = this.#records;
    while (true) {
      const frame = records[connection + CONNECTION.PRIMARY_FIRST]!;
      if (frame === NONE || this.#links[frame + LINK.EPOCH] !== this.#comparison.epoch) return;
      if ((records[connection + CONNECTION.STATE]! & STATE.DIFFERS) !== 0) return;
      if (this.#matchesWhole(connection, frame)) continue;
      const verdict = this.#judge(connection, frame);
      if (verdict === "wait") return;
      if (verdict === "mismatch") return this.#comparison.differs(connection, frame);
      this.#comparison.unlinkPrimary(connection, frame, NONE);
      this.#comparison.release(connection, frame);
      this.#trim(connection);
    }
  }

  /** All of a frame is held by the secondary, by way of a checkpoint. */
  committed(connection: number, frame: number): void {
    const records = this.#records;
    const entries = this.#entries;
    const flags = entries[frame + FRAME.FLAGS]!;
    if ((flags & SYN) !== 0) {
      const isn = entries[frame + FRAME.SEQUENCE]!;
      this.#beginStream(connection, seqAdd(isn, 1 + entries[frame + FRAME.LENGTH]!), isn, isn);
      records[connection + CONNECTION.STATE] = records[connection + CONNECTION.STATE]! &
        ~(STATE.LEFT_ACKNOWLEDGMENT | STATE.ACKNOWLEDGED);
    } else if ((flags & RST) === 0) this.#extend(connection, frame);
    records[connection + CONNECTION.COMPARED] = records[connection + CONNECTION.HIGHEST]!;
    this.#comparison.remember(connection, frame);
    const state = records[connection + CONNECTION.STATE]!;
    if ((state & STATE.LEFT_ACKNOWLEDGMENT) === 0) return;
    records[connection + CONNECTION.STATE] = state | STATE.ACKNOWLEDGED;
    records[connection + CONNECTION.ACKNOWLEDGED] =
      records[connection + CONNECTION.LEFT_ACKNOWLEDGMENT]!;
  }

  /**
   * What nearly all frames are: an acknowledgment that the secondary gave as well, or the next bytes of
   * the stream, which the secondary cut alike. Their payloads are compared later, with many others.
   */
  #matchesWhole(connection: number, frame: number): boolean {
    const records = this.#records;
    const entries = this.#entries;
    const flags = entries[frame + FRAME.FLAGS]!;
    if ((flags & (SYN | RST)) !== 0 || !this.#isAcknowledged(connection, frame)) return false;
    const length = entries[frame + FRAME.LENGTH]!;
    const spans = length + (flags & FIN);
    let other: number = NONE;
    if (spans !== 0) {
      other = records[connection + CONNECTION.SECONDARY_FIRST]!;
      const sequence = entries[frame + FRAME.SEQUENCE]!;
      const isNext = other !== NONE && entries[other + FRAME.SEQUENCE] === sequence &&
        entries[other + FRAME.LENGTH] === length &&
        ((flags ^ entries[other + FRAME.FLAGS]!) & (FIN | SYN | RST)) === 0 &&
        (records[connection + CONNECTION.STATE]! & STATE.KNOWN) !== 0 &&
        records[connection + CONNECTION.COMPARED] === sequence &&
        records[connection + CONNECTION.HIGHEST] === sequence &&
        this.#links[frame + LINK.COMPARED] === 0;
      if (!isNext) return false;
      records[connection + CONNECTION.COMPARED] = seqAdd(sequence, spans);
      records[connection + CONNECTION.HIGHEST] = seqAdd(sequence, spans);
      this.#comparison.unlinkSecondary(connection, other, NONE);
    }
    this.#comparison.unlinkPrimary(connection, frame, NONE);
    this.#comparison.compareLater(frame, other);
    return true;
  }

  #judge(connection: number, frame: number): Verdict {
    const flags = this.#entries[frame + FRAME.FLAGS]!;
    const hasOther = this.#records[connection + CONNECTION.SECONDARY_FIRST] !== NONE;
    // The common case: the primary is ahead.
    if (!hasOther && !this.#isRetransmission(connection, frame)) return "wait";
    this.#comparison.flush();
    if ((this.#records[connection + CONNECTION.STATE]! & STATE.DIFFERS) !== 0) return "wait";
    if ((flags & SYN) !== 0) return this.#judgeSyn(connection, frame);
    if ((flags & RST) !== 0) return this.#judgeReset(connection);
    return this.#judgeStream(connection, frame);
  }

  /** Has it something to say that is not new? */
  #isRetransmission(connection: number, frame: number): boolean {
    const state = this.#records[connection + CONNECTION.STATE]!;
    const flags = this.#entries[frame + FRAME.FLAGS]!;
    if ((flags & SYN) !== 0) return (state & STATE.SYN_MATCHED) !== 0;
    if ((flags & RST) !== 0 || (state & STATE.KNOWN) === 0) return false;
    const next = seqAdd(
      this.#entries[frame + FRAME.SEQUENCE]!,
      this.#links[frame + LINK.COMPARED]!,
    );
    return seqBefore(next, this.#records[connection + CONNECTION.HIGHEST]!);
  }

  #judgeStream(connection: number, frame: number): Verdict {
    const start = this.#entries[frame + FRAME.SEQUENCE]!;
    const spans = this.#spans(frame);
    let at = this.#links[frame + LINK.COMPARED]!;
    while (at < spans) {
      const count = this.#compareAt(connection, frame, seqAdd(start, at));
      if (count === OTHER) return "mismatch";
      if (count === UNKNOWN) break;
      at += count;
    }
    this.#links[frame + LINK.COMPARED] = at;
    if (at < spans || !this.#isAcknowledged(connection, frame)) {
      return this.#hasReset(connection) ? "mismatch" : "wait";
    }
    this.#extend(connection, frame);
    return "release";
  }

  /** @returns How many bytes from a sequence number on are equal; UNKNOWN; or OTHER */
  #compareAt(connection: number, frame: number, at: number): number {
    const state = this.#records[connection + CONNECTION.STATE]!;
    if (
      (state & STATE.KNOWN) !== 0 && seqBefore(at, this.#records[connection + CONNECTION.HIGHEST]!)
    ) {
      const count = this.#compareWithHistory(connection, frame, at);
      if (count !== UNKNOWN) return count;
    }
    let other = this.#records[connection + CONNECTION.SECONDARY_FIRST]!;
    for (; other !== NONE; other = this.#links[other + LINK.NEXT]!) {
      const flags = this.#entries[other + FRAME.FLAGS]!;
      // From here on it is another stream.
      if ((flags & SYN) !== 0) return UNKNOWN;
      if ((flags & RST) !== 0) continue;
      const count = this.#compareFrames(frame, other, at);
      if (count !== UNKNOWN) return count;
    }
    return UNKNOWN;
  }

  #compareWithHistory(connection: number, frame: number, at: number): number {
    let older = this.#records[connection + CONNECTION.HISTORY]!;
    let generation = this.#records[connection + CONNECTION.HISTORY_GENERATION]!;
    for (let step = 0; step < PACKET_HISTORY_STEPS_MAX && older !== NONE; step++) {
      if (this.#comparison.store.generationOf(older) !== generation) return UNKNOWN;
      const count = this.#compareFrames(frame, older, at);
      if (count !== UNKNOWN) return count;
      generation = this.#links[older + LINK.OLDER_GENERATION]!;
      older = this.#links[older + LINK.OLDER]!;
    }
    return UNKNOWN;
  }

  /** As {@linkcode #compareAt}, with one frame. A FIN is a byte that equals a FIN alone. */
  #compareFrames(frame: number, other: number, at: number): number {
    const entries = this.#entries;
    const offset = seqDistance(entries[other + FRAME.SEQUENCE]!, at);
    if (offset < 0 || offset >= this.#spans(other)) return UNKNOWN;
    const position = seqDistance(entries[frame + FRAME.SEQUENCE]!, at);
    const left = entries[frame + FRAME.LENGTH]! - position;
    const otherLeft = entries[other + FRAME.LENGTH]! - offset;
    if (left === 0 || otherLeft === 0) return left === otherLeft ? 1 : OTHER;
    const count = Math.min(left, otherLeft);
    const { kernels } = this.#comparison.store;
    const equal = kernels.isEqual(
      entries[frame + FRAME.PAYLOAD]! + position,
      entries[other + FRAME.PAYLOAD]! + offset,
      count,
    );
    return equal === 1 ? count : OTHER;
  }

  /** A frame's bytes were compared: COMPARED and HIGHEST move on. */
  #extend(connection: number, frame: number): void {
    const records = this.#records;
    const start = this.#entries[frame + FRAME.SEQUENCE]!;
    const end = seqAdd(start, this.#spans(frame));
    const state = records[connection + CONNECTION.STATE]!;
    if ((state & STATE.KNOWN) === 0) {
      records[connection + CONNECTION.STATE] = state | STATE.KNOWN;
      records[connection + CONNECTION.COMPARED] = end;
      records[connection + CONNECTION.HIGHEST] = end;
      return;
    }
    if (seqAfter(end, records[connection + CONNECTION.HIGHEST]!)) {
      records[connection + CONNECTION.HIGHEST] = end;
    }
    const compared = records[connection + CONNECTION.COMPARED]!;
    if (seqAfter(start, compared) || !seqAfter(end, compared)) return;
    records[connection + CONNECTION.COMPARED] = this.#behindHole(connection, end);
  }

  /** A hole is filled up to `at`: what left above it is compared as well. */
  #behindHole(connection: number, at: number): number {
    const highest = this.#records[connection + CONNECTION.HIGHEST]!;
    let position = at;
    while (seqBefore(position, highest)) {
      const next = this.#historyEnd(connection, position);
      if (next === position) return position;
      position = next;
    }
    return position;
  }

  /** Where the frame that left with the byte at `at` ends; `at` when there is none. */
  #historyEnd(connection: number, at: number): number {
    let older = this.#records[connection + CONNECTION.HISTORY]!;
    let generation = this.#records[connection + CONNECTION.HISTORY_GENERATION]!;
    for (let step = 0; step < PACKET_HISTORY_STEPS_MAX && older !== NONE; step++) {
      if (this.#comparison.store.generationOf(older) !== generation) return at;
      const offset = seqDistance(this.#entries[older + FRAME.SEQUENCE]!, at);
      const spans = this.#spans(older);
      if (offset >= 0 && offset < spans) return seqAdd(at, spans - offset);
      generation = this.#links[older + LINK.OLDER_GENERATION]!;
      older = this.#links[older + LINK.OLDER]!;
    }
    return at;
  }

  /** Forget frames of the secondary that have nothing more to say. */
  #trim(connection: number): void {
    const records = this.#records;
    while (true) {
      const other = records[connection + CONNECTION.SECONDARY_FIRST]!;
      if (other === NONE) return;
      if ((this.#entries[other + FRAME.FLAGS]! & (SYN | RST)) !== 0) return;
      const end = seqAdd(this.#entries[other + FRAME.SEQUENCE]!, this.#spans(other));
      if (seqAfter(end, records[connection + CONNECTION.COMPARED]!)) return;
      this.#dropFirstSecondary(connection);
    }
  }

  #dropFirstSecondary(connection: number): void {
    const other = this.#records[connection + CONNECTION.SECONDARY_FIRST]!;
    this.#comparison.unlinkSecondary(connection, other, NONE);
    this.#comparison.store.drop(other);
  }

  /** Room in sequence numbers. */
  #spans(frame: number): number {
    return this.#entries[frame + FRAME.LENGTH]! + (this.#entries[frame + FRAME.FLAGS]! & FIN);
  }

  #isAcknowledged(connection: number, frame: number): boolean {
    if ((this.#entries[frame + FRAME.FLAGS]! & ACK) === 0) return true;
    if ((this.#records[connection + CONNECTION.STATE]! & STATE.ACKNOWLEDGED) === 0) return false;
    const acknowledged = this.#records[connection + CONNECTION.ACKNOWLEDGED]!;
    return !seqAfter(this.#entries[frame + FRAME.ACKNOWLEDGMENT]!, acknowledged);
  }

  #acknowledge(connection: number, acknowledgment: number): void {
    const records = this.#records;
    const state = records[connection + CONNECTION.STATE]!;
    // It is of the stream that has not begun for the primary.
    if ((state & STATE.SECONDARY_SYN) !== 0) return;
    const last = records[connection + CONNECTION.ACKNOWLEDGED]!;
    if ((state & STATE.ACKNOWLEDGED) !== 0 && !seqAfter(acknowledgment, last)) return;
    records[connection + CONNECTION.STATE] = state | STATE.ACKNOWLEDGED;
    records[connection + CONNECTION.ACKNOWLEDGED] = acknowledgment;
  }

  /** Is the secondary's frame a retransmission of what has left? */
  #hasLeft(connection: number, frame: number): boolean {
    const state = this.#records[connection + CONNECTION.STATE]!;
    const flags = this.#entries[frame + FRAME.FLAGS]!;
    if ((flags & (SYN | RST)) !== 0 || (state & STATE.KNOWN) === 0) return false;
    const start = this.#entries[frame + FRAME.SEQUENCE]!;
    const end = seqAdd(start, this.#spans(frame));
    if (seqAfter(end, this.#records[connection + CONNECTION.HIGHEST]!)) return false;
    // Pairs that are still to be compared have not left, but a difference there holds up everything.
    this.#comparison.flush();
    let at = start;
    while (seqBefore(at, end)) {
      const next = this.#historyEnd(connection, at);
      if (next === at) return false;
      at = next;
    }
    return true;
  }

  #queue(connection: number, frame: number): boolean {
    if (this.#records[connection + CONNECTION.SECONDARY_COUNT]! < PACKET_SECONDARY_AHEAD_MAX) {
      this.#comparison.appendSecondary(connection, frame);
      return true;
    }
    this.#comparison.gate.want("queue-full", frame);
    this.#comparison.store.drop(frame);
    return false;
  }

  #hasReset(connection: number): boolean {
    let other = this.#records[connection + CONNECTION.SECONDARY_FIRST]!;
    for (; other !== NONE; other = this.#links[other + LINK.NEXT]!) {
      const flags = this.#entries[other + FRAME.FLAGS]!;
      if ((flags & SYN) !== 0) return false;
      if ((flags & RST) !== 0) return true;
    }
    return false;
  }

  #judgeReset(connection: number): Verdict {
    const compared = this.#records[connection + CONNECTION.COMPARED]!;
    const isKnown = (this.#records[connection + CONNECTION.STATE]! & STATE.KNOWN) !== 0;
    while (true) {
      const other = this.#records[connection + CONNECTION.SECONDARY_FIRST]!;
      if (other === NONE) return "wait";
      const flags = this.#entries[other + FRAME.FLAGS]!;
      const end = seqAdd(this.#entries[other + FRAME.SEQUENCE]!, this.#spans(other));
      const isReset = (flags & RST) !== 0;
      const isOld = isKnown && (flags & SYN) === 0 && !seqAfter(end, compared);
      if (!isReset && !isOld) return "mismatch";
      this.#dropFirstSecondary(connection);
      if (isReset) return "release";
    }
  }

  #judgeSyn(connection: number, frame: number): Verdict {
    if (this.#needsCheckpoint(frame)) return "wait";
    const records = this.#records;
    const isn = this.#entries[frame + FRAME.SEQUENCE]!;
    const isMatched = (records[connection + CONNECTION.STATE]! & STATE.SYN_MATCHED) !== 0;
    if (isMatched && records[connection + CONNECTION.PRIMARY_ISN] === isn) return "release";
    if ((records[connection + CONNECTION.STATE]! & STATE.SECONDARY_SYN) === 0) return "wait";
    this.#takeSecondarySyn(connection);
    this.#beginStream(
      connection,
      seqAdd(isn, 1),
      isn,
      records[connection + CONNECTION.SECONDARY_ISN]!,
    );
    return "release";
  }

  /** Forget what the secondary said up to its SYN-ACK, and take over what it acknowledged since. */
  #takeSecondarySyn(connection: number): void {
    const records = this.#records;
    let isSyn = false;
    while (!isSyn) {
      const other = records[connection + CONNECTION.SECONDARY_FIRST]!;
      isSyn = (this.#entries[other + FRAME.FLAGS]! & SYN) !== 0;
      if (isSyn) {
        records[connection + CONNECTION.ACKNOWLEDGED] = this.#entries[
          other + FRAME.ACKNOWLEDGMENT
        ]!;
      }
      this.#dropFirstSecondary(connection);
    }
    let state = records[connection + CONNECTION.STATE]! & ~STATE.SECONDARY_SYN;
    state |= STATE.ACKNOWLEDGED;
    // The primary's acknowledgments were of the stream before.
    state &= ~STATE.LEFT_ACKNOWLEDGMENT;
    records[connection + CONNECTION.STATE] = state;
    let other = records[connection + CONNECTION.SECONDARY_FIRST]!;
    for (; other !== NONE; other = this.#links[other + LINK.NEXT]!) {
      if ((this.#entries[other + FRAME.FLAGS]! & ACK) === 0) continue;
      this.#acknowledge(connection, this.#entries[other + FRAME.ACKNOWLEDGMENT]!);
    }
  }

  #beginStream(connection: number, next: number, primaryIsn: number, secondaryIsn: number): void {
    const records = this.#records;
    records[connection + CONNECTION.STATE] = records[connection + CONNECTION.STATE]! |
      STATE.KNOWN | STATE.SYN_MATCHED;
    records[connection + CONNECTION.COMPARED] = next;
    records[connection + CONNECTION.HIGHEST] = next;
    records[connection + CONNECTION.HISTORY] = NONE;
    records[connection + CONNECTION.PRIMARY_ISN] = primaryIsn;
    records[connection + CONNECTION.SECONDARY_ISN] = secondaryIsn;
  }

  /** A SYN of the secondary's: is it one that the primary's is to be matched with? */
  #expectsSynAck(connection: number, frame: number): boolean {
    if (this.#needsCheckpoint(frame)) return false;
    const records = this.#records;
    const state = records[connection + CONNECTION.STATE]!;
    const isn = this.#entries[frame + FRAME.SEQUENCE]!;
    const isKnown = isn === records[connection + CONNECTION.SECONDARY_ISN] ||
      isn === records[connection + CONNECTION.PRIMARY_ISN];
    return !isKnown || (state & (STATE.SYN_MATCHED | STATE.SECONDARY_SYN)) === 0;
  }

  /** It is among what waits: what is looked for there is there. */
  #noteSynAck(connection: number, frame: number): void {
    const records = this.#records;
    records[connection + CONNECTION.SECONDARY_ISN] = this.#entries[frame + FRAME.SEQUENCE]!;
    records[connection + CONNECTION.STATE] = records[connection + CONNECTION.STATE]! |
      STATE.SECONDARY_SYN;
  }

  /**
   * A handshake that comparison cannot bring to an end: the guest's own SYN, data on a SYN, and
   * sequence numbers that no filter-rewriter makes equal.
   */
  #needsCheckpoint(frame: number): boolean {
    const entries = this.#entries;
    return (entries[frame + FRAME.FLAGS]! & ACK) === 0 || entries[frame + FRAME.LENGTH] !== 0 ||
      (entries[frame + FRAME.PROTOCOL]! & FRAME_IPV6) !== 0 || entries[frame + FRAME.VLAN] !== 0;
  }
}
