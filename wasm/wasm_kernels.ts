/**
 * The kernels compiled from `wasm/assembly`: one module for the whole process, and for each
 * instance a memory of its own, in which a guest's RAM can live beside staging buffers.
 *
 * @module
 */

import {
  ARENA_START,
  checkedMaximumBytes,
  KernelDoor,
  type LinearMemory,
  MEMORY_BYTES_MAX,
  type RawKernels,
  WASM_PAGE_BYTES,
} from "./door.ts";

const KERNEL_NAMES: readonly (keyof RawKernels)[] = [
  "scanRam",
  "applyPages",
  "markPages",
  "collectPages",
  "encodePages",
  "scanFrames",
  "comparePairs",
  "isZero",
  "isEqual",
  "copy",
  "bitmapSet",
  "bitmapClear",
  "bitmapTest",
  "bitmapCount",
  "bitmapUnion",
  "bitmapDifference",
  "bitmapNextRun",
  "xbzrleEncode",
  "xbzrleDecode",
  "lz4Compress",
  "lz4Decompress",
  "xxh64",
];

/** `fetch` reads a file as well as a remote module's neighbour. */
const moduleBytes = await (await fetch(new URL("./kernels.wasm", import.meta.url))).arrayBuffer();

let compiledModule: WebAssembly.Module | undefined;

/**
 * The kernels, over one WebAssembly memory. The memory is shared: another thread may attach kernels
 * of its own to it, and work on other parts of it at the same time.
 *
 * @example
 * ```ts
 * import { WasmKernels } from "./wasm_kernels.ts";
 * import { assertEquals } from "@std/assert/mod.js";
 *
 * const kernels = WasmKernels.create();
 * const page = kernels.alloc(4096);
 * assertEquals(kernels.isZero(page, 4096), 1);
 * kernels.bytes[page + 4095] = 1;
 * assertEquals(kernels.isZero(page, 4096), 0);
 * ```
 */
export class WasmKernels extends KernelDoor {
  /** For transfers straight into it, and for other threads; grow it by `alloc` only. */
  readonly memory: WebAssembly.Memory;

  private constructor(memory: WebAssembly.Memory, maximumBytes: number) {
    super(new WasmMemory(memory), instantiate(memory), maximumBytes);
    this.memory = memory;
  }

  /**
   * Instantiate the kernels over a fresh memory.
   *
   * @param options.maximumBytes What `alloc` may grow the memory to: 64 KiB to 4 GiB - 64 KiB,
   * which is also the default; unused address space costs no memory
   * @throws {RangeError} when the maximum is outside these bounds, or address space has run out
   */
  static create(options: { readonly maximumBytes?: number } = {}): WasmKernels {
    const maximumBytes = checkedMaximumBytes(options.maximumBytes ?? MEMORY_BYTES_MAX);
    const memory = new WebAssembly.Memory({
      initial: ARENA_START / WASM_PAGE_BYTES,
      maximum: Math.ceil(maximumBytes / WASM_PAGE_BYTES),
      shared: true,
    });
    return new WasmKernels(memory, maximumBytes);
  }

  /**
   * Instantiate the kernels over the memory of kernels that live in another thread. They work on what
   * is allocated there: their own `alloc` always throws. `lz4Compress` is for the thread that made the
   * memory alone, because its table lies in it.
   */
  static attach(memory: WebAssembly.Memory): WasmKernels {
    return new WasmKernels(memory, ARENA_START);
  }
}

function instantiate(memory: WebAssembly.Memory): RawKernels {
  compiledModule ??= new WebAssembly.Module(moduleBytes);
  const { exports } = new WebAssembly.Instance(compiledModule, { env: { memory } });
  if (!isRawKernels(exports)) {
    throw new TypeError("Cannot use kernels.wasm: a kernel is missing, run `deno task build:wasm`");
  }
  return exports;
}

function isRawKernels(exports: object): exports is RawKernels {
  const byName = new Map<string, unknown>(Object.entries(exports));
  return KERNEL_NAMES.every((name) => typeof byName.get(name) === "function");
}

class WasmMemory implements LinearMemory {
  readonly #memory: WebAssembly.Memory;
  #bytes: Uint8Array;

  constructor(memory: WebAssembly.Memory) {
    this.#memory = memory;
    this.#bytes = new Uint8Array(memory.buffer);
  }

  get bytes(): Uint8Array {
    // A shared memory that has grown, in whichever thread, has another buffer, and the old one stays.
    const { buffer } = this.#memory;
    if (this.#bytes.length !== buffer.byteLength) this.#bytes = new Uint8Array(buffer);
    return this.#bytes;
  }

  get sizeBytes(): number {
    return this.bytes.length;
  }

  growTo(sizeBytes: number): void {
    this.#memory.grow((sizeBytes - this.sizeBytes) / WASM_PAGE_BYTES);
  }
}
