/**
 * The main thread's end of the worker that keeps a guest's copy.
 *
 * @module
 */

import type { FromDisks, ToDisks } from "../block/disk_keeper.ts";
import { ownsBuffer } from "../buffers.ts";
import { StoreError } from "../errors.ts";
import type { FromKeeper, ToKeeper } from "../image/keeper.ts";
import { IMAGE_QUEUE_BYTES_MAX } from "../limits.ts";
import type { FromImage, ToImage } from "./image_worker.ts";

/** One guest's copy. */
export class ImagePort {
  readonly #worker: Worker;
  readonly #handle: (answer: FromKeeper | FromDisks) => void;
  readonly #failed: (error: StoreError) => void;
  readonly #closed = Promise.withResolvers<void>();
  /** What it is to be told once it listens. */
  #unsent: ToImage[] | undefined = [];
  readonly #pages = new Queued();
  readonly #disks = new Queued();

  /**
   * Start the worker, and take a directory.
   *
   * @param diskPaths The guest's disks, which are kept as well
   * @param handle Called with what the keeper answers
   * @param failed Called when nothing more can be kept
   */
  constructor(
    directory: string,
    diskPaths: readonly string[],
    handle: (answer: FromKeeper | FromDisks) => void,
    failed: (error: StoreError) => void,
  ) {
    this.#handle = handle;
    this.#failed = failed;
    this.#worker = new Worker(new URL("./image_worker.ts", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }: MessageEvent<FromImage>) => this.#take(data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#closed.resolve();
      this.#fail(`Cannot keep the guest's memory: ${event.message}`);
    };
    this.#post({ type: "open", directory, diskPaths });
  }

  tell(command: ToKeeper | ToDisks): void {
    if (command.type === "disk-bytes") {
      const { buffer, length } = command.bytes;
      this.#disks.add(length);
      // It came over the link, and nobody else has it.
      return this.#post(command, buffer instanceof ArrayBuffer ? [buffer] : []);
    }
    if (!("chunk" in command)) return this.#post(command);
    this.#pages.add(command.chunk.length);
    // Its buffer goes along, so it must hold nothing else.
    const chunk = ownsBuffer(command.chunk) ? command.chunk : Uint8Array.from(command.chunk);
    this.#post({ ...command, chunk }, [chunk.buffer]);
  }

  /** Fulfilled when there is room for more of the guest's memory. */
  async room(): Promise<void> {
    await this.#pages.room();
  }

  /** Fulfilled when there is room for more writes to its disks, which may wait for its memory. */
  async roomForWrites(): Promise<void> {
    await this.#disks.room();
  }

  /** Give the directory up once all that was told is done; what is held stays there. */
  async close(): Promise<void> {
    this.#post({ type: "close" });
    await this.#closed.promise;
    this.#worker.terminate();
  }

  #take(answer: FromImage): void {
    switch (answer.type) {
      case "ready": {
        const unsent = this.#unsent ?? [];
        this.#unsent = undefined;
        for (const message of unsent) this.#post(message);
        return;
      }
      case "closed":
        return this.#closed.resolve();
      case "failed":
        return this.#fail(answer.reason);
      case "done":
        return this.#pages.take(answer.bytes);
      case "disk-taken":
        return this.#disks.take(answer.bytes);
      default:
        return this.#handle(answer);
    }
  }

  #post(message: ToImage, transferred: ArrayBuffer[] = []): void {
    // Before it listens nothing is sent in a hurry, and nothing is transferred.
    if (this.#unsent !== undefined) this.#unsent.push(message);
    else this.#worker.postMessage(message, transferred);
  }

  #fail(reason: string): void {
    this.#pages.open();
    this.#disks.open();
    this.#failed(new StoreError(reason));
  }
}

/** What the worker was sent and has not taken: so a fast link does not fill this machine's memory. */
class Queued {
  #bytes = 0;
  #room: PromiseWithResolvers<void> | undefined;

  add(bytes: number): void {
    this.#bytes += bytes;
  }

  take(bytes: number): void {
    this.#bytes -= bytes;
    if (this.#bytes <= IMAGE_QUEUE_BYTES_MAX) this.open();
  }

  open(): void {
    this.#room?.resolve();
    this.#room = undefined;
  }

  async room(): Promise<void> {
    if (this.#bytes <= IMAGE_QUEUE_BYTES_MAX) return;
    this.#room ??= Promise.withResolvers();
    await this.#room.promise;
  }
}
