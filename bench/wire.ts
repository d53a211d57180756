/**
 * What a checkpoint puts on the link: the engine's bytes next to a native pair's.
 *
 * @module
 */

import { freePort } from "../cli/demo/session.ts";
import type { Area, BenchContext } from "./area.ts";
import type { Checkpoint, Contender } from "./rig/contender.ts";
import { EnginePair } from "./rig/engine_pair.ts";
import { BenchGuest } from "./rig/guest.ts";
import { HttpLoad } from "./rig/http_load.ts";
import { NativePair } from "./rig/native_pair.ts";
import { attempt, openRig, type Rig } from "./rig/rig.ts";
import { costRow, median, type Row } from "./row.ts";

/** What the guest is busy with. */
interface Load {
  readonly name: string;
  readonly parameters: string;
  /** The most that ours / native may be. */
  readonly bar: number;
  /** Requests to its web server besides. */
  readonly http?: boolean;
  /** Also measured in a hurry. */
  readonly quick?: boolean;
}

const LOADS: readonly Load[] = [
  { name: "idle", parameters: "colo.load=idle", bar: 0.02, quick: true },
  { name: "web server", parameters: "colo.load=idle", bar: 0.1, http: true },
  {
    name: "small scattered writes",
    parameters: "colo.load=small-writes colo.load_pages=800 colo.load_ms=200",
    bar: 0.015,
    quick: true,
  },
  {
    name: "text",
    parameters: "colo.load=text colo.load_pages=512 colo.load_ms=200",
    bar: 0.35,
  },
  {
    name: "random",
    parameters: "colo.load=random colo.load_pages=1024 colo.load_ms=200",
    bar: 1.01,
  },
];

const MEMORY_MIB = 128;
const PERIOD_MS = 400;
const CHECKPOINTS = 5;
/** After a start, QEMU has to translate the guest's code anew, and the load falls behind. */
const WARM_UP_CHECKPOINTS = 4;

async function benchWire(context: BenchContext): Promise<Row[]> {
  const rig = await openRig(context);
  const rows: Row[] = [];
  for (const load of LOADS.filter(({ quick }) => quick || !context.quick)) {
    rows.push(await benchLoad(rig, load, context.quick ? 2 : 5));
  }
  return rows;
}

async function benchLoad(rig: Rig, load: Load, alternations: number): Promise<Row> {
  const guest = await BenchGuest.boot(rig, {
    memoryMiB: MEMORY_MIB,
    parameters: load.parameters,
  });
  const ours: number[] = [];
  const native: number[] = [];
  const pages: number[] = [];
  const httpPort = load.http ? freePort() : undefined;
  const options = { periodMs: PERIOD_MS, httpPort };
  const bytes = (checkpoints: readonly Checkpoint[]) =>
    median(checkpoints.flatMap(({ bytes }) => bytes ?? []));
  for (let turn = 1; turn <= alternations; turn++) {
    const what = `${load.name}, ${turn} of ${alternations}`;
    rig.progress(what);
    native.push(
      await attempt(rig, what, async () => {
        const pair = await NativePair.start(guest, { ...options, counted: true });
        return bytes(await measure(pair, httpPort));
      }),
    );
    const checkpoints = await attempt(
      rig,
      what,
      async () => measure(await EnginePair.start(guest, options), httpPort),
    );
    ours.push(bytes(checkpoints));
    pages.push(...checkpoints.flatMap(({ pages }) => pages ?? []));
  }
  return costRow({
    case: `${load.name}, ${Math.round(median(pages))} pages`,
    unit: "bytes a checkpoint",
    ours,
    peer: native,
    peerName: "native pair",
    bar: load.bar,
  });
}

async function measure(contender: Contender, httpPort?: number): Promise<Checkpoint[]> {
  const client = httpPort === undefined ? undefined : new HttpLoad(httpPort);
  try {
    await contender.take(WARM_UP_CHECKPOINTS);
    client?.requireAnswers();
    return await contender.take(CHECKPOINTS);
  } finally {
    await client?.close();
    await contender.close();
  }
}

/** The area `wire`. */
export const WIRE: Area = {
  name: "wire",
  about:
    `Bytes from the primary's host to the secondary's, a checkpoint, one every ${PERIOD_MS} ms of a ` +
    `guest of ${MEMORY_MIB} MiB: frames of the link against what QEMU writes to a relay.`,
  bar: "most",
  run: benchWire,
};
