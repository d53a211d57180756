/**
 * What several commands share: interruption, a directory that vanishes, output.
 *
 * @module
 */

import type { VmConfig } from "../engine/config/mod.ts";
import { ColoError, messageOf } from "../engine/errors.ts";
import { formatReport, type Reporter, RunDirectory } from "../engine/host/mod.ts";

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/**
 * Do work that Ctrl-C and SIGTERM end in good order.
 *
 * @param work Gets a signal that is aborted at the first interruption; a second one changes nothing
 */
export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  const interrupt = () => controller.abort();
  for (const signal of SIGNALS) Deno.addSignalListener(signal, interrupt);
  try {
    return await work(controller.signal);
  } finally {
    for (const signal of SIGNALS) Deno.removeSignalListener(signal, interrupt);
  }
}

/**
 * Do work that needs a directory of its own, which is removed whatever happens.
 *
 * @throws {ColoError} when there is no place for temporary files
 */
export async function inOwnDirectory<T>(work: (directory: string) => Promise<T>): Promise<T> {
  const directory = await Deno.makeTempDir({ prefix: "colo-" }).catch((error) => {
    throw new ColoError(`Cannot make a temporary directory: ${messageOf(error)}; set TMPDIR`);
  });
  try {
    return await work(directory);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/**
 * Do work that needs the directory of an engine; see {@linkcode RunDirectory}.
 *
 * @throws {ConfigError} when another engine has it
 */
export async function inRunDirectory<T>(
  config: VmConfig,
  work: (run: RunDirectory) => Promise<T>,
): Promise<T> {
  using run = RunDirectory.take(config);
  return await work(run);
}

/** Reports as lines on standard output: JSON for programs, or words with the time for people. */
export function lineReporter(json: boolean): Reporter {
  return (report) => {
    if (json) return console.log(JSON.stringify(report));
    const time = new Date(report.atMs).toISOString().slice(11, 23);
    console.log(`${time}  ${formatReport(report)}`);
  };
}

/** Progress of something slow, on standard error so that it never mixes with results. */
export function progress(line: string): void {
  console.error(line);
}
