/**
 * Files that survive the process which writes them, and a process that may end at any step of writing.
 *
 * @module
 */

import type { ImageFile, ImageFiles } from "../../engine/image/files.ts";

/** The process ended here. */
export class Crash extends Error {}

/** What is in a file. */
interface Inode {
  bytes: Uint8Array;
}

/** A directory in memory. */
export class MemoryFiles {
  readonly entries = new Map<string, Inode>();

  /**
   * The directory, as one process sees it.
   *
   * @param stepsMax Changes after which it ends: the last one is done by half, if it can be
   */
  open(stepsMax = Infinity): ProcessFiles {
    return new ProcessFiles(this.entries, stepsMax);
  }
}

/** One process's view. */
export class ProcessFiles implements ImageFiles {
  /** Changes so far. */
  steps = 0;

  constructor(readonly entries: Map<string, Inode>, readonly stepsMax: number) {}

  /** Call before each change; `half` is what is left of it when it is the last. */
  step(half: () => void = () => {}): void {
    if (this.steps > this.stepsMax) throw new Crash();
    if (this.steps++ === this.stepsMax) {
      half();
      throw new Crash();
    }
  }

  list(): string[] {
    return [...this.entries.keys()];
  }

  open(name: string): ImageFile | undefined {
    const inode = this.entries.get(name);
    return inode && new MemoryFile(this, inode);
  }

  create(name: string): ImageFile {
    this.step();
    const inode = { bytes: new Uint8Array(0) };
    this.entries.set(name, inode);
    return new MemoryFile(this, inode);
  }

  rename(from: string, to: string): void {
    this.step();
    this.entries.set(to, this.entries.get(from)!);
    this.entries.delete(from);
  }

  remove(name: string): void {
    if (!this.entries.has(name)) return;
    this.step();
    this.entries.delete(name);
  }
}

class MemoryFile implements ImageFile {
  #closed = false;

  constructor(readonly process: ProcessFiles, readonly inode: Inode) {}

  get sizeBytes(): number {
    return this.inode.bytes.length;
  }

  read(at: number, target: Uint8Array): void {
    this.#requireOpen();
    if (at + target.length > this.sizeBytes) throw new Error("read behind the end");
    target.set(this.inode.bytes.subarray(at, at + target.length));
  }

  write(at: number, bytes: Uint8Array): void {
    this.#requireOpen();
    if (at > this.sizeBytes) throw new Error("written behind the end");
    this.process.step(() => this.#put(at, bytes.subarray(0, bytes.length >> 1)));
    this.#put(at, bytes);
  }

  resize(sizeBytes: number): void {
    this.#requireOpen();
    this.process.step();
    const bytes = new Uint8Array(sizeBytes);
    bytes.set(this.inode.bytes.subarray(0, sizeBytes));
    this.inode.bytes = bytes;
  }

  close(): void {
    this.#requireOpen();
    this.#closed = true;
  }

  #put(at: number, bytes: Uint8Array): void {
    const end = at + bytes.length;
    if (end > this.sizeBytes) {
      const longer = new Uint8Array(end);
      longer.set(this.inode.bytes);
      this.inode.bytes = longer;
    }
    this.inode.bytes.set(bytes, at);
  }

  #requireOpen(): void {
    if (this.#closed) throw new Error("the file is closed");
  }
}
