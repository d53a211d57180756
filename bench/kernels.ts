/**
 * How fast the kernels are: each one next to native code that does the same (called by FFI in the
 * same process, in turn) and next to the reference in TypeScript.
 *
 * @module
 */

import {
  ENCODE,
  type KernelSet,
  PAGE_ENTRY_BYTES,
  ReferenceKernels,
  WasmKernels,
} from "../wasm/mod.ts";
import { changedPages, type Content, corpus } from "./kernel_corpus.ts";
import { openNative } from "./native.ts";

/** One line of a benchmark's table. */
export interface Row {
  readonly case: string;
  readonly unit: string;
  readonly ours: number;
  /** What it is compared with, measured in turn with it; null when there is none here. */
  readonly peer: number | null;
  readonly peerName: string | null;
  /** ours / peer */
  readonly ratio: number | null;
  /** The least `ratio` wanted (the least `ours` where there is no peer); null when nothing is. */
  readonly bar: number | null;
  readonly ok: boolean | null;
}

interface Options {
  /** Shorter and rougher. */
  readonly quick: boolean;
}

const PAGE_BYTES = 4096;
const PAGE_COUNT = 8192;
const BLOCK_BYTES = 65536;
const RANGE_BYTES = 262144;
const BARS = { pages: 0.8, lz4Compress: 0.85, lz4Ratio: 0.98, lz4Decompress: 0.6, deltaGBps: 3 };

/** Measure every kernel. */
export async function benchKernels(options: Options): Promise<Row[]> {
  const kernels = WasmKernels.create();
  const clock = new Alternation(options.quick ? 5 : 9, options.quick ? 20 : 100);
  return [
    ...benchPages(kernels, clock),
    ...benchXxh64(kernels, clock),
    ...(await corpus()).flatMap((content) => benchLz4(kernels, clock, content)),
    ...benchDelta(clock),
    ...benchReference(clock),
  ];
}

/** Runs two things in turn, so that a slow spell of the machine hits both, and takes medians. */
class Alternation {
  constructor(readonly rounds: number, readonly roundMs: number) {}

  /** @returns Runs per second of each */
  measure(ours: () => void, peer?: () => void): { ours: number; peer: number | null } {
    const oursRates: number[] = [];
    const peerRates: number[] = [];
    for (let round = -1; round < this.rounds; round++) {
      const oursRate = this.#rate(ours);
      const peerRate = peer === undefined ? undefined : this.#rate(peer);
      if (round < 0) continue; // The first round warms the compiler and the caches.
      oursRates.push(oursRate);
      if (peerRate !== undefined) peerRates.push(peerRate);
    }
    return { ours: median(oursRates), peer: peerRates.length === 0 ? null : median(peerRates) };
  }

  #rate(run: () => void): number {
    const start = performance.now();
    let runs = 0;
    let elapsedMs = 0;
    do {
      run();
      runs++;
      elapsedMs = performance.now() - start;
    } while (elapsedMs < this.roundMs);
    return runs * 1000 / elapsedMs;
  }
}

function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? NaN;
}

interface Comparison {
  readonly case: string;
  readonly unit: string;
  readonly ours: number;
  readonly peer?: number | null;
  readonly peerName?: string;
  readonly bar?: number;
}

function row({ case: name, unit, ours, peer = null, peerName, bar }: Comparison): Row {
  const ratio = peer === null ? null : ours / peer;
  const ok = bar === undefined || (peer === null && peerName !== undefined)
    ? null
    : (ratio ?? ours) >= bar;
  return {
    case: name,
    unit,
    ours,
    peer,
    peerName: peer === null ? null : peerName ?? null,
    ratio,
    bar: bar ?? null,
    ok,
  };
}

/**
 * Zero, equal and copy over 32 MiB, in ranges long enough to make the cost of a call through FFI
 * (0.3 us) small.
 */
function benchPages(kernels: WasmKernels, clock: Alternation): Row[] {
  const sizeBytes = PAGE_COUNT * PAGE_BYTES;
  const a = kernels.alloc(sizeBytes);
  const b = kernels.alloc(sizeBytes);
  const zeros = kernels.alloc(RANGE_BYTES);
  // Memory that was never written is one page of zeros over and over, which is too fast to be true.
  kernels.bytes.fill(1, a, a + sizeBytes).fill(0, a, a + sizeBytes);
  kernels.bytes.fill(1, b, b + sizeBytes).fill(0, b, b + sizeBytes);
  kernels.bytes.fill(1, zeros, zeros + RANGE_BYTES).fill(0, zeros, zeros + RANGE_BYTES);
  const native = openNative();
  const at = native.locate(kernels.bytes);
  const eachRange = (run: (offset: number) => void) => () => {
    for (let offset = 0; offset < sizeBytes; offset += RANGE_BYTES) run(offset);
  };
  const compare = (
    name: string,
    ours: (offset: number) => void,
    peer: (offset: number) => void,
    peerName: string,
  ): Row => {
    const rates = clock.measure(eachRange(ours), eachRange(peer));
    const gb = sizeBytes / 1e9;
    const peerRate = rates.peer === null ? null : rates.peer * gb;
    return row({
      case: name,
      unit: "GB/s",
      ours: rates.ours * gb,
      peer: peerRate,
      peerName,
      bar: BARS.pages,
    });
  };
  const { memcmp, memcpy } = native.libc;
  const rows = [
    compare(
      "zero",
      (offset) => kernels.isZero(a + offset, RANGE_BYTES),
      (offset) => memcmp(at(a + offset), at(zeros), RANGE_BYTES),
      "libc memcmp with zeros",
    ),
    compare(
      "equal",
      (offset) => kernels.isEqual(a + offset, b + offset, RANGE_BYTES),
      (offset) => memcmp(at(a + offset), at(b + offset), RANGE_BYTES),
      "libc memcmp",
    ),
    compare(
      "copy",
      (offset) => kernels.copy(b + offset, a + offset, RANGE_BYTES),
      (offset) => memcpy(at(b + offset), at(a + offset), RANGE_BYTES),
      "libc memcpy",
    ),
  ];
  native.close();
  return rows;
}

function benchXxh64(kernels: WasmKernels, clock: Alternation): Row[] {
  const sizeBytes = 4 * BLOCK_BYTES;
  const address = kernels.alloc(sizeBytes);
  const out = kernels.alloc(8);
  crypto.getRandomValues(kernels.bytes.subarray(address, address + BLOCK_BYTES));
  const native = openNative();
  const at = native.locate(kernels.bytes);
  const { xxhash } = native;
  const rates = clock.measure(
    () => kernels.xxh64(address, sizeBytes, out),
    xxhash && (() => void xxhash.XXH64(at(address), sizeBytes, 0n)),
  );
  native.close();
  return [row({
    case: "xxh64 of 256 KiB",
    unit: "GB/s",
    ours: rates.ours * sizeBytes / 1e9,
    peer: rates.peer === null ? null : rates.peer * sizeBytes / 1e9,
    peerName: "libxxhash XXH64",
  })];
}

/** LZ4 over blocks of 64 KiB. */
function benchLz4(kernels: WasmKernels, clock: Alternation, content: Content): Row[] {
  const blocks = Math.floor(content.bytes.length / BLOCK_BYTES);
  const capacity = BLOCK_BYTES + 1024;
  const source = kernels.alloc(blocks * BLOCK_BYTES);
  const oursTarget = kernels.alloc(blocks * capacity);
  const peerTarget = kernels.alloc(blocks * capacity);
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
      oursBytes[block] = kernels.lz4Compress(
        source + block * BLOCK_BYTES,
        BLOCK_BYTES,
        oursTarget + block * capacity,
        capacity,
      );
    }),
    lz4 && eachBlock((block) => {
      peerBytes[block] = lz4.LZ4_compress_default(
        at(source + block * BLOCK_BYTES),
        at(peerTarget + block * capacity),
        BLOCK_BYTES,
        capacity,
      );
    }),
  );
  // Both decompress what they would meet in use: the kernels' own output.
  const decompressed = clock.measure(
    eachBlock((block) => {
      kernels.lz4Decompress(
        oursTarget + block * capacity,
        oursBytes[block] ?? 0,
        restored,
        BLOCK_BYTES,
      );
    }),
    lz4 && eachBlock((block) => {
      lz4.LZ4_decompress_safe(
        at(oursTarget + block * capacity),
        at(restored),
        oursBytes[block] ?? 0,
        BLOCK_BYTES,
      );
    }),
  );
  native.close();
  const mb = blocks * BLOCK_BYTES / 1e6;
  const ratioOf = (sizes: readonly number[]) =>
    blocks * BLOCK_BYTES / sizes.reduce((sum, size) => sum + size, 0);
  const compare = (
    name: string,
    unit: string,
    ours: number,
    peer: number | null,
    peerName: string,
    bar: number,
  ) => row({ case: `${name}, ${content.name}`, unit, ours, peer, peerName, bar });
  const scaled = (rate: number | null) => rate === null ? null : rate * mb;
  return [
    compare(
      "lz4 compress",
      "MB/s",
      compressed.ours * mb,
      scaled(compressed.peer),
      "LZ4_compress_default",
      BARS.lz4Compress,
    ),
    compare(
      "lz4 ratio",
      "x",
      ratioOf(oursBytes),
      lz4 === undefined ? null : ratioOf(peerBytes),
      "LZ4_compress_default",
      BARS.lz4Ratio,
    ),
    compare(
      "lz4 decompress",
      "MB/s",
      decompressed.ours * mb,
      scaled(decompressed.peer),
      "LZ4_decompress_safe",
      BARS.lz4Decompress,
    ),
  ];
}

/**
 * A checkpoint's way into the mirror: scan the records QEMU sent, then compare, encode and update
 * the mirror. The staged pages and the mirror's take turns, so that every round finds the same
 * changes.
 */
function benchDelta(clock: Alternation): Row[] {
  const cases = [
    { name: "scan + delta, all unchanged", share: 0, changes: 0, bar: BARS.deltaGBps },
    { name: "scan + delta, 60 B changed in half", share: 0.5, changes: 6, bar: BARS.deltaGBps },
    { name: "scan + delta, 60 B changed in 95 %", share: 0.95, changes: 6, bar: BARS.deltaGBps },
    { name: "scan + delta, 460 B changed in 58 %", share: 0.58, changes: 46, bar: BARS.deltaGBps },
    { name: "scan + delta, all new content", share: 1, changes: Infinity, bar: undefined },
  ];
  return cases.map(({ name, share, changes, bar }) => {
    const run = deltaRun(WasmKernels.create(), PAGE_COUNT / 2, share, changes);
    const rate = clock.measure(run).ours;
    const ours = rate * (PAGE_COUNT / 2) * PAGE_BYTES / 1e9;
    return row({ case: name, unit: "GB/s", ours, ...(bar === undefined ? {} : { bar }) });
  });
}

/** @param share Of the pages that differ, each in `changes` places of ten bytes */
function deltaRun(kernels: KernelSet, pages: number, share: number, changes: number): () => void {
  const recordBytes = 8 + PAGE_BYTES;
  const mirror = kernels.alloc(pages * PAGE_BYTES);
  const staged = [0, 1].map(() => kernels.alloc(pages * recordBytes));
  const table = kernels.alloc(pages * PAGE_ENTRY_BYTES);
  const capacity = 262144;
  const target = kernels.alloc(capacity);
  const out = kernels.alloc(16);
  const counters = kernels.alloc(16);
  const [before, after] = changedPages(pages, share, changes);
  for (const [i, contents] of [before, after].entries()) {
    for (let page = 0; page < pages; page++) {
      const at = (staged[i] ?? 0) + page * recordBytes;
      new DataView(kernels.bytes.buffer).setBigUint64(at, BigInt(page * PAGE_BYTES + 0x28));
      const content = contents.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
      kernels.bytes.set(content, at + 8);
    }
  }
  kernels.bytes.set(before, mirror);
  let turn = 0;
  return () => {
    const at = staged[++turn & 1] ?? 0;
    kernels.scanRam(at, at + pages * recordBytes, 0, pages, table, 0, pages, out);
    const view = new DataView(kernels.bytes.buffer);
    const count = view.getUint32(out + 4, true);
    for (let from = 0; from < count; from = view.getUint32(out, true)) {
      kernels.encodePages(
        ENCODE.DELTA,
        table,
        from,
        count,
        0,
        0,
        pages,
        mirror,
        0,
        0,
        target,
        capacity,
        counters,
        out,
      );
    }
  };
}

/** The same work in TypeScript, on little of it. */
function benchReference(clock: Alternation): Row[] {
  const both = (make: (kernels: KernelSet) => () => void) =>
    clock.measure(make(WasmKernels.create()), make(new ReferenceKernels()));
  const block = (
    run: (kernels: KernelSet, source: number, target: number, restored: number) => void,
  ) =>
  (kernels: KernelSet) => {
    const source = kernels.alloc(BLOCK_BYTES);
    const target = kernels.alloc(2 * BLOCK_BYTES);
    const restored = kernels.alloc(BLOCK_BYTES);
    for (let i = 0; i < BLOCK_BYTES; i++) kernels.bytes[source + i] = Math.imul(i, i) >>> 11;
    return () => run(kernels, source, target, restored);
  };
  const cases = [
    {
      name: "zero 64 KiB",
      bytes: BLOCK_BYTES,
      rates: both(
        block((kernels, _source, _target, restored) => kernels.isZero(restored, BLOCK_BYTES)),
      ),
    },
    {
      name: "xxh64 of 64 KiB",
      bytes: BLOCK_BYTES,
      rates: both(block((kernels, source, target) => kernels.xxh64(source, BLOCK_BYTES, target))),
    },
    {
      name: "lz4 there and back, 64 KiB",
      bytes: BLOCK_BYTES,
      rates: both(block((kernels, source, target, restored) => {
        const size = kernels.lz4Compress(source, BLOCK_BYTES, target, 2 * BLOCK_BYTES);
        kernels.lz4Decompress(target, size, restored, BLOCK_BYTES);
      })),
    },
    {
      name: "scan + delta, 60 B changed in half, 256 KiB",
      bytes: 64 * PAGE_BYTES,
      rates: both((kernels) => deltaRun(kernels, 64, 0.5, 6)),
    },
  ];
  return cases.map(({ name, bytes, rates }) =>
    row({
      case: name,
      unit: "MB/s",
      ours: rates.ours * bytes / 1e6,
      peer: rates.peer === null ? null : rates.peer * bytes / 1e6,
      peerName: "reference",
    })
  );
}

if (import.meta.main) {
  const rows = await benchKernels({ quick: Deno.args.includes("--quick") });
  const shown = (value: number | null) => value === null ? "" : Number(value.toPrecision(4));
  console.table(rows.map(({ ours, peer, ratio, bar, ok, ...names }) => ({
    case: names.case,
    unit: names.unit,
    ours: shown(ours),
    peer: shown(peer),
    peerName: names.peerName ?? "",
    ratio: shown(ratio),
    bar: bar ?? "",
    ok: ok ?? "",
  })));
  if (rows.some((entry) => entry.ok === false)) Deno.exit(1);
}
