/** A guest of a few pages, saved and restored in tests. */

import { assertEquals } from "@std/assert/mod.js";
import type { Chain } from "../../engine/store/chain.ts";
import type { PageSource } from "../../engine/store/checkpoint_writer.ts";
import { countPages, mainBlock, placeBlocks } from "../../engine/store/metadata.ts";
import type { CheckpointStore, SavedCheckpoint } from "../../engine/store/store.ts";
import { noise } from "../wasm/contents.ts";

export const PAGE = 4096;
export const MACHINE = "pc-i440fx-11.1";

export const BLOCKS = [
  { name: "vga.vram", sizeBytes: 8 * PAGE },
  { name: "pc.ram", sizeBytes: 300 * PAGE },
  { name: "/rom@etc/acpi/tables", sizeBytes: 4 * PAGE },
];

/** What a guest holds at one moment. */
export interface GuestState {
  readonly ram: Uint8Array<ArrayBuffer>;
  readonly deviceState: Uint8Array<ArrayBuffer>;
}

export class Guest implements PageSource {
  readonly pages: number;
  readonly ram: Uint8Array<ArrayBuffer>;
  deviceState: Uint8Array<ArrayBuffer> = noise(1, 500);
  epoch = 0;

  constructor(readonly blocks = BLOCKS) {
    this.pages = countPages(placeBlocks(blocks));
    this.ram = new Uint8Array(this.pages * PAGE);
  }

  read(firstPage: number, count: number, target: Uint8Array): void {
    target.set(this.ram.subarray(firstPage * PAGE, (firstPage + count) * PAGE));
  }

  /** Change something: a few bytes, the whole page, or all of it to zero. */
  write(page: number, kind: "bytes" | "whole" | "zero", seed: number): void {
    const content = this.ram.subarray(page * PAGE, (page + 1) * PAGE);
    if (kind === "zero") content.fill(0);
    else if (kind === "whole") content.set(noise(seed, PAGE));
    else content.set(noise(seed, 5), seed % 4000);
  }

  run(seed: number): void {
    this.epoch++;
    this.deviceState = noise(seed + 7, 300 + seed % 5);
  }

  state(): GuestState {
    return { ram: this.ram.slice(), deviceState: this.deviceState.slice() };
  }

  save(
    store: CheckpointStore,
    name: string,
    between: () => void = () => {},
    vm = "tested",
  ): SavedCheckpoint {
    const { blocks } = this;
    using save = store.beginSave({ name, vm, machine: MACHINE, blocks, id: crypto.randomUUID() });
    save.pass(this, false);
    between();
    save.pass(this, true);
    const { epoch, deviceState } = this;
    return save.commit({ epoch, savedAtMs: 1_700_000_000_000 + epoch, deviceState });
  }
}

/** What a chain gives back, on a fresh VM: its main memory is zero, the rest is anything. */
export function restore(chain: Chain): GuestState {
  const main = mainBlock(chain.blocks);
  const ram = new Uint8Array(countPages(chain.blocks) * PAGE).fill(0xee);
  ram.fill(0, main.firstPage * PAGE, (main.firstPage + main.pages) * PAGE);
  for (const { page, content } of chain.pages()) {
    if (content === undefined) ram.fill(0, page * PAGE, (page + 1) * PAGE);
    else ram.set(content, page * PAGE);
  }
  return { ram, deviceState: chain.deviceState() };
}

export function assertHolds(store: CheckpointStore, name: string, state: GuestState): void {
  store.verify(name);
  const chain = store.open(name);
  const found = restore(chain);
  chain.close();
  assertEquals(found.deviceState, state.deviceState);
  const differing = found.ram.findIndex((byte, at) => byte !== state.ram[at]);
  assertEquals(differing, -1, `${name} differs in page ${Math.floor(differing / PAGE)}`);
}
