import { assert, assertEquals } from "@std/assert/mod.js";
import { processesOf, sleep } from "./_pair.ts";

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
