/**
 * A directory in memory that can fail at any step and lose power at any moment.
 *
 * Each file, and the directory itself, has what is on disk for certain (synced) and what is not yet.
 */

import { StoreError } from "../../engine/errors.ts";
import type { ReadableFile, StoreFiles, WritableFile } from "../../engine/store/files.ts";

interface Inode {
  bytes: Uint8Array<ArrayBuffer>;
  synced: Uint8Array<ArrayBuffer>;
}

/** Thrown where a step was made to fail. */
export class InjectedFault extends Error {}

/** What becomes of a step that fails half-way. */
export type FaultKind = "before" | "half" | "after";

/** What becomes of that which was not synced: a file system may do things in another order. */
export type Crash = "nothing lost" | "all lost" | "all but removals lost";

export class MemoryFiles implements StoreFiles {
  #names = new Map<string, Inode>();
  #syncedNames = new Map<string, Inode>();
  /** Names that were removed since the last sync. */
  #removed: string[] = [];
  #locked = false;
  /** Steps that changed something. */
  steps = 0;
  #failAt = Infinity;
  #kind: FaultKind = "before";

  /** Fail at step `step`, counted from now on, and at all after it: the machine has stopped. */
  failAt(step: number, kind: FaultKind): void {
    this.#failAt = this.steps + step;
    this.#kind = kind;
  }

  /** The directory as it is found after the machine has stopped. */
  afterCrash(crash: Crash): MemoryFiles {
    const found = new MemoryFiles();
    const lost = crash !== "nothing lost";
    const names = new Map(lost ? this.#syncedNames : this.#names);
    if (crash === "all but removals lost") { for (const name of this.#removed) names.delete(name); }
    for (const [name, inode] of names) {
      const bytes = lost ? inode.synced : inode.bytes;
      const copy = { bytes: bytes.slice(), synced: bytes.slice() };
      found.#names.set(name, copy);
      found.#syncedNames.set(name, copy);
    }
    return found;
  }

  get(name: string): Uint8Array<ArrayBuffer> {
    const inode = this.#names.get(name);
    if (inode === undefined) throw new Error(`no file ${name}`);
    return inode.bytes;
  }

  set(name: string, bytes: Uint8Array<ArrayBuffer>): void {
    this.#names.set(name, { bytes, synced: bytes });
  }

  list(): string[] {
    return [...this.#names.keys()].sort();
  }

  open(name: string): ReadableFile | undefined {
    const inode = this.#names.get(name);
    if (inode === undefined) return undefined;
    const { bytes } = inode;
    return {
      sizeBytes: bytes.length,
      read: (offset, target) => {
        const part = bytes.subarray(offset, offset + target.length);
        if (part.length < target.length) throw new StoreError("Cannot read on: the file ends");
        target.set(part);
      },
      close: () => {},
    };
  }

  create(name: string): WritableFile {
    const inode: Inode = { bytes: new Uint8Array(0), synced: new Uint8Array(0) };
    this.#step(() => this.#names.set(name, inode));
    return {
      write: (bytes) => {
        const append = (part: Uint8Array) => {
          const longer = new Uint8Array(inode.bytes.length + part.length);
          longer.set(inode.bytes);
          longer.set(part, inode.bytes.length);
          inode.bytes = longer;
        };
        this.#step(() => append(bytes), () => append(bytes.subarray(0, bytes.length >> 1)));
      },
      sync: () => this.#step(() => inode.synced = inode.bytes),
      close: () => {},
    };
  }

  rename(from: string, to: string): void {
    this.#step(() => {
      const inode = this.#names.get(from);
      if (inode === undefined) throw new Error(`no file ${from}`);
      this.#names.delete(from);
      this.#names.set(to, inode);
    });
  }

  remove(name: string): void {
    this.#step(() => {
      this.#names.delete(name);
      this.#removed.push(name);
    });
  }

  syncDirectory(): void {
    this.#step(() => {
      this.#syncedNames = new Map(this.#names);
      this.#removed = [];
    });
  }

  lock(): Disposable {
    if (this.#locked) throw new StoreError("Cannot change the store: it is in use");
    this.#locked = true;
    return { [Symbol.dispose]: () => void (this.#locked = false) };
  }

  #step(work: () => void, half: () => void = () => {}): void {
    this.steps++;
    if (this.steps < this.#failAt) return work();
    if (this.steps === this.#failAt) {
      if (this.#kind === "after") work();
      if (this.#kind === "half") half();
    }
    throw new InjectedFault(`step ${this.steps}`);
  }
}
