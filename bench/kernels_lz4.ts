/**
 * LZ4 over blocks of 64 KiB, next to liblz4.
 *
 * @module
 */

import type { WasmKernels } from "../wasm/mod.ts";
import type { Content } from "./kernel_corpus.ts";
import { type Alternation, type Row, row } from "./measure.ts";
import { openNative } from "./native.ts";

const BLOCK_BYTES = 65536;
const TARGET_BYTES = BLOCK_BYTES + 1024;
const BARS = { compress: 0.85, ratio: 0.98, decompress: 0.6 };

/** What one content took: seconds and bytes, ours and liblz4's (null when it is not installed). */
interface Figures {
  readonly sourceBytes: number;
  readonly compressSeconds: Pair;
  readonly decompressSeconds: Pair;
  readonly targetBytes: Pair;
}

interface Pair {
  readonly ours: number;
  readonly peer: number | null;
}

/** Each content is shown; the bars are for all of them together. */
export function benchLz4(
  kernels: WasmKernels,
  clock: Alternation,
  contents: readonly Content[],
): Row[] {
  const figures = contents.map((content) => measureContent(kernels, clock, content));
  return [
    ...contents.flatMap(({ name }, i) => rowsOf(name, figures.slice(i, i + 1))),
    ...rowsOf("all of these", figures, BARS),
  ];
}

function rowsOf(name: string, figures: readonly Figures[], bars?: typeof BARS): Row[] {
  const sum = (pairs: readonly Pair[]): Pair => ({
    ours: pairs.reduce((total, { ours }) => total + ours, 0),
    peer: pairs.reduce<number | null>(
      (total, { peer }) => total === null || peer === null ? null : total + peer,
      0,
    ),
  });
  const sourceBytes = figures.reduce((total, figure) => total + figure.sourceBytes, 0);
  const compare = (what: string, unit: string, dividend: number, divisor: Pair, bar?: number) =>
    row({
      case: `lz4 ${what}, ${name}`,
      unit,
      ours: dividend / divisor.ours,
      peer: divisor.peer === null ? null : dividend / divisor.peer,
      peerName: "liblz4",
      bar,
    });
  const compressSeconds = sum(figures.map((figure) => figure.compressSeconds));
  const decompressSeconds = sum(figures.map((figure) => figure.decompressSeconds));
  const targetBytes = sum(figures.map((figure) => figure.targetBytes));
  return [
    compare("compress", "MB/s", sourceBytes / 1e6, compressSeconds, bars?.compress),
    compare("ratio", "x", sourceBytes, targetBytes, bars?.ratio),
    compare("decompress", "MB/s", sourceBytes / 1e6, decompressSeconds, bars?.decompress),
  ];
}

function measureContent(kernels: WasmKernels, clock: Alternation, content: Content): Figures {
  const blocks = Math.floor(content.bytes.length / BLOCK_BYTES);
  const source = kernels.alloc(blocks * BLOCK_BYTES);
  const oursTarget = kernels.alloc(blocks * TARGET_BYTES);
  const peerTarget = kernels.alloc(blocks * TARGET_BYTES);
  const restored = kernels.alloc(BLOCK_BYTES);
  kernels.bytes.set(content.bytes.subarray(0, blocks * BLOCK_BYTES), source);
  const native = openNative();
  const at = native.locate(kernels.bytes);
  const { lz4 } = native;
  const oursBytes: number[] = [];
  const peerBytes: number[] = [];
  const eachBlock = (run: (block: number) => void) => () => {
    for (let block = 0; block < blocks; block++) run(block);
  };
  const compressed = clock.measure(
    eachBlock((block) => {
      const from = source + block * BLOCK_BYTES;
      const to = oursTarget + block * TARGET_BYTES;
      oursBytes[block] = kernels.lz4Compress(from, BLOCK_BYTES, to, TARGET_BYTES);
    }),
    lz4 && eachBlock((block) => {
      const from = at(source + block * BLOCK_BYTES);
      const to = at(peerTarget + block * TARGET_BYTES);
      peerBytes[block] = lz4.LZ4_compress_default(from, to, BLOCK_BYTES, TARGET_BYTES);
    }),
  );
  // Both decompress what they would meet in use: the kernels' own output.
  const decompressed = clock.measure(
    eachBlock((block) => {
      const from = oursTarget + block * TARGET_BYTES;
      kernels.lz4Decompress(from, oursBytes[block] ?? 0, restored, BLOCK_BYTES);
    }),
    lz4 && eachBlock((block) => {
      const from = at(oursTarget + block * TARGET_BYTES);
      lz4.LZ4_decompress_safe(from, at(restored), oursBytes[block] ?? 0, BLOCK_BYTES);
    }),
  );
  native.close();
  const seconds = ({ ours, peer }: Pair): Pair => ({
    ours: 1 / ours,
    peer: peer === null ? null : 1 / peer,
  });
  const total = (sizes: readonly number[]) => sizes.reduce((sum, size) => sum + size, 0);
  return {
    sourceBytes: blocks * BLOCK_BYTES,
    compressSeconds: seconds(compressed),
    decompressSeconds: seconds(decompressed),
    targetBytes: { ours: total(oursBytes), peer: lz4 === undefined ? null : total(peerBytes) },
  };
}
