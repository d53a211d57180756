/**
 * The frames that are held back, in the order they came. Epochs only go up, so all that a commit lets
 * go is at the front.
 *
 * @module
 */

import { type FrameStore, LINK, NONE } from "./frame_store.ts";

/** A doubly linked list through {@linkcode FrameStore.links}. */
export class HeldFrames {
  /** Frames in it, but for those that were made of fragments, which are in it themselves. */
  count = 0;
  #first = NONE;
  #last = NONE;
  /** The first one of the last epoch. */
  #firstOfEpoch = NONE;
  readonly #links: Int32Array;

  constructor(store: FrameStore) {
    this.#links = store.links;
  }

  /** The oldest, or NONE. */
  get first(): number {
    return this.#first;
  }

  /** The oldest of the last epoch, or NONE. */
  get firstOfEpoch(): number {
    return this.#firstOfEpoch;
  }

  /** Frames from now on belong to another epoch. */
  beginEpoch(): void {
    this.#firstOfEpoch = NONE;
  }

  /** Hold a frame back. */
  append(frame: number): void {
    const links = this.#links;
    links[frame + LINK.HELD] = 1;
    links[frame + LINK.HELD_BEFORE] = this.#last;
    links[frame + LINK.HELD_BEHIND] = NONE;
    if (this.#last === NONE) this.#first = frame;
    else links[this.#last + LINK.HELD_BEHIND] = frame;
    this.#last = frame;
    if (this.#firstOfEpoch === NONE) this.#firstOfEpoch = frame;
    if (links[frame + LINK.PARTS] === NONE) this.count++;
  }

  /** Hold a frame back no longer. */
  remove(frame: number): void {
    const links = this.#links;
    const before = links[frame + LINK.HELD_BEFORE]!;
    const behind = links[frame + LINK.HELD_BEHIND]!;
    links[frame + LINK.HELD] = 0;
    if (before === NONE) this.#first = behind;
    else links[before + LINK.HELD_BEHIND] = behind;
    if (behind === NONE) this.#last = before;
    else links[behind + LINK.HELD_BEFORE] = before;
    if (this.#firstOfEpoch === frame) this.#firstOfEpoch = behind;
    if (links[frame + LINK.PARTS] === NONE) this.count--;
  }
}
