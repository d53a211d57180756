/**
 * Runs the same kernels on the same memory contents in WebAssembly and in the reference, and
 * compares everything: the result and every byte of the arena, so that a write outside the target
 * cannot hide.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert/mod.js";
import { type KernelSet, ReferenceKernels, WasmKernels } from "../../wasm/mod.ts";
import { ARENA_START } from "../../wasm/door.ts";

/** Both kernel sets by name, for tests that run on each alone. */
export const KERNEL_SETS: readonly { readonly name: string; readonly create: () => KernelSet }[] = [
  { name: "WasmKernels", create: () => WasmKernels.create() },
  { name: "ReferenceKernels", create: () => new ReferenceKernels() },
];

/** A range of memory. */
export interface Range {
  readonly address: number;
  readonly length: number;
}

/** What every byte of the arena is between two allocations, and before a test writes it. */
const CANARY = 0xc7;
const GAP_BYTES = 64;

/** Both kernel sets with the same allocations. */
export class Twin {
  readonly #wasm = WasmKernels.create();
  readonly #reference = new ReferenceKernels();

  /** Allocate the same address in both, with canary bytes before and behind it. */
  alloc(sizeBytes: number): number {
    const [address] = [this.#wasm, this.#reference].map((kernels) => {
      kernels.alloc(GAP_BYTES);
      const address = kernels.alloc(sizeBytes);
      kernels.alloc(GAP_BYTES);
      return address;
    });
    assert(address !== undefined);
    this.reset();
    return address;
  }

  /** Fill both arenas with the canary. */
  reset(): void {
    for (const kernels of [this.#wasm, this.#reference]) kernels.bytes.fill(CANARY, ARENA_START);
  }

  /** Put the same bytes into both. */
  set(address: number, bytes: ArrayLike<number>): void {
    for (const kernels of [this.#wasm, this.#reference]) kernels.bytes.set(bytes, address);
  }

  fill(address: number, length: number, value: number): void {
    for (const kernels of [this.#wasm, this.#reference]) {
      kernels.bytes.fill(value, address, address + length);
    }
  }

  /** A copy of the (equal) contents. */
  get({ address, length }: Range): Uint8Array<ArrayBuffer> {
    return this.#wasm.bytes.slice(address, address + length);
  }

  u32(address: number): number {
    return new DataView(this.#wasm.bytes.buffer).getUint32(address, true);
  }

  setU32(address: number, ...values: readonly number[]): void {
    this.set(address, new Uint8Array(Uint32Array.from(values).buffer));
  }

  /**
   * Run on both; results and arenas must be equal.
   *
   * @param unspecified Where the contract leaves the bytes open, given the result
   */
  run<T>(kernel: (kernels: KernelSet) => T, unspecified?: (result: T) => Range): T {
    const ours = kernel(this.#wasm);
    const specified = kernel(this.#reference);
    assertEquals(ours, specified);
    if (unspecified !== undefined) {
      const { address, length } = unspecified(ours);
      this.fill(address, length, CANARY);
    }
    this.#assertSameArena();
    return ours;
  }

  #assertSameArena(): void {
    const ours = this.#wasm.bytes;
    const specified = this.#reference.bytes;
    assertEquals(ours.length, specified.length);
    const words = ours.length / 4;
    const a = new Uint32Array(ours.buffer);
    const b = new Uint32Array(specified.buffer);
    let index = ARENA_START / 4;
    while (index < words && a[index] === b[index]) index++;
    if (index === words) return;
    const at = index * 4;
    assertEquals(ours.slice(at, at + 8), specified.slice(at, at + 8), `memory at ${at} differs`);
  }
}
