/**
 * etcd 3.4 as Debian 12 has it, fetched once into the cache, and run on loopback with its data in a
 * directory of its own.
 */

import { join } from "@std/path/mod.js";
import { EtcdClient } from "../../engine/failover/etcd.ts";
import { debianProgram } from "./debian_program.ts";

const READY_MS = 30_000;
const POLL_MS = 50;

/** The program and its fixed leading arguments, or why it cannot be had here. */
export async function etcdOfBookworm(): Promise<readonly string[] | string> {
  return await debianProgram("usr/bin/etcd", ["etcd-server"]);
}

/** A member of a cluster, of one or several. */
export class EtcdMember implements AsyncDisposable {
  #child: Deno.ChildProcess | undefined;

  constructor(readonly command: readonly string[], readonly name: string, readonly url: string) {}

  /** Start it, or start it again with what it has on disk. */
  start(directory: string, peerUrl: string, cluster: string): void {
    const [program = "", ...args] = this.command;
    this.#child = new Deno.Command(program, {
      args: [
        ...args,
        ...["--name", this.name, "--data-dir", join(directory, this.name)],
        ...["--listen-client-urls", this.url, "--advertise-client-urls", this.url],
        ...["--listen-peer-urls", peerUrl, "--initial-advertise-peer-urls", peerUrl],
        ...["--initial-cluster", cluster, "--log-level", "error"],
      ],
      stdin: "null",
      stdout: "null",
      stderr: "null",
    }).spawn();
  }

  signal(signal: Deno.Signal): void {
    this.#child?.kill(signal);
  }

  /** As by a loss of power, and gone when it returns. */
  async kill(): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    try {
      child?.kill("SIGKILL");
    } catch {
      // It has ended with the network that it was in.
    }
    await child?.status;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

/** Members on free ports of loopback. */
export class EtcdCluster implements AsyncDisposable {
  readonly #starts: (() => void)[];

  private constructor(readonly directory: string, readonly members: readonly EtcdMember[]) {
    const peers = members.map(() => freeUrl());
    const cluster = members.map(({ name }, at) => `${name}=${peers[at]}`).join(",");
    this.#starts = members.map((member, at) => () => member.start(directory, peers[at]!, cluster));
  }

  /** Fulfilled when it answers. */
  static async start(command: readonly string[], size = 1): Promise<EtcdCluster> {
    const directory = await Deno.makeTempDir({ prefix: "colo-etcd-" });
    const names = Array.from({ length: size }, (_, at) => `m${at + 1}`);
    const members = names.map((name) => new EtcdMember(command, name, freeUrl()));
    const cluster = new EtcdCluster(directory, members);
    for (const start of cluster.#starts) start();
    await cluster.answers();
    return cluster;
  }

  get endpoints(): readonly string[] {
    return this.members.map(({ url }) => url);
  }

  client(timeoutMs?: number): EtcdClient {
    return new EtcdClient({ endpoints: this.endpoints, timeoutMs });
  }

  /** Start a member again that was killed. Fulfilled when it is one of the cluster again. */
  async restart(at = 0): Promise<void> {
    this.#starts[at]!();
    await this.answers([this.members[at]!.url]);
  }

  /** Wait until one of these answers, which takes a majority of all. */
  async answers(endpoints = this.endpoints): Promise<void> {
    const client = new EtcdClient({ endpoints });
    const untilMs = performance.now() + READY_MS;
    while (true) {
      try {
        return void await client.get("ready");
      } catch (error) {
        if (performance.now() > untilMs) throw error;
        await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.members.map((member) => member.kill()));
    await Deno.remove(this.directory, { recursive: true });
  }
}

function freeUrl(): string {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return `http://127.0.0.1:${listener.addr.port}`;
}
