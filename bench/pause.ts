/**
 * How long a checkpoint stops the guest: with the engine, with a native pair, and with a reader that
 * does nothing but acknowledge.
 *
 * @module
 */

import type { Area, BenchContext } from "./area.ts";
import type { Checkpoint, Contender } from "./rig/contender.ts";
import { EnginePair } from "./rig/engine_pair.ts";
import { Floor } from "./rig/floor.ts";
import { BenchGuest } from "./rig/guest.ts";
import { NativePair } from "./rig/native_pair.ts";
import { type LinkRate, ShapedNetwork } from "./rig/network.ts";
import { attempt, openRig, type Rig } from "./rig/rig.ts";
import { costRow, median, type Row } from "./row.ts";

/** Pages that a guest writes between two checkpoints, and how. */
interface Size {
  readonly name: string;
  readonly memoryMiB: number;
  readonly parameters: string;
  readonly periodMs: number;
  /** Whether the bars hold for it. */
  readonly barred: boolean;
}

const SIZES: readonly Size[] = [
  {
    name: "1k pages",
    memoryMiB: 256,
    parameters: "colo.load=small-writes colo.load_pages=560 colo.load_ms=100",
    periodMs: 300,
    barred: false,
  },
  {
    name: "5k pages",
    memoryMiB: 256,
    parameters: "colo.load=sweep colo.load_pages=4800 colo.load_ms=100",
    periodMs: 300,
    barred: true,
  },
  {
    name: "16k pages",
    memoryMiB: 1024,
    parameters: "colo.load=sweep colo.load_pages=16000 colo.load_ms=200",
    periodMs: 500,
    barred: true,
  },
];

/** A link, with the most that ours / native may be on it. */
interface Link {
  readonly name: string;
  readonly rate: LinkRate;
  readonly bar: number;
  readonly checkpoints: number;
}

const SHAPED: readonly Link[] = [
  { name: "1 Gbit/s", rate: "1gbit", bar: 0.1, checkpoints: 3 },
  { name: "100 Mbit/s", rate: "100mbit", bar: 0.02, checkpoints: 1 },
];

const UNSHAPED_BAR = 0.75;
const FLOOR_BAR = 1.15;
const UNSHAPED_CHECKPOINTS = 8;

/** After a start, QEMU has to translate the guest's code anew. */
const WARM_UP_CHECKPOINTS = 2;

/** Median pause of each alternation, and what the guest wrote. */
class Series {
  readonly pausesMs: number[] = [];
  readonly pages: number[] = [];

  add(checkpoints: readonly Checkpoint[]): void {
    this.pausesMs.push(median(checkpoints.map(({ pauseMs }) => pauseMs)));
    this.pages.push(...checkpoints.flatMap(({ pages }) => pages ?? []));
  }
}

async function benchPause(context: BenchContext): Promise<Row[]> {
  const rig = await openRig(context);
  const whyNot = await ShapedNetwork.whyNot();
  if (whyNot !== undefined) rig.progress(`leaving out 1 Gbit/s and 100 Mbit/s: ${whyNot}`);
  const network = whyNot === undefined ? await ShapedNetwork.create() : undefined;
  try {
    const rows: Row[] = [];
    for (const size of SIZES.slice(...(context.quick ? [1, 2] : []))) {
      const guest = await BenchGuest.boot(rig, size);
      rows.push(...await unshaped(guest, size, context.quick ? 2 : 5));
      if (network !== undefined) {
        rows.push(...await shaped(guest, size, network, context.quick ? 1 : 5));
      }
    }
    return rows;
  } finally {
    await network?.close();
  }
}

/** The native pair on a unix socket, the engines over loopback. */
async function unshaped(guest: BenchGuest, size: Size, alternations: number): Promise<Row[]> {
  const { periodMs } = size;
  const [native, engine, floor] = [new Series(), new Series(), new Series()];
  const contenders: readonly [string, Series, () => Promise<Contender>][] = [
    ["native pair", native, () => NativePair.start(guest, { periodMs })],
    ["engine", engine, () => EnginePair.start(guest, { periodMs })],
    ["floor", floor, () => Floor.start(guest, periodMs)],
  ];
  for (let turn = 1; turn <= alternations; turn++) {
    for (const [name, series, start] of contenders) {
      const what = `${size.name}, unshaped, ${name}, ${turn} of ${alternations}`;
      await measure(guest.rig, what, start, async (contender) => {
        series.add(await contender.take(UNSHAPED_CHECKPOINTS));
      });
    }
  }
  const name = `${Math.round(median(engine.pages))} pages, unshaped`;
  const common = { unit: "ms", ours: engine.pausesMs };
  return [
    costRow({
      ...common,
      case: name,
      peer: native.pausesMs,
      peerName: "native pair",
      bar: size.barred ? UNSHAPED_BAR : undefined,
    }),
    costRow({
      ...common,
      case: name,
      peer: floor.pausesMs,
      peerName: "reader that only acknowledges",
      bar: FLOOR_BAR,
    }),
  ];
}

/** One start serves every speed: guests are handed over before the cable is made slow. */
async function shaped(
  guest: BenchGuest,
  size: Size,
  network: ShapedNetwork,
  alternations: number,
): Promise<Row[]> {
  const { periodMs } = size;
  const native = SHAPED.map(() => new Series());
  const engine = SHAPED.map(() => new Series());
  const contenders: readonly [string, Series[], () => Promise<Contender>][] = [
    ["native pair", native, () => NativePair.start(guest, { periodMs, network })],
    ["engine", engine, () => EnginePair.start(guest, { periodMs, network })],
  ];
  for (let turn = 1; turn <= alternations; turn++) {
    for (const [name, series, start] of contenders) {
      await network.unshape();
      const what = `${size.name}, shaped, ${name}, ${turn} of ${alternations}`;
      await measure(guest.rig, what, start, async (contender) => {
        const taken: Checkpoint[][] = [];
        for (const { rate, checkpoints } of SHAPED) {
          await network.shape(rate);
          taken.push(await contender.take(checkpoints));
        }
        for (const [index, checkpoints] of taken.entries()) series[index]!.add(checkpoints);
      });
    }
  }
  return SHAPED.map((link, index) =>
    costRow({
      case: `${Math.round(median(engine[index]!.pages))} pages, ${link.name}`,
      unit: "ms",
      ours: engine[index]!.pausesMs,
      peer: native[index]!.pausesMs,
      peerName: "native pair",
      bar: size.barred ? link.bar : undefined,
    })
  );
}

/** Start a contender, let it get warm, measure it, end it. */
async function measure(
  rig: Rig,
  what: string,
  start: () => Promise<Contender>,
  work: (contender: Contender) => Promise<void>,
): Promise<void> {
  rig.progress(what);
  await attempt(rig, what, async () => {
    const contender = await start();
    try {
      await contender.take(WARM_UP_CHECKPOINTS);
      await work(contender);
    } finally {
      await contender.close();
    }
  });
}

/** The area `pause`. */
export const PAUSE: Area = {
  name: "pause",
  about:
    "Time from QEMU's STOP to its RESUME event at a checkpoint. The native pair is two QEMUs " +
    "with x-colo, joined by a unix socket (unshaped) or by TCP; `colo run` and `colo standby` are " +
    "joined by TCP, over loopback where unshaped. Same saved guest, same load, same time between " +
    "checkpoints.",
  bar: "most",
  run: benchPause,
};
