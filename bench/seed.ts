/**
 * How long it takes, and how much goes over the link, until a guest is protected.
 *
 * @module
 */

import type { Area, BenchContext } from "./area.ts";
import { EnginePair } from "./rig/engine_pair.ts";
import { BenchGuest } from "./rig/guest.ts";
import { NativePair } from "./rig/native_pair.ts";
import { attempt, openRig, type Rig } from "./rig/rig.ts";
import { costRow, type Row } from "./row.ts";

/** A guest and what is in its memory. */
interface Size {
  readonly name: string;
  readonly memoryMiB: number;
  readonly parameters: string;
}

const SIZES: readonly Size[] = [
  { name: "128 MiB, just booted", memoryMiB: 128, parameters: "colo.load=idle" },
  {
    name: "1 GiB, 256 MiB of random data",
    memoryMiB: 1024,
    parameters: "colo.load=idle colo.file_kib=262144",
  },
];

const PERIOD_MS = 500;

/** What goes over the link hardly varies: it is not counted every time. */
const COUNTED_TURNS = 2;

async function benchSeed(context: BenchContext): Promise<Row[]> {
  const rig = await openRig(context);
  const rows: Row[] = [];
  for (const size of SIZES.slice(0, context.quick ? 1 : undefined)) {
    rows.push(...await benchSize(rig, size, context.quick ? 2 : 9));
  }
  return rows;
}

async function benchSize(rig: Rig, size: Size, alternations: number): Promise<Row[]> {
  const guest = await BenchGuest.boot(rig, size);
  const ours = { ms: [] as number[], bytes: [] as number[] };
  const native = { ms: [] as number[], bytes: [] as number[] };
  const seedNative = (what: string, counted: boolean) =>
    attempt(rig, what, async () => {
      const pair = await NativePair.start(guest, { periodMs: PERIOD_MS, counted });
      await pair.close();
      return pair;
    });
  for (let turn = 1; turn <= alternations; turn++) {
    const what = `${size.name}, ${turn} of ${alternations}`;
    rig.progress(what);
    native.ms.push((await seedNative(what, false)).seedMs);
    // A relay counts, but costs time: it has a migration of its own.
    if (turn <= COUNTED_TURNS) native.bytes.push((await seedNative(what, true)).seedBytes);
    const { durationMs, wireBytes } = await attempt(rig, what, async () => {
      const pair = await EnginePair.start(guest, { periodMs: PERIOD_MS });
      await pair.close();
      return pair.seeded;
    });
    ours.ms.push(durationMs);
    ours.bytes.push(wireBytes);
  }
  const common = { case: size.name, peerName: "native pair" };
  return [
    costRow({ ...common, unit: "ms", ours: ours.ms, peer: native.ms }),
    costRow({ ...common, unit: "bytes", ours: ours.bytes, peer: native.bytes }),
  ];
}

/** The area `seed`. */
export const SEED: Area = {
  name: "seed",
  about:
    "From the connection of a standby until its VM runs and the guest is protected. The native " +
    "pair's figure is its migration, until the guest runs under COLO; the engine seeds from its " +
    "mirror, while the guest runs on and checkpoints are taken.",
  bar: "most",
  run: benchSeed,
};
