/**
 * What a client notices of the protection: requests a second and their latency, for a guest that is
 * unprotected, in native COLO, and with the engine in both modes.
 *
 * @module
 */

import type { ReplicationMode } from "../engine/config/mod.ts";
import { ColoError } from "../engine/errors.ts";
import type { Area, BenchContext } from "./area.ts";
import type { LoadResult } from "./rig/closed_loop.ts";
import { EnginePair } from "./rig/engine_pair.ts";
import { BenchGuest } from "./rig/guest.ts";
import { BRIDGE, GUEST, Hosts } from "./rig/hosts.ts";
import { Load, PORTS } from "./rig/load.ts";
import type { LoadKind } from "./rig/load_client.ts";
import { NativeColo } from "./rig/native_colo.ts";
import { attempt, openRig, type Rig } from "./rig/rig.ts";
import { startAlone } from "./rig/unprotected.ts";
import { compareRow, figure, type Row } from "./row.ts";

/** Who serves the guest. */
const CONTENDERS = ["unprotected", "native COLO", "colo", "continuous"] as const;
type ContenderName = typeof CONTENDERS[number];

/** Bars: requests a second next to none at all, and the time that a guest's connect may take. */
const UNPROTECTED_RATIO_MIN = 0.85;
const CONNECT_MS_MAX = 20;

/** As long as ours waits between checkpoints when nothing differs, so long does the native pair. */
const PERIOD_MS = { colo: 500, continuous: 100 } as const;

/** How long the comparison waits for the secondary's packet before it asks for a checkpoint. */
const TIMEOUT_MS = 200;

const MEMORY_MIB = 128;
const CONNECTIONS = 8;
const CONNECT_INTERVAL_MS = 100;

/** Requests a second of the client that does not ask as fast as it is answered. */
const STEADY_PER_SECOND = 400;

/** What the client does to each contender. */
interface Trial {
  readonly name: string;
  readonly load: LoadKind;
  readonly connections: number;
  readonly intervalMs?: number;
  /** Bars of mode `colo`: the least next to none, and the most or the least next to the native pair. */
  readonly unprotectedBars?: Bars;
  readonly nativeBars?: Bars;
  /** Also measured in a hurry. */
  readonly quick?: boolean;
}

type Bars = Partial<Record<typeof FIGURES[number]["unit"], number>>;

const EVERY_COLUMN: Bars = { "requests/s": 1, "ms p50": 1, "ms p99": 1 };

function trials(hosts: Hosts, quick: boolean): readonly Trial[] {
  const connections = CONNECTIONS;
  // What knocks late at the port of one client is not to be taken for an answer to the next.
  const own = { address: hosts.client.address, port: 0 };
  const all: readonly Trial[] = [
    {
      name: "page of 1 KiB",
      load: { kind: "page", sizeBytes: 1024 },
      connections,
      unprotectedBars: { "requests/s": UNPROTECTED_RATIO_MIN },
      nativeBars: EVERY_COLUMN,
    },
    {
      name: "page of 4 KiB",
      load: { kind: "page", sizeBytes: 4096 },
      connections,
      unprotectedBars: { "requests/s": UNPROTECTED_RATIO_MIN },
      nativeBars: EVERY_COLUMN,
      quick: true,
    },
    {
      name: `page of 4 KiB, ${STEADY_PER_SECOND} a second`,
      load: { kind: "page", sizeBytes: 4096 },
      connections,
      intervalMs: 1000 * connections / STEADY_PER_SECOND,
      unprotectedBars: { "requests/s": UNPROTECTED_RATIO_MIN },
      nativeBars: { "ms p50": 1, "ms p99": 1 },
    },
    {
      name: "random page of 4 KiB",
      load: { kind: "random", sizeBytes: 4096 },
      connections,
      nativeBars: { "requests/s": 1 },
      quick: true,
    },
    {
      name: "the guest connects: its SYN",
      load: { kind: "syn", own },
      connections: 1,
      intervalMs: CONNECT_INTERVAL_MS,
      quick: true,
    },
    {
      name: "the guest connects: accepted",
      load: { kind: "connect", own },
      connections: 1,
      intervalMs: CONNECT_INTERVAL_MS,
    },
  ];
  return all.filter((trial) => trial.quick || !quick);
}

/** A guest that can be reached. */
interface Server {
  close(): Promise<void>;
}

/** Results of one trial, one an alternation, by contender. */
type Results = Readonly<Record<ContenderName, readonly LoadResult[]>>;

async function benchNet(context: BenchContext): Promise<Row[]> {
  const whyNot = await Hosts.whyNot();
  if (whyNot !== undefined) {
    throw new ColoError(`Cannot put load on a guest from a host: ${whyNot}`);
  }
  const rig = await openRig(context);
  const guest = await BenchGuest.boot(rig, {
    memoryMiB: MEMORY_MIB,
    parameters: `colo.load=idle ${GUEST.parameters}`,
    bootNetdev: "hubport,hubid=0",
  });
  const hosts = await Hosts.create();
  try {
    const all = trials(hosts, rig.quick);
    const results = await alternate(guest, hosts, all, rig.quick ? 1 : 5);
    return all.flatMap((trial, index) => rowsOf(trial, results[index]!));
  } finally {
    await hosts.close();
  }
}

/** All contenders in turn, again and again. @returns One a trial */
async function alternate(
  guest: BenchGuest,
  hosts: Hosts,
  all: readonly Trial[],
  turns: number,
): Promise<Results[]> {
  const results = all.map(() => ({
    unprotected: [] as LoadResult[],
    "native COLO": [] as LoadResult[],
    colo: [] as LoadResult[],
    continuous: [] as LoadResult[],
  }));
  for (let turn = 1; turn <= turns; turn++) {
    for (const name of CONTENDERS) {
      const what = `${name}, ${turn} of ${turns}`;
      guest.rig.progress(what);
      const seen = await attempt(guest.rig, what, () => serve(guest, hosts, name, all));
      for (const [index, result] of seen.entries()) results[index]![name].push(result);
    }
  }
  return results;
}

async function serve(
  guest: BenchGuest,
  hosts: Hosts,
  name: ContenderName,
  all: readonly Trial[],
): Promise<LoadResult[]> {
  const server = await start(guest, hosts, name);
  try {
    const seen: LoadResult[] = [];
    for (const trial of all) seen.push(await measure(guest.rig, hosts, trial));
    return seen;
  } finally {
    await server.close();
    for (const host of [hosts.a, hosts.b]) await hosts.unplug(host);
  }
}

async function measure(rig: Rig, hosts: Hosts, trial: Trial): Promise<LoadResult> {
  rig.signal.throwIfAborted();
  const warmUpMs = rig.quick ? 1000 : 1500;
  const { load: kind, connections, intervalMs } = trial;
  const load = new Load(hosts.client, {
    load: kind,
    connections,
    intervalMs,
    durationMs: warmUpMs + (rig.quick ? 1500 : 5000),
    warmUpMs,
    server: { address: GUEST.address, port: PORTS.web },
  });
  const stop = () => load.stop();
  rig.signal.addEventListener("abort", stop);
  try {
    const result = await load.result;
    const { perSecond, p50Ms, p99Ms, errors } = result;
    rig.progress(
      `  ${trial.name}: ${perSecond.toFixed(1)} a second, p50 ${p50Ms.toFixed(1)} ms, ` +
        `p99 ${p99Ms.toFixed(1)} ms${errors.map((error) => `; ${error}`).join("")}`,
    );
    return result;
  } finally {
    rig.signal.removeEventListener("abort", stop);
  }
}

function start(guest: BenchGuest, hosts: Hosts, name: ContenderName): Promise<Server> {
  if (name === "unprotected") return startAlone(guest, hosts);
  if (name === "native COLO") return NativeColo.start(guest, hosts, PERIOD_MS.colo);
  return startEngines(guest, hosts, name);
}

function startEngines(guest: BenchGuest, hosts: Hosts, mode: ReplicationMode): Promise<Server> {
  return EnginePair.start(guest, {
    mode,
    periodMs: PERIOD_MS[mode],
    network: { primary: hosts.a, secondary: hosts.b },
    nic: [`netdev = "${GUEST.netdev}"`, `bridge = "${BRIDGE}"`],
    rest: ["[network]", `timeout = ${TIMEOUT_MS}`],
  });
}

const FIGURES = [
  { unit: "requests/s", of: (result: LoadResult) => result.perSecond, sense: "least" },
  { unit: "ms p50", of: (result: LoadResult) => result.p50Ms, sense: "most" },
  { unit: "ms p99", of: (result: LoadResult) => result.p99Ms, sense: "most" },
] as const;

/** Ours, in one mode, next to a peer. */
function rows(
  { name }: Trial,
  results: Results,
  mode: ReplicationMode,
  peerName: ContenderName,
  bars: Bars = {},
): Row[] {
  return FIGURES.map(({ unit, of, sense }) => {
    const ours = results[mode].map(of);
    const peer = results[peerName].map(of);
    const bar = bars[unit];
    return compareRow({ case: `${name}, ${mode}`, unit, ours, peer, peerName, bar }, sense);
  });
}

function rowsOf(trial: Trial, results: Results): Row[] {
  return [
    ...trial.connections === 1 ? connectRows(trial, results) : [
      ...rows(trial, results, "colo", "unprotected", trial.unprotectedBars),
      ...rows(trial, results, "colo", "native COLO", trial.nativeBars),
      ...rows(trial, results, "continuous", "unprotected"),
      ...rows(trial, results, "continuous", "native COLO"),
    ],
    ...errorRows(trial, results),
  ];
}

function connectRows({ name, load }: Trial, results: Results): Row[] {
  return CONTENDERS.map((contender) => {
    const p50 = results[contender].map(({ p50Ms }) => p50Ms);
    const bar = contender === "colo" && load.kind === "syn" ? CONNECT_MS_MAX : undefined;
    return { ...figure(`${name}, ${contender}`, "ms p50", p50, bar), sense: "most" as const };
  });
}

/** Answers that were wrong or missing, and connections that were lost, in all alternations. */
function errorRows({ name }: Trial, results: Results): Row[] {
  return CONTENDERS.map((contender) => {
    const count = results[contender].reduce((sum, { errorCount }) => sum + errorCount, 0);
    const bar = contender === "native COLO" ? undefined : 0;
    const row = figure(`${name}, ${contender}`, "errors", [count], bar);
    return { ...row, sense: "most" as const };
  });
}

/** The area `net`. */
export const NET: Area = {
  name: "net",
  about:
    `A guest of ${MEMORY_MIB} MiB serves pages to a client in a network namespace of its own, over ` +
    `${CONNECTIONS} connections that persist, each with one request after another, as fast as they are ` +
    "answered if nothing else is said; every byte of every answer is looked at. Unprotected, then " +
    "protected by native COLO (two QEMUs, net filters and `colo-compare`), by ours in mode `colo`, " +
    `each with a checkpoint every ${PERIOD_MS.colo} ms at the least, and in mode \`continuous\`, one ` +
    `every ${PERIOD_MS.continuous} ms; in turn, on one machine that is both hosts and the client: ` +
    "where all its processors are busy, the second VM takes from the first. A connect of the guest " +
    "takes from the client's request for it until the guest's SYN has come, which is answered at once, " +
    "and until the client can accept it, for which the guest must have acknowledged that answer.",
  bar: "least",
  run: benchNet,
};
