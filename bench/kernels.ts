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
import { benchEncode } from "./encode.ts";
import { changedPages, corpus } from "./kernel_corpus.ts";
import { benchLz4 } from "./kernels_lz4.ts";
import { Alternation, type Row, row } from "./measure.ts";
import { openNative } from "./native.ts";

export type { Row } from "./measure.ts";

interface Options {
  /** Shorter and rougher. */
  readonly quick: boolean;
}

const PAGE_BYTES = 4096;
const PAGE_COUNT = 8192;
const BLOCK_BYTES = 65536;
const RANGE_BYTES = 262144;
const BARS = { pages: 0.8, xxh64: 0.8, deltaGBps: 3 };

/** Measure every kernel. */
export async function benchKernels(options: Options): Promise<Row[]> {
  const kernels = WasmKernels.create();
  const clock = new Alternation(options.quick ? 5 : 9, options.quick ? 20 : 100);
  return [
    ...benchPages(kernels, clock),
    ...benchXxh64(kernels, clock),
    ...benchLz4(kernels, clock, await corpus()),
    ...benchDelta(clock),
    ...await benchEncode(options.quick ? 5 : 15),
    ...benchReference(clock),
  ];
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
    bar: BARS.xxh64,
  })];
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
