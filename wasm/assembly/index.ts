/**
 * The kernels that the module exports. What each does is said in wasm/kernel_set.ts; the host checks
 * all address ranges before a call (wasm/door.ts).
 */

export {
  bitmapClear,
  bitmapCount,
  bitmapDifference,
  bitmapNextRun,
  bitmapSet,
  bitmapTest,
  bitmapUnion,
} from "./bitmap";
export { xxh64 } from "./checksum";
export { encodePages } from "./encode";
export { lz4Compress, lz4Decompress } from "./lz4";
export { comparePairs, scanFrames } from "./packet";
export { copy, isEqual, isZero } from "./page";
export { applyPages, collectPages, markPages, scanRam } from "./scan";
export { xbzrleDecode, xbzrleEncode } from "./xbzrle";
