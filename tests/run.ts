/**
 * The gate: `deno task ok` runs every check that needs no QEMU, `deno task test` runs all of them and
 * then the tests on real QEMU. Ends with one line, `N passed, N failed`.
 *
 * @module
 */

interface Step {
  readonly name: string;
  readonly args: readonly string[];
  /** Whether its output ends with a count of tests. */
  readonly counts?: boolean;
}

const ENTRY_POINTS = [
  "mod.ts",
  "cli/colo.ts",
  "wasm/build.ts",
  "bench",
  "tests/run.ts",
];
const DOCUMENTED = ["engine", "wasm/mod.ts", "mod.ts"];

const CHECKS: readonly Step[] = [
  // Whatever is fetched later would be in the way of tests that look at what a command prints.
  { name: "packages", args: ["install", "--quiet"] },
  { name: "format", args: ["fmt", "--check"] },
  { name: "lint", args: ["lint", "--quiet"] },
  { name: "types", args: ["check", ...ENTRY_POINTS, "engine", "tests"] },
  { name: "wasm rebuild", args: ["run", "-A", "wasm/build.ts", "--check"] },
  { name: "life cycles drawn", args: ["run", "-A", "tests/life_cycles.ts", "--check"] },
  { name: "doc examples", args: ["test", "-A", "--doc", ...DOCUMENTED], counts: true },
  {
    name: "unit, property and fuzz tests",
    args: ["test", "-A", "--parallel", "--ignore=tests/e2e,tests/host", "tests"],
    counts: true,
  },
  // By the clock on the wall: they have the machine to themselves.
  { name: "tests of the hosts", args: ["test", "-A", "tests/host"], counts: true },
];

const REAL_QEMU: Step = {
  name: "tests on real QEMU",
  args: ["test", "-A", "tests/e2e"],
  counts: true,
};

/** Run one step, showing its output as it comes; returns what it counted. */
async function run(step: Step): Promise<{ readonly passed: number; readonly failed: number }> {
  console.log(`\n== ${step.name}`);
  const child = new Deno.Command(Deno.execPath(), {
    args: [...step.args],
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
    env: { NO_COLOR: "1" },
  }).spawn();
  let tail = "";
  const decoder = new TextDecoder();
  for await (const bytes of child.stdout) {
    await Deno.stdout.write(bytes);
    tail = (tail + decoder.decode(bytes, { stream: true })).slice(-4096);
  }
  const { success } = await child.status;
  const count = /(\d+) passed(?: \(.*\))? \| (\d+) failed/.exec(tail);
  if (step.counts && count !== null) {
    const [passed, failed] = [Number(count[1]), Number(count[2])];
    return { passed, failed: success ? failed : Math.max(failed, 1) };
  }
  // A step whose tests cannot even be counted has failed as one.
  if (step.counts) return { passed: 0, failed: 1 };
  return success ? { passed: 1, failed: 0 } : { passed: 0, failed: 1 };
}

const which = Deno.args[0];
if (which !== "ok" && which !== "all") {
  console.error("Cannot run the tests: say `ok` (no QEMU) or `all`");
  Deno.exit(2);
}
let [passed, failed] = [0, 0];
for (const step of which === "all" ? [...CHECKS, REAL_QEMU] : CHECKS) {
  const result = await run(step);
  passed += result.passed;
  failed += result.failed;
}
console.log(`\n${passed} passed, ${failed} failed`);
Deno.exit(failed === 0 ? 0 : 1);
