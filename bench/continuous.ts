/**
 * Mode `continuous`: how soon the VM runs again after a kill, whatever its size, and what the guest pays
 * for it.
 *
 * @module
 */

import type { Area, BenchContext } from "./area.ts";
import type { Contender } from "./rig/contender.ts";
import { EnginePair } from "./rig/engine_pair.ts";
import { BenchGuest } from "./rig/guest.ts";
import { NativePair } from "./rig/native_pair.ts";
import { attempt, openRig, type Rig } from "./rig/rig.ts";
import { costRow, figure, median, type Row } from "./row.ts";

/** A guest and what is in its memory. */
interface Size {
  readonly name: string;
  readonly memoryMiB: number;
  readonly parameters: string;
}

const SIZES: readonly Size[] = [
  { name: "128 MiB", memoryMiB: 128, parameters: "colo.load=idle" },
  {
    name: "1 GiB, 128 MiB of random data",
    memoryMiB: 1024,
    parameters: "colo.load=idle colo.file_kib=131072",
  },
  {
    name: "4 GiB, 512 MiB of random data",
    memoryMiB: 4096,
    parameters: "colo.load=idle colo.file_kib=524288",
  },
];

/** How much a guest writes. */
const LOADS = [
  { name: "idle", parameters: "colo.load=idle" },
  { name: "5k pages", parameters: "colo.load=sweep colo.load_pages=4800 colo.load_ms=50" },
] as const;

const PERIOD_MS = 100;

/** The bars: a takeover in milliseconds, and that of the largest guest against the smallest. */
const TAKEOVER_MS_MAX = 20;
const LARGEST_TO_SMALLEST_MAX = 1.3;

const SHARE_CHECKPOINTS = 40;

async function benchContinuous(context: BenchContext): Promise<Row[]> {
  const rig = await openRig(context);
  const takeovers = context.quick ? 3 : 9;
  return [
    ...await benchTakeovers(rig, takeovers),
    ...await benchShares(rig, context.quick ? 1 : 3),
  ];
}

/** Guests of all sizes in turn. */
async function benchTakeovers(rig: Rig, turns: number): Promise<Row[]> {
  const sizes = SIZES.slice(0, rig.quick ? 2 : undefined);
  const guests: BenchGuest[] = [];
  for (const size of sizes) guests.push(await BenchGuest.boot(rig, size));
  const tookMs = sizes.map((): number[] => []);
  for (let turn = 1; turn <= turns; turn++) {
    for (const [index, guest] of guests.entries()) {
      const what = `${sizes[index]!.name}: takeover ${turn} of ${turns}`;
      rig.progress(what);
      tookMs[index]!.push(await attempt(rig, what, () => takeOver(guest)));
    }
  }
  const rows = sizes.map(({ name }, index) =>
    figure(`kill to RESUME: ${name}`, "ms", tookMs[index]!, TAKEOVER_MS_MAX)
  );
  const [smallest, largest] = [tookMs[0]!, tookMs.at(-1)!];
  const ratio = costRow({
    case: `kill to RESUME: ${sizes.at(-1)!.name}`,
    unit: "ms",
    ours: largest,
    peer: smallest,
    peerName: sizes[0]!.name,
    bar: LARGEST_TO_SMALLEST_MAX,
  });
  return [...rows, ratio];
}

async function takeOver(guest: BenchGuest): Promise<number> {
  const pair = await EnginePair.start(guest, { mode: "continuous", periodMs: PERIOD_MS });
  try {
    await pair.take(5);
    return await pair.killPrimary();
  } finally {
    await pair.close();
  }
}

/** Of the time that passes, the guest stands still for so much. */
async function benchShares(rig: Rig, turns: number): Promise<Row[]> {
  const rows: Row[] = [];
  for (const { name, parameters } of LOADS) {
    const guest = await BenchGuest.boot(rig, { memoryMiB: 256, parameters });
    const ours: number[] = [];
    const native: number[] = [];
    let pages: readonly number[] = [];
    for (let turn = 1; turn <= turns; turn++) {
      const what = `${name}: share of time, ${turn} of ${turns}`;
      rig.progress(what);
      native.push(
        await attempt(rig, what, async () => {
          const pair = await NativePair.start(guest, { periodMs: PERIOD_MS });
          return (await shareOf(pair)).percent;
        }),
      );
      const share = await attempt(rig, what, async () => {
        const options = { mode: "continuous", periodMs: PERIOD_MS } as const;
        return await shareOf(await EnginePair.start(guest, options));
      });
      ours.push(share.percent);
      pages = [...pages, ...share.pages];
    }
    rows.push(costRow({
      case: `guest stands still, ${name} (${Math.round(median(pages))}) every ${PERIOD_MS} ms`,
      unit: "% of time",
      ours,
      peer: native,
      peerName: "native pair",
    }));
  }
  return rows;
}

async function shareOf(
  contender: Contender,
): Promise<{ readonly percent: number; readonly pages: readonly number[] }> {
  try {
    await contender.take(3);
    const beganMs = performance.now();
    const taken = await contender.take(SHARE_CHECKPOINTS);
    const tookMs = performance.now() - beganMs;
    const pausedMs = taken.reduce((sum, { pauseMs }) => sum + pauseMs, 0);
    return { percent: 100 * pausedMs / tookMs, pages: taken.flatMap(({ pages }) => pages ?? []) };
  } finally {
    await contender.close();
  }
}

/** The area `continuous`. */
export const CONTINUOUS: Area = {
  name: "continuous",
  about:
    "Mode `continuous`: from the SIGKILL of the primary QEMU to the RESUME event of the one that " +
    "stood by, guests of all sizes in turn; and the share of time that the guest stands still for a " +
    "checkpoint every 100 ms, next to a native COLO pair that takes one 100 ms after the last.",
  bar: "most",
  run: benchContinuous,
};
