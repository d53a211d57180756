/**
 * What the copy of a guest needs of a file system, so that tests can end it before any single step.
 *
 * All calls are synchronous: they run in a worker of their own, where waiting harms nobody. One that
 * fails throws whatever the system says.
 *
 * @module
 */

/** A file that is read and written anywhere. */
export interface ImageFile {
  readonly sizeBytes: number;
  /** Fill `target` with the bytes from `at` on. Throws when the file has fewer. */
  read(at: number, target: Uint8Array): void;
  /** Write all of the bytes at `at`, where the file ends at the most. */
  write(at: number, bytes: Uint8Array): void;
  /** Cut it, or lengthen it by zeros that take no room until they are written. */
  resize(sizeBytes: number): void;
  close(): void;
}

/** One flat directory. */
export interface ImageFiles {
  /** Names of all files. */
  list(): string[];
  /** @returns The file, or nothing where it does not exist */
  open(name: string): ImageFile | undefined;
  /** Create a file, or empty the one that is there. */
  create(name: string): ImageFile;
  /** Put one file in the place of another, in one step. */
  rename(from: string, to: string): void;
  /** Remove a file, if it is there. */
  remove(name: string): void;
}

/** Make a small file appear as a whole or not at all. */
export function replaceFile(files: ImageFiles, name: string, bytes: Uint8Array): void {
  const draft = `${name}.new`;
  const file = files.create(draft);
  try {
    file.write(0, bytes);
  } finally {
    file.close();
  }
  files.rename(draft, name);
}

/** The whole of a file, or nothing where it does not exist or is larger than `bytesMax`. */
export function readFile(
  files: ImageFiles,
  name: string,
  bytesMax: number,
): Uint8Array<ArrayBuffer> | undefined {
  const file = files.open(name);
  if (file === undefined) return undefined;
  try {
    if (file.sizeBytes > bytesMax) return undefined;
    const bytes = new Uint8Array(file.sizeBytes);
    file.read(0, bytes);
    return bytes;
  } finally {
    file.close();
  }
}
