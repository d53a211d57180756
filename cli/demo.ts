/** `colo demo`: protect a guest, kill its primary, show the secondary carrying on. */

import { Command, InvalidArgumentError, Option } from "@commander-js/extra-typings";
import type { ReplicationMode } from "../engine/config/mod.ts";
import { ConfigError, messageOf } from "../engine/errors.ts";
import { formatBytes, formatReport, type Report } from "../engine/host/mod.ts";
import { findQemu, prepareDemoGuest } from "../engine/vm/mod.ts";
import { type DemoResult, demoResult } from "./demo/result.ts";
import { DemoSession } from "./demo/session.ts";
import { EXIT } from "./exit_codes.ts";
import { inOwnDirectory, interruptible, progress } from "./shared.ts";

/** Where no period is given. */
const PERIOD_MS = { colo: 500, continuous: 100 } as const;

/** Beyond the checkpoints themselves, for a machine that is busy. */
const CHECKPOINTS_SLACK_MS = 60_000;

export function demoCommand() {
  return new Command("demo")
    .description("protect a demo guest, kill its primary QEMU, show the secondary carrying on")
    .addOption(
      new Option("--mode <mode>", "how to protect it: the secondary's VM runs too, or it waits")
        .choices(["colo", "continuous"] as const).default("colo" as const),
    )
    .option("--memory <MiB>", "guest memory", wholeNumber(64, 65536), 256)
    .option(
      "--period <ms>",
      "time between checkpoints (default: 500; mode continuous: 100, or adaptive)",
      period,
    )
    .option("--checkpoints <n>", "checkpoints before the kill", wholeNumber(1, 100_000), 10)
    .option("--qemu <path>", "QEMU to use (default: COLO_QEMU, the system's, or a private one)")
    .option("--json", "print one JSON object at the end, and nothing else")
    .option("--keep-logs <dir>", "keep configs, consoles and logs in this directory")
    .action(async (options) => {
      if (options.keepLogs !== undefined) await prepareLogs(options.keepLogs);
      Deno.exitCode = await interruptible((signal) =>
        inOwnDirectory(async (directory) => {
          try {
            const result = await runDemo(options, directory, signal);
            if (options.json) console.log(JSON.stringify(result));
            else console.log(formatResult(result));
            return result.ok ? EXIT.OK : EXIT.FAILED;
          } catch (error) {
            if (signal.aborted) return EXIT.INTERRUPTED;
            throw error;
          } finally {
            if (options.keepLogs !== undefined) await keepLogs(directory, options.keepLogs);
          }
        })
      );
    });
}

interface DemoOptions {
  readonly mode: ReplicationMode;
  readonly memory: number;
  readonly period?: number | "adaptive" | undefined;
  readonly checkpoints: number;
  readonly qemu?: string | undefined;
  readonly json?: true | undefined;
}

async function runDemo(
  options: DemoOptions,
  directory: string,
  signal: AbortSignal,
): Promise<DemoResult> {
  const { mode, memory: memoryMiB } = options;
  const periodMs = options.period ?? PERIOD_MS[mode];
  if (periodMs === "adaptive" && mode !== "continuous") {
    throw new ConfigError("Cannot run the demo: --period adaptive is for --mode continuous");
  }
  await findQemu({ path: options.qemu, role: "primary", progress });
  const guest = await prepareDemoGuest({ progress });
  signal.throwIfAborted();
  const show = options.json ? () => {} : timeline();
  const session = await DemoSession.start({
    guest,
    memoryMiB,
    mode,
    periodMs,
    directory,
    qemuPath: options.qemu,
    signal,
    onReport: (side, report) => show(side, describe(report)),
    onTick: (side, n, fileOk) => show(side, `tick ${n}${fileOk ? "" : ", and its file is BAD"}`),
  });
  // An interruption ends what is being waited for: both commands.
  const interrupted = () => session.stop();
  signal.addEventListener("abort", interrupted);
  try {
    // It may have come while the session was started.
    signal.throwIfAborted();
    await session.protected();
    const { checkpoints } = options;
    const expectedMs = checkpoints * (periodMs === "adaptive" ? PERIOD_MS.continuous : periodMs);
    await session.checkpointed(checkpoints, expectedMs * 2 + CHECKPOINTS_SLACK_MS);
    show("demo", `kill -9 ${session.qemuPid("primary")}: the primary QEMU`);
    const takeover = await session.killPrimary();
    return demoResult(
      mode,
      memoryMiB,
      session.primary.reports,
      session.checkpoints,
      takeover,
    );
  } finally {
    signal.removeEventListener("abort", interrupted);
    await session.stop();
  }
}

/** Shows what happens as it happens, with the seconds since the start. */
function timeline(): (who: string, what: string | undefined) => void {
  const startMs = performance.now();
  return (who, what) => {
    if (what === undefined) return;
    const seconds = ((performance.now() - startMs) / 1000).toFixed(2).padStart(7);
    console.log(`${seconds} s  ${who.padEnd(8)} ${what}`);
  };
}

/** Loads follow checkpoints and say nothing new. */
function describe(report: Report): string | undefined {
  return report.event === "loaded" ? undefined : formatReport(report);
}

function formatResult(result: DemoResult): string {
  const { pauseMs, dirtyPages } = result;
  const share = result.ramBytes === 0 ? 0 : 100 * result.wireBytes / result.ramBytes;
  return [
    "",
    `${result.ok ? "The guest survived, verified" : "The guest did NOT survive unharmed"}: ` +
    `QEMU ${result.qemu}, ${result.accel}, ${result.memoryMiB} MiB, mode ${result.mode}`,
    `  seed             ${result.seedMs} ms`,
    `  checkpoints      ${result.checkpoints}, paused ${pauseMs.p50} ms p50, ${pauseMs.p99} ms p99, ${pauseMs.max} ms max`,
    `  dirty pages      ${dirtyPages.p50} p50, ${dirtyPages.max} max`,
    `  on the link      ${formatBytes(result.wireBytes)} for ${
      formatBytes(result.ramBytes)
    } of dirty pages (${share.toFixed(1)} %)`,
    `  kill to running  ${result.killToRunningMs} ms`,
    `  guest ticks      ${result.ticksLost} lost, ${result.ticksRepeated} repeated`,
    `  hash chain       ${result.chainVerified ? "verified" : "BROKEN"}`,
    `  file in memory   ${result.memoryVerified ? "verified" : "DAMAGED"}`,
  ].join("\n");
}

/** Better said before the demo than after it. */
async function prepareLogs(directory: string): Promise<void> {
  try {
    await Deno.mkdir(directory, { recursive: true });
  } catch (error) {
    throw new ConfigError(`Cannot keep logs in ${directory}: ${messageOf(error)}`);
  }
}

async function keepLogs(from: string, to: string): Promise<void> {
  for await (const entry of Deno.readDir(from)) {
    if (entry.isFile) await Deno.copyFile(`${from}/${entry.name}`, `${to}/${entry.name}`);
  }
}

function period(text: string): number | "adaptive" {
  return text === "adaptive" ? text : wholeNumber(10, 60_000)(text);
}

function wholeNumber(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!Number.isInteger(value) || value < min || value > max) {
      throw new InvalidArgumentError(`It must be a whole number from ${min} to ${max}.`);
    }
    return value;
  };
}
