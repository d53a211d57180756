import { assert, assertEquals } from "@std/assert/mod.js";
import { findQemu, qemuTool, resolveMachine } from "../../engine/vm/find.ts";
import { fetchQemu, privateQemuDirectory } from "../../engine/vm/private_qemu.ts";
import { probeQemu } from "../../engine/vm/probe.ts";
import { run } from "../../engine/vm/run.ts";
import { parseVersion } from "../../engine/vm/suitability.ts";

async function output(command: readonly string[], env: Readonly<Record<string, string>>) {
  const [program = "", ...args] = command;
  return await run(program, args, { env });
}

Deno.test("fetchQemu() gives a QEMU 11 that runs and answers", async () => {
  const { command, env } = await fetchQemu(console.log);
  const version = await output([...command, "--version"], env);
  assert((parseVersion(version)?.[0] ?? 0) >= 11, version);
  const probe = await probeQemu(command, env);
  assertEquals(parseVersion(probe.version), parseVersion(version));
  assert(probe.capabilities.includes("x-colo"));
  assert(probe.capabilities.includes("return-path"));
});

Deno.test("findQemu() fetches once when two ask at the same time", async () => {
  const told: string[] = [];
  const find = () => findQemu({ role: "primary", progress: (line) => told.push(line) });
  const [first, second] = await Promise.all([find(), find()]);
  assertEquals(first, second);
  assert(told.filter((line) => line.startsWith("reading the package lists")).length <= 1);
});

Deno.test("the fetched QEMU has its tools and versioned machine types", async () => {
  const launch = await fetchQemu();
  const rest = { version: "11.0.0", accel: "tcg", source: "fetched", capabilities: [] } as const;
  const qemu = { ...launch, ...rest };
  for (const name of ["qemu-img", "qemu-nbd"] as const) {
    const tool = qemuTool(name, qemu);
    assert(tool.some((part) => part.startsWith(privateQemuDirectory())));
    assert((await output([...tool, "--version"], qemu.env)).includes(name));
  }
  assert(/^pc-i440fx-\d+\.\d+$/.test(await resolveMachine(qemu, "pc")));
});
