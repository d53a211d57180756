import { assert, assertEquals } from "@std/assert/mod.js";
import { freePort } from "../../cli/demo/session.ts";
import { findQemu } from "../../engine/vm/mod.ts";
import { processesOf, sleep, until } from "./_pair.ts";

const MAIN = new URL("../../cli/colo.ts", import.meta.url).pathname;

/** Moments of a demo, each the beginning of what it then says. */
const MOMENTS: readonly [string, string][] = [
  ["while the standby starts", "runs as process"],
  ["while the secondary is seeded", "primary is seeding"],
  ["between checkpoints", "checkpoint 3"],
  ["after the kill", "kill -9"],
  ["when the secondary runs", "the VM runs here"],
];

/** Run a demo until it says something, then interrupt it. */
async function interrupted(
  moment: string,
  signals: readonly Deno.Signal[],
): Promise<{ code: number; said: string; left: string[] }> {
  const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
  try {
    const child = new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", MAIN, "demo", "--memory", "128", "--checkpoints", "1"],
      env: { TMPDIR: directory, NO_COLOR: "1" },
      stdin: "null",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    let said = "";
    let signalled = false;
    for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
      said += text;
      if (signalled || !said.includes(moment)) continue;
      signalled = true;
      for (const signal of signals) {
        child.kill(signal);
        await sleep(20);
      }
    }
    const { code } = await child.status;
    assert(signalled, said);
    const files = [...Deno.readDirSync(directory)].map(({ name }) => name);
    return { code, said, left: [...files, ...processesOf(directory)] };
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

for (const [when, moment] of MOMENTS) {
  Deno.test(`colo demo ends in good order when it is interrupted ${when}`, async () => {
    const { code, said, left } = await interrupted(moment, ["SIGINT"]);
    assertEquals({ code, left }, { code: 130, left: [] }, said);
  });
}

Deno.test("colo demo ends in good order when it is told to twice", async () => {
  const { code, said, left } = await interrupted("checkpoint 1", ["SIGTERM", "SIGINT"]);
  assertEquals({ code, left }, { code: 130, left: [] }, said);
});

for (const command of ["run", "standby"] as const) {
  Deno.test(`colo ${command} that is told to end while it looks for QEMU starts nothing`, async () => {
    const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
    try {
      const qemu = await findQemu({ role: "primary" });
      const slow = `${directory}/qemu-system-x86_64`;
      const env = Object.entries(qemu.env).map(([name, value]) => `export ${name}='${value}'\n`);
      const line = qemu.command.map((word) => `'${word}'`).join(" ");
      await Deno.writeTextFile(
        slow,
        `#!/bin/sh\ntouch ${directory}/asked\nsleep 1\n${env.join("")}exec ${line} "$@"\n`,
      );
      await Deno.chmod(slow, 0o755);
      const config = `${directory}/vm.toml`;
      await Deno.writeTextFile(
        config,
        `[vm]\nname = "slow"\nmemory = 64\nkernel = "${slow}"\n` +
          `[replication]\npeer = "127.0.0.1:1"\nlisten = "127.0.0.1:${freePort()}"\n`,
      );
      const child = new Deno.Command(Deno.execPath(), {
        args: ["run", "-A", MAIN, command, config, "--qemu", slow],
        env: { NO_COLOR: "1", XDG_RUNTIME_DIR: directory },
        stdin: "null",
        stdout: "piped",
        stderr: "piped",
      }).spawn();
      const isAsked = () => Deno.stat(`${directory}/asked`).then(() => true, () => false);
      await until(isAsked, 10_000, "QEMU is asked what it is");
      child.kill("SIGTERM");
      const timer = setTimeout(() => child.kill("SIGKILL"), 10_000);
      const { code, stdout } = await child.output();
      clearTimeout(timer);
      const said = new TextDecoder().decode(stdout);
      assertEquals({ code, said }, { code: 130, said: "" });
      assertEquals(processesOf(directory), []);
    } finally {
      for (const row of processesOf(directory)) Deno.kill(Number(row.split(" ")[0]), "SIGKILL");
      await Deno.remove(directory, { recursive: true });
    }
  });
}
