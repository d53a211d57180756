import { assert, assertEquals } from "@std/assert/mod.js";
import { FAULT_KINDS } from "./faults.ts";
import { replayCommand, Summary } from "./main.ts";
import { simulate, type World } from "./world.ts";

const SEEDS = 2000;

Deno.test("a protected VM outlives what goes wrong, 2000 seeds long, and nothing seen is lost", () => {
  const summary = new Summary();
  for (let seed = 1; seed <= SEEDS; seed++) summary.add(simulate(seed));
  const failures = summary.failures.map(({ seed, error }) =>
    `${error?.message}; ${replayCommand(seed)}`
  );
  assertEquals(failures, []);
  for (const kind of FAULT_KINDS) assert(summary.faults(kind) > 100, `${kind} was hardly tried`);
  assert(summary.sum("takeovers") > 500, "hardly anybody has taken over");
  assert(
    summary.sum("resumes") > 200,
    "hardly ever was a standby that came back brought up to date",
  );
  assert(summary.sum("stales") > 100, "hardly ever did two want the VM");
});

Deno.test("two fenced hosts that lose sight of each other do not switch both off", () => {
  const script = ({ sim, network }: World) => {
    sim.after(sim.random.between(1000, 3000), () => network.cut());
    sim.after(sim.random.between(3700, 5000), () => network.heal());
  };
  for (let seed = 1; seed <= 50; seed++) {
    const { error, losses } = simulate(seed, { arbiter: "fence", script });
    assertEquals([error?.message, losses], [undefined, 0], replayCommand(seed));
  }
});

Deno.test("a seed gives the same world each time, whatever was simulated before", () => {
  const traces = [1, 2].map((round) => {
    const lines: string[] = [];
    for (const seed of [round * 100, 42]) {
      lines.length = 0;
      simulate(seed, { trace: (line) => lines.push(line) });
    }
    return lines.join("\n");
  });
  assertEquals(traces[0], traces[1]);
  assert(traces[0]!.includes("primary is protected"));
});
