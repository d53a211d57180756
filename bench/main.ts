/**
 * The benchmarks: `deno task bench [area...] [--json] [--quick]`.
 *
 * @module
 */

import { Argument, Command } from "@commander-js/extra-typings";
import { inOwnDirectory, interruptible, progress } from "../cli/shared.ts";
import { ColoError } from "../engine/errors.ts";
import { type Area, AREA_NAMES, type AreaResult } from "./area.ts";
import { COMPARE } from "./compare.ts";
import { readHostFacts, readVersions } from "./host_facts.ts";
import { CONTINUOUS } from "./continuous.ts";
import { FAILOVER } from "./failover.ts";
import { DISK } from "./disk.ts";
import { benchKernels } from "./kernels.ts";
import { NET } from "./net.ts";
import { PAUSE } from "./pause.ts";
import { chartsOf, drawBars } from "./plot.ts";
import { renderSection, renderTable, replaceSection } from "./results.ts";
import { SEED } from "./seed.ts";
import { STORE } from "./store.ts";
import { WIRE } from "./wire.ts";

const KERNELS: Area = {
  name: "kernels",
  about:
    "The WebAssembly kernels next to native code that does the same, called in the same process, " +
    "and next to their specification in TypeScript.",
  bar: "least",
  run: benchKernels,
};

const AREAS: readonly Area[] = [
  KERNELS,
  PAUSE,
  WIRE,
  SEED,
  STORE,
  CONTINUOUS,
  FAILOVER,
  COMPARE,
  NET,
  DISK,
];

const HERE = import.meta.dirname!;

const FAILED = 1;
const INTERRUPTED = 130;

function benchCommand() {
  return new Command("bench")
    .description("measure colo next to its peers, in turn; a missed bar is no failure")
    .addArgument(new Argument("[areas...]", "default: all of them").choices(AREA_NAMES))
    .option("--json", "print one JSON object an area")
    .option("--quick", "rougher, less than a minute an area; bench/RESULTS.md is left alone")
    .action(async (names, { json = false, quick = false }) => {
      const wanted = AREAS.filter(({ name }) => names.length === 0 || names.includes(name));
      Deno.exitCode = await interruptible(async (signal) => {
        try {
          for (const area of wanted) await benchArea(area, json, quick, signal);
          return 0;
        } catch (error) {
          if (signal.aborted) return INTERRUPTED;
          if (!(error instanceof ColoError)) throw error;
          console.error(`bench: ${error.message}`);
          return FAILED;
        }
      });
    });
}

async function benchArea(
  area: Area,
  json: boolean,
  quick: boolean,
  signal: AbortSignal,
): Promise<void> {
  const versions = await readVersions(area.name);
  const host = await readHostFacts();
  const date = new Date();
  const startMs = performance.now();
  const show = (line: string) => {
    const seconds = ((performance.now() - startMs) / 1000).toFixed(0);
    progress(`${area.name}, ${seconds.padStart(3)} s: ${line}`);
  };
  const rows = await inOwnDirectory((directory) =>
    area.run({ quick, directory, signal, progress: show })
  );
  const tookMs = performance.now() - startMs;
  const result: AreaResult = { area: area.name, versions, host, rows };
  show("done");
  if (json) console.log(JSON.stringify(result));
  else console.log(renderTable(rows, area.bar));
  if (!quick) await writeResults(area, result, date, tookMs);
}

async function writeResults(
  area: Area,
  result: AreaResult,
  date: Date,
  tookMs: number,
): Promise<void> {
  await Deno.mkdir(`${HERE}/plots`, { recursive: true });
  const plots: string[] = [];
  for (const chart of chartsOf(area.name, result.rows)) {
    const name = `${area.name}-${chart.unit.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-")}.svg`;
    await Deno.writeTextFile(`${HERE}/plots/${name}`, drawBars(chart));
    plots.push(`plots/${name}`);
  }
  const path = `${HERE}/RESULTS.md`;
  const before = await Deno.readTextFile(path).catch((error) => {
    if (error instanceof Deno.errors.NotFound) return "";
    throw error;
  });
  const section = renderSection(area, result, { date, tookMs, plots });
  await Deno.writeTextFile(path, replaceSection(before, area.name, section));
  await format([path, ...plots.map((plot) => `${HERE}/${plot}`)]);
}

/** Written files are under the same rules as all others of the project. */
async function format(paths: readonly string[]): Promise<void> {
  await new Deno.Command(Deno.execPath(), {
    args: ["fmt", "--quiet", ...paths],
    cwd: HERE,
    stdin: "null",
  }).output();
}

if (import.meta.main) {
  await benchCommand().parseAsync(Deno.args, { from: "user" });
  // Nothing that is still open may keep a finished benchmark alive.
  Deno.exit();
}
