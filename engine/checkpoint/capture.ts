/**
 * The COLO secondary that a primary QEMU sees: takes the initial stream into a mirror, and then one
 * checkpoint after another.
 *
 * ```text
 *   accept(), initial stream         request         reply()         the guest stops     whole
 *  initial ----------------> idle ----------> asked -------> replied -----------> sending ----> whole
 *                             ^                                                                   |
 *                             +--------------------------- acknowledge() -------------------------+
 * ```
 *
 * A whole checkpoint stays in the staging area, apart from the mirror, until its owner decides what
 * becomes of it: {@linkcode Capture.beginDelta} for a secondary, {@linkcode Capture.absorb} without one.
 * The primary may be acknowledged before or after, and is let begin the next one only when the staging
 * area is free. A checkpoint too large for it flows into the mirror early, marked as missing on the
 * secondary. While a checkpoint arrives or goes into the mirror {@linkcode Capture.consistent} is false.
 *
 * Pure: bytes in, events and bytes out.
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { StateError, StreamError } from "../errors.ts";
import type { ColoMessage, PlacedBlock } from "../stream/format.ts";
import { StreamReader } from "../stream/reader.ts";
import type { StreamEvent } from "../stream/reader.ts";
import { shut } from "../stream/return_path.ts";
import type { StagingOptions } from "../stream/staging.ts";
import { coloMessage } from "../stream/writer.ts";
import { Mirror, type MirrorOptions, type PageTable } from "./mirror.ts";

/** What a primary QEMU has done. */
export type CaptureEvent =
  /** The initial stream is in the mirror: checkpoint 0. */
  | { readonly type: "initial" }
  /** The primary asks for a checkpoint; it runs on until {@linkcode Capture.reply}. */
  | { readonly type: "request" }
  /** The primary stands still for its next checkpoint, which is on its way. */
  | { readonly type: "stopped"; readonly epoch: number }
  /** A checkpoint has arrived as a whole; the primary stands still until it is acknowledged. */
  | { readonly type: "whole"; readonly epoch: number; readonly pages: number };

/** How far a capture is. */
export type CaptureState = "initial" | "idle" | "asked" | "replied" | "sending" | "whole";

/** Sizes of a capture. */
export interface CaptureOptions extends MirrorOptions {
  readonly staging?: StagingOptions;
}

/**
 * A secondary keeps what it resumes with apart until all of it is there, unlike a seed of everything: more
 * than this share of the guest is not worth that.
 */
const RESUMED_SHARE_MAX = 0.5;

/** The capture of one primary QEMU, over one connection. */
export class Capture {
  readonly reader: StreamReader;
  readonly #kernels: KernelSet;
  readonly #options: CaptureOptions;
  #mirror: Mirror | undefined;
  #state: CaptureState = "initial";
  #machine = "";
  #deviceState = new Uint8Array(0);
  #stagedDeviceState = new Uint8Array(0);
  /** A whole checkpoint waits in the staging area. */
  #staged = false;
  /** Pages of it are going into the mirror. */
  #absorbing = false;
  /** Pages of the checkpoint at hand that went into the mirror early. */
  #early = 0;
  #epoch = 0;
  /** The checkpoint of which a secondary held everything last; that at the beginning is known as well. */
  #heldEpoch = 0;

  constructor(kernels: KernelSet, options: CaptureOptions) {
    this.#kernels = kernels;
    this.#options = options;
    this.reader = new StreamReader(kernels, options.staging);
  }

  get state(): CaptureState {
    return this.#state;
  }

  /** Number of the last whole checkpoint; 0 is the initial stream. */
  get epoch(): number {
    return this.#epoch;
  }

  /** Versioned machine name of the primary, such as `pc-i440fx-11.1`. */
  get machine(): string {
    return this.#machine;
  }

  get blocks(): readonly PlacedBlock[] {
    return this.mirror.blocks;
  }

  /** @throws {StateError} before the block list has come */
  get mirror(): Mirror {
    if (this.#mirror === undefined) {
      throw new StateError("Cannot use the mirror", "initial", "idle");
    }
    return this.#mirror;
  }

  /** Device state that belongs to what the mirror holds. */
  get deviceState(): Uint8Array<ArrayBuffer> {
    return this.#deviceState;
  }

  /** True when the mirror and the device state are one checkpoint, and no other is arriving. */
  get consistent(): boolean {
    return !["initial", "replied", "sending"].includes(this.#state) && this.#early === 0 &&
      !this.#absorbing && this.#deviceState.length > 0;
  }

  /** Whether mirror and device state are one checkpoint, once no more of the next one will arrive. */
  get restorable(): boolean {
    return this.#early === 0 && !this.#absorbing && this.#deviceState.length > 0;
  }

  /** Device state of the whole checkpoint that is still staged. */
  get stagedDeviceState(): Uint8Array<ArrayBuffer> {
    return this.#stagedDeviceState;
  }

  /** Where the primary's next bytes go; tell how many came with {@linkcode received}. */
  space(): Uint8Array {
    return this.reader.staging.space();
  }

  /**
   * `count` bytes have been written to {@linkcode space}.
   *
   * @throws {StreamError} when they are no COLO stream; the capture is of no further use, and the
   * primary must be told to go on alone (`x-colo-lost-heartbeat`)
   */
  received(count: number): CaptureEvent[] {
    const events: CaptureEvent[] = [];
    let read = this.reader.received(count);
    while (true) {
      for (const event of read) this.#take(event, events);
      // The pages of a whole checkpoint are no longer ours to move.
      if (read.at(-1)?.type !== "staging-full" || this.#staged) break;
      this.#takeEarly();
      read = this.reader.resume();
    }
    if (this.#state === "initial" && this.#mirror !== undefined) this.#drain();
    return events;
  }

  /**
   * QEMU has entered COLO, so that its initial stream is out, and no more of it is on its way.
   *
   * @returns `initial`, unless the stream had a mark at its end, or what has come does not look like one
   */
  entered(): CaptureEvent[] {
    const events: CaptureEvent[] = [];
    for (const event of this.reader.finishInitial()) this.#take(event, events);
    return events;
  }

  #take(event: StreamEvent, events: CaptureEvent[]): void {
    switch (event.type) {
      case "configuration":
        this.#machine = event.machine;
        break;
      case "blocks":
        this.#mirror = new Mirror(event.blocks, this.#kernels, this.#options);
        break;
      case "device-state":
        if (this.#state === "initial") {
          this.#drain();
          this.#deviceState = event.deviceState;
          this.#state = "idle";
          events.push({ type: "initial" });
        } else {
          this.#stagedDeviceState = event.deviceState;
          this.#state = "whole";
          this.#staged = true;
          this.reader.staging.keepPages();
          this.#epoch++;
          const pages = this.#early + this.reader.staging.pageCount;
          events.push({ type: "whole", epoch: this.#epoch, pages });
        }
        break;
      case "xbzrle":
        throw new StreamError(
          "Cannot take a page as its change: switch the migration capability `xbzrle` off",
          this.reader.offset,
        );
      case "colo": {
        if (this.#state !== dueState(event.message)) {
          throw new StreamError(
            `Cannot take a checkpoint: QEMU said ${event.message} while it was ${this.#state}`,
            event.offset,
          );
        }
        if (event.message === "checkpoint-request") {
          this.#state = "asked";
          events.push({ type: "request" });
        } else if (event.message === "vmstate-send") {
          this.#state = "sending";
          events.push({ type: "stopped", epoch: this.#epoch + 1 });
        }
        break;
      }
    }
  }

  /**
   * Take whatever the primary will send in its initial stream. At the end of that it enters COLO, and says
   * so over QMP (`MIGRATION` event, status `colo`).
   */
  accept(): Uint8Array<ArrayBuffer> {
    this.#require("initial");
    return shut();
  }

  /** Let the primary begin; it takes this only after it has entered COLO. */
  ready(): Uint8Array<ArrayBuffer> {
    this.#require("idle");
    return coloMessage("checkpoint-ready");
  }

  /**
   * Let the primary take the checkpoint that it asked for: it stops now.
   *
   * @throws {StateError} while the last checkpoint is still staged, or when none was asked for
   */
  reply(): Uint8Array<ArrayBuffer> {
    this.#require("asked");
    if (this.#staged) throw new StateError("Cannot begin a checkpoint", "staged", "taken");
    this.#state = "replied";
    return coloMessage("checkpoint-reply");
  }

  /** Let the primary run again. The checkpoint stays staged if it has not been taken yet. */
  acknowledge(): Uint8Array<ArrayBuffer>[] {
    this.#require("whole");
    this.#state = "idle";
    return [coloMessage("vmstate-received"), coloMessage("vmstate-loaded")];
  }

  /**
   * Take the staged checkpoint on its way to a secondary: encode the {@linkcode Mirror.deltaJobs} of
   * its pages, then call {@linkcode endDelta}; or call {@linkcode absorb}. All its pages count as missing
   * until the secondary has committed them ({@linkcode Mirror.clearMissing}).
   *
   * Pages that went into the mirror early cannot be compared any more, and are missing already: let the
   * secondary have them first ({@linkcode Mirror.missingJobs}).
   *
   * @returns The staged pages, and whether one of them comes twice, so that their order matters
   * @throws {StateError} when no checkpoint is staged
   */
  beginDelta(): { readonly pages: PageTable; readonly ordered: boolean } {
    if (!this.#staged) throw new StateError("Cannot encode a checkpoint", "taken", "staged");
    this.#absorbing = true;
    const { mirror } = this;
    const pages = this.reader.staging;
    mirror.markMissing(pages);
    return { pages, ordered: mirror.hasTwice(pages) };
  }

  /** A secondary holds all of checkpoint `epoch`, which is the one in the mirror. */
  held(epoch: number): void {
    this.mirror.clearMissing();
    this.#heldEpoch = epoch;
  }

  /**
   * Whether a secondary that holds a checkpoint of this capture's lacks only what is known to have changed
   * since ({@linkcode Mirror.markUnheldMissing}), and not so much that everything is sent as well.
   */
  canResume(epoch: number): boolean {
    const { pages, unheldPages } = this.mirror;
    return epoch >= this.#heldEpoch && epoch <= this.#epoch &&
      unheldPages <= pages * RESUMED_SHARE_MAX;
  }

  /** Pages of the staged checkpoint went into the mirror early. */
  get hasEarlyPages(): boolean {
    return this.#staged && this.#early > 0;
  }

  /** The staged checkpoint has been encoded to its end. */
  endDelta(): void {
    this.#commit();
  }

  /** Take the staged checkpoint into the mirror; its pages count as missing on the secondary. */
  absorb(): void {
    this.#drain();
    this.#commit();
  }

  #commit(): void {
    this.reader.staging.releasePages();
    this.#early = 0;
    this.#staged = false;
    this.#absorbing = false;
    if (this.#stagedDeviceState.length > 0) this.#deviceState = this.#stagedDeviceState;
    this.#stagedDeviceState = new Uint8Array(0);
  }

  #takeEarly(): void {
    if (this.#state !== "initial") this.#early += this.reader.staging.pageCount;
    this.#drain();
  }

  #drain(): void {
    const { staging } = this.reader;
    if (staging.pageCount === 0) return;
    this.mirror.absorb(staging);
    this.mirror.markMissing(staging);
    staging.releasePages();
  }

  #require(state: CaptureState): void {
    if (this.#state !== state) {
      throw new StateError("Cannot go on with the checkpoint", this.#state, state);
    }
  }
}

/** The state in which QEMU may say something. */
function dueState(message: ColoMessage): CaptureState {
  if (message === "checkpoint-request") return "idle";
  return message === "vmstate-send" ? "replied" : "sending";
}
