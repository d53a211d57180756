/**
 * How soon the VM runs again when its QEMU is killed, and when all of its host is lost.
 *
 * @module
 */

import { ColoError } from "../engine/errors.ts";
import type { Area, BenchContext } from "./area.ts";
import { quantile } from "./rig/closed_loop.ts";
import { EnginePair } from "./rig/engine_pair.ts";
import { EtcdMember, etcdOfBookworm } from "./rig/etcd.ts";
import { BenchGuest } from "./rig/guest.ts";
import { Hosts } from "./rig/hosts.ts";
import { attempt, openRig, pause, type Rig, until } from "./rig/rig.ts";
import { figure, type Row } from "./row.ts";

/** Kills of each kind, and in a hurry. */
const KILLS = { all: 100, quick: 6 } as const;
const LOSSES = { all: 20, quick: 2 } as const;

/** Bars. */
const KILL_P50_MS_MAX = 30;
const KILL_P99_MS_MAX = 80;
const LOSS_ABOVE_TIMEOUT_MS_MAX = 50;

const PERIOD_MS = 200;

/** So much silence is a loss. */
const TIMEOUT_MS = 500;

const ETCD_PORT = 2379;
const ETCD_READY_MS = 30_000;

/** A kill is to fall anywhere between two checkpoints. */
const CHECKPOINTS_BEFORE = 2;

async function benchFailover(context: BenchContext): Promise<Row[]> {
  const whyNot = await Hosts.whyNot();
  if (whyNot !== undefined) throw new ColoError(`Cannot cut a host off: ${whyNot}`);
  const rig = await openRig(context);
  const guest = await BenchGuest.boot(rig, {
    memoryMiB: 128,
    parameters: "colo.load=small-writes colo.load_pages=400",
  });
  const turns = rig.quick ? "quick" : "all";
  const killedMs = await repeat(rig, "kill", KILLS[turns], () => kill(guest));
  const lostMs = await withEtcd(
    rig,
    (hosts) => repeat(rig, "loss of the host", LOSSES[turns], () => lose(guest, hosts)),
  );
  const aboveMs = lostMs.map((ms) => ms - TIMEOUT_MS);
  const loss = `host lost to running, above the heartbeat's ${TIMEOUT_MS} ms`;
  return [
    figure(`QEMU killed to running, p50 of ${killedMs.length}`, "ms", killedMs, KILL_P50_MS_MAX),
    figure("QEMU killed to running, p99", "ms", [quantile(killedMs, 0.99)], KILL_P99_MS_MAX),
    figure(`${loss}, p50 of ${aboveMs.length}`, "ms", aboveMs, LOSS_ABOVE_TIMEOUT_MS_MAX),
    figure(`${loss}, most`, "ms", [quantile(aboveMs, 1)]),
  ];
}

async function repeat(
  rig: Rig,
  what: string,
  times: number,
  once: () => Promise<number>,
): Promise<number[]> {
  const tookMs: number[] = [];
  for (let turn = 1; turn <= times; turn++) {
    const ms = await attempt(rig, what, once);
    rig.progress(`${what} ${turn} of ${times}: ${ms.toFixed(1)} ms`);
    tookMs.push(ms);
  }
  return tookMs;
}

async function kill(guest: BenchGuest): Promise<number> {
  const pair = await EnginePair.start(guest, { periodMs: PERIOD_MS });
  try {
    await beforeIt(pair, guest.rig);
    return await pair.killPrimary();
  } finally {
    await pair.close();
  }
}

async function lose(guest: BenchGuest, hosts: Hosts): Promise<number> {
  const pair = await EnginePair.start(guest, {
    periodMs: PERIOD_MS,
    network: { primary: hosts.a, secondary: hosts.b },
    rest: [
      "[failover]",
      'arbiter = "etcd"',
      `endpoints = ["http://${hosts.client.address}:${ETCD_PORT}"]`,
      `timeout = ${TIMEOUT_MS}`,
      "lease = 3000",
    ],
  });
  try {
    await beforeIt(pair, guest.rig);
    return await pair.losePrimary(() => hosts.cut(hosts.a));
  } finally {
    await pair.close();
    await hosts.heal(hosts.a);
  }
}

async function beforeIt(pair: EnginePair, { signal }: Rig): Promise<void> {
  await pair.take(CHECKPOINTS_BEFORE);
  await pause(Math.random() * PERIOD_MS, signal);
}

/** An etcd on the client's host, which the others reach unless they are cut off. */
async function withEtcd<T>(rig: Rig, work: (hosts: Hosts) => Promise<T>): Promise<T> {
  const command = await etcdOfBookworm();
  if (typeof command === "string") throw new ColoError(`Cannot decide who runs: ${command}`);
  const hosts = await Hosts.create();
  const url = `http://${hosts.client.address}:${ETCD_PORT}`;
  const etcd = new EtcdMember([...hosts.client.prefix, ...command], "m1", url);
  try {
    const peer = "http://127.0.0.1:2380";
    etcd.start(rig.directory, peer, `m1=${peer}`);
    const ask = `await (await fetch("${url}/health")).text()`;
    const answers = () =>
      hosts.run(hosts.client, Deno.execPath(), "eval", ask).then(() => true, () => false);
    await until(answers, "etcd answers", ETCD_READY_MS, rig.signal);
    return await work(hosts);
  } finally {
    await etcd.kill();
    await hosts.close();
  }
}

/** The area `failover`. */
export const FAILOVER: Area = {
  name: "failover",
  about:
    "From the loss until QEMU resumes the VM on the other host, by its own clock, mode `colo`. A QEMU " +
    "is killed by SIGKILL between or in checkpoints; a host is lost by cutting its cable and killing " +
    "engine and QEMU, and etcd decides.",
  bar: "most",
  run: benchFailover,
};
