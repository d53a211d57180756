/**
 * A protected guest on two hosts, and an etcd that both reach over the network.
 *
 * @module
 */

import { assert } from "@std/assert/mod.js";
import { Hosts } from "../../bench/rig/hosts.ts";
import type { EngineProcess } from "../../cli/demo/engine_process.ts";
import { EtcdMember, etcdOfBookworm } from "../../bench/rig/etcd.ts";
import { NetworkPair, type NetworkPairOptions } from "./_network_pair.ts";
import { sleep } from "./_pair.ts";

/** So much silence is a loss. */
export const TIMEOUT_MS = 500;

const ETCD_PORT = 2379;
const READY_MS = 30_000;

/** Why there can be none on this machine, or nothing. */
export async function whyNoArbitratedPair(): Promise<string | undefined> {
  const command = await etcdOfBookworm().catch((error) => `${error}`);
  return typeof command === "string" ? command : await Hosts.whyNot();
}

/** Two engines, two hosts, and who decides. */
export class ArbitratedPair implements AsyncDisposable {
  private constructor(
    readonly pair: NetworkPair,
    readonly etcd: EtcdMember,
    readonly directory: string,
  ) {}

  /** Fulfilled when the guest is protected. @param timeoutMs So much silence is a loss */
  static async start(
    options: NetworkPairOptions = {},
    timeoutMs = TIMEOUT_MS,
  ): Promise<ArbitratedPair> {
    const directory = await Deno.makeTempDir({ prefix: "colo-etcd-" });
    const command = await etcdOfBookworm() as readonly string[];
    let etcd: EtcdMember | undefined;
    const pair = await NetworkPair.start({
      ...options,
      rest: [
        ...options.rest ?? [],
        "[failover]",
        'arbiter = "etcd"',
        `endpoints = ["http://10.213.78.3:${ETCD_PORT}"]`,
        `timeout = ${timeoutMs}`,
        "lease = 3000",
      ],
      prepare: async (hosts) => {
        const url = `http://${hosts.client.address}:${ETCD_PORT}`;
        etcd = new EtcdMember([...hosts.client.prefix, ...command], "m1", url);
        startEtcd(etcd, directory);
        const ask = `await fetch("${url}/health").then((answer) => answer.text())`;
        for (const deadline = performance.now() + READY_MS;;) {
          const answers = await hosts.run(hosts.client, Deno.execPath(), "eval", ask)
            .then(() => true, () => false);
          if (answers) return;
          assert(performance.now() < deadline, "etcd does not answer");
          await sleep(200);
        }
      },
    });
    const world = new ArbitratedPair(pair, etcd!, directory);
    try {
      await pair.protected();
    } catch (error) {
      await world[Symbol.asyncDispose]();
      throw error;
    }
    return world;
  }

  restartEtcd(): void {
    startEtcd(this.etcd, this.directory);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.pair[Symbol.asyncDispose]();
    await this.etcd.kill();
    await Deno.remove(this.directory, { recursive: true });
  }
}

function startEtcd(etcd: EtcdMember, directory: string): void {
  const peer = "http://127.0.0.1:2380";
  etcd.start(directory, peer, `m1=${peer}`);
}

/** What an engine says of itself. */
export function phase(engine: EngineProcess): string | undefined {
  const said = engine.reports.findLast((report) =>
    report.event === "primary" || report.event === "secondary"
  );
  return said !== undefined && "phase" in said ? said.phase : undefined;
}
