/**
 * A directory on disk, or better in memory, with the copy of a guest.
 *
 * @module
 */

import { statfsSync } from "node:fs";
import { createHash } from "node:crypto";
import type { VmConfig } from "../config/mod.ts";
import { messageOf, StoreError } from "../errors.ts";
import type { ImageFile, ImageFiles } from "../image/files.ts";

/** Where there is memory that looks like files. */
const SHARED_MEMORY_DIRECTORY = "/dev/shm";

/** Name of the file that stands for the right to use a directory. */
const LOCK_NAME = "lock";

/** Beyond the guest's memory: other RAM blocks, a journal. */
const SLACK_BYTES = 256 * 1024 * 1024;

/** Where the copy of a guest is kept. */
export interface ImagePlace {
  readonly directory: string;
  /** Whether a QEMU may run on the file itself, so that it is memory. */
  readonly shared: boolean;
  /** Why it is not as it could be. */
  readonly notice?: string;
}

/**
 * Where the copy of this VM is kept: the same at every start, so that a checkpoint is found again.
 *
 * @param freeBytes What a file system has room for; injected for tests
 */
export function imagePlace(config: VmConfig, freeBytes = freeBytesOf): ImagePlace {
  const { stateDirectory, sharedMemory } = config.replication;
  if (stateDirectory !== undefined) return { directory: stateDirectory, shared: sharedMemory };
  const inMemory = memoryDirectory(config);
  const neededBytes = config.vm.memoryMiB * 1024 * 1024 + SLACK_BYTES;
  if (exists(inMemory) || freeBytes(SHARED_MEMORY_DIRECTORY) >= neededBytes) {
    return { directory: inMemory, shared: sharedMemory };
  }
  const onDisk = inMemory.replace(SHARED_MEMORY_DIRECTORY, "/var/tmp");
  return {
    directory: onDisk,
    shared: false,
    notice: `${SHARED_MEMORY_DIRECTORY} has no room for the guest's memory: its copy is kept in ` +
      `${onDisk}, and a takeover takes longer`,
  };
}

/** A directory in memory for what belongs to this VM: the same at every start. */
export function memoryDirectory({ vm, path }: VmConfig): string {
  const hash = createHash("sha256").update(path).digest("hex").slice(0, 8);
  return `${SHARED_MEMORY_DIRECTORY}/colo-${vm.name}-${hash}`;
}

/** What the file system of a directory has room for, in bytes. */
export function freeBytesOf(path: string): number {
  try {
    const { bavail, bsize } = statfsSync(path);
    return bavail * bsize;
  } catch {
    return 0;
  }
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

/**
 * A directory of this process alone. The guest's memory lies in it, so nobody else may look into it.
 */
export class ImageDirectory implements ImageFiles, Disposable {
  readonly #lock: Deno.FsFile;

  /**
   * Make the directory if need be, and take it until the end of this process or
   * {@linkcode remove}al.
   *
   * @throws {StoreError} when it cannot be had, or another process has it
   */
  constructor(readonly directory: string) {
    this.#makePrivate();
    const lock = this.#openFile(LOCK_NAME, { write: true, create: true });
    if (!lock.tryLockSync(true)) {
      lock.close();
      throw new StoreError(
        `Cannot keep the guest's memory in ${directory}: another standby does; ` +
          "end it, or give this one a replication.stateDirectory of its own",
      );
    }
    this.#lock = lock;
  }

  list(): string[] {
    return [...Deno.readDirSync(this.directory)].map(({ name }) => name);
  }

  open(name: string): ImageFile | undefined {
    try {
      return new DiskFile(this.#openFile(name, { read: true, write: true }));
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      throw error;
    }
  }

  create(name: string): ImageFile {
    return new DiskFile(
      this.#openFile(name, { read: true, write: true, create: true, truncate: true }),
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

  /** Give the directory up; it is removed if nothing is in it. */
  [Symbol.dispose](): void {
    const isEmpty = this.list().every((name) => name === LOCK_NAME);
    if (isEmpty) Deno.removeSync(this.directory, { recursive: true });
    this.#lock.close();
  }

  #makePrivate(): void {
    const { directory } = this;
    try {
      Deno.mkdirSync(directory, { recursive: true, mode: 0o700 });
      const { isDirectory, uid, mode } = Deno.lstatSync(directory);
      // Whoever made it before us in a place where everybody may could read the guest's memory.
      if (!isDirectory || uid !== Deno.uid()) throw new Error("it is another user's");
      if (((mode ?? 0) & 0o77) !== 0) Deno.chmodSync(directory, 0o700);
    } catch (error) {
      throw new StoreError(
        `Cannot keep the guest's memory in ${directory}: ${messageOf(error)}; ` +
          "give replication.stateDirectory another",
      );
    }
  }

  #openFile(name: string, options: Deno.OpenOptions): Deno.FsFile {
    return Deno.openSync(this.#path(name), { ...options, mode: 0o600 });
  }

  #path(name: string): string {
    return `${this.directory}/${name}`;
  }
}

/** A file that is open. */
export class DiskFile implements ImageFile {
  readonly #file: Deno.FsFile;
  #sizeBytes: number;

  constructor(file: Deno.FsFile) {
    this.#file = file;
    this.#sizeBytes = file.statSync().size;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  read(at: number, target: Uint8Array): void {
    this.#file.seekSync(at, Deno.SeekMode.Start);
    for (let filled = 0; filled < target.length;) {
      const count = this.#file.readSync(target.subarray(filled));
      if (count === null) throw new StoreError(`Cannot read on: the file ends at ${at + filled}`);
      filled += count;
    }
  }

  write(at: number, bytes: Uint8Array): void {
    this.#file.seekSync(at, Deno.SeekMode.Start);
    for (let done = 0; done < bytes.length;) done += this.#file.writeSync(bytes.subarray(done));
    this.#sizeBytes = Math.max(this.#sizeBytes, at + bytes.length);
  }

  resize(sizeBytes: number): void {
    this.#file.truncateSync(sizeBytes);
    this.#sizeBytes = sizeBytes;
  }

  close(): void {
    this.#file.close();
  }
}
