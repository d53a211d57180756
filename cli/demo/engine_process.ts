/**
 * One of the two commands of a pair, run as a process of its own, with what it reports.
 *
 * @module
 */

import { dirname } from "@std/path/mod.js";
import type { Report } from "../../engine/host/mod.ts";
import { ColoError } from "../../engine/errors.ts";

type Waiter = {
  readonly matches: (report: Report) => boolean;
  readonly resolve: (report: Report) => void;
  readonly reject: (error: Error) => void;
};

/** Chars of a command's standard error that are kept for a message. */
const STDERR_CHARS_MAX = 4096;

/** How long a command may take to clean up before it is killed. */
const STOP_MS = 10_000;

/** A running `colo run` or `colo standby`. */
export class EngineProcess {
  readonly reports: Report[] = [];
  readonly #name: string;
  readonly #child: Deno.ChildProcess;
  readonly #waiters = new Set<Waiter>();
  readonly #ended: Promise<Deno.CommandStatus>;
  #stderr = "";
  #over = false;

  /**
   * @param args Such as `["run", "vm.toml"]`
   * @param onReport Called for every report, in order
   * @param logPath File for a copy of all that it prints
   * @param prefix Put before the command, such as `ip netns exec NAME`
   */
  constructor(
    args: readonly string[],
    onReport: (report: Report) => void = () => {},
    logPath?: string,
    prefix: readonly string[] = [],
  ) {
    this.#name = args[0] ?? "";
    const main = new URL("../colo.ts", import.meta.url);
    const command = [
      ...[...prefix, Deno.execPath(), "run", "-A"],
      ...[main.protocol === "file:" ? main.pathname : main.href, ...args, "--json"],
    ];
    const [program = "", ...rest] = command;
    this.#child = new Deno.Command(program, {
      args: rest,
      // What it must remember goes with its config.
      env: { XDG_STATE_HOME: dirname(args.find((arg) => arg.endsWith(".toml")) ?? ".") },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      // A terminal's Ctrl-C reaches the demo alone, which then ends both in order.
      detached: true,
    }).spawn();
    const log = logPath === undefined ? undefined : Deno.createSync(logPath);
    const read = Promise.all([
      this.#readReports(onReport, log),
      this.#readErrors(log),
    ]);
    this.#ended = this.#child.status.then(async (status) => {
      await read;
      log?.close();
      this.#over = true;
      const words = this.#stderr.trim().split("\n").at(-1) || `exit code ${status.code}`;
      const error = new ColoError(`colo ${this.#name} ended: ${words}`);
      for (const waiter of this.#waiters) waiter.reject(error);
      return status;
    });
  }

  get pid(): number {
    return this.#child.pid;
  }

  /** The first report that matches, of those that came and those to come. */
  async waitFor<Event extends Report["event"]>(
    event: Event,
    matches: (report: Extract<Report, { event: Event }>) => boolean,
    timeoutMs: number,
  ): Promise<Extract<Report, { event: Event }>> {
    type Wanted = Extract<Report, { event: Event }>;
    const isWanted = (report: Report): report is Wanted =>
      report.event === event && matches(report as Wanted);
    const known = this.reports.find(isWanted);
    if (known !== undefined) return known;
    if (this.#over) throw new ColoError(`colo ${this.#name} ended before it reported ${event}`);
    const { promise, resolve, reject } = Promise.withResolvers<Report>();
    const waiter: Waiter = { matches: isWanted, resolve, reject };
    this.#waiters.add(waiter);
    const timer = setTimeout(
      () => reject(new ColoError(`colo ${this.#name} did not report ${event} in ${timeoutMs} ms`)),
      timeoutMs,
    );
    try {
      return await promise as Wanted;
    } finally {
      clearTimeout(timer);
      this.#waiters.delete(waiter);
    }
  }

  /** Its exit code, when it has ended. */
  async exited(): Promise<number> {
    return (await this.#ended).code;
  }

  /** End it in good order; returns its exit code. */
  async stop(): Promise<number> {
    if (!this.#over) this.#kill("SIGTERM");
    const timer = setTimeout(() => this.#kill("SIGKILL"), STOP_MS);
    const { code } = await this.#ended;
    clearTimeout(timer);
    return code;
  }

  #kill(signal: Deno.Signal): void {
    try {
      this.#child.kill(signal);
    } catch {
      // It has ended already.
    }
  }

  async #readReports(onReport: (report: Report) => void, log?: Deno.FsFile): Promise<void> {
    let rest = "";
    for await (const text of this.#child.stdout.pipeThrough(new TextDecoderStream())) {
      log?.writeSync(new TextEncoder().encode(text));
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const report = JSON.parse(line) as Report;
        this.reports.push(report);
        onReport(report);
        for (const waiter of this.#waiters) if (waiter.matches(report)) waiter.resolve(report);
      }
    }
  }

  async #readErrors(log?: Deno.FsFile): Promise<void> {
    for await (const text of this.#child.stderr.pipeThrough(new TextDecoderStream())) {
      log?.writeSync(new TextEncoder().encode(text));
      this.#stderr = (this.#stderr + text).slice(-STDERR_CHARS_MAX);
    }
  }
}
