/** Engines that die and are started again, as by a service manager. */

import { assert, assertEquals } from "@std/assert/mod.js";
import { eventTimeMs } from "../../engine/qmp/mod.ts";
import { Commands } from "./_commands.ts";
import { isAlive, sleep, until } from "./_pair.ts";

/** Engines killed in the middle of a checkpoint; `COLO_TEST_RESTARTS` asks for more. */
const RESTARTS = Number(Deno.env.get("COLO_TEST_RESTARTS") ?? 3);

/** systemd's `RestartSec`, unless it is told otherwise. */
const RESTART_AFTER_MS = 100;

const PAUSE_MS_MAX = 1000;
const WAIT_MS = 30_000;

Deno.test(`a guest that stood still when its engine died runs within ${PAUSE_MS_MAX} ms, and is protected again`, async () => {
  await using pair = new Commands();
  await pair.start({
    replication: ["period = 200"],
    append: "colo.load=small-writes colo.load_pages=400",
  });
  await pair.phase("primary", "protected");
  const monitor = await pair.monitor("primary");
  const pausesMs: number[] = [];
  for (let aim = 0; pausesMs.length < RESTARTS; aim++) {
    assert(aim < 10 * RESTARTS, "no checkpoint is ever hit");
    const engine = pair.side("primary");
    const resumed: number[] = [];
    const unsubscribe = monitor.on("RESUME", (event) => resumed.push(eventTimeMs(event)));
    await monitor.waitFor("STOP");
    const killedMs = performance.timeOrigin + performance.now();
    Deno.kill(engine.pid, "SIGKILL");
    await engine.exited();
    await sleep(RESTART_AFTER_MS);
    const stoodStill = !(await monitor.execute("query-status")).running;
    pair.restart("primary");
    await pair.phase("primary", "protected");
    unsubscribe();
    if (!stoodStill) continue;
    const firstMs = resumed.find((ms) => ms > killedMs)!;
    pausesMs.push(firstMs - killedMs);
    await sleep(300);
  }
  await monitor.close();
  console.log(`the guest stood still for ${pausesMs.map((ms) => ms.toFixed(0)).join(", ")} ms`);
  assert(Math.max(...pausesMs) < PAUSE_MS_MAX);
  const ticks = pair.console("primary");
  assert(ticks.poll().every(({ chainOk, fileOk }) => chainOk && fileOk));
});

Deno.test("colo standby that is started again looks after the VM that it has taken over", async () => {
  await using pair = new Commands();
  await pair.start({ bothWays: true });
  await pair.phase("primary", "protected");
  Deno.kill(pair.qemuPid("primary"), "SIGKILL");
  const engine = pair.side("standby");
  await engine.waitFor("running", () => true, WAIT_MS);
  await pair.side("primary").exited();
  const qemu = pair.qemuPid("standby");
  const orStandBy = () => pair.restart("primary", "--or-stand-by");
  // The service manager of the other host starts what has always run there.
  const other = orStandBy();
  await engine.waitFor("primary", ({ phase }) => phase === "protected", WAIT_MS);
  Deno.kill(engine.pid, "SIGKILL");
  await engine.exited();
  await sleep(RESTART_AFTER_MS);
  const again = pair.restart("standby");
  const adopted = await again.waitFor("qemu-adopted", () => true, WAIT_MS);
  assertEquals(adopted.pid, qemu);
  await again.waitFor("primary", ({ phase }) => phase === "protected", WAIT_MS);
  Deno.kill(qemu, "SIGKILL");
  await other.waitFor("running", () => true, WAIT_MS);
  assertEquals(await again.exited(), 3);
  await until(() => !isAlive(qemu), WAIT_MS, "the killed QEMU is gone");
});
