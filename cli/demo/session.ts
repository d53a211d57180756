/**
 * One protected VM, from boot to takeover: two config files, the two commands that two hosts would
 * run, a kill, and the proof from the guest's own console.
 *
 * @module
 */

import {
  formatVmConfig,
  parseVmConfig,
  type ReplicationMode,
  type VmConfig,
} from "../../engine/config/mod.ts";
import { ColoError } from "../../engine/errors.ts";
import type { CheckpointReport, Report } from "../../engine/host/mod.ts";
import type { DemoGuest } from "../../engine/vm/mod.ts";
import { ConsoleTail } from "./console_tail.ts";
import { EngineProcess } from "./engine_process.ts";

/** What a session is to be like. */
export interface SessionOptions {
  readonly guest: DemoGuest;
  readonly memoryMiB: number;
  /** `colo` when left out. */
  readonly mode?: ReplicationMode | undefined;
  /** In milliseconds, or `adaptive` in mode `continuous`. */
  readonly periodMs: number | "adaptive";
  /** More lines of `[replication]`, the same for both sides. */
  readonly replication?: readonly string[];
  /** A directory of the session's own: configs, consoles, logs. */
  readonly directory: string;
  /** Added to the guest's kernel command line, such as `colo.load=small-writes`. */
  readonly append?: string;
  /** QEMU to use on both sides. */
  readonly qemuPath?: string | undefined;
  /** Makes another config of what a side's would be. */
  readonly configure?: (config: VmConfig, side: "primary" | "standby") => VmConfig;
  readonly signal?: AbortSignal;
  readonly onReport?: (side: "primary" | "standby", report: Report) => void;
  readonly onTick?: (side: "primary" | "standby", n: number, fileOk: boolean) => void;
}

/** What was seen at a takeover. */
export interface Takeover {
  /** From the kill until QEMU resumed the secondary VM. */
  readonly killToRunningMs: number;
  /** The checkpoint that the secondary ran from. */
  readonly epoch: number;
  /** Ticks that no console showed: neither the primary's before nor the secondary's after. */
  readonly ticksLost: number;
  /** Ticks that both showed. */
  readonly ticksRepeated: number;
  /** Every tick, before and after, follows from the boot line. */
  readonly chainVerified: boolean;
  /** The guest's random file had its checksum at every tick. */
  readonly memoryVerified: boolean;
}

const POLL_MS = 10;
const BOOT_MS = 60_000;
const PROTECT_MS = 60_000;
const TAKEOVER_MS = 20_000;

/** Ticks that the survivor must show before it counts as one. */
const TICKS_AFTER = 4;

/** A pair of commands around one demo guest. */
export class DemoSession {
  readonly checkpoints: CheckpointReport[] = [];
  readonly primary: EngineProcess;
  standby: EngineProcess;
  readonly primaryConsole: ConsoleTail;
  readonly standbyConsole: ConsoleTail;
  readonly #options: SessionOptions;
  readonly standbyToml: string;
  readonly #poller: ReturnType<typeof setInterval>;

  private constructor(options: SessionOptions, primaryToml: string, standbyToml: string) {
    const { directory } = options;
    this.#options = options;
    this.primaryConsole = new ConsoleTail(`${directory}/primary-console.log`);
    this.standbyConsole = new ConsoleTail(`${directory}/standby-console.log`);
    this.standbyToml = standbyToml;
    this.standby = this.#startStandby();
    this.primary = new EngineProcess(["run", primaryToml], (report) => {
      if (report.event === "checkpoint" && report.replicated) this.checkpoints.push(report);
      options.onReport?.("primary", report);
    }, `${directory}/primary.log`);
    this.#poller = setInterval(() => this.#poll(), POLL_MS);
  }

  /** Write the configs and start both commands. */
  static async start(options: SessionOptions): Promise<DemoSession> {
    const { directory, guest, memoryMiB, mode, periodMs, replication, append, qemuPath } = options;
    const port = freePort();
    const config = (side: "primary" | "standby") =>
      parseVmConfig(
        [
          "[vm]",
          'name = "demo"',
          `memory = ${memoryMiB}`,
          `kernel = ${JSON.stringify(guest.kernelPath)}`,
          `initrd = ${JSON.stringify(guest.initrdPath)}`,
          `append = ${JSON.stringify([guest.append, append].filter(Boolean).join(" "))}`,
          `console = "${side}-console.log"`,
          `extraArgs = ${JSON.stringify(["-cpu", guest.cpu])}`,
          "[[vm.nics]]",
          'mac = "52:54:00:c0:10:01"',
          // The guest's web server: on the primary from the start, on the standby once it took over.
          `netdev = "user,restrict=on,hostfwd=tcp:127.0.0.1:${freePort()}-:80"`,
          "[replication]",
          `mode = "${mode ?? "colo"}"`,
          `period = ${JSON.stringify(periodMs)}`,
          ...(replication ?? []),
          side === "primary" ? `peer = "127.0.0.1:${port}"` : `listen = "127.0.0.1:${port}"`,
          ...(qemuPath === undefined ? [] : ["[qemu]", `path = ${JSON.stringify(qemuPath)}`]),
        ].join("\n"),
        `${directory}/${side}.toml`,
      );
    const { configure = (config) => config } = options;
    for (const side of ["primary", "standby"] as const) {
      const text = formatVmConfig(configure(config(side), side));
      await Deno.writeTextFile(`${directory}/${side}.toml`, text);
    }
    return new DemoSession(options, `${directory}/primary.toml`, `${directory}/standby.toml`);
  }

  /** Start another standby with the same config, in place of one that has ended. */
  restartStandby(...options: readonly string[]): void {
    this.standby = this.#startStandby(...options);
  }

  #startStandby(...options: readonly string[]): EngineProcess {
    const { directory, onReport } = this.#options;
    return new EngineProcess(
      ["standby", this.standbyToml, ...options],
      (report) => onReport?.("standby", report),
      `${directory}/standby.log`,
    );
  }

  /** Wait until the secondary can take over and the guest has shown itself. */
  async protected(): Promise<void> {
    await this.primary.waitFor("primary", ({ phase }) => phase === "protected", PROTECT_MS);
    await this.#until(() => this.primaryConsole.ticks.length >= 2, BOOT_MS, "the guest boots");
  }

  /** Wait for so many checkpoints that the secondary holds. */
  async checkpointed(count: number, timeoutMs: number): Promise<void> {
    await this.#until(() => this.checkpoints.length >= count, timeoutMs, `${count} checkpoints`);
  }

  /** Process id of the QEMU that a side runs now. */
  qemuPid(side: "primary" | "standby"): number {
    const started = this[side].reports.findLast((report) => report.event === "qemu-started");
    if (started === undefined) throw new ColoError(`The ${side} has no QEMU`);
    return started.pid;
  }

  /**
   * Kill the primary QEMU and watch the secondary take over.
   *
   * @param ticksAfter So many must the survivor show
   */
  async killPrimary(ticksAfter = TICKS_AFTER): Promise<Takeover> {
    const killedMs = performance.timeOrigin + performance.now();
    Deno.kill(this.qemuPid("primary"), "SIGKILL");
    return await this.survived(killedMs, ticksAfter);
  }

  /** Watch the secondary take over from a primary that was killed at `killedMs` since the epoch. */
  async survived(killedMs: number, ticksAfter = TICKS_AFTER): Promise<Takeover> {
    const running = await this.standby.waitFor("running", () => true, TAKEOVER_MS);
    this.#poll();
    const before = this.primaryConsole.ticks;
    const after = this.standbyConsole.ticks;
    // A secondary that ran along has shown ticks of its own.
    const shadow = this.#options.mode === "continuous" ? 0 : after.length;
    await this.#until(
      () => after.length >= shadow + ticksAfter,
      TAKEOVER_MS,
      "the survivor ticks",
    );
    const last = before.at(-1)!.n;
    const first = after[shadow]!.n;
    const witnessed = [...before, ...after.slice(shadow)];
    const consecutive = after.slice(shadow).every((tick, index) => tick.n === first + index);
    return {
      killToRunningMs: running.atMs - killedMs,
      epoch: running.epoch,
      ticksLost: Math.max(0, first - last - 1),
      ticksRepeated: Math.max(0, last - first + 1),
      chainVerified: consecutive && witnessed.every(({ chainOk }) => chainOk),
      memoryVerified: witnessed.every(({ fileOk }) => fileOk),
    };
  }

  /** End both commands; afterwards no process of theirs is left. */
  async stop(): Promise<void> {
    clearInterval(this.#poller);
    await Promise.all([this.primary.stop(), this.standby.stop()]);
  }

  #poll(): void {
    for (const tick of this.primaryConsole.poll()) {
      this.#options.onTick?.("primary", tick.n, tick.fileOk);
    }
    const { boot } = this.primaryConsole;
    if (boot === undefined) return;
    if (this.standbyConsole.boot === undefined) this.standbyConsole.bootedAs(boot);
    for (const tick of this.standbyConsole.poll()) {
      this.#options.onTick?.("standby", tick.n, tick.fileOk);
    }
  }

  async #until(condition: () => boolean, timeoutMs: number, what: string): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    while (!condition()) {
      this.#options.signal?.throwIfAborted();
      if (performance.now() > deadline) {
        throw new ColoError(`Cannot go on with the demo: ${what}: not within ${timeoutMs} ms`);
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }
}

/** A TCP port on loopback that nobody uses now. */
export function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}
