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

/** A guest that goes on working while its standby is away. */
const RETURNING: Size = {
  name: "1 GiB, standby back after 5 s",
  memoryMiB: 1024,
  parameters: "colo.load=small-writes colo.load_pages=400 colo.file_kib=262144",
};

const AWAY_MS = 5000;

/** At the most, of what a seed of everything is. */
const RETURN_BYTES_BAR = 0.2;

/** To the guest it is one more checkpoint. */
const RETURN_PAUSE_BAR = 1;

const PERIOD_MS = 500;

/** Pairs of each mode, and how often the standby of each comes back. */
const PAIRS = 3;
const RETURNS = 3;

/**
 * With how many checkpoints the one or two of a return are compared. Any of them takes some milliseconds
 * longer now and then, for no reason of its own: so the longest of these is what one can take.
 */
const CHECKPOINTS = 10;

/** What goes over the link hardly varies: it is not counted every time. */
const COUNTED_TURNS = 2;

async function benchSeed(context: BenchContext): Promise<Row[]> {
  const rig = await openRig(context);
  const rows: Row[] = [];
  for (const size of SIZES.slice(0, context.quick ? 1 : undefined)) {
    rows.push(...await benchSize(rig, size, context.quick ? 2 : 9));
  }
  if (!context.quick) rows.push(...await benchReturn(rig));
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

/** A standby that comes back is sent what has changed, next to what it was sent at first. */
async function benchReturn(rig: Rig): Promise<Row[]> {
  const guest = await BenchGuest.boot(rig, RETURNING);
  const rows: Row[] = [];
  for (const mode of ["colo", "continuous"] as const) {
    const bytes = { ours: [] as number[], peer: [] as number[] };
    const pausesMs = { ours: [] as number[], peer: [] as number[] };
    for (let turn = 1; turn <= PAIRS; turn++) {
      const what = `${RETURNING.name}, ${mode}, ${turn} of ${PAIRS}`;
      rig.progress(what);
      await attempt(rig, what, async () => {
        const pair = await EnginePair.start(guest, { mode, periodMs: PERIOD_MS, cuttable: true });
        try {
          bytes.peer.push(pair.seeded.wireBytes);
          for (let away = 1; away <= RETURNS; away++) {
            const before = await pair.take(CHECKPOINTS);
            const { seeded, pausesMs: meanwhile } = await pair.cut(AWAY_MS);
            bytes.ours.push(seeded.wireBytes);
            pausesMs.ours.push(Math.max(...meanwhile));
            pausesMs.peer.push(Math.max(...before.map(({ pauseMs }) => pauseMs)));
          }
        } finally {
          await pair.close();
        }
      });
    }
    const name = `${RETURNING.name}, ${mode}`;
    rows.push(
      costRow({
        case: name,
        unit: "bytes",
        ...bytes,
        peerName: "a seed of everything",
        bar: RETURN_BYTES_BAR,
      }),
      costRow({
        case: `${name}, longest pause`,
        unit: "ms",
        ...pausesMs,
        peerName: `the longest of ${CHECKPOINTS} before`,
        bar: RETURN_PAUSE_BAR,
      }),
    );
  }
  return rows;
}

/** The area `seed`. */
export const SEED: Area = {
  name: "seed",
  about:
    "From the connection of a standby until its VM runs and the guest is protected. The native " +
    "pair's figure is its migration, until the guest runs under COLO; the engine seeds from its " +
    "mirror, while the guest runs on and checkpoints are taken. A standby that was cut off for 5 s " +
    "is sent what has changed; that is compared with the seed of everything before it, and its " +
    "checkpoints' pauses with those of the ten before.",
  bar: "most",
  run: benchSeed,
};
