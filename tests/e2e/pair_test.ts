import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { formatInspection, StreamInspector } from "../../engine/stream/inspect.ts";
import { Commands } from "./_commands.ts";
import { processesOf, sleep } from "./_pair.ts";

const WAIT_MS = 30_000;

Deno.test("both sides end with exit code 0 when the guest is switched off", async () => {
  await using pair = new Commands();
  await pair.start();
  await pair.phase("primary", "protected");
  const monitor = await pair.monitor("primary");
  await monitor.execute("quit").catch(() => {});
  await monitor.close();
  const ended = await pair.phase("standby", "ended");
  assertEquals(ended.reason, "the guest was shut down");
  assertEquals(await pair.side("primary").exited(), 0);
  assertEquals(await pair.side("standby").exited(), 0);
});

Deno.test("colo run exits with 3 when its QEMU is lost, and the secondary says what happened", async () => {
  await using pair = new Commands();
  await pair.start();
  await pair.phase("primary", "protected");
  Deno.kill(pair.qemuPid("primary"), "SIGSEGV");
  const running = await pair.side("standby").waitFor("running", () => true, WAIT_MS);
  assertEquals(running.reason, "the primary QEMU ended by SIGSEGV");
  assertEquals(await pair.side("primary").exited(), 3);
  // The VM runs there now; switched off, it ends in good order.
  const monitor = await pair.monitor("standby");
  assertEquals((await monitor.execute("query-status")).status, "running");
  await monitor.execute("quit").catch(() => {});
  await monitor.close();
  assertEquals(await pair.side("standby").exited(), 0);
});

Deno.test("a secondary takes over from a seed that it has just been sent", async () => {
  await using pair = new Commands();
  await pair.start({ replication: ["period = 60000"] });
  await pair.phase("primary", "joining");
  Deno.kill(pair.qemuPid("primary"), "SIGKILL");
  const running = await pair.side("standby").waitFor("running", () => true, WAIT_MS);
  assertEquals(running.epoch, 0);
  const monitor = await pair.monitor("standby");
  assertEquals((await monitor.execute("query-status")).status, "running");
  await monitor.close();
});

Deno.test("the loss of the secondary QEMU is noticed at once, however long the period", async () => {
  await using pair = new Commands();
  await pair.start({ replication: ["period = 600000"] });
  await pair.phase("primary", "protected");
  const { reports } = pair.side("primary");
  const before = reports.length;
  const killedMs = performance.now();
  Deno.kill(pair.qemuPid("standby"), "SIGKILL");
  const alone = await pair.phase("primary", "alone", before);
  assert(performance.now() - killedMs < 2000);
  assertStringIncludes(alone.reason, "SIGKILL");
  await pair.phase("primary", "protected", reports.indexOf(alone));
});

Deno.test("colo standby leaves no QEMU behind when it is ended while it starts another", async () => {
  for (const delayMs of [10, 60, 150]) {
    await using pair = new Commands();
    await pair.start();
    await pair.phase("primary", "protected");
    // So old that it is replaced without a wait.
    await sleep(2000);
    const before = pair.side("standby").reports.length;
    Deno.kill(pair.qemuPid("standby"), "SIGKILL");
    await pair.phase("standby", "starting", before);
    await sleep(delayMs);
    assertEquals(await pair.side("standby").stop(), 130);
    const monitor = `${pair.directory}/standby-monitor.sock`;
    assertEquals(processesOf(monitor), [], `ended ${delayMs} ms later`);
  }
});

Deno.test("colo run --record writes a stream that colo inspect reads to its end", async () => {
  const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
  try {
    const path = `${directory}/stream`;
    {
      await using pair = new Commands();
      await pair.start({
        replication: ["period = 100", "pauseShare = 100"],
        runOptions: ["--record", path],
      });
      await pair.phase("primary", "protected");
      const isLater = ({ epoch }: { readonly epoch: number }) => epoch >= 5;
      await pair.side("primary").waitFor("checkpoint", isLater, WAIT_MS);
    }
    const inspector = new StreamInspector();
    using file = await Deno.open(path);
    for await (const chunk of file.readable) inspector.push(chunk);
    const inspection = inspector.finish();
    const whole = inspection.checkpoints.filter((checkpoint) => checkpoint.whole);
    assert(whole.length >= 5, formatInspection(inspection));
    // QEMU may have asked for another one, or begun it; nothing else can be amiss.
    assert(inspection.checkpoints.length - whole.length <= 1);
    assertEquals(inspection.blocks[0]?.name, "pc.ram");
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});
