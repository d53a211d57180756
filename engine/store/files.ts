/**
 * What the store needs of a file system, so that tests can make every single step of it fail.
 *
 * All calls are synchronous: a save runs in a worker of its own, where waiting harms nobody.
 *
 * @module
 */

import { StoreError } from "../errors.ts";

/** A file that is read. */
export interface ReadableFile {
  readonly sizeBytes: number;
  /** Fill `target` with the bytes from `offset` on. Throws when the file has fewer. */
  read(offset: number, target: Uint8Array): void;
  close(): void;
}

/** A file that is written from its beginning to its end. */
export interface WritableFile {
  /** Append all of the bytes. */
  write(bytes: Uint8Array): void;
  /** Return when all that was written would survive a loss of power. */
  sync(): void;
  close(): void;
}

/** One flat directory. A call that fails throws whatever the system says. */
export interface StoreFiles {
  /** Names of all files; none where the directory does not exist. */
  list(): string[];
  /** @returns The file, or nothing where it does not exist */
  open(name: string): ReadableFile | undefined;
  /** Create a file, or empty the one that is there. The directory is made when it does not exist. */
  create(name: string): WritableFile;
  /** Put one file in the place of another, in one step. */
  rename(from: string, to: string): void;
  /** Remove a file, if it is there. */
  remove(name: string): void;
  /** Return when created, renamed and removed names would survive a loss of power. */
  syncDirectory(): void;
  /**
   * Become the only one that changes the directory, until the result is disposed of.
   *
   * @throws {StoreError} when somebody else is
   */
  lock(): Disposable;
}

/** Name of the file that stands for the right to change a directory. It is never removed. */
const LOCK_NAME = ".lock";

/** A directory on disk. */
export class DirectoryFiles implements StoreFiles {
  /** @param directory Its path; it need not exist yet */
  constructor(readonly directory: string) {}

  list(): string[] {
    try {
      return [...Deno.readDirSync(this.directory)].filter(({ isFile }) => isFile)
        .map(({ name }) => name).sort();
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return [];
      throw this.#explain("read", error);
    }
  }

  open(name: string): ReadableFile | undefined {
    try {
      return new DiskReadable(Deno.openSync(this.#path(name)));
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      throw this.#explain("read", error);
    }
  }

  create(name: string): WritableFile {
    this.#makeDirectory();
    return new DiskWritable(
      Deno.openSync(this.#path(name), { write: true, create: true, truncate: true, mode: 0o600 }),
    );
  }

  rename(from: string, to: string): void {
    Deno.renameSync(this.#path(from), this.#path(to));
  }

  remove(name: string): void {
    try {
      Deno.removeSync(this.#path(name));
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  }

  syncDirectory(): void {
    using directory = Deno.openSync(this.directory);
    directory.syncSync();
  }

  lock(): Disposable {
    this.#makeDirectory();
    // A guest's memory lies here: nobody else is to read it.
    const file = Deno.openSync(this.#path(LOCK_NAME), { write: true, create: true, mode: 0o600 });
    // The lock is the kernel's, and goes with the process that held it.
    if (file.tryLockSync(true)) return file;
    file.close();
    throw new StoreError(
      `Cannot change the store ${this.directory}: another save or delete is under way; try again`,
    );
  }

  #makeDirectory(): void {
    try {
      Deno.mkdirSync(this.directory, { recursive: true, mode: 0o700 });
    } catch (error) {
      throw this.#explain("make", error);
    }
  }

  #explain(verb: string, error: unknown): StoreError {
    const detail = error instanceof Error ? error.message : String(error);
    return new StoreError(`Cannot ${verb} the store ${this.directory}: ${detail}`);
  }

  #path(name: string): string {
    return `${this.directory}/${name}`;
  }
}

class DiskReadable implements ReadableFile {
  readonly sizeBytes: number;

  constructor(readonly file: Deno.FsFile) {
    this.sizeBytes = file.statSync().size;
  }

  read(offset: number, target: Uint8Array): void {
    this.file.seekSync(offset, Deno.SeekMode.Start);
    for (let at = 0; at < target.length;) {
      const count = this.file.readSync(target.subarray(at));
      if (count === null) throw new StoreError(`Cannot read on: the file ends at ${offset + at}`);
      at += count;
    }
  }

  close(): void {
    this.file.close();
  }
}

class DiskWritable implements WritableFile {
  constructor(readonly file: Deno.FsFile) {}

  write(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length;) at += this.file.writeSync(bytes.subarray(at));
  }

  sync(): void {
    this.file.syncSync();
  }

  close(): void {
    this.file.close();
  }
}
