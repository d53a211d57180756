/**
 * Saves checkpoints in a thread of its own, out of the memory that the engine's main thread keeps the
 * mirror in. See `saver.ts`.
 *
 * @module
 */

/// <reference no-default-lib="true" />
/// <reference lib="deno.worker" />

import { WasmKernels } from "../../wasm/mod.ts";
import { ColoError, messageOf } from "../errors.ts";
import { PAGE_BYTES } from "../limits.ts";
import type { CheckpointMoment, PageSource } from "./checkpoint_writer.ts";
import { DirectoryFiles } from "./files.ts";
import { type CheckpointSave, CheckpointStore } from "./store.ts";
import type { SavedCheckpoint, SaveRequest } from "./store.ts";

/** Pages one after another in one of the memories. */
export interface MemoryRange {
  /** Index of the memory. */
  readonly memory: number;
  readonly firstPage: number;
  readonly pages: number;
  readonly address: number;
}

/** What the main thread says. */
export type ToSaver =
  | {
    readonly type: "begin";
    readonly directory: string;
    readonly request: SaveRequest;
    readonly retain: number | undefined;
    readonly memories: readonly WebAssembly.Memory[];
    readonly ranges: readonly MemoryRange[];
    /** Bitmaps of the pages that have changed, at the addresses of the ranges. */
    readonly touched: readonly MemoryRange[];
  }
  | ({ readonly type: "last" } & CheckpointMoment);

/** What comes back. */
export type FromSaver =
  /** It listens: what was said before is lost. */
  | { readonly type: "ready" }
  | { readonly type: "walked" }
  /** The mirror may change again. */
  | { readonly type: "taken" }
  | {
    readonly type: "saved";
    readonly checkpoint: SavedCheckpoint;
    readonly retired: readonly string[];
    readonly retainFailure: string | undefined;
  }
  | { readonly type: "failed"; readonly reason: string };

/** Passes beside checkpoints, and the pages that are few enough for the last one, as in a seed. */
const PASSES_MAX = 3;
const LAST_PASS_PAGES = 4096;

interface Work {
  readonly store: CheckpointStore;
  readonly save: CheckpointSave;
  readonly source: PageSource;
  readonly request: SaveRequest;
  readonly retain: number | undefined;
}

/** Kept from one save to the next: it knows what the last one has left. */
let kept: { readonly directory: string; readonly store: CheckpointStore } | undefined;
let work: Work | undefined;

self.onmessage = ({ data }: MessageEvent<ToSaver>) => {
  try {
    if (data.type === "begin") begin(data);
    else finish(data);
  } catch (error) {
    const name = data.type === "begin" ? data.request.name : work?.request.name;
    // No save is under way any more: what it wrote is removed, and the store is free.
    work?.save[Symbol.dispose]();
    work = undefined;
    const reason = messageOf(error);
    say({
      type: "failed",
      reason: error instanceof ColoError ? reason : `Cannot save checkpoint ${name}: ${reason}`,
    });
  }
};

function begin({ directory, request, retain, ...guest }: ToSaver & { type: "begin" }) {
  if (kept?.directory !== directory) {
    const store = new CheckpointStore(new DirectoryFiles(directory), () => WasmKernels.create());
    kept = { directory, store };
  }
  const { store } = kept;
  const source = new MemorySource(guest);
  const save = store.beginSave(request);
  work = { store, save, source, request, retain };
  let passes = 1;
  while (save.pass(source, false) > LAST_PASS_PAGES && passes < PASSES_MAX) passes++;
  say({ type: "walked" });
}

function finish(moment: CheckpointMoment) {
  const { store, save, source, request, retain } = work!;
  save.pass(source, true);
  say({ type: "taken" });
  const checkpoint = save.commit(moment);
  save[Symbol.dispose]();
  work = undefined;
  let retired: string[] = [];
  let retainFailure: string | undefined;
  try {
    if (retain !== undefined) retired = store.retain(request.vm, retain);
  } catch (error) {
    retainFailure = messageOf(error);
  }
  say({ type: "saved", checkpoint, retired, retainFailure });
}

interface RangeView {
  readonly range: MemoryRange;
  readonly bytes: Uint8Array;
}

/** Pages that lie in WebAssembly memories, where other threads go on writing them. */
class MemorySource implements PageSource {
  readonly #contents: readonly RangeView[];
  readonly #touched: readonly RangeView[];

  constructor(
    { memories, ranges, touched }: Pick<
      ToSaver & { type: "begin" },
      "memories" | "ranges" | "touched"
    >,
  ) {
    const view = (range: MemoryRange, length: number) => ({
      range,
      bytes: new Uint8Array(memories[range.memory]!.buffer, range.address, length),
    });
    this.#contents = ranges.map((range) => view(range, range.pages * PAGE_BYTES));
    this.#touched = touched.map((range) => view(range, Math.ceil(range.pages / 8)));
  }

  touched(firstPage: number, count: number): boolean {
    return this.#touched.some(({ range, bytes }) => {
      const from = Math.max(0, firstPage - range.firstPage);
      const to = Math.min(range.pages, firstPage + count - range.firstPage);
      // Whole bytes: a neighbour that was touched does no harm.
      return from < to && bytes.subarray(from >>> 3, (to + 7) >>> 3).some((byte) => byte !== 0);
    });
  }

  read(firstPage: number, count: number, target: Uint8Array): void {
    const last = firstPage + count;
    for (const { range, bytes } of this.#contents) {
      const from = Math.max(firstPage, range.firstPage);
      const to = Math.min(last, range.firstPage + range.pages);
      if (from >= to) continue;
      const part = bytes.subarray(
        (from - range.firstPage) * PAGE_BYTES,
        (to - range.firstPage) * PAGE_BYTES,
      );
      target.set(part, (from - firstPage) * PAGE_BYTES);
    }
  }
}

function say(message: FromSaver): void {
  self.postMessage(message);
}

say({ type: "ready" });
