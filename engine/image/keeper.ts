/**
 * Keeps a guest's copy on behalf of another thread: takes what it says, in its order, and answers.
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { messageOf, StateError, WireError } from "../errors.ts";
import type { ImageFiles } from "./files.ts";
import type { GuestImage } from "./guest_image.ts";
import { type HeldCheckpoint, ImageStore, type Recovery, type SeededGuest } from "./store.ts";

/** What becomes of a guest's copy. */
export type ImageCommand =
  | { readonly type: "seed-begin" } & SeededGuest
  | { readonly type: "seed-pages"; readonly chunk: Uint8Array }
  | { readonly type: "seed-commit"; readonly epoch: number; readonly deviceState: Uint8Array }
  | { readonly type: "seed-drop" }
  /** Records of the next checkpoint. */
  | { readonly type: "pages"; readonly chunk: Uint8Array }
  | { readonly type: "commit"; readonly epoch: number; readonly deviceState: Uint8Array }
  | { readonly type: "drop" };

/** What the keeper is told. */
export type ToKeeper =
  | ImageCommand
  | { readonly type: "recover" }
  /**
   * A fresh QEMU wants the pages of what is in this file, as soon as that is held, and then what
   * changes of them. It takes the place of the one before it.
   */
  | {
    readonly type: "feed";
    readonly feeding: number;
    readonly imageName: string;
    readonly shared: boolean;
  }
  /** It has written what it was given, and wants more. */
  | { readonly type: "feed-next" }
  /** The QEMU with this process id is about to run. */
  | { readonly type: "take"; readonly pid: number }
  /** It runs. */
  | { readonly type: "taken" }
  | { readonly type: "discard" };

/** What a QEMU stands by for. */
export type Target = Pick<HeldCheckpoint, "imageName" | "machine" | "blocks">;

/** What the keeper answers. */
export type FromKeeper =
  | { readonly type: "recovered"; readonly recovery: Recovery }
  /** What a QEMU is to stand by for from now on; it may not be whole yet. */
  | { readonly type: "target"; readonly target: Target | undefined }
  /** The checkpoint survives this process. */
  | { readonly type: "stored"; readonly epoch: number }
  /** The checkpoint is in the image. */
  | { readonly type: "applied"; readonly epoch: number }
  /** Pages for the QEMU; `more`: ask for the next when these have been written. */
  | {
    readonly type: "fed";
    readonly feeding: number;
    readonly chunk: Uint8Array;
    readonly more: boolean;
  }
  /** The QEMU has all that it is not to look up in the file itself. */
  | { readonly type: "fed-all"; readonly feeding: number }
  | { readonly type: "taken"; readonly checkpoint: HeldCheckpoint }
  /** So many bytes of pages do not wait any more. */
  | { readonly type: "done"; readonly bytes: number }
  /** The primary's fault: nothing of its checkpoint is kept. */
  | { readonly type: "refused"; readonly reason: string; readonly offset: number }
  /** Nothing more can be kept here; what is held stays as it is. */
  | { readonly type: "failed"; readonly reason: string };

/** The QEMU that is fed. */
interface Fed {
  readonly feeding: number;
  /** The first page that it must be told. */
  readonly from: number;
  /** What is left of the first round, if that is not over. */
  first: Generator<Uint8Array, void> | undefined;
}

/** Keeps one guest. */
export class ImageKeeper {
  readonly #store: ImageStore;
  readonly #answer: (answer: FromKeeper) => void;
  #fed: Fed | undefined;
  #wanted: Extract<ToKeeper, { type: "feed" }> | undefined;
  /** Records of what is arriving were wrong. */
  #refused = false;

  /** @param answer Called any number of times for each thing told */
  constructor(files: ImageFiles, kernels: KernelSet, answer: (answer: FromKeeper) => void) {
    this.#store = new ImageStore(files, kernels);
    this.#answer = answer;
  }

  /** Do as told. Never throws: what fails is answered. */
  tell(command: ToKeeper): void {
    try {
      this.#do(command);
    } catch (error) {
      if (error instanceof WireError) {
        this.#refused = true;
        this.#answer({ type: "refused", reason: error.message, offset: error.offset });
      } else {
        const reason = `Cannot keep the guest's memory: ${messageOf(error)}`;
        this.#answer({ type: "failed", reason });
      }
    }
    if ("chunk" in command) this.#answer({ type: "done", bytes: command.chunk.length });
  }

  #do(command: ToKeeper): void {
    const store = this.#store;
    switch (command.type) {
      case "recover":
        this.#answer({ type: "recovered", recovery: store.recover() });
        return this.#answer({ type: "target", target: store.held });
      case "seed-begin": {
        this.#refused = false;
        const { machine, blocks } = command;
        const imageName = store.seedBegin(command);
        return this.#answer({ type: "target", target: { imageName, machine, blocks } });
      }
      case "seed-pages":
        if (!this.#refused) store.seedPages(command.chunk);
        return;
      case "seed-commit":
        if (this.#refused) return;
        store.seedCommit(command.epoch, Uint8Array.from(command.deviceState));
        this.#answer({ type: "stored", epoch: command.epoch });
        this.#answer({ type: "applied", epoch: command.epoch });
        return this.#feed();
      case "seed-drop":
        this.#refused = false;
        store.seedDrop();
        return this.#answer({ type: "target", target: store.held });
      case "pages":
        if (!this.#refused) store.append(command.chunk);
        return;
      case "commit":
        if (!this.#refused) this.#commit(command.epoch, command.deviceState);
        return;
      case "drop":
        this.#refused = false;
        return store.drop();
      case "feed":
        this.#fed = undefined;
        this.#wanted = command;
        return this.#feed();
      case "feed-next":
        return this.#feedNext();
      case "take": {
        const checkpoint = store.held;
        if (checkpoint === undefined) throw new StateError("Cannot take over", "empty", "held");
        store.take(command.pid);
        return this.#answer({ type: "taken", checkpoint });
      }
      case "taken":
        return store.taken();
      case "discard":
        return store.discard();
    }
  }

  #commit(epoch: number, deviceState: Uint8Array): void {
    this.#store.commit(epoch, deviceState);
    this.#answer({ type: "stored", epoch });
    const fed = this.#fed;
    const changed = this.#store.apply(fed?.from ?? Infinity);
    if (fed !== undefined && changed.size > 0) {
      const pages = [...changed].sort((a, b) => a - b);
      for (const chunk of this.#store.image.records(pages, true)) {
        this.#answer({ type: "fed", feeding: fed.feeding, chunk, more: false });
      }
    }
    this.#answer({ type: "applied", epoch });
  }

  /** Begin to feed the QEMU that is waiting, if what it wants is held. */
  #feed(): void {
    const wanted = this.#wanted;
    if (wanted === undefined || this.#store.held?.imageName !== wanted.imageName) return;
    this.#wanted = undefined;
    const { image } = this.#store;
    const from = wanted.shared ? image.mainPages : 0;
    this.#fed = { feeding: wanted.feeding, from, first: firstRound(image, from) };
    this.#feedNext();
  }

  #feedNext(): void {
    const fed = this.#fed;
    if (fed?.first === undefined) return;
    const { done, value: chunk } = fed.first.next();
    if (!done) return this.#answer({ type: "fed", feeding: fed.feeding, chunk, more: true });
    fed.first = undefined;
    this.#answer({ type: "fed-all", feeding: fed.feeding });
  }
}

/** All pages from one on. The main memory of a fresh QEMU is zero, other blocks may hold a ROM. */
function* firstRound(image: GuestImage, from: number): Generator<Uint8Array, void> {
  yield* image.records(pagesBetween(from, image.mainPages), false);
  yield* image.records(pagesBetween(image.mainPages, image.pages), true);
}

function* pagesBetween(from: number, to: number): Generator<number, void> {
  for (let page = from; page < to; page++) yield page;
}
