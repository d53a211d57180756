/** Hosts without an arbiter that switch each other off: a fence agent of the test's own. */

import { assert, assertEquals } from "@std/assert/mod.js";
import { Commands, type Side } from "./_commands.ts";
import { isAlive, sleep, until } from "./_pair.ts";

const WAIT_MS = 30_000;

/** The fence device's names of the hosts. */
const PLUGS = { primary: "hostA", standby: "hostB" } as const;

/**
 * As a fence agent: told by lines on its standard input what to do. It writes down what it was told, ends
 * with 1 while the device is broken, and else kills whatever runs on the host.
 */
const AGENT = `#!/bin/sh
directory=$1
while read -r line; do
  echo "$line" >>"$directory/told"
  case $line in plug=*) plug=\${line#*=} ;; esac
done
if [ -e "$directory/broken" ]; then
  echo "the device does not answer" >&2
  exit 1
fi
kill -9 $(cat "$directory/$plug.pids") || exit 1
echo off >>"$directory/told"
`;

async function startFenced(pair: Commands): Promise<void> {
  const agent = `${pair.directory}/fence_test`;
  await Deno.writeTextFile(agent, AGENT, { mode: 0o755 });
  await pair.start({
    rest: (side) => [
      "[failover]",
      `fence = ["${agent}", "${pair.directory}"]`,
      `fencePlug = "${PLUGS[side === "primary" ? "standby" : "primary"]}"`,
      'fenceOptions = ["ip=10.0.9.2", "username=admin"]',
      "fenceDelay = 300",
    ],
  });
  await pair.phase("primary", "protected");
}

/** All of a host stands still; returns what runs there, which the fence device knows as well. */
function freeze(pair: Commands, side: Side): readonly number[] {
  const pids = [pair.side(side).pid, pair.qemuPid(side)];
  Deno.writeTextFileSync(`${pair.directory}/${PLUGS[side]}.pids`, pids.join(" "));
  for (const pid of pids) Deno.kill(pid, "SIGSTOP");
  return pids;
}

function told(pair: Commands): readonly string[] {
  return Deno.readTextFileSync(`${pair.directory}/told`).trim().split("\n");
}

Deno.test("a standby has a silent primary's host switched off before it takes over", async () => {
  await using pair = new Commands();
  await startFenced(pair);
  const broken = `${pair.directory}/broken`;
  Deno.writeTextFileSync(broken, "");
  const pids = freeze(pair, "primary");
  await pair.phase("standby", "deciding");
  const { text } = await pair.side("standby").waitFor("notice", () => true, WAIT_MS);
  assertEquals(
    text,
    `Cannot switch the other host off: ${pair.directory}/fence_test ended with 1: ` +
      "the device does not answer; trying again",
  );
  await sleep(1000);
  assert(pids.every(isAlive));
  assert(pair.side("standby").reports.every(({ event }) => event !== "running"));
  Deno.removeSync(broken);
  await pair.side("standby").waitFor("running", () => true, WAIT_MS);
  await until(() => !pids.some(isAlive), 500, "the other host is off");
  const said = ["ip=10.0.9.2", "username=admin", "action=off", "plug=hostA"];
  assertEquals(told(pair), [...said, ...said, "off"]);
});

Deno.test("a primary has a silent standby's host switched off before it goes on alone", async () => {
  await using pair = new Commands();
  await startFenced(pair);
  const from = pair.side("primary").reports.length;
  const pids = freeze(pair, "standby");
  const deciding = await pair.phase("primary", "deciding", from);
  await pair.phase("primary", "alone", pair.side("primary").reports.indexOf(deciding));
  await until(() => !pids.some(isAlive), 500, "the other host is off");
  assertEquals(told(pair).slice(-3), ["action=off", "plug=hostB", "off"]);
  // It is switched on again.
  pair.restart("standby");
  const after = pair.side("primary").reports.length;
  await pair.phase("primary", "protected", after);
});

Deno.test("a death that was reported is taken over from without a fence", async () => {
  await using pair = new Commands();
  await startFenced(pair);
  Deno.kill(pair.qemuPid("primary"), "SIGKILL");
  await pair.side("standby").waitFor("running", () => true, WAIT_MS);
  assert(!await Deno.stat(`${pair.directory}/told`).then(() => true, () => false));
  await until(() => !isAlive(pair.side("primary").pid), WAIT_MS, "colo run ends");
});
