/**
 * A protected guest on a network of its own: two hosts and a client, each in a network namespace.
 *
 * @module
 */

import { assertEquals } from "@std/assert/mod.js";
import { CLIENT_PORT, Load, PORTS } from "../../bench/rig/load.ts";
import type { LoadKind } from "../../bench/rig/load_client.ts";
import type { LoopOptions } from "../../bench/rig/closed_loop.ts";
import { BRIDGE, GUEST, type Host, Hosts } from "../../bench/rig/hosts.ts";
import { EngineProcess } from "../../cli/demo/engine_process.ts";
import type { StatusOverControl } from "../../engine/host/mod.ts";
import { QmpClient } from "../../engine/qmp/mod.ts";
import type { ReplicationMode } from "../../engine/config/mod.ts";
import { type DemoGuest, prepareDemoGuest } from "../../engine/vm/mod.ts";
import { processesOf } from "./_pair.ts";

/** Where a host began; the third one stands by when it is told to. */
export type Side = "primary" | "standby" | "third";

/** How a pair is to be. */
export interface NetworkPairOptions {
  readonly mode?: ReplicationMode;
  /** More lines of the config, the same on both sides. */
  readonly replication?: readonly string[];
  readonly nic?: readonly string[];
  /** Further tables of the config. */
  readonly rest?: readonly string[];
  readonly append?: string;
  /** Whether each host can stand by for the other. */
  readonly bothWays?: boolean;
  /** Whether there is a third host, and none knows the others but by the registry. */
  readonly third?: boolean;
  /** More lines of `[vm]`, of one side. */
  readonly vm?: (side: Side) => readonly string[];
  /** Where `listener` is reached by `by`, if not over the network. */
  readonly address?: (listener: Side, by: Side) => string;
  /** Called when there are hosts, before engines run on them. */
  readonly prepare?: (hosts: Hosts) => Promise<void>;
}

const PROTECT_MS = 60_000;
const RUN_MS = 20_000;

/** Two engines on two hosts. */
export class NetworkPair implements AsyncDisposable {
  readonly directory: string;
  primary: EngineProcess;
  standby: EngineProcess;
  third: EngineProcess | undefined;
  /** Every engine that was started: what they have left must be ended. */
  readonly #engines: EngineProcess[] = [];
  readonly #host: (side: Side) => Host;

  private constructor(
    readonly hosts: Hosts,
    readonly guest: DemoGuest,
    directory: string,
    options: NetworkPairOptions,
  ) {
    this.directory = directory;
    const { mode = "colo", replication = [], nic = [], rest = [], append = "" } = options;
    const { bothWays = false, third = false } = options;
    this.#host = (side) => ({ primary: hosts.a, standby: hosts.b, third: hosts.c! })[side];
    const address = options.address ?? ((listener) => `${this.#host(listener).address}:7700`);
    for (const side of ["standby", "primary", ...third ? ["third"] as const : []] as const) {
      const other = side === "primary" ? "standby" : "primary";
      const peer = `peer = "${address(other, side)}"`;
      const listen = `listen = "${address(side, side)}"`;
      const path = `${directory}/${side}.toml`;
      Deno.writeTextFileSync(
        path,
        [
          "[vm]",
          'name = "net"',
          "memory = 128",
          `kernel = ${JSON.stringify(guest.kernelPath)}`,
          `initrd = ${JSON.stringify(guest.initrdPath)}`,
          `append = ${JSON.stringify(`${guest.append} ${GUEST.parameters} ${append}`)}`,
          `console = "${side}-console.log"`,
          ...(options.vm?.(side) ?? []),
          "[[vm.nics]]",
          `mac = "${GUEST.mac}"`,
          `netdev = "${GUEST.netdev}"`,
          `bridge = "${BRIDGE}"`,
          ...nic,
          "[replication]",
          `mode = "${mode}"`,
          'encryption = "none"',
          ...(third ? [listen] : bothWays ? [peer, listen] : [side === "primary" ? peer : listen]),
          ...replication,
          "[control]",
          `socket = "${side}.sock"`,
          ...rest,
        ].join("\n"),
      );
    }
    this.standby = this.#start("standby");
    this.primary = this.#start("primary");
  }

  /** Have the host on which this side began stand by. */
  standBy(side: Side): void {
    this[side] = this.#start(side, "standby");
  }

  /** Have the host on which this side began run the VM. */
  run(side: Side): void {
    this[side] = this.#start(side, "run");
  }

  #start(
    side: Side,
    command = side === "primary" ? "run" : "standby",
  ): EngineProcess {
    const { directory } = this;
    const log = `${directory}/${side}-${this.#engines.length}.log`;
    const engine = new EngineProcess(
      [command, `${directory}/${side}.toml`],
      () => {},
      log,
      this.#host(side).prefix,
    );
    this.#engines.push(engine);
    return engine;
  }

  /** Start another engine in the place of one that has ended. */
  restartPrimary(): EngineProcess {
    return this.primary = this.#start("primary");
  }

  restartStandby(): EngineProcess {
    return this.standby = this.#start("standby");
  }

  /** Process id of the QEMU that a side runs now. */
  qemuPid(side: Side): number {
    const started = this[side]?.reports.findLast((report) =>
      report.event === "qemu-started" || report.event === "qemu-adopted"
    );
    if (started === undefined) throw new Error(`the ${side} has no QEMU`);
    return started.pid;
  }

  /** What an engine that runs the VM says of itself. */
  async status(side: Side = "primary"): Promise<StatusOverControl> {
    const client = await QmpClient.connect(`${this.directory}/${side}.sock`);
    try {
      return await client.executeRaw("query-colo-status") as StatusOverControl;
    } finally {
      await client.close();
    }
  }

  /** Start both. */
  static async start(options: NetworkPairOptions = {}): Promise<NetworkPair> {
    const guest = await prepareDemoGuest();
    const hosts = await Hosts.create(options.third);
    try {
      await options.prepare?.(hosts);
    } catch (error) {
      await hosts.close();
      throw error;
    }
    const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
    return new NetworkPair(hosts, guest, directory, options);
  }

  /** Wait until the guest answers and its secondary can take over. */
  async protected(): Promise<void> {
    await this.primary.waitFor("primary", ({ phase }) => phase === "protected", PROTECT_MS);
    const load = this.load({ kind: "count" }, { connections: 1, durationMs: PROTECT_MS });
    try {
      await load.connected;
    } finally {
      await load.stop();
    }
  }

  /** Load from the client. */
  load(kind: LoadKind, options: LoopOptions, address: string = GUEST.address): Load {
    const port = kind.kind === "count" ? PORTS.counting : PORTS.web;
    const server = { address, port };
    return new Load(this.hosts.client, { server, load: kind, ...options });
  }

  /** Where the guest reaches the client. */
  get client(): { readonly address: string; readonly port: number } {
    return { address: this.hosts.client.address, port: CLIENT_PORT };
  }

  /** Kill the primary QEMU; returns how long it took until the secondary ran. */
  async killPrimary(): Promise<number> {
    const killedMs = performance.timeOrigin + performance.now();
    Deno.kill(this.qemuPid("primary"), "SIGKILL");
    const { atMs } = await this.standby.waitFor("running", () => true, RUN_MS);
    return atMs - killedMs;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#engines.map((engine) => engine.stop()));
    const left = processesOf(this.directory);
    await this.hosts.close();
    await Deno.remove(this.directory, { recursive: true });
    assertEquals(left, []);
  }
}
