/**
 * Puts together what is known of each checkpoint: its pages when it is captured, its pause when QEMU
 * has resumed the guest, its bytes when the secondary has committed it. It is reported when all is known.
 *
 * @module
 */

import type { PageCounts } from "../checkpoint/page_encoder.ts";
import { PAGE_BYTES } from "../limits.ts";
import type { CheckpointCause, Reporter } from "./report.ts";

interface Entry {
  readonly epoch: number;
  readonly dirtyPages: number;
  readonly cause: CheckpointCause;
  pauseMs?: number;
  pages?: PageCounts;
  wireBytes?: number;
  committed?: boolean;
  replicated?: boolean;
  micro?: boolean;
}

const NO_PAGES: PageCounts = { unchanged: 0, zero: 0, xbzrle: 0, whole: 0 };

/** Checkpoints that are not yet known to the end; more than this and the oldest are given up. */
const OPEN_MAX = 16;

/** The log of one primary's checkpoints. */
export class CheckpointLog {
  readonly #open: Entry[] = [];
  #stoppedMs: number | undefined;

  constructor(readonly report: Reporter) {}

  /** A checkpoint is whole, with so many pages that the guest had written. */
  captured(epoch: number, dirtyPages: number, cause: CheckpointCause = "periodic"): void {
    // A guest that is captured anew counts from the beginning: what is open is of the last capture.
    if (this.#open.some((entry) => entry.epoch >= epoch)) this.#open.length = 0;
    this.#open.push({ epoch, dirtyPages, cause });
    if (this.#open.length > OPEN_MAX) this.#open.shift();
  }

  /** QEMU has stopped the guest. */
  stopped(atMs: number): void {
    this.#stoppedMs = atMs;
  }

  /**
   * QEMU has resumed the guest: that ends the pause of the oldest checkpoint without one.
   *
   * @returns That pause, in milliseconds; nothing where it was none of a checkpoint's
   */
  resumed(atMs: number): number | undefined {
    const entry = this.#open.find((entry) => entry.pauseMs === undefined);
    const stoppedMs = this.#stoppedMs;
    this.#stoppedMs = undefined;
    if (entry === undefined || stoppedMs === undefined) return undefined;
    const pauseMs = atMs - stoppedMs;
    this.#set(entry, { pauseMs });
    return pauseMs;
  }

  /** The checkpoint stays here, because there is no secondary. */
  absorbed(epoch: number): void {
    this.#update(epoch, {
      pages: NO_PAGES,
      wireBytes: 0,
      committed: true,
      replicated: false,
      micro: false,
    });
  }

  /** @param micro Whether the secondary only holds it until it loads another */
  sent(epoch: number, pages: PageCounts, wireBytes: number, micro: boolean): void {
    this.#update(epoch, { pages, wireBytes, replicated: true, micro });
  }

  committed(epoch: number): void {
    this.#update(epoch, { committed: true });
  }

  #update(epoch: number, known: Partial<Entry>): void {
    const entry = this.#open.find((entry) => entry.epoch === epoch);
    if (entry !== undefined) this.#set(entry, known);
  }

  #set(entry: Entry, known: Partial<Entry>): void {
    Object.assign(entry, known);
    const { epoch, dirtyPages, pauseMs, pages, wireBytes, committed, replicated, micro } = entry;
    if (
      pauseMs === undefined || pages === undefined || wireBytes === undefined || !committed ||
      replicated === undefined || micro === undefined
    ) return;
    this.#open.splice(this.#open.indexOf(entry), 1);
    this.report({
      event: "checkpoint",
      atMs: Date.now(),
      epoch,
      pauseMs,
      dirtyPages,
      ramBytes: dirtyPages * PAGE_BYTES,
      wireBytes,
      pages,
      replicated,
      micro,
      cause: entry.cause,
    });
  }
}
