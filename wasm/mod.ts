/**
 * The door to the kernels: everything the engine does to guest memory byte by byte.
 *
 * {@linkcode WasmKernels} is what runs; {@linkcode ReferenceKernels} says what it means.
 *
 * @module
 */

export {
  ENCODE,
  ENCODE_COUNTER,
  FRAME,
  FRAME_BYTES_MAX,
  FRAME_ENTRY_BYTES,
  FRAME_IPV6,
  FRAME_KIND,
  FRAME_SCAN,
  PAGE_ENTRY_BYTES,
  PAIR_ENTRY_BYTES,
  SCAN,
} from "./kernel_set.ts";
export type { KernelSet } from "./kernel_set.ts";
export { ReferenceKernels } from "./reference/mod.ts";
export { WasmKernels } from "./wasm_kernels.ts";
