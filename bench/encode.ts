/**
 * How fast a checkpoint is encoded, sealed in frames and taken into the mirror, by one worker and by
 * two, and how long the main thread cannot do anything else meanwhile.
 *
 * @module
 */

import { Mirror } from "../engine/checkpoint/mirror.ts";
import { type Encoder, InlineEncoder } from "../engine/host/encoder.ts";
import { EncoderPool } from "../engine/host/encoder_pool.ts";
import { PAGE_BYTES } from "../engine/limits.ts";
import { PAGE_ENTRY_BYTES, WasmKernels } from "../wasm/mod.ts";
import { type Row, row } from "./measure.ts";
import { median } from "./row.ts";

const PAGES = 16384;
const BYTES = PAGES * PAGE_BYTES;

/** Every page changes in so many places, by one word: small writes spread over all of memory. */
const CHANGES = 6;

/** A checkpoint that can be encoded again and again: the guest goes from one state to another and back. */
class Checkpoint {
  readonly mirror: Mirror;
  readonly #kernels = WasmKernels.create();
  readonly #tables: readonly number[];
  #turn = 0;

  constructor() {
    const kernels = this.#kernels;
    const blocks = [{ name: "pc.ram", sizeBytes: BYTES, firstPage: 0, pages: PAGES }];
    this.mirror = new Mirror(blocks, kernels, { createKernels: () => WasmKernels.create() });
    this.#tables = [0, 1].map((state) => {
      const contents = kernels.alloc(BYTES);
      const table = kernels.alloc(PAGES * PAGE_ENTRY_BYTES);
      const words = new Uint32Array(kernels.bytes.buffer, contents, BYTES / 4);
      const entries = new Uint32Array(kernels.bytes.buffer, table, 2 * PAGES);
      for (let at = 0; at < words.length; at++) words[at] = at >>> 3;
      for (let page = 0; page < PAGES; page++) {
        entries.set([page, contents + page * PAGE_BYTES], 2 * page);
        for (let change = 0; change < CHANGES; change++) {
          words[page * 1024 + change * 160 + page % 37] = state * (page + change + 1);
        }
      }
      return table;
    });
  }

  async encode(encoder: Encoder): Promise<void> {
    const table = this.#tables[this.#turn++ % 2]!;
    const pages = { kernels: this.#kernels, table, pageCount: PAGES };
    await encoder.run(this.mirror.deltaJobs(pages), 1, false, () => Promise.resolve());
  }
}

/** Measure. */
export async function benchEncode(rounds: number): Promise<Row[]> {
  const checkpoint = new Checkpoint();
  const [one, two] = [1, 2].map((count) => {
    const pool = new EncoderPool(count);
    pool.attach(checkpoint.mirror);
    return pool;
  }) as [EncoderPool, EncoderPool];
  const inline = new InlineEncoder(checkpoint.mirror, WasmKernels.create());
  const figures = { two: [] as Run[], one: [] as Run[], inline: [] as Run[] };
  for (let round = -2; round < rounds; round++) {
    for (const [name, encoder] of [["two", two], ["one", one], ["inline", inline]] as const) {
      const run = await measure(() => checkpoint.encode(encoder));
      // The first rounds warm the compilers and the caches.
      if (round >= 0) figures[name].push(run);
    }
  }
  one.close();
  two.close();
  const rate = (runs: readonly Run[]) => BYTES / 1e6 / (median(runs.map((run) => run.ms)) / 1000);
  const held = (runs: readonly Run[]) => median(runs.map((run) => run.heldMs));
  return [
    row({
      case: "encode and seal, 16384 pages, 2 workers",
      unit: "MB/s",
      ours: rate(figures.two),
      peer: rate(figures.one),
      peerName: "1 worker",
      bar: 1,
    }),
    row({
      case: "main thread held up meanwhile",
      unit: "ms",
      ours: held(figures.one),
      peer: held(figures.inline),
      peerName: "encoding in the main thread",
    }),
  ];
}

interface Run {
  readonly ms: number;
  /** The longest that a timer was late. */
  readonly heldMs: number;
}

async function measure(work: () => Promise<void>): Promise<Run> {
  const startMs = performance.now();
  let lastMs = startMs;
  let heldMs = 0;
  const look = () => {
    const nowMs = performance.now();
    heldMs = Math.max(heldMs, nowMs - lastMs - 1);
    lastMs = nowMs;
  };
  const timer = setInterval(look, 1);
  await work();
  clearInterval(timer);
  look();
  return { ms: performance.now() - startMs, heldMs };
}
