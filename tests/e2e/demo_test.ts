import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { freePort } from "../../cli/demo/session.ts";
import { processesOf, sleep } from "./_pair.ts";

const MAIN = new URL("../../cli/colo.ts", import.meta.url).pathname;

const RESULT_KEYS = [
  "ok",
  "qemu",
  "accel",
  "mode",
  "memoryMiB",
  "seedMs",
  "checkpoints",
  "pauseMs",
  "dirtyPages",
  "ramBytes",
  "wireBytes",
  "killToRunningMs",
  "ticksLost",
  "ticksRepeated",
  "chainVerified",
  "memoryVerified",
];

/** Run `colo` with temporary files in a directory of its own, and prove that nothing is left of it. */
async function colo(
  args: readonly string[],
  interruptAfterMs?: number,
): Promise<{ code: number; stdout: string; stderr: string }> {
  const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
  try {
    const child = new Deno.Command(Deno.execPath(), {
      args: ["run", "-A", MAIN, ...args],
      env: { TMPDIR: directory, NO_COLOR: "1" },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    if (interruptAfterMs !== undefined) {
      sleep(interruptAfterMs).then(() => child.kill("SIGINT"));
    }
    const { code, stdout, stderr } = await child.output();
    // Configs, consoles and sockets all lie in that directory, and QEMU's command line names them.
    assertEquals(processesOf(directory), []);
    assertEquals([...Deno.readDirSync(directory)].map(({ name }) => name), []);
    return {
      code,
      stdout: new TextDecoder().decode(stdout),
      stderr: new TextDecoder().decode(stderr),
    };
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("colo demo --json prints one object, of a guest that survived verified", async () => {
  const { code, stdout } = await colo(["demo", "--memory", "128", "--checkpoints", "5", "--json"]);
  const result = JSON.parse(stdout);
  assertEquals(Object.keys(result), RESULT_KEYS);
  assertEquals(code, 0);
  assert(result.ok && result.chainVerified && result.memoryVerified);
  assert(result.checkpoints >= 5 && result.killToRunningMs > 0 && result.wireBytes > 0);
  assert(result.pauseMs.p50 > 0 && result.pauseMs.max >= result.pauseMs.p99);
});

// While it looks for QEMU, seeds, checkpoints a booting guest, and checkpoints a running one.
for (const afterMs of [400, 900, 2500, 6000]) {
  Deno.test(`colo demo leaves nothing behind when interrupted after ${afterMs} ms`, async () => {
    const { code } = await colo(["demo", "--memory", "128", "--checkpoints", "1000"], afterMs);
    assertEquals(code, 130);
  });
}

Deno.test("colo standby says in one sentence that its port is in use", async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: freePort() });
  const path = await Deno.makeTempFile({ suffix: ".toml" });
  await Deno.writeTextFile(
    path,
    `[vm]\nname = "a"\nmemory = 64\nkernel = "${path}"\n` +
      `[replication]\nlisten = "127.0.0.1:${listener.addr.port}"\n`,
  );
  const { code, stderr } = await colo(["standby", path]);
  await Deno.remove(path);
  assertEquals(code, 1);
  assertEquals(stderr.trim().split("\n").length, 1);
  assertStringIncludes(
    stderr,
    `Cannot listen at 127.0.0.1:${listener.addr.port}: the address is in use`,
  );
});

Deno.test("colo run refuses a QEMU that is not there, and starts nothing", async () => {
  const path = await Deno.makeTempFile({ suffix: ".toml" });
  await Deno.writeTextFile(
    path,
    `[vm]\nname = "a"\nmemory = 64\nkernel = "${path}"\n[replication]\npeer = "127.0.0.1:1"\n`,
  );
  const { code, stderr } = await colo(["run", path, "--qemu", "/no/such/qemu"]);
  await Deno.remove(path);
  assertEquals(code, 1);
  assertStringIncludes(stderr, "Cannot use QEMU /no/such/qemu: no such program");
});
