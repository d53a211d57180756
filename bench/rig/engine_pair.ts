/**
 * Ours: the two commands that two hosts would run, as processes, and what they report.
 *
 * @module
 */

import { dirname } from "@std/path/mod.js";
import { TextLineStream } from "@std/streams/mod.js";
import { freePort } from "../../cli/demo/session.ts";
import type { ReplicationMode } from "../../engine/config/mod.ts";
import { ColoError } from "../../engine/errors.ts";
import type { CheckpointReport, Report } from "../../engine/host/mod.ts";
import type { Checkpoint, Contender } from "./contender.ts";
import type { BenchGuest } from "./guest.ts";
import type { NetworkPair } from "./namespaces.ts";
import { CuttableRelay } from "./relay.ts";
import { freshDirectory, type Rig, until } from "./rig.ts";

/** How the two are joined. */
export interface EngineOptions {
  /** `colo` when left out. */
  readonly mode?: ReplicationMode | undefined;
  readonly periodMs: number;
  /** Between two namespaces; over loopback when left out. */
  readonly network?: NetworkPair | undefined;
  readonly httpPort?: number | undefined;
  /** See {@linkcode SideOptions.nic}; the same on both sides. */
  readonly nic?: readonly string[] | undefined;
  /** The link leads through a relay, so that it can be cut; only over loopback. */
  readonly cuttable?: boolean | undefined;
  /** More lines of TOML after `[replication]`, the same on both sides. */
  readonly rest?: readonly string[] | undefined;
}

/** A standby that was away, and has been brought up to date. */
export interface Return {
  /** The checkpoints that were taken meanwhile. */
  readonly pausesMs: readonly number[];
  readonly seeded: Extract<Report, { event: "seeded" }>;
}

const PORT = 7702;
const PROTECTED_TIMEOUT_MS = 120_000;
const CHECKPOINT_TIMEOUT_MS = 60_000;
const TAKEOVER_TIMEOUT_MS = 20_000;

/** How long a command may take to clean up before it is killed. */
const STOP_TIMEOUT_MS = 10_000;

/** `colo standby` and `colo run`. */
export class EnginePair implements Contender {
  readonly #rig: Rig;
  readonly #commands: readonly [primary: Command, standby: Command];

  readonly #relay: CuttableRelay | undefined;

  private constructor(rig: Rig, primary: Command, standby: Command, relay?: CuttableRelay) {
    this.#rig = rig;
    this.#relay = relay;
    this.#commands = [primary, standby];
  }

  /** Start both; returns when the guest is protected. */
  static async start(guest: BenchGuest, options: EngineOptions): Promise<EnginePair> {
    const { rig } = guest;
    const { network, httpPort, nic, rest = [] } = options;
    const directory = await freshDirectory(rig);
    const port = network === undefined ? freePort() : PORT;
    const relay = options.cuttable ? new CuttableRelay(port) : undefined;
    const host = network?.secondary.address ?? "127.0.0.1";
    const addresses = { listen: `${host}:${port}`, peer: `${host}:${relay?.port ?? port}` };
    const replication = (end: "peer" | "listen") =>
      [
        "[replication]",
        `mode = "${options.mode ?? "colo"}"`,
        `period = ${options.periodMs}`,
        `${end} = "${addresses[end]}"`,
        ...(network === undefined ? [] : ['encryption = "none"']),
        ...rest,
      ].join("\n");
    const paths = { run: `${directory}/primary.toml`, standby: `${directory}/standby.toml` };
    const primaryToml = guest.toml({ side: "primary", httpPort, nic, rest: replication("peer") });
    const standbyToml = guest.toml({ side: "secondary", nic, rest: replication("listen") });
    await Deno.writeTextFile(paths.run, primaryToml);
    await Deno.writeTextFile(paths.standby, standbyToml);
    const standby = new Command(network?.secondary.prefix ?? [], ["standby", paths.standby]);
    const primary = new Command(network?.primary.prefix ?? [], ["run", paths.run]);
    const pair = new EnginePair(rig, primary, standby, relay);
    try {
      await pair.#until(
        () => pair.#reports("primary").some(({ phase }) => phase === "protected"),
        "the guest is protected",
        PROTECTED_TIMEOUT_MS,
      );
      return pair;
    } catch (error) {
      await pair.close();
      throw error;
    }
  }

  /** How it was seeded. */
  get seeded(): Extract<Report, { event: "seeded" }> {
    const report = this.#reports("seeded")[0];
    if (report === undefined) throw new ColoError("Cannot tell the seed: it was not reported");
    return report;
  }

  /** Cut the link for a while; returns when the guest is protected again. */
  async cut(ms: number): Promise<Return> {
    const relay = this.#relay!;
    const count = this.#reports("seeded").length;
    relay.isCut = true;
    await new Promise((resolve) => setTimeout(resolve, ms));
    const taken = this.#reports("checkpoint").length;
    relay.isCut = false;
    const isBack = () => this.#reports("seeded").length > count;
    await this.#until(isBack, "the guest is protected again", PROTECTED_TIMEOUT_MS);
    return {
      pausesMs: this.#reports("checkpoint").slice(taken).map(({ pauseMs }) => pauseMs),
      seeded: this.#reports("seeded").at(-1)!,
    };
  }

  async take(count: number): Promise<Checkpoint[]> {
    // The one that is under way belongs to what was before.
    const from = this.#checkpoints().length + 1;
    const taken = () => this.#checkpoints().length >= from + count;
    await this.#until(taken, "checkpoints are replicated", CHECKPOINT_TIMEOUT_MS);
    return this.#checkpoints().slice(from, from + count).map((report) => ({
      pauseMs: report.pauseMs,
      pages: report.dirtyPages,
      bytes: report.wireBytes,
    }));
  }

  /** Kill the primary QEMU. Returns how long it took until the VM ran on the other side. */
  async killPrimary(): Promise<number> {
    const killedMs = performance.timeOrigin + performance.now();
    Deno.kill(this.#commands[0].qemuPid, "SIGKILL");
    return await this.#runs() - killedMs;
  }

  /**
   * Lose the primary's host. Returns how long it took until the VM ran on the other side.
   *
   * @param cut Cuts it off, so that its end is told to nobody
   */
  async losePrimary(cut: () => Promise<void>): Promise<number> {
    const [primary] = this.#commands;
    const lostMs = performance.timeOrigin + performance.now();
    await cut();
    for (const pid of [primary.pid, primary.qemuPid]) Deno.kill(pid, "SIGKILL");
    return await this.#runs() - lostMs;
  }

  /** Returns when the VM ran on the other side, in milliseconds since the epoch. */
  async #runs(): Promise<number> {
    const [, standby] = this.#commands;
    const running = () => standby.reports.find((report) => report.event === "running");
    const ran = () => {
      standby.requireAlive();
      return running() !== undefined;
    };
    await until(ran, "the VM runs", TAKEOVER_TIMEOUT_MS, this.#rig.signal);
    return running()!.atMs;
  }

  async close(): Promise<void> {
    await Promise.all(this.#commands.map((command) => command.stop()));
    this.#relay?.close();
  }

  #checkpoints(): CheckpointReport[] {
    return this.#reports("checkpoint").filter(({ replicated }) => replicated);
  }

  #reports<Event extends Report["event"]>(event: Event): Extract<Report, { event: Event }>[] {
    return this.#commands[0].reports.filter(
      (report): report is Extract<Report, { event: Event }> => report.event === event,
    );
  }

  async #until(condition: () => boolean, what: string, timeoutMs: number): Promise<void> {
    const holds = () => {
      for (const command of this.#commands) command.requireAlive();
      return condition();
    };
    await until(holds, what, timeoutMs, this.#rig.signal);
  }
}

/** One `colo` command. */
class Command {
  readonly reports: Report[] = [];
  readonly #name: string;
  readonly #child: Deno.ChildProcess;
  #lastWords = "";
  #ended = false;

  constructor(prefix: readonly string[], args: readonly string[]) {
    this.#name = args[0]!;
    const main = new URL("../../cli/colo.ts", import.meta.url).pathname;
    const [program = "", ...rest] = [...prefix, Deno.execPath(), "run", "-A", main, ...args];
    this.#child = new Deno.Command(program, {
      args: [...rest, "--json"],
      // What it must remember goes with its config.
      env: { XDG_STATE_HOME: dirname(args.find((arg) => arg.endsWith(".toml")) ?? ".") },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      // A terminal's Ctrl-C reaches the benchmark alone, which then ends both in order.
      detached: true,
    }).spawn();
    this.#child.status.then(() => this.#ended = true);
    lines(this.#child.stdout, (line) => this.reports.push(JSON.parse(line) as Report));
    lines(this.#child.stderr, (line) => this.#lastWords = line);
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** Of the QEMU that was started last. */
  get qemuPid(): number {
    const started = this.reports.findLast((report) => report.event === "qemu-started");
    if (started === undefined) throw new ColoError(`colo ${this.#name} has no QEMU`);
    return started.pid;
  }

  requireAlive(): void {
    if (!this.#ended) return;
    throw new ColoError(`colo ${this.#name} ended: ${this.#lastWords || "it said nothing"}`);
  }

  async stop(): Promise<void> {
    this.#kill("SIGTERM");
    const timer = setTimeout(() => this.#kill("SIGKILL"), STOP_TIMEOUT_MS);
    await this.#child.status;
    clearTimeout(timer);
  }

  #kill(signal: Deno.Signal): void {
    try {
      this.#child.kill(signal);
    } catch {
      // It has ended already.
    }
  }
}

async function lines(
  stream: ReadableStream<Uint8Array<ArrayBuffer>>,
  take: (line: string) => void,
): Promise<void> {
  const text: ReadableStream<string> = stream.pipeThrough(new TextDecoderStream())
    .pipeThrough(new TextLineStream());
  for await (const line of text) if (line !== "") take(line);
}
