/**
 * Ends of a guest or of its protection that nobody's loss is the cause of: each is told from a loss.
 */

import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import { QmpCommandError } from "../../engine/errors.ts";
import { ConsoleVerifier } from "../../engine/vm/mod.ts";
import { Commands, type Side } from "./_commands.ts";
import { isAlive, sleep, until } from "./_pair.ts";

const MODES = ["colo", "continuous"] as const;
const WAIT_MS = 60_000;

const PANIC = "colo.end=panic colo.end_tick=10";

function consoleText(pair: Commands, side: Side): string {
  return Deno.readTextFileSync(`${pair.directory}/${side}-console.log`);
}

function boots(pair: Commands, side: Side): number {
  return consoleText(pair, side).match(/^colo-boot /mg)?.length ?? 0;
}

/** What a guest has said since it was booted last. */
function sinceBoot(text: string): string {
  return text.slice(text.lastIndexOf("colo-boot "));
}

function lastPhase(pair: Commands): string {
  const last = pair.side("standby").reports.findLast(({ event }) => event === "secondary");
  return last?.event === "secondary" ? last.phase : "";
}

/** Wait until a primary that was protected is so again. */
async function protectedAgain(pair: Commands, after: number): Promise<void> {
  const { reports } = pair.side("primary");
  const lost = await pair.side("primary").waitFor(
    "primary",
    (report) => report.phase !== "protected" && reports.indexOf(report) >= after,
    WAIT_MS,
  );
  await pair.phase("primary", "protected", reports.indexOf(lost));
}

for (const mode of MODES) {
  Deno.test(`a guest that reboots stays protected, mode ${mode}`, async () => {
    await using pair = new Commands();
    await pair.start({
      replication: [`mode = "${mode}"`, "period = 100"],
      append: "colo.end=reboot colo.end_tick=16",
    });
    await pair.phase("primary", "protected");
    const from = pair.side("primary").reports.length;
    await until(() => boots(pair, "primary") === 2, WAIT_MS, "the guest boots again");
    const ticks = () => new ConsoleVerifier().push(sinceBoot(consoleText(pair, "primary")));
    await until(() => ticks().length >= 2, WAIT_MS, "the guest ticks again");
    const said = pair.side("primary").reports.slice(from);
    assertEquals(said.filter(({ event }) => event === "primary"), []);
    const booted = new ConsoleVerifier();
    const last = booted.push(sinceBoot(consoleText(pair, "primary"))).at(-1)!;
    const shown = mode === "colo" ? consoleText(pair, "standby").length : 0;
    Deno.kill(pair.qemuPid("primary"), "SIGKILL");
    await pair.side("standby").waitFor("running", () => true, WAIT_MS);
    const after = () =>
      new ConsoleVerifier(booted.boot).push(consoleText(pair, "standby").slice(shown));
    await until(() => after().length >= 2, WAIT_MS, "the survivor ticks");
    assert(after().every(({ chainOk, fileOk }) => chainOk && fileOk), "its memory is another one");
    assert(after().at(-1)!.n > last.n - 2 && after()[0]!.n <= last.n + 2);
  });
}

Deno.test("a guest that switches itself off ends on both sides", async () => {
  await using pair = new Commands();
  await pair.start({ append: "colo.end=poweroff colo.end_tick=10" });
  await pair.phase("primary", "protected");
  const ended = await pair.phase("standby", "ended");
  assertEquals(ended.reason, "the guest was shut down");
  assertEquals(await pair.side("primary").exited(), 0);
  assertEquals(await pair.side("standby").exited(), 0);
});

const PANICS = [{ mode: "colo", action: "shutdown" }, {
  mode: "continuous",
  action: "exit-failure",
}];

for (const { mode, action } of PANICS) {
  Deno.test(`a guest that panics is not taken over, mode ${mode}, panic=${action}`, async () => {
    await using pair = new Commands();
    await pair.start({
      replication: [`mode = "${mode}"`],
      append: PANIC,
      extraArgs: ["-device", "pvpanic", "-action", `panic=${action}`],
    });
    await pair.phase("primary", "protected");
    const { reason } = await pair.phase("primary", "ended");
    assertEquals(reason, "the guest has panicked");
    assertEquals(await pair.side("primary").exited(), 0);
    // A secondary VM that panicked a moment before is being replaced, and nothing is said to it.
    await until(() => ["ended", "waiting"].includes(lastPhase(pair)), WAIT_MS, "the standby knows");
    assert(pair.side("standby").reports.every(({ event }) => event !== "running"));
  });
}

Deno.test("a guest that panics and is to be looked at stands still", async () => {
  await using pair = new Commands();
  await pair.start({
    append: PANIC,
    extraArgs: ["-device", "pvpanic", "-action", "panic=pause"],
  });
  await pair.phase("primary", "protected");
  await pair.phase("standby", "ended");
  assertEquals((await pair.phase("primary", "ended")).reason, "the guest has panicked");
  assertEquals(await pair.side("standby").exited(), 0);
  await sleep(1000);
  assert(isAlive(pair.qemuPid("primary")), "there is nothing to look at");
  const monitor = await pair.monitor("primary");
  assertEquals((await monitor.execute("query-status")).status, "guest-panicked");
  await monitor.execute("quit").catch(() => {});
  await monitor.close();
  assertEquals(await pair.side("primary").exited(), 0);
});

Deno.test("a guest whose protection is ended on its own monitor is protected again", async () => {
  await using pair = new Commands();
  await pair.start();
  await pair.phase("primary", "protected");
  const from = pair.side("primary").reports.length;
  const monitor = await pair.monitor("primary");
  await monitor.execute("x-colo-lost-heartbeat");
  await protectedAgain(pair, from);
  assertEquals((await monitor.execute("query-status")).running, true);
  await monitor.close();
  Deno.kill(pair.qemuPid("primary"), "SIGKILL");
  await pair.side("standby").waitFor("running", () => true, WAIT_MS);
});

Deno.test("a guest whose migration is cancelled on its own monitor runs on, and is said to be unprotected", async () => {
  await using pair = new Commands();
  await pair.start();
  await pair.phase("primary", "protected");
  const { reports } = pair.side("primary");
  const from = reports.length;
  const monitor = await pair.monitor("primary");
  // In COLO it never comes to an end, and QEMU takes no other migration.
  await monitor.execute("migrate_cancel");
  await pair.phase("primary", "unattended", from);
  await sleep(3000);
  assertEquals((await monitor.execute("query-status")).running, true);
  await monitor.close();
  const notices = reports.slice(from).filter(({ event }) => event === "notice");
  assertEquals(notices.length, 1, JSON.stringify(notices));
});

Deno.test("a secondary QEMU that is told to run on its own is replaced, and never seen", async () => {
  await using pair = new Commands();
  await pair.start();
  await pair.phase("primary", "protected");
  const from = pair.side("primary").reports.length;
  const pid = pair.qemuPid("standby");
  const monitor = await pair.monitor("standby");
  await monitor.execute("x-colo-lost-heartbeat").catch(() => {});
  await monitor.close();
  await protectedAgain(pair, from);
  assertEquals(isAlive(pid), false);
  assert(pair.qemuPid("standby") !== pid);
});

Deno.test("a device cannot be added to a protected VM, and QEMU says why", async () => {
  await using pair = new Commands();
  await pair.start();
  await pair.phase("primary", "protected");
  const monitor = await pair.monitor("primary");
  const adding = { driver: "virtio-rng-pci", id: "rng0" };
  const refused = await assertRejects(
    () => monitor.executeRaw("device_add", adding),
    QmpCommandError,
  );
  console.log(refused.description);
  assertEquals(refused.description, "device_add not allowed while migrating");
  await monitor.close();
});
