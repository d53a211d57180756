/**
 * Encodes in workers, so that a large checkpoint holds up neither control nor the reading of the next
 * one, and more cores make it shorter. They work on the mirror where it lies, in shared memory.
 *
 * @module
 */

import {
  addCounts,
  type EncodeJob,
  NO_PAGES,
  type PageCounts,
} from "../checkpoint/page_encoder.ts";
import type { Mirror } from "../checkpoint/mirror.ts";
import { LocalProtocolError } from "../errors.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import type { EncodedJob, Encoder, PagesFrame } from "./encoder.ts";
import type { FromEncoder, ToEncoder } from "./encoder_worker.ts";

/** More encode faster than any link takes it. */
const WORKERS_MAX = 4;

/** As many as leave a core to the thread that reads and sends. */
export function defaultEncoders(cores: number): number {
  return Math.min(Math.max(cores - 1, 1), WORKERS_MAX);
}

/** Workers that encode one mirror. */
export class EncoderPool implements Encoder {
  readonly #workers: readonly EncoderWorker[];
  #mirror: Mirror | undefined;

  /**
   * Start `count` workers. They run until {@linkcode close}.
   *
   * @throws {RangeError} when these are none
   */
  constructor(count: number) {
    if (!Number.isInteger(count) || count < 1) {
      throw new RangeError(`Cannot encode with ${count} workers`);
    }
    this.#workers = Array.from({ length: count }, () => new EncoderWorker());
  }

  /** Encode this mirror from now on, which must lie in WebAssembly memory. */
  attach(mirror: Mirror): void {
    if (this.#mirror === mirror) return;
    this.#mirror = mirror;
    const memories = mirror.kernels.map((kernels) => {
      if (kernels instanceof WasmKernels) return kernels.memory;
      throw new LocalProtocolError("Cannot encode in a worker: the mirror is not in shared memory");
    });
    for (const worker of this.#workers) {
      worker.post({ type: "mirror", memories, shards: mirror.addEncoder() });
    }
  }

  async run(
    jobs: Iterable<EncodeJob>,
    epoch: number,
    ordered: boolean,
    take: (frame: PagesFrame) => Promise<void>,
  ): Promise<PageCounts> {
    const iterator = jobs[Symbol.iterator]();
    let counts = NO_PAGES;
    let failed = false;
    const lane = async (worker: EncoderWorker) => {
      try {
        for (let next; !failed && !(next = iterator.next()).done;) {
          const encoded = await worker.encode(next.value, epoch);
          counts = addCounts(counts, encoded.counts);
          for (const frame of encoded.frames) await take(frame);
        }
      } catch (error) {
        failed = true;
        throw error;
      }
    };
    const lanes = this.#workers.slice(0, ordered ? 1 : undefined).map(lane);
    // All of them have to end, the failed ones too: none may touch the mirror afterwards.
    const results = await Promise.allSettled(lanes);
    for (const result of results) if (result.status === "rejected") throw result.reason;
    return counts;
  }

  close(): void {
    for (const worker of this.#workers) worker.close();
  }
}

/** The main thread's end of one worker. */
class EncoderWorker {
  readonly #worker: Worker;
  /** What it is to be told once it listens. */
  #unsent: ToEncoder[] | undefined = [];
  /** The job that is being encoded. */
  #pending: PromiseWithResolvers<EncodedJob> | undefined;
  #failure: LocalProtocolError | undefined;

  constructor() {
    this.#worker = new Worker(new URL("./encoder_worker.ts", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }: MessageEvent<FromEncoder>) => {
      if (data.type === "ready") return this.#begin();
      const pending = this.#pending;
      this.#pending = undefined;
      if (data.type === "encoded") pending?.resolve(data);
      else pending?.reject(new LocalProtocolError(`Cannot encode: ${data.reason}`));
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(`the worker ended: ${event.message}`);
    };
  }

  post(message: ToEncoder): void {
    if (this.#unsent === undefined) this.#worker.postMessage(message);
    else this.#unsent.push(message);
  }

  #begin(): void {
    const unsent = this.#unsent ?? [];
    this.#unsent = undefined;
    for (const message of unsent) this.post(message);
  }

  /** Encode one job; not before the last one is done. */
  encode(job: EncodeJob, epoch: number): Promise<EncodedJob> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    this.#pending = Promise.withResolvers();
    this.post({ type: "job", job, epoch });
    return this.#pending.promise;
  }

  close(): void {
    this.#worker.terminate();
    this.#fail("it was closed");
  }

  #fail(reason: string): void {
    this.#failure = new LocalProtocolError(`Cannot encode: ${reason}`);
    this.#pending?.reject(this.#failure);
    this.#pending = undefined;
  }
}
