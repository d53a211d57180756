/**
 * Disks: what a guest's writes cost it unprotected, under QEMU's own COLO, and under ours.
 *
 * @module
 */

import type { Area, BenchContext } from "./area.ts";
import {
  type DiskContender,
  measureReturns,
  startNative,
  startOurs,
  startUnprotected,
} from "./rig/disk_contenders.ts";
import { attempt, openRig, type Rig } from "./rig/rig.ts";
import { compareRow, costRow, type Row } from "./row.ts";

const PERIOD_MS = 500;

/** How long a standby is away, while the guest writes 500 blocks of 4 KiB all over a disk of 256 MiB. */
const AWAY_MS = 10_000;

/** In a hurry the guest is asked for so much less, whose ends weigh more then. */
const QUICK_SHARE = 5;

/** So much of a load goes before it, until all that translates code or makes room has done so. */
const WARM_UP_SHARE = 0.25;

/** What the guest is asked for, and how that is counted. */
const LOADS = [
  {
    name: "sequential writes of 256 KiB",
    unit: "MB/s",
    command: "sequential",
    amount: 4 * 1024 * 1024,
    figure: (kib: number, ms: number) => kib * 1024 / 1e3 / ms,
    more: true,
  },
  {
    name: "random writes of 4 KiB",
    unit: "writes/s",
    command: "random",
    amount: 6000,
    figure: (writes: number, ms: number) => writes / (ms / 1000),
    more: true,
  },
  {
    name: "write of 4 KiB and fsync",
    unit: "ms",
    command: "sync",
    amount: 2000,
    figure: (writes: number, ms: number) => ms / writes,
    more: false,
  },
] as const;

type Measured = Record<string, number[]>;

async function benchDisk(context: BenchContext): Promise<Row[]> {
  const rig = await openRig(context);
  const contenders: Readonly<Record<string, () => Promise<DiskContender>>> = {
    "unprotected": () => startUnprotected(rig),
    "native COLO": () => startNative(rig, PERIOD_MS),
    "colo": () => startOurs(rig, PERIOD_MS, "colo"),
    "continuous": () => startOurs(rig, 100, "continuous"),
  };
  const figures: Record<string, Measured> = {};
  for (let round = 0; round < (context.quick ? 1 : 3); round++) {
    for (const [name, start] of Object.entries(contenders)) {
      await attempt(rig, name, () => measure(rig, name, start, figures));
    }
  }
  const rows = LOADS.flatMap(({ name, unit, more }) => {
    const of = (contender: string) => figures[contender]![name]!;
    const row = (mode: string, peerName: string, bar?: number) => {
      const cost = {
        case: `${name}, ${mode}`,
        unit,
        ours: of(mode),
        peer: of(peerName),
        peerName,
        bar,
      };
      return more ? compareRow(cost, "least") : { ...costRow(cost), sense: "most" as const };
    };
    return [
      row("colo", "native COLO", 1),
      row("continuous", "native COLO", 1),
      row("colo", "unprotected"),
    ];
  });
  return context.quick ? rows : [...rows, await benchReturn(rig)];
}

async function benchReturn(rig: Rig): Promise<Row> {
  const measure = () => measureReturns(rig, PERIOD_MS, AWAY_MS);
  const { returnedBytes, wholeBytes } = await attempt(rig, "a standby returns", measure);
  const row = costRow({
    case: "sent of the disks to a standby that was away for 10 s",
    unit: "MB",
    ours: [returnedBytes / 1e6],
    peer: [wholeBytes / 1e6],
    peerName: "all of them",
    bar: 0.25,
  });
  return { ...row, sense: "most" };
}

async function measure(
  rig: Rig,
  name: string,
  start: () => Promise<DiskContender>,
  figures: Record<string, Measured>,
): Promise<void> {
  const contender = await start();
  try {
    for (const load of LOADS) {
      const amount = Math.ceil(load.amount / (rig.quick ? QUICK_SHARE : 1));
      const ask = (amount: number) => contender.client.ask(`${load.command} ${amount}`, 120_000);
      await ask(Math.ceil(amount * WARM_UP_SHARE));
      const beganMs = performance.now();
      await ask(amount);
      const figure = load.figure(amount, performance.now() - beganMs);
      rig.progress(`${name}: ${load.name}: ${figure.toFixed(2)} ${load.unit}`);
      ((figures[name] ??= {})[load.name] ??= []).push(figure);
    }
  } finally {
    contender.client.close();
    await contender.close();
  }
}

/** The area. */
export const DISK: Area = {
  name: "disk",
  about:
    "What a guest writes to a replicated disk past its cache, timed by a client outside: unprotected, " +
    "under QEMU's own COLO with its NBD server, its net filters and colo-compare, and under ours; a " +
    "checkpoint each 500 ms, in mode continuous each 100 ms. The end of a load is told to a client " +
    "outside, so its answer has passed the comparison or the output commit. A quarter of each load " +
    "goes before it, and does not count.",
  bar: "least",
  run: benchDisk,
};
