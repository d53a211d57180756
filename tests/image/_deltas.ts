/**
 * Random checkpoints of a small guest, as RAM records, and what they leave.
 *
 * @module
 */

import fc from "fast-check";
import { RAM_FLAG } from "../../engine/stream/format.ts";
import { ByteWriter } from "../../engine/stream/byte_writer.ts";
import { ReferenceKernels } from "../../wasm/mod.ts";
import { BLOCKS, concat, pageContent, records } from "../stream/sample.ts";

/** Pages of the main memory, and of all blocks. */
export const MAIN_PAGES = 64;
export const PAGES = 72;

/** One page that the guest has written; `change` alters only some bytes of what it held. */
export interface Write {
  readonly page: number;
  readonly fill: number;
  readonly change: boolean;
}

export const write: fc.Arbitrary<Write> = fc.record({
  page: fc.nat(PAGES - 1),
  fill: fc.nat(9),
  change: fc.boolean(),
});

/** Pages of one checkpoint, some of them more than once, in chunks. */
export const delta = fc.array(fc.array(write, { maxLength: 6 }), { maxLength: 3 });

/** The memory of a guest, page after page. */
export class Model {
  readonly ram: Uint8Array<ArrayBuffer>[];
  readonly #kernels = new ReferenceKernels();
  readonly #memory = this.#kernels.alloc(3 * 4096);

  constructor(ram?: readonly Uint8Array[]) {
    this.ram = Array.from(
      { length: PAGES },
      (_, page) => Uint8Array.from(ram?.[page] ?? new Uint8Array(4096)),
    );
  }

  copy(): Model {
    return new Model(this.ram);
  }

  /** Write pages, and say so in records. */
  chunk(writes: readonly Write[]): Uint8Array<ArrayBuffer> {
    return concat(...writes.map((write) => this.#record(write)));
  }

  #record({ page, fill, change }: Write): Uint8Array {
    const block = page < MAIN_PAGES ? 0 : 1;
    const number = page - block * MAIN_PAGES;
    const before = this.ram[page]!;
    if (!change) {
      this.ram[page] = pageContent(fill);
      return records([{ block, page: number, fill }]);
    }
    const after = before.slice();
    for (const at of [fill, fill * 400, 4095 - fill]) after[at]! ^= 0x55;
    this.ram[page] = after;
    const { bytes } = this.#kernels;
    const [from, to, body] = [this.#memory, this.#memory + 4096, this.#memory + 8192];
    bytes.set(before, from);
    bytes.set(after, to);
    const length = this.#kernels.xbzrleEncode(from, to, 4096, body, 4096);
    return new ByteWriter().u64(number * 4096 + RAM_FLAG.XBZRLE).name(BLOCKS[block]!.name)
      .u8(1).u16(length).bytes(bytes.subarray(body, body + length)).finish();
  }
}
