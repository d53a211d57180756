/**
 * Where frames are: in kernel memory, as they were read. They are never moved, and no object stands for
 * one: a frame is a number, the index of its first word in {@linkcode FrameStore.entries}, which the
 * kernel has filled ({@linkcode FRAME}), and in {@linkcode FrameStore.links}, which is ours.
 *
 * ```text
 *   memory    | segment 0: 256 KiB of records | segment 1 | ...
 *   entries   | 4096 frames of 16 words       | ...            frame = segment << 16 | index << 4
 *   links     | 4096 frames of 16 words       | ...
 * ```
 *
 * A segment counts the frames in use in it, and is free when there are none. Free is not forgotten: the
 * segments freed last keep their frames readable, until they are taken anew and their *generation* goes
 * up. That is the history with which retransmissions are compared, and costs nothing.
 *
 * @module
 */

import { FRAME, FRAME_ENTRY_BYTES, type KernelSet } from "../../wasm/mod.ts";
import { PACKET_SEGMENT_BYTES, PACKET_SEGMENT_FRAMES } from "../limits.ts";

/** No frame, no connection, no segment. */
export const NONE = -1;

/** Words of a frame in either table, as a shift. */
const FRAME_SHIFT = 4;

/** From a frame to its segment. */
const SEGMENT_SHIFT = FRAME_SHIFT + Math.log2(PACKET_SEGMENT_FRAMES);

/** Distance from one frame to the next. */
export const FRAME_STEP = 1 << FRAME_SHIFT;

/** The words of {@linkcode FrameStore.links}. */
export const LINK = {
  /** The next frame of the connection, or the next fragment of the datagram. */
  NEXT: 0,
  /** Neighbors among all that are held back. */
  HELD_BEFORE: 1,
  HELD_BEHIND: 2,
  /** The connection, or NONE. */
  CONNECTION: 3,
  /** The checkpoint that the frame comes after. */
  EPOCH: 4,
  /** When it came, in ms; wraps at 32 bits. */
  ARRIVAL: 5,
  /** Bytes of it that were compared. */
  COMPARED: 6,
  /** The frame of the connection that left before it, and its segment's generation then. */
  OLDER: 7,
  OLDER_GENERATION: 8,
  /** Of a datagram that came in fragments: the first of them. NONE for a frame of its own. */
  PARTS: 9,
  /** 1 while it is held back. */
  HELD: 10,
} as const;

/** The segments of one use. */
export class SegmentPool {
  /** Ring of free segments, the one freed first in front. */
  readonly #free: Int32Array;
  #freeAt = 0;
  #freeCount = 0;
  /** Segments that were never used: touched only when need be. */
  #fresh: number;
  readonly #end: number;

  /**
   * @param first Its segments are `first .. first + count`, and a spare one behind them
   * @param keep Free segments that are left as they are while there are others
   */
  constructor(
    readonly store: FrameStore,
    readonly first: number,
    readonly count: number,
    readonly keep: number,
  ) {
    this.#free = new Int32Array(count);
    this.#fresh = first;
    this.#end = first + count;
  }

  /** A segment that is in no one's way: what is read to it is looked at and dropped. */
  get spare(): number {
    return this.#end;
  }

  /** Segments that could be taken. */
  get available(): number {
    return this.#freeCount + this.#end - this.#fresh;
  }

  /** Less than a quarter is left. */
  get isLow(): boolean {
    return this.available * 4 < this.count;
  }

  /** Take a segment, which forgets what is in it. @returns NONE when all are in use */
  take(): number {
    if (this.#fresh < this.#end && this.#freeCount <= this.keep) return this.#taken(this.#fresh++);
    if (this.#freeCount === 0) return NONE;
    const segment = this.#free[this.#freeAt]!;
    this.#freeAt = (this.#freeAt + 1) % this.count;
    this.#freeCount--;
    return this.#taken(segment);
  }

  #taken(segment: number): number {
    this.store.renew(segment);
    return segment;
  }

  /** No frame of the segment is in use any more. */
  give(segment: number): void {
    this.#free[(this.#freeAt + this.#freeCount) % this.count] = segment;
    this.#freeCount++;
  }
}

/** How many segments a {@linkcode FrameStore} has for what. */
export interface FrameStoreSizes {
  readonly primary: number;
  readonly secondary: number;
  readonly reassembly: number;
  readonly history: number;
  /** Bytes for what else must lie in kernel memory, see {@linkcode FrameStore.scratch}. */
  readonly scratchBytes: number;
}

/** All frames of both sides. */
export class FrameStore {
  /** The kernel's words; as signed numbers, which the runtime handles best. */
  readonly entries: Int32Array;
  /** Our words. */
  readonly links: Int32Array;
  readonly primary: SegmentPool;
  readonly secondary: SegmentPool;
  /** Datagrams of the primary put together, and of the secondary. */
  readonly primaryWhole: SegmentPool;
  readonly secondaryWhole: SegmentPool;

  readonly #memory: number;
  readonly #table: number;
  readonly #used: Int32Array;
  readonly #generations: Int32Array;
  readonly #pools: SegmentPool[] = [];
  #scratch: number;
  readonly #scratchEnd: number;

  /**
   * @param kernels Whose memory is taken for good. Allocate nothing else of a reference kernel's after
   * this: it moves its memory when it grows, and the tables here are views of it
   */
  constructor(readonly kernels: KernelSet, sizes: FrameStoreSizes) {
    let segments = 0;
    const pool = (count: number, keep: number) => {
      const made = new SegmentPool(this, segments, count, keep);
      segments += count + 1;
      for (let segment = made.first; segment <= made.spare; segment++) this.#pools[segment] = made;
      return made;
    };
    this.primary = pool(sizes.primary, sizes.history);
    this.secondary = pool(sizes.secondary, 0);
    this.primaryWhole = pool(sizes.reassembly, Math.min(sizes.history, sizes.reassembly));
    this.secondaryWhole = pool(sizes.reassembly, 0);
    this.#used = new Int32Array(segments);
    this.#generations = new Int32Array(segments);
    this.#memory = kernels.alloc(segments * PACKET_SEGMENT_BYTES);
    this.#table = kernels.alloc(segments * PACKET_SEGMENT_FRAMES * FRAME_ENTRY_BYTES);
    this.#scratch = kernels.alloc(sizes.scratchBytes);
    this.#scratchEnd = this.#scratch + sizes.scratchBytes;
    const words = segments * PACKET_SEGMENT_FRAMES * FRAME_STEP;
    this.entries = new Int32Array(kernels.bytes.buffer, this.#table, words);
    this.links = new Int32Array(words);
  }

  /**
   * Reserve kernel memory of what was set aside for it.
   *
   * @returns Its address, aligned to 16
   */
  scratch(sizeBytes: number): number {
    const address = this.#scratch;
    this.#scratch += Math.ceil(sizeBytes / 16) * 16;
    if (this.#scratch > this.#scratchEnd) {
      throw new RangeError("Cannot reserve: too little scratch");
    }
    return address;
  }

  /** Address of a segment's bytes. */
  addressOf(segment: number): number {
    return this.#memory + segment * PACKET_SEGMENT_BYTES;
  }

  /** The frame at a place in a segment. */
  frameAt(segment: number, index: number): number {
    return segment << SEGMENT_SHIFT | index << FRAME_SHIFT;
  }

  /** Address of a frame's entry. */
  entryAddress(frame: number): number {
    return this.#table + frame * 4;
  }

  /** Its segment's generation: as long as it is the same, the frame is readable. */
  generationOf(frame: number): number {
    return this.#generations[frame >>> SEGMENT_SHIFT]!;
  }

  /** Forget what is in a segment; its owner is in it, which is one use. */
  renew(segment: number): void {
    this.#generations[segment] = this.#generations[segment]! + 1 | 0;
    this.#used[segment] = 1;
  }

  /** Is nothing in the segment but its owner? */
  isUnused(segment: number): boolean {
    return this.#used[segment] === 1;
  }

  /** Frames have come into a segment, and are in use. */
  use(segment: number, count: number): void {
    this.#used[segment] = this.#used[segment]! + count;
  }

  /** The owner has left the segment. */
  leave(segment: number): void {
    this.#unuse(segment, 1);
  }

  /** Set our words of a frame that has come. */
  begin(frame: number, epoch: number, arrival: number): void {
    const { links } = this;
    links[frame + LINK.CONNECTION] = NONE;
    links[frame + LINK.EPOCH] = epoch;
    links[frame + LINK.ARRIVAL] = arrival;
    links[frame + LINK.COMPARED] = 0;
    links[frame + LINK.PARTS] = NONE;
    links[frame + LINK.HELD] = 0;
  }

  /** A frame is no longer in use. */
  drop(frame: number): void {
    this.#unuse(frame >>> SEGMENT_SHIFT, 1);
  }

  /** A frame and others of the same segment, `count` in all, are no longer in use. */
  dropAll(frame: number, count: number): void {
    this.#unuse(frame >>> SEGMENT_SHIFT, count);
  }

  #unuse(segment: number, count: number): void {
    const used = this.#used[segment]! - count;
    this.#used[segment] = used;
    if (used === 0) this.#pools[segment]!.give(segment);
  }

  /** All frames of a pool are out of use at once; its owner stays in the segment it is in. */
  dropPool(pool: SegmentPool, ownersSegment: number): void {
    for (let segment = pool.first; segment < pool.spare; segment++) {
      const used = this.#used[segment]!;
      if (segment === ownersSegment) this.#used[segment] = 1;
      else if (used > 0) this.#unuse(segment, used);
    }
  }

  /** Do two frames have the same payload? */
  isSamePayload(a: number, b: number): boolean {
    const { entries } = this;
    const length = entries[a + FRAME.LENGTH]!;
    return length === entries[b + FRAME.LENGTH] &&
      this.kernels.isEqual(entries[a + FRAME.PAYLOAD]!, entries[b + FRAME.PAYLOAD]!, length) === 1;
  }
}
