/**
 * Checkpoints in a directory: saved, listed, opened, deleted.
 *
 * A checkpoint is one file, `NAME.colo`, that is complete from the moment it has its name: it is written
 * under a temporary one, synced, renamed, and then the directory is synced. Whatever interrupts that
 * leaves the checkpoints that were there before. Each but the first of a VM has only what differs from
 * the one before it, so together they are a chain. Deleting one of the middle folds it into the next.
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { StoreError } from "../errors.ts";
import type { RamBlock } from "../stream/format.ts";
import { Chain, CheckpointFile } from "./chain.ts";
import { type CheckpointMoment, CheckpointWriter, type PageSource } from "./checkpoint_writer.ts";
import type { StoreFiles } from "./files.ts";
import {
  checkName,
  type CheckpointMetadata,
  mainBlock,
  placeBlocks,
  sameLayout,
} from "./metadata.ts";
import { PageHashes } from "./page_hashes.ts";
import { Checksum } from "./sealed_file.ts";

const SUFFIX = ".colo";
const PARTIAL_SUFFIX = ".partial";

/** A checkpoint in a list. */
export interface StoredCheckpoint {
  readonly name: string;
  readonly sizeBytes: number;
  /** Absent where the file is damaged. */
  readonly metadata?: CheckpointMetadata;
  /** Why the file cannot be read. */
  readonly damage?: string;
}

/** What is to be saved. */
export interface SaveRequest {
  readonly name: string;
  /** Name of the VM. */
  readonly vm: string;
  readonly machine: string;
  readonly blocks: readonly RamBlock[];
  /** A UUID that no checkpoint has. */
  readonly id: string;
}

/** A checkpoint that has been saved. */
export interface SavedCheckpoint extends StoredCheckpoint {
  readonly metadata: CheckpointMetadata;
}

/** What the last save of this process has left in memory. */
interface Known {
  readonly id: string;
  readonly hashes: PageHashes;
}

/**
 * One store.
 *
 * @example Save a guest, and read what was saved
 * ```ts
 * import { WasmKernels } from "../../wasm/mod.ts";
 * import { CheckpointStore, DirectoryFiles } from "./mod.ts";
 *
 * const directory = await Deno.makeTempDir();
 * const store = new CheckpointStore(new DirectoryFiles(directory), () => WasmKernels.create());
 * const ram = new Uint8Array(2 * 4096).fill(7, 4096);
 * const blocks = [{ name: "pc.ram", sizeBytes: ram.length }];
 * const guest = { vm: "web1", machine: "pc-i440fx-11.1", blocks };
 * {
 *   using save = store.beginSave({ name: "first", id: crypto.randomUUID(), ...guest });
 *   const read = (firstPage: number, count: number, target: Uint8Array) =>
 *     target.set(ram.subarray(firstPage * 4096, (firstPage + count) * 4096));
 *   save.pass({ read }, true);
 *   save.commit({ epoch: 1, savedAtMs: Date.now(), deviceState: Uint8Array.of(0) });
 * }
 *
 * const chain = store.open("first");
 * const pages = [...chain.pages()].map(({ page }) => page);
 * chain.close();
 * await Deno.remove(directory, { recursive: true });
 * if (pages.join() !== "1") throw new Error("the page that is zero is not stored");
 * ```
 */
export class CheckpointStore {
  readonly #files: StoreFiles;
  readonly #createKernels: () => KernelSet;
  #known: Known | undefined;

  /** @param createKernels Makes a memory to work in; one is needed for each thing that is done */
  constructor(files: StoreFiles, createKernels: () => KernelSet) {
    this.#files = files;
    this.#createKernels = createKernels;
  }

  /** All checkpoints, in the order in which they were saved; damaged ones last. */
  list(): StoredCheckpoint[] {
    const kernels = this.#createKernels();
    const checksum = new Checksum(kernels);
    const entries = this.#names().flatMap((name): StoredCheckpoint[] => {
      const file = this.#files.open(name + SUFFIX);
      // It has been deleted since the directory was read.
      if (file === undefined) return [];
      const { sizeBytes } = file;
      try {
        const opened = new CheckpointFile(name, file, checksum);
        opened.close();
        return [{ name, sizeBytes, metadata: opened.metadata }];
      } catch (error) {
        if (!(error instanceof StoreError)) throw error;
        return [{ name, sizeBytes, damage: error.message }];
      }
    });
    return entries.sort(bySequence);
  }

  /**
   * Open a checkpoint with all that it needs. Close it afterwards.
   *
   * @throws {StoreError} when it does not exist, or what it needs is damaged or missing
   */
  open(name: string): Chain {
    const kernels = this.#createKernels();
    return this.#open(name, kernels, new Checksum(kernels));
  }

  #open(name: string, kernels: KernelSet, checksum: Checksum): Chain {
    checkName(name);
    const entries = this.list();
    const files: CheckpointFile[] = [];
    try {
      for (let next: string | undefined = name; next !== undefined;) {
        const file = this.#files.open(next + SUFFIX);
        if (file === undefined) throw new StoreError(`Cannot find checkpoint ${next}`);
        const opened: CheckpointFile = new CheckpointFile(next, file, checksum);
        files.unshift(opened);
        next = parentOf(opened, entries, files)?.name;
      }
      return new Chain(files, kernels, checksum);
    } catch (error) {
      for (const file of files) file.close();
      throw error;
    }
  }

  /**
   * Read a checkpoint, and all that it needs, to the last byte.
   *
   * @throws {StoreError} when anything is damaged or missing
   */
  verify(name: string): void {
    const chain = this.open(name);
    try {
      for (const file of chain.files) file.verify();
      for (const _ of chain.pages());
      chain.deviceState();
    } finally {
      chain.close();
    }
  }

  /**
   * Begin to save. Nobody else can change the store before the save is disposed of.
   *
   * @throws {StoreError} when the name is taken, or the store is in use
   */
  beginSave(request: SaveRequest): CheckpointSave {
    checkName(request.name);
    const lock = this.#files.lock();
    try {
      return this.#beginSave(request, lock);
    } catch (error) {
      lock[Symbol.dispose]();
      throw error;
    }
  }

  #beginSave(request: SaveRequest, lock: Disposable): CheckpointSave {
    const { name, ...facts } = request;
    const entries = this.list();
    if (entries.some((entry) => entry.name === name)) {
      throw new StoreError(
        `Cannot save checkpoint ${name}: there is one; delete it or choose a name`,
      );
    }
    this.#removeLeftovers();
    const kernels = this.#createKernels();
    const hashes = new PageHashes(kernels, placeBlocks(request.blocks));
    const parent = this.#adopt(request, entries, hashes);
    return new CheckpointSave({
      files: this.#files,
      name,
      lock,
      kernels,
      hashes,
      facts: {
        ...facts,
        sequence: 1 + Math.max(0, ...entries.map(({ metadata }) => metadata?.sequence ?? 0)),
        parent: parent && { id: parent.id, stateDigest: parent.stateDigest },
      },
      onSaved: () => this.#known = { id: request.id, hashes },
    });
  }

  /**
   * Find what a save is to be a difference from, and learn what that holds.
   *
   * @returns Nothing when there is nothing usable: the save will be a full one
   */
  #adopt(
    request: SaveRequest,
    entries: readonly StoredCheckpoint[],
    hashes: PageHashes,
  ): CheckpointMetadata | undefined {
    const latest = entries.findLast(({ metadata }) => metadata?.vm === request.vm);
    const parent = latest?.metadata;
    if (latest === undefined || parent === undefined || !sameLayout(parent, request)) {
      return undefined;
    }
    try {
      const chain = this.open(latest.name);
      if (this.#known?.id !== parent.id) chain.deviceState();
      (this.#known?.id === parent.id ? this.#known.hashes : chain.hashes).copyTo(hashes);
      chain.close();
      return parent;
    } catch (error) {
      if (!(error instanceof StoreError)) throw error;
      return undefined;
    }
  }

  /**
   * Delete a checkpoint. One that others are differences from is folded into them first, which takes as
   * long as writing them anew.
   *
   * @throws {StoreError} when it does not exist or the store is in use; or it is damaged, and others need
   * it. Nothing is lost then.
   */
  delete(name: string): void {
    checkName(name);
    using _lock = this.#files.lock();
    this.#delete(name, this.list());
  }

  /**
   * Keep the latest checkpoints of a VM, and delete the others as {@linkcode delete} does.
   *
   * @returns Names of those that were deleted
   * @throws {StoreError} when one cannot be deleted, or the store is in use
   */
  retain(vm: string, count: number): string[] {
    using _lock = this.#files.lock();
    const deleted: string[] = [];
    while (true) {
      const entries = this.list();
      const ofVm = entries.filter(({ metadata }) => metadata?.vm === vm);
      const [oldest] = ofVm;
      if (oldest === undefined || ofVm.length <= count) return deleted;
      this.#delete(oldest.name, entries);
      deleted.push(oldest.name);
    }
  }

  #delete(name: string, entries: readonly StoredCheckpoint[]): void {
    const entry = entries.find((candidate) => candidate.name === name);
    if (entry === undefined) {
      throw new StoreError(`Cannot delete checkpoint ${name}: there is none`);
    }
    this.#removeLeftovers();
    const id = entry.metadata?.id;
    const copies = entries.filter(({ metadata }) => id !== undefined && metadata?.id === id);
    if (copies.length <= 1) {
      for (const child of entries) {
        if (id !== undefined && child.metadata?.parent?.id === id) this.#fold(name, child.name);
      }
    }
    this.#files.remove(name + SUFFIX);
    this.#files.syncDirectory();
  }

  /** Write a checkpoint anew so that it does without the one before it. */
  #fold(name: string, into: string): void {
    const kernels = this.#createKernels();
    const checksum = new Checksum(kernels);
    let chain: Chain;
    try {
      chain = this.#open(into, kernels, checksum);
    } catch (error) {
      if (!(error instanceof StoreError)) throw error;
      throw new StoreError(
        `Cannot delete checkpoint ${name}: ${into} is a difference from it, and cannot be put ` +
          `together with it (${error.message}); delete ${into} first`,
      );
    }
    try {
      this.#writeFolded(chain, kernels, checksum);
    } finally {
      chain.close();
    }
  }

  #writeFolded(chain: Chain, kernels: KernelSet, checksum: Checksum): void {
    const { metadata, files, name, blocks } = chain;
    const { id, sequence, vm, machine, epoch, savedAtMs } = metadata;
    const parent = files.at(-2)?.metadata.parent;
    const temporary = name + SUFFIX + PARTIAL_SUFFIX;
    const file = this.#files.create(temporary);
    try {
      const facts = { id, sequence, vm, machine, parent, blocks: metadata.blocks };
      const writer = new CheckpointWriter(file, kernels, checksum, facts, chain.hashes);
      const pages = chain.pages(files.length - 2);
      writer.pages(parent === undefined ? withoutZeros(pages, blocks) : pages);
      writer.finish({ epoch, savedAtMs, deviceState: chain.deviceState() });
    } finally {
      file.close();
    }
    this.#readBack(temporary, files.slice(0, -2));
    this.#files.rename(temporary, name + SUFFIX);
    this.#files.syncDirectory();
  }

  /** Read what is to take the place of others before they go. */
  #readBack(fileName: string, ancestors: readonly CheckpointFile[]): void {
    const kernels = this.#createKernels();
    const checksum = new Checksum(kernels);
    const file = this.#files.open(fileName);
    if (file === undefined) throw new StoreError(`Cannot read ${fileName} back: it is gone`);
    const written = new CheckpointFile(fileName, file, checksum);
    try {
      const chain = new Chain([...ancestors, written], kernels, checksum);
      for (const _ of chain.pages(ancestors.length));
      chain.deviceState();
    } finally {
      written.close();
    }
  }

  #names(): string[] {
    return this.#files.list().filter((name) => name.endsWith(SUFFIX) && !name.startsWith("."))
      .map((name) => name.slice(0, -SUFFIX.length));
  }

  /** What an interrupted save or delete has left; the lock says that none is under way. */
  #removeLeftovers(): void {
    for (const name of this.#files.list()) {
      if (name.endsWith(SUFFIX + PARTIAL_SUFFIX)) this.#files.remove(name);
    }
  }
}

interface SaveParts {
  readonly files: StoreFiles;
  readonly name: string;
  readonly lock: Disposable;
  readonly kernels: KernelSet;
  readonly hashes: PageHashes;
  readonly facts: ConstructorParameters<typeof CheckpointWriter>[3];
  readonly onSaved: () => void;
}

/** A save that is under way. Disposed of before {@linkcode commit} it has never been. */
export class CheckpointSave implements Disposable {
  readonly #parts: SaveParts;
  readonly #file: ReturnType<StoreFiles["create"]>;
  readonly #writer: CheckpointWriter;
  #open = true;
  #saved = false;

  /** For {@linkcode CheckpointStore.beginSave}. */
  constructor(parts: SaveParts) {
    this.#parts = parts;
    const { kernels, facts, hashes } = parts;
    this.#file = parts.files.create(this.#temporary);
    try {
      this.#writer = new CheckpointWriter(
        this.#file,
        kernels,
        new Checksum(kernels),
        facts,
        hashes,
      );
    } catch (error) {
      this.#file.close();
      throw error;
    }
  }

  /** Whether it has all pages, not only what differs from the checkpoint before. */
  get isFull(): boolean {
    return this.#parts.facts.parent === undefined;
  }

  /** See {@linkcode CheckpointWriter.pass}. */
  pass(source: PageSource, last: boolean): number {
    return this.#writer.pass(source, last);
  }

  /** Finish it. When this returns it would survive a loss of power. */
  commit(moment: CheckpointMoment): SavedCheckpoint {
    const { files, name, onSaved } = this.#parts;
    const metadata = this.#writer.finish(moment);
    this.#close();
    files.rename(this.#temporary, name + SUFFIX);
    this.#saved = true;
    files.syncDirectory();
    onSaved();
    const file = files.open(name + SUFFIX);
    file?.close();
    return { name, sizeBytes: file?.sizeBytes ?? 0, metadata };
  }

  [Symbol.dispose](): void {
    try {
      this.#close();
      if (!this.#saved) this.#parts.files.remove(this.#temporary);
    } catch {
      // What is left of it is removed by the next save, and what went wrong has been said.
    } finally {
      this.#parts.lock[Symbol.dispose]();
    }
  }

  get #temporary(): string {
    return this.#parts.name + SUFFIX + PARTIAL_SUFFIX;
  }

  #close(): void {
    if (this.#open) this.#file.close();
    this.#open = false;
  }
}

/** In a full checkpoint, what is zero in a fresh VM is left out. */
function* withoutZeros(pages: ReturnType<Chain["pages"]>, blocks: Chain["blocks"]) {
  const main = mainBlock(blocks);
  for (const stored of pages) {
    const index = stored.page - main.firstPage;
    if (stored.content !== undefined || index < 0 || index >= main.pages) yield stored;
  }
}

function parentOf(
  { name, metadata }: CheckpointFile,
  entries: readonly StoredCheckpoint[],
  chain: readonly CheckpointFile[],
): StoredCheckpoint | undefined {
  if (metadata.parent === undefined) return undefined;
  const { id } = metadata.parent;
  const parent = entries.find((entry) => entry.metadata?.id === id);
  if (parent === undefined) {
    const damaged = entries.filter(({ damage }) => damage !== undefined).map((entry) => entry.name);
    const hint = damaged.length > 0 ? ` (${damaged.join(", ")} cannot be read)` : "";
    throw new StoreError(
      `Cannot read checkpoint ${name}: the one that it is a difference from is missing${hint}`,
    );
  }
  if (chain.some((file) => file.metadata.id === id)) {
    throw new StoreError(`Cannot read checkpoint ${name}: it is a difference from itself`);
  }
  return parent;
}

function bySequence(a: StoredCheckpoint, b: StoredCheckpoint): number {
  const order = ({ metadata }: StoredCheckpoint) => metadata?.sequence ?? Infinity;
  if (order(a) !== order(b)) return order(a) < order(b) ? -1 : 1;
  return a.name < b.name ? -1 : 1;
}
