/**
 * Saves checkpoints of a guest that runs, in a worker of its own: what takes long (comparing all pages,
 * compression, the disk) holds up neither the guest nor its protection.
 *
 * ```text
 *  main thread                       worker
 *    (for a moment no checkpoint is begun: what changes from here on is noted)
 *    begin ------------------------->  all pages that differ, while checkpoints change them; once more
 *    <------------------------ walked  what has changed meanwhile, until that is little
 *    (no checkpoint is begun from here on; the guest runs)
 *    last -------------------------->  what has changed meanwhile: the moment that is saved
 *    <------------------------- taken
 *    (checkpoints go on)               device state, index, sync, rename, retention
 *    <------------------------- saved
 * ```
 *
 * @module
 */

import { WasmKernels } from "../../wasm/mod.ts";
import type { Mirror } from "../checkpoint/mirror.ts";
import { LocalProtocolError, StoreError } from "../errors.ts";
import type { CheckpointMoment } from "./checkpoint_writer.ts";
import type { FromSaver, MemoryRange, ToSaver } from "./save_worker.ts";
import type { SavedCheckpoint, SaveRequest } from "./store.ts";

/** A guest that can be saved. */
export interface SnapshotSource {
  /** Holds its memory. */
  readonly mirror: Mirror;
  readonly machine: string;
  /**
   * Keep the mirror as it is at one checkpoint, until released.
   *
   * @throws {StoreError} when the mirror is lost before it comes to rest
   */
  freeze(): Promise<FrozenSnapshot>;
}

/** A mirror that is one checkpoint, and stays so. */
export interface FrozenSnapshot extends CheckpointMoment {
  release(): void;
}

/** What a save came to. */
export interface SaveResult {
  readonly checkpoint: SavedCheckpoint;
  /** Names of those that the retention rule has ended. */
  readonly retired: readonly string[];
  /** Why the retention rule could not be followed. */
  readonly retainFailure?: string;
  /** From the request until the checkpoint would survive a loss of power. */
  readonly durationMs: number;
  /** How long no checkpoint could be begun. */
  readonly frozenMs: number;
}

/** Saves the checkpoints of one VM to one store. */
export class Saver {
  readonly #directory: string;
  readonly #vm: string;
  readonly #retain: number | undefined;
  #worker: SaveWorker | undefined;
  #busy = false;

  /**
   * @param directory The store's
   * @param vm Name of the VM
   * @param retain How many of its checkpoints are kept; all when left out
   */
  constructor(directory: string, vm: string, retain?: number) {
    this.#directory = directory;
    this.#vm = vm;
    this.#retain = retain;
  }

  /**
   * Save a checkpoint of a guest.
   *
   * @throws {StoreError} when it cannot be saved; what was in the store still is
   */
  async save(name: string, source: SnapshotSource): Promise<SaveResult> {
    if (this.#busy) {
      throw new StoreError(`Cannot save checkpoint ${name}: another save is under way; try again`);
    }
    this.#busy = true;
    this.#worker ??= new SaveWorker();
    try {
      return await this.#save(name, source, this.#worker);
    } finally {
      // A save that was broken off here is still under way there: the next one has a new worker.
      if (!this.#worker?.idle) this.close();
      this.#busy = false;
    }
  }

  async #save(name: string, source: SnapshotSource, worker: SaveWorker): Promise<SaveResult> {
    const { mirror, machine } = source;
    const startMs = performance.now();
    const request: SaveRequest = {
      name,
      vm: this.#vm,
      machine,
      blocks: mirror.blocks.map(({ name, sizeBytes }) => ({ name, sizeBytes })),
      id: crypto.randomUUID(),
    };
    const before = await source.freeze();
    mirror.clearTouched();
    before.release();
    await worker.ask({
      type: "begin",
      directory: this.#directory,
      request,
      retain: this.#retain,
      memories: memoriesOf(mirror),
      ranges: rangesOf(mirror),
      touched: mirror.touched.map((pages, memory) => ({ ...pages, memory })),
    }, "walked");
    const frozen = await source.freeze();
    const frozenAtMs = performance.now();
    let frozenMs: number;
    try {
      const { epoch, savedAtMs, deviceState } = frozen;
      await worker.ask({ type: "last", epoch, savedAtMs, deviceState }, "taken");
    } finally {
      frozenMs = performance.now() - frozenAtMs;
      frozen.release();
    }
    const { checkpoint, retired, retainFailure } = await worker.next("saved");
    return {
      checkpoint,
      retired,
      ...(retainFailure === undefined ? {} : { retainFailure }),
      durationMs: performance.now() - startMs,
      frozenMs,
    };
  }

  /** End a save that is under way; it has never been. */
  close(): void {
    this.#worker?.close();
    this.#worker = undefined;
  }
}

function memoriesOf(mirror: Mirror): WebAssembly.Memory[] {
  return mirror.kernels.map((kernels) => {
    if (kernels instanceof WasmKernels) return kernels.memory;
    throw new LocalProtocolError("Cannot save in a worker: the mirror is not in shared memory");
  });
}

function rangesOf(mirror: Mirror): MemoryRange[] {
  return mirror.pieces.flatMap((pieces, memory) =>
    pieces.map(({ firstPage, pages, mirror }) => ({ memory, firstPage, pages, address: mirror }))
  );
}

type Answer<Type extends FromSaver["type"]> = Extract<FromSaver, { type: Type }>;

/** The main thread's end of the worker. */
class SaveWorker {
  readonly #worker: Worker;
  #listening = Promise.withResolvers<void>();
  #answers: FromSaver[] = [];
  #waiting: PromiseWithResolvers<FromSaver> | undefined;
  #failure: StoreError | undefined;
  /** No save is under way. */
  idle = true;

  constructor() {
    this.#worker = new Worker(new URL("./save_worker.ts", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }: MessageEvent<FromSaver>) => {
      if (data.type === "ready") return this.#listening.resolve();
      const waiting = this.#waiting;
      this.#waiting = undefined;
      if (waiting === undefined) this.#answers.push(data);
      else waiting.resolve(data);
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(`the worker ended: ${event.message}`);
    };
  }

  /** Say something, and wait for the answer. */
  async ask<Type extends FromSaver["type"]>(
    message: ToSaver,
    expected: Type,
  ): Promise<Answer<Type>> {
    await this.#listening.promise;
    this.idle = false;
    this.#worker.postMessage(message);
    return await this.next(expected);
  }

  /** The next answer. */
  async next<Type extends FromSaver["type"]>(expected: Type): Promise<Answer<Type>> {
    if (this.#failure !== undefined) throw this.#failure;
    const waiting = Promise.withResolvers<FromSaver>();
    const known = this.#answers.shift();
    if (known === undefined) this.#waiting = waiting;
    else waiting.resolve(known);
    const answer = await waiting.promise;
    this.idle = answer.type === "saved" || answer.type === "failed";
    if (answer.type === "failed") throw new StoreError(answer.reason);
    if (answer.type !== expected) {
      throw new LocalProtocolError(`Cannot save: the worker said ${answer.type}, not ${expected}`);
    }
    return answer as Answer<Type>;
  }

  close(): void {
    this.#worker.terminate();
    this.#fail("it was closed");
  }

  #fail(reason: string): void {
    this.idle = false;
    this.#failure = new StoreError(`Cannot save: ${reason}`);
    this.#waiting?.reject(this.#failure);
    this.#waiting = undefined;
  }
}
