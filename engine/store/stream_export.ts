/**
 * A stored checkpoint as a plain QEMU migration stream, which any QEMU with that machine loads
 * (`-incoming file:` or `migrate-incoming`), and as the two parts of one whose main memory is a file.
 *
 * ```text
 *  plain:    header, configuration, ram START, ram END (all pages), device state, VM description
 *  instant:  the same with the capability x-ignore-shared, without the pages of the main memory, which
 *            are in a file of its size that QEMU maps; and without a description
 * ```
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { PAGE_BYTES } from "../limits.ts";
import { IGNORE_SHARED, type PlacedBlock } from "../stream/format.ts";
import * as write from "../stream/writer.ts";
import type { Chain, StoredPage } from "./chain.ts";
import { RAM_SECTION_ID } from "./checkpoint_writer.ts";
import { mainBlock } from "./metadata.ts";
import { RecordEncoder } from "./record_encoder.ts";

/**
 * The plain stream of a checkpoint.
 *
 * @param kernels In whose memory records are made
 * @param described Whether the VM description follows, which a QEMU expects that was started without
 *   `suppress-vmdesc=on`; one that was started with it has closed its end of a socket by then
 * @returns Pieces; each is valid until the next is asked for
 * @throws {StoreError} when anything is damaged or missing: what came before is of no use then
 */
export function* exportStream(
  chain: Chain,
  kernels: KernelSet,
  described = true,
): Generator<Uint8Array, void> {
  yield* stream(chain, kernels, chain.pages(), []);
  if (described) yield write.vmDescription();
}

/** Takes pages of the main memory. */
export interface RamImageTarget {
  /** Write a page's content. Pages that are not written are zero. */
  write(offset: number, content: Uint8Array): void;
}

/**
 * The stream of a checkpoint without its main memory, whose pages go elsewhere.
 *
 * @param image Gets the pages of the main memory that are not zero, by their offset in it
 * @returns As {@linkcode exportStream}
 * @throws {StoreError} as {@linkcode exportStream}
 */
export function* exportInstant(
  chain: Chain,
  kernels: KernelSet,
  image: RamImageTarget,
): Generator<Uint8Array, void> {
  yield* stream(chain, kernels, divert(chain.pages(), mainBlock(chain.blocks), image), [
    IGNORE_SHARED,
  ]);
}

function* stream(
  chain: Chain,
  kernels: KernelSet,
  pages: Iterable<StoredPage>,
  capabilities: readonly string[],
): Generator<Uint8Array, void> {
  yield write.header();
  yield write.configuration(chain.metadata.machine, capabilities);
  yield write.ramStart(RAM_SECTION_ID, chain.blocks, capabilities);
  yield write.ramEnd(RAM_SECTION_ID);
  const records = new RecordEncoder(kernels, chain.blocks);
  for (const { page, content } of pages) {
    records.add(page, content);
    if (records.full) yield* records.encode();
  }
  yield* records.encode();
  yield write.ramSectionEnd(RAM_SECTION_ID);
  yield chain.deviceState();
}

function* divert(
  pages: Iterable<StoredPage>,
  main: PlacedBlock,
  image: RamImageTarget,
): Generator<StoredPage, void> {
  for (const stored of pages) {
    const index = stored.page - main.firstPage;
    if (index < 0 || index >= main.pages) yield stored;
    else if (stored.content !== undefined) image.write(index * PAGE_BYTES, stored.content);
  }
}
