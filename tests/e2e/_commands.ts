/**
 * `colo run` and `colo standby` on one machine, for tests of what they say and do.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert/mod.js";
import { ConsoleTail } from "../../cli/demo/console_tail.ts";
import { EngineProcess } from "../../cli/demo/engine_process.ts";
import { freePort } from "../../cli/demo/session.ts";
import type { Report } from "../../engine/host/mod.ts";
import { QmpClient } from "../../engine/qmp/mod.ts";
import { prepareDemoGuest } from "../../engine/vm/mod.ts";
import { processesOf } from "./_pair.ts";

/** Where a command runs. */
export type Side = "primary" | "standby";

/** How both are to be. */
export interface CommandsOptions {
  /** More lines of `[replication]`. */
  readonly replication?: readonly string[];
  /** Whether each can stand by for the other. */
  readonly bothWays?: boolean;
  /** Added to the guest's kernel command line. */
  readonly append?: string;
  /** Added to QEMU's command line. */
  readonly extraArgs?: readonly string[];
  /** Further tables of a side's config. */
  readonly rest?: (side: Side) => readonly string[];
  /** Options of `colo run`. */
  readonly runOptions?: readonly string[];
}

const COMMANDS = { primary: "run", standby: "standby" } as const;
const WAIT_MS = 60_000;

/** `colo run` and `colo standby` around a guest, each QEMU with a second monitor for the test. */
export class Commands implements AsyncDisposable {
  readonly directory = Deno.makeTempDirSync({ prefix: "colo-test-" });
  readonly #processes = new Map<Side, EngineProcess>();
  readonly #paths = new Map<Side, string>();

  /** Start both. */
  async start(options: CommandsOptions = {}): Promise<void> {
    const { replication = [], append = "", extraArgs = [], rest = () => [] } = options;
    const guest = await prepareDemoGuest();
    const ports = { primary: freePort(), standby: freePort() };
    for (const side of ["standby", "primary"] as const) {
      const path = `${this.directory}/${side}.toml`;
      const monitor = ["-qmp", `unix:${this.#monitor(side)},server=on,wait=off`];
      const peer = `peer = "127.0.0.1:${ports[side === "primary" ? "standby" : "primary"]}"`;
      const listen = `listen = "127.0.0.1:${ports[side]}"`;
      await Deno.writeTextFile(
        path,
        [
          "[vm]",
          'name = "tested"',
          "memory = 128",
          `kernel = ${JSON.stringify(guest.kernelPath)}`,
          `initrd = ${JSON.stringify(guest.initrdPath)}`,
          `append = ${JSON.stringify(`${guest.append} ${append}`)}`,
          `console = "${side}-console.log"`,
          `extraArgs = ${JSON.stringify(["-cpu", guest.cpu, ...monitor, ...extraArgs])}`,
          "[replication]",
          ...(options.bothWays ? [peer, listen] : [side === "primary" ? peer : listen]),
          ...replication,
          "[control]",
          `socket = "${side}.sock"`,
          ...rest(side),
        ].join("\n"),
      );
      this.#paths.set(side, path);
      this.restart(side, ...(side === "primary" ? options.runOptions ?? [] : []));
    }
  }

  /** Start a side's command, in the place of one that has ended. */
  restart(side: Side, ...options: readonly string[]): EngineProcess {
    const engine = new EngineProcess([COMMANDS[side], this.#paths.get(side)!, ...options]);
    this.#processes.set(side, engine);
    return engine;
  }

  /** The console of a side's guest; read it again for more. */
  console(side: Side): ConsoleTail {
    return new ConsoleTail(`${this.directory}/${side}-console.log`);
  }

  side(side: Side): EngineProcess {
    return this.#processes.get(side)!;
  }

  qemuPid(side: Side): number {
    const started = this.side(side).reports.findLast((report) =>
      report.event === "qemu-started" || report.event === "qemu-adopted"
    );
    assert(started !== undefined);
    return started.pid;
  }

  /** Wait for a phase that is reported behind the `after` first reports. */
  async phase(side: Side, phase: string, after = 0) {
    const { reports } = this.side(side);
    const isNew = (report: Report) => reports.indexOf(report) >= after;
    return side === "primary"
      ? await this.side(side).waitFor("primary", (r) => r.phase === phase && isNew(r), WAIT_MS)
      : await this.side(side).waitFor("secondary", (r) => r.phase === phase && isNew(r), WAIT_MS);
  }

  async monitor(side: Side): Promise<QmpClient> {
    return await QmpClient.connect(this.#monitor(side));
  }

  #monitor(side: Side): string {
    return `${this.directory}/${side}-monitor.sock`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#processes.values()].map((process) => process.stop()));
    const left = processesOf(this.directory);
    await Deno.remove(this.directory, { recursive: true });
    assertEquals(left, []);
  }
}
