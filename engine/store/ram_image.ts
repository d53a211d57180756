/**
 * RAM images: the main memory of a checkpoint in a sparse file that QEMU can run on, with a small file
 * beside it that has the rest. With both at hand a VM is restored in milliseconds, however large it is.
 *
 * ```text
 *  NAME.ram       page after page of the main memory
 *  NAME.instant   sealed (`sealed_file.ts`): the stream without those pages; id of the checkpoint
 * ```
 *
 * A VM writes to the image that it runs on, so an image is used once, and then made anew. It is written
 * from pages that were checked, and not checked again: the point of it is that nobody has read it.
 *
 * @module
 */

import { WasmKernels } from "../../wasm/mod.ts";
import { StoreError } from "../errors.ts";
import type { Chain } from "./chain.ts";
import { DirectoryFiles } from "./files.ts";
import { mainBlock } from "./metadata.ts";
import { Checksum, SealedReader, SealedWriter } from "./sealed_file.ts";
import { exportInstant } from "./stream_export.ts";

const IMAGE_SUFFIX = ".ram";
const STREAM_SUFFIX = ".instant";
const PARTIAL_SUFFIX = ".partial";
const USED_SUFFIX = ".used";

/** An image that a VM can be started on. */
export interface RamImage {
  /** File of the main memory; the VM writes to it. */
  readonly path: string;
  /** The rest of the checkpoint. */
  readonly stream: Uint8Array<ArrayBuffer>;
  /** Remove the file. A QEMU that has opened it keeps it for as long as it runs. */
  release(): void;
}

/**
 * Make the image of a checkpoint, in place of one that is there.
 *
 * @param directory Where; best on tmpfs, which is memory already
 * @throws {StoreError} when the checkpoint is damaged; an image that was there is gone then
 */
export function prepareRamImage(chain: Chain, directory: string): void {
  const files = new DirectoryFiles(directory);
  const { name, metadata } = chain;
  const [image, stream] = [name + IMAGE_SUFFIX, name + STREAM_SUFFIX];
  // An image without its stream is none.
  files.remove(stream);
  const kernels = WasmKernels.create();
  const written = files.create(stream + PARTIAL_SUFFIX);
  const memory = new SparseFile(
    directory,
    image + PARTIAL_SUFFIX,
    mainBlock(chain.blocks).sizeBytes,
  );
  try {
    const sealed = new SealedWriter(written, new Checksum(kernels));
    for (const piece of exportInstant(chain, kernels, memory)) sealed.write(piece);
    memory.finish();
    sealed.finish({ id: metadata.id, stateDigest: metadata.stateDigest });
  } finally {
    memory.close();
    written.close();
  }
  files.rename(image + PARTIAL_SUFFIX, image);
  files.rename(stream + PARTIAL_SUFFIX, stream);
  files.syncDirectory();
}

/**
 * Take the image of a checkpoint: nobody else gets it from here on.
 *
 * @returns Nothing when there is none
 */
export function takeRamImage(
  chain: Pick<Chain, "name" | "metadata">,
  directory: string,
): RamImage | undefined {
  const files = new DirectoryFiles(directory);
  const [image, stream] = [chain.name + IMAGE_SUFFIX, chain.name + STREAM_SUFFIX];
  const file = files.open(stream);
  if (file === undefined || !files.list().includes(image)) {
    file?.close();
    return undefined;
  }
  try {
    const sealed = new SealedReader(file, new Checksum(WasmKernels.create()));
    if (!isOf(sealed.metadata, chain.metadata)) return undefined;
    const bytes = new Uint8Array(sealed.bodyBytes);
    let at = 0;
    for (const piece of sealed.read(0, sealed.bodyBytes)) {
      bytes.set(piece, at);
      at += piece.length;
    }
    const used = `${image}.${crypto.randomUUID().slice(0, 8)}${USED_SUFFIX}`;
    files.rename(image, used);
    files.remove(stream);
    return {
      path: `${directory}/${used}`,
      stream: bytes,
      release: () => files.remove(used),
    };
  } catch (error) {
    if (error instanceof StoreError || error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  } finally {
    file.close();
  }
}

/** Remove the image of a checkpoint, if there is one. */
export function removeRamImage(name: string, directory: string): void {
  const files = new DirectoryFiles(directory);
  for (const suffix of [STREAM_SUFFIX, IMAGE_SUFFIX]) {
    files.remove(name + suffix);
    files.remove(name + suffix + PARTIAL_SUFFIX);
  }
}

function isOf(value: unknown, { id, stateDigest }: { id: string; stateDigest: string }): boolean {
  if (typeof value !== "object" || value === null) return false;
  const found: { id?: unknown; stateDigest?: unknown } = value;
  return found.id === id && found.stateDigest === stateDigest;
}

/** A file in which what was not written takes no room and reads as zeros. */
class SparseFile {
  readonly #file: Deno.FsFile;

  constructor(directory: string, name: string, sizeBytes: number) {
    this.#file = Deno.openSync(`${directory}/${name}`, {
      write: true,
      create: true,
      truncate: true,
      mode: 0o600,
    });
    this.#file.truncateSync(sizeBytes);
  }

  write(offset: number, content: Uint8Array): void {
    this.#file.seekSync(offset, Deno.SeekMode.Start);
    for (let at = 0; at < content.length;) at += this.#file.writeSync(content.subarray(at));
  }

  finish(): void {
    this.#file.syncSync();
  }

  close(): void {
    this.#file.close();
  }
}
