import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { ConfigError } from "../../engine/errors.ts";
import { Fence, type FenceEnd, fenceInput, type FenceRun } from "../../engine/failover/fence.ts";
import { runFenceCommand } from "../../engine/failover/fence_command.ts";

const SETTINGS = { command: ["fence_ipmilan"], plug: "hostA" };

/** What a fence agent makes of its standard input: `process_input` of fence-agents' `fencing.py`. */
function agentReads(input: string): Record<string, string> {
  const options: Record<string, string> = {};
  for (const line of input.split("\n").map((line) => line.trim())) {
    if (line === "" || line.startsWith("#")) continue;
    const at = line.indexOf("=");
    assert(at > 0, `no option: ${line}`);
    options[line.slice(0, at)] = line.slice(at + 1);
  }
  return options;
}

/** A fence whose command ends so. */
function fenceThat(end: () => Promise<FenceEnd>): Fence {
  return new Fence(SETTINGS, end);
}

/** Run a shell script as the fence command. */
async function runScript(script: string, timeoutMs = 10_000) {
  const fence = new Fence(
    { command: ["sh", "-c", script], plug: "hostA", options: { ip: "10.0.9.2" }, timeoutMs },
    runFenceCommand,
  );
  return await fence.off();
}

Deno.test("a fence agent reads what it was told: the options, the plug, and to switch it off", () => {
  assertEquals(
    fenceInput({ ...SETTINGS, options: { ip: "10.0.9.2", password: "a=b #c" } }),
    "ip=10.0.9.2\npassword=a=b #c\naction=off\nplug=hostA\n",
  );
  const value = fc.string({ unit: "grapheme" }).filter((text) =>
    text === text.trimEnd() && !/\p{Cc}/u.test(text)
  );
  fc.assert(
    fc.property(fc.dictionary(fc.stringMatching(/^[a-z][a-z_-]{0,9}$/), value), (options) => {
      fc.pre(!["action", "option", "plug", "port"].some((key) => key in options));
      assertEquals(agentReads(fenceInput({ ...SETTINGS, options })), {
        ...options,
        action: "off",
        plug: "hostA",
      });
    }),
  );
});

Deno.test("no option can say something else than it seems", () => {
  const refused: readonly [Record<string, string>, string][] = [
    [{ ip: "10.0.9.2\naction=on" }, "the value of ip has more than one line"],
    [{ action: "on" }, "action is told by colo"],
    [{ port: "hostB" }, "port is told by colo"],
    [{ "ip=x\naction": "on" }, "is no name of an option"],
    [{ password: "secret " }, "the value of password ends with a space"],
  ];
  for (const [options, message] of refused) {
    const error = assertThrows(
      () => new Fence({ ...SETTINGS, options }, runFenceCommand),
      ConfigError,
      message,
    );
    assert(!error.message.includes("secret"), "the message tells a password");
  }
  assertThrows(() => fenceInput({ ...SETTINGS, plug: "a\nb" }), ConfigError);
  assertThrows(() => fenceInput({ ...SETTINGS, plug: "" }), ConfigError, "the plug is missing");
  assertThrows(() => new Fence({ ...SETTINGS, command: [] }, runFenceCommand), ConfigError);
});

Deno.test("the other host is off when the command ends with 0, and in no other case", async () => {
  const asked: FenceRun[] = [];
  const fence = new Fence({ ...SETTINGS, timeoutMs: 1234 }, (run) => {
    asked.push(run);
    return Promise.resolve({ type: "exited", code: 0, complaint: "a warning" });
  });
  assertEquals(await fence.off(), { type: "off" });
  const stdin = "action=off\nplug=hostA\n";
  assertEquals(asked, [{ command: ["fence_ipmilan"], stdin, timeoutMs: 1234 }]);
  const failures: readonly [() => Promise<FenceEnd>, string][] = [
    [
      () => Promise.resolve({ type: "exited", code: 2, complaint: "first\nLogin failed\n\n" }),
      "fence_ipmilan ended with 2: Login failed",
    ],
    [() => Promise.resolve({ type: "exited", code: 137, complaint: "" }), "ended with 137"],
    [() => Promise.resolve({ type: "timed-out" }), "has not ended within 60 s"],
    [() => Promise.reject(new Error("not found")), "could not be run: not found"],
  ];
  for (const [end, message] of failures) {
    const answer = await fenceThat(end).off();
    assert(answer.type === "failed");
    assertStringIncludes(answer.reason, message);
  }
});

Deno.test("a fence command is run with its input, and judged by how it ends", async () => {
  const input = "ip=10.0.9.2\naction=off\nplug=hostA";
  assertEquals(await runScript(`test "$(cat)" = '${input}'`), { type: "off" });
  // Without reading its input.
  assertEquals(await runScript("exit 0"), { type: "off" });
  const failed = await runScript("echo unplugged >&2; exit 3");
  assert(failed.type === "failed");
  assertStringIncludes(failed.reason, "sh ended with 3: unplugged");
  const killed = await runScript("kill -9 $$");
  assertEquals(killed.type, "failed");
  const missing = await new Fence({ ...SETTINGS, command: ["/nowhere/fence"] }, runFenceCommand)
    .off();
  assert(missing.type === "failed");
  assertStringIncludes(missing.reason, "could not be run");
});

Deno.test("a fence command that does not end is killed, with what it has started", async () => {
  const file = await Deno.makeTempFile();
  const began = performance.now();
  const answer = await runScript(`sleep 97 & echo $! > ${file}; echo waiting >&2; wait`, 300);
  const tookMs = performance.now() - began;
  assert(answer.type === "failed");
  assertStringIncludes(answer.reason, "has not ended within 0.3 s");
  assert(tookMs < 5000, `took ${tookMs} ms`);
  const pid = (await Deno.readTextFile(file)).trim();
  const isGone = async () => {
    const stat = await Deno.readTextFile(`/proc/${pid}/stat`).catch(() => undefined);
    return stat === undefined || / Z /.test(stat);
  };
  for (let tries = 0; !await isGone(); tries++) {
    assert(tries < 100, `its child ${pid} still runs`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  await Deno.remove(file);
});

Deno.test("a fence command that leaves something running, or complains at length, is not waited for", async () => {
  const began = performance.now();
  assertEquals(await runScript("sleep 5 & exit 0"), { type: "off" });
  assert(performance.now() - began < 4000);
  const answer = await runScript(
    "i=0; while [ $i -lt 3000 ]; do echo a long complaint $i >&2; i=$((i+1)); done; exit 1",
  );
  assert(answer.type === "failed");
  assertStringIncludes(answer.reason, "a long complaint 2999");
});
