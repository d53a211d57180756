/**
 * The last checkpoint of a guest, kept in files so that neither the end of this process nor one in the
 * middle of taking the next checkpoint harms it.
 *
 * ```text
 *  image-N     the guest's memory: see guest_image.ts
 *  state-N     epoch, machine, RAM blocks, device state; without it the image is no checkpoint
 *  journal-N   the checkpoint that is arriving, or goes into the image: see journal.ts
 *  taken-N     in place of state-N: a QEMU was let run on the image, which has lost its name since
 *
 *  seed:        image-N+1 <- pages;  state-N+1 replaced;  files of N removed
 *  checkpoint:  journal-N <- records, device state, commit;  image-N <- records;  state-N replaced
 * ```
 *
 * Each arrow may be cut anywhere. A checkpoint exists from the commit of its journal on, and until then
 * the last one does: {@linkcode ImageStore.recover} applies a whole journal once more (records set
 * bytes, they do not add to them) and forgets one that is not whole.
 *
 * What was written survives the process, not the machine: nothing is synced to a disk.
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { LocalProtocolError } from "../errors.ts";
import { IMAGE_STATE_BYTES_MAX } from "../limits.ts";
import type { RamBlock } from "../stream/format.ts";
import { type ImageFile, type ImageFiles, readFile, replaceFile } from "./files.ts";
import { GuestImage } from "./guest_image.ts";
import { Journal } from "./journal.ts";
import { Scratch } from "./scratch.ts";
import { decodeState, encodeState, type StoredState } from "./state.ts";

/** A checkpoint that is held. */
export interface HeldCheckpoint {
  /** Of the primary's capture; empty where it is not known. */
  readonly lineage: string;
  readonly epoch: number;
  /** Versioned machine name, such as `pc-i440fx-11.1`. */
  readonly machine: string;
  /** In the order of the primary. */
  readonly blocks: readonly RamBlock[];
  readonly deviceState: Uint8Array<ArrayBuffer>;
  /** Name of the file with its memory. */
  readonly imageName: string;
}

/** What {@linkcode ImageStore.recover} has found. */
export type Recovery =
  | { readonly type: "nothing" }
  /** `mended`: the last checkpoint was on its way into the image. */
  | { readonly type: "held"; readonly checkpoint: HeldCheckpoint; readonly mended: boolean }
  /** The VM was let run from the checkpoint by this process, and the checkpoint is no more. */
  | { readonly type: "taken"; readonly pid: number };

/** What is known of a guest when its seed begins. */
export type SeededGuest = Pick<HeldCheckpoint, "lineage" | "machine" | "blocks">;

/** The image, journal and description of one seed. */
interface Generation {
  readonly number: number;
  readonly lineage: string;
  readonly image: GuestImage;
  readonly journal: Journal;
  readonly machine: string;
  readonly blocks: readonly RamBlock[];
}

/** Keeps one guest. */
export class ImageStore {
  readonly #files: ImageFiles;
  readonly #scratch: Scratch;
  #current: (Generation & { state: StoredState }) | undefined;
  #seed: Generation | undefined;
  #lastNumber = 0;
  /** Whether the journal is being written. */
  #journaling = false;

  /** @param kernels Of which some MiB are taken for good */
  constructor(files: ImageFiles, kernels: KernelSet) {
    this.#files = files;
    this.#scratch = new Scratch(kernels);
  }

  /** Find what an earlier process has left; the rest of it is removed. */
  recover(): Recovery {
    const names = this.#files.list();
    const taken = names.map((name) => numberOf("taken", name)).find((found) => found !== undefined);
    if (taken !== undefined) {
      const pid = Number(new TextDecoder().decode(readFile(this.#files, `taken-${taken}`, 64)));
      return { type: "taken", pid };
    }
    const numbers = names.map((name) => numberOf("state", name)).filter((found) =>
      found !== undefined
    );
    let mended = false;
    for (const number of numbers.sort((a, b) => b - a)) {
      const found = this.#open(number);
      if (found === undefined) continue;
      this.#current = found;
      this.#lastNumber = number;
      mended = this.#applyJournal() !== undefined;
      break;
    }
    this.#removeAllBut(this.#current?.number);
    const checkpoint = this.held;
    return checkpoint === undefined ? { type: "nothing" } : { type: "held", checkpoint, mended };
  }

  /** The checkpoint that is whole. */
  get held(): HeldCheckpoint | undefined {
    if (this.#current === undefined) return undefined;
    const { number, state } = this.#current;
    const { lineage, epoch, machine, blocks, deviceState } = state;
    return { lineage, epoch, machine, blocks, deviceState, imageName: `image-${number}` };
  }

  /** The memory of the checkpoint that is held. */
  get image(): GuestImage {
    return this.#require().image;
  }

  /**
   * Begin with a seed, beside what is held.
   *
   * @returns Name of the file that its memory will be in
   */
  seedBegin(guest: SeededGuest): string {
    this.seedDrop();
    const number = ++this.#lastNumber;
    const create = (kind: string) => this.#files.create(`${kind}-${number}`);
    this.#seed = this.#generation(number, guest, create("image"), create("journal"));
    return `image-${number}`;
  }

  /**
   * Pages of the seed.
   *
   * @throws {WireError} when they are no pages of this guest
   */
  seedPages(chunk: Uint8Array): void {
    const { image } = this.#requireSeed();
    image.check(chunk);
    image.apply(chunk);
  }

  /** The seed is whole: it is what is held from now on. */
  seedCommit(epoch: number, deviceState: Uint8Array<ArrayBuffer>): void {
    const seed = this.#requireSeed();
    const { lineage, machine, blocks } = seed;
    const state = { lineage, epoch, sequence: 0, machine, blocks, deviceState };
    replaceFile(this.#files, `state-${seed.number}`, encodeState(state, this.#scratch));
    this.#close(this.#current);
    this.#current = { ...seed, state };
    this.#seed = undefined;
    this.#journaling = false;
    this.#removeAllBut(seed.number);
  }

  /** Forget a seed that will not become whole. */
  seedDrop(): void {
    if (this.#seed === undefined) return;
    this.#close(this.#seed);
    this.#seed = undefined;
    this.#removeAllBut(this.#current?.number);
  }

  /**
   * Records of the checkpoint that is arriving.
   *
   * @throws {WireError} when they are no pages of this guest; the checkpoint is to be dropped
   */
  append(chunk: Uint8Array): void {
    const { image, journal, state } = this.#require();
    image.check(chunk);
    if (!this.#journaling) journal.begin(state.sequence + 1);
    this.#journaling = true;
    journal.append(chunk);
  }

  /** The checkpoint is whole: from here on it is what {@linkcode recover} would find. */
  commit(epoch: number, deviceState: Uint8Array): void {
    const { journal, state } = this.#require();
    if (!this.#journaling) journal.begin(state.sequence + 1);
    this.#journaling = false;
    journal.commit(epoch, deviceState);
  }

  /**
   * Take the checkpoint that was committed into the image.
   *
   * @param from The first page of interest
   * @returns Pages of interest that were written
   */
  apply(from = 0): Set<number> {
    const changed = this.#applyJournal(from);
    if (changed === undefined) {
      throw new LocalProtocolError("Cannot apply a checkpoint: its journal is not whole");
    }
    return changed;
  }

  /** Forget the checkpoint that is arriving. */
  drop(): void {
    this.#journaling = false;
  }

  /** A QEMU is about to run on the image: from here on there is no checkpoint to be found. */
  take(pid: number): void {
    const { number } = this.#require();
    replaceFile(this.#files, `taken-${number}`, new TextEncoder().encode(String(pid)));
    this.#files.remove(`state-${number}`);
  }

  /**
   * The QEMU runs: leave nothing but the word of it. What it has mapped it keeps, and that goes when it
   * does, whatever becomes of this process.
   */
  taken(): void {
    this.#forget(this.#current?.number);
  }

  /** Remove everything. */
  discard(): void {
    this.#forget(undefined);
  }

  #forget(takenNumber: number | undefined): void {
    this.#close(this.#current);
    this.#close(this.#seed);
    this.#current = this.#seed = undefined;
    this.#remove((name) => name !== `taken-${takenNumber}`);
  }

  /** @returns Pages that were written, or nothing when no journal waits to be applied */
  #applyJournal(from = 0): Set<number> | undefined {
    const { image, journal, state, number } = this.#require();
    const found = journal.read();
    if (found === undefined || found.sequence <= state.sequence) return undefined;
    const changed = new Set<number>();
    for (const entry of found.pages) image.apply(journal.pages(entry), changed, from);
    const { epoch, sequence, deviceState } = found;
    const next = { ...state, epoch, sequence, deviceState };
    replaceFile(this.#files, `state-${number}`, encodeState(next, this.#scratch));
    this.#require().state = next;
    return changed;
  }

  #open(number: number): (Generation & { state: StoredState }) | undefined {
    const bytes = readFile(this.#files, `state-${number}`, IMAGE_STATE_BYTES_MAX);
    const state = bytes && decodeState(bytes, this.#scratch);
    if (state === undefined) return undefined;
    const [image, journal] = [`image-${number}`, `journal-${number}`].map((name) =>
      this.#files.open(name)
    );
    const { blocks } = state;
    const sizeBytes = blocks.reduce((sum, block) => sum + block.sizeBytes, 0);
    if (image === undefined || journal === undefined || image.sizeBytes !== sizeBytes) {
      image?.close();
      journal?.close();
      return undefined;
    }
    return { ...this.#generation(number, state, image, journal), state };
  }

  #generation(
    number: number,
    { lineage, machine, blocks }: SeededGuest,
    image: ImageFile,
    journal: ImageFile,
  ): Generation {
    return {
      number,
      lineage,
      machine,
      blocks,
      image: new GuestImage(image, blocks, this.#scratch),
      journal: new Journal(journal, this.#scratch),
    };
  }

  #close(generation: Generation | undefined): void {
    generation?.image.close();
    generation?.journal.close();
  }

  #removeAllBut(number: number | undefined): void {
    const kept = ["image", "journal", "state"].map((kind) => `${kind}-${number}`);
    this.#remove((name) => !kept.includes(name));
  }

  /** States go first: an image without one is nothing, and a state without an image would be wrong. */
  #remove(which: (name: string) => boolean): void {
    const names = this.#files.list().filter((name) => FILE_NAME.test(name) && which(name));
    const rank = (name: string) => name.startsWith("state") ? 0 : name.startsWith("taken") ? 2 : 1;
    for (const name of names.sort((a, b) => rank(a) - rank(b))) this.#files.remove(name);
  }

  #require() {
    if (this.#current !== undefined) return this.#current;
    throw new LocalProtocolError("Cannot go on with the checkpoint: none is held");
  }

  #requireSeed(): Generation {
    if (this.#seed !== undefined) return this.#seed;
    throw new LocalProtocolError("Cannot take pages: no seed was begun");
  }
}

const FILE_NAME = /^(image|journal|state|taken)-\d+(\.new)?$/;

function numberOf(kind: string, name: string): number | undefined {
  const match = /^(\w+)-(\d{1,15})$/.exec(name);
  return match?.[1] === kind ? Number(match[2]) : undefined;
}
