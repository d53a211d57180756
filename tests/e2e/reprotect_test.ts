/** A standby that the operator names. */

import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert/mod.js";
import { EngineProcess } from "../../cli/demo/engine_process.ts";
import { freePort } from "../../cli/demo/session.ts";
import { QmpCommandError } from "../../engine/errors.ts";
import { QmpClient } from "../../engine/qmp/mod.ts";
import { Commands } from "./_commands.ts";

Deno.test("colo-reprotect takes another standby, and none while there is one", async () => {
  await using pair = new Commands();
  await pair.start();
  await pair.phase("primary", "protected");
  const port = freePort();
  const address = `127.0.0.1:${port}`;
  const config = Deno.readTextFileSync(`${pair.directory}/standby.toml`)
    .replace(/^listen = .*$/m, `listen = "${address}"`)
    .replaceAll("standby-console", "other-console")
    .replaceAll("standby-monitor", "other-monitor")
    .replaceAll("standby.sock", "other.sock");
  Deno.writeTextFileSync(`${pair.directory}/other.toml`, config);
  const other = new EngineProcess(["standby", `${pair.directory}/other.toml`]);
  try {
    const control = await QmpClient.connect(`${pair.directory}/primary.sock`);
    const reprotect = (address: string) => control.executeRaw("colo-reprotect", { address });
    const refused = await assertRejects(() => reprotect(address), QmpCommandError);
    assertStringIncludes(refused.description, "there is one");
    const { reports } = pair.side("primary");
    const from = reports.length;
    await pair.side("standby").stop();
    const alone = await pair.phase("primary", "alone", from);
    const nonsense = await assertRejects(() => reprotect("there"), QmpCommandError);
    assertStringIncludes(nonsense.description, "write it as 127.0.0.1:7700");
    await reprotect(address);
    await pair.phase("primary", "protected", reports.indexOf(alone));
    await control.close();
    Deno.kill(pair.qemuPid("primary"), "SIGKILL");
    const running = await other.waitFor("running", () => true, 30_000);
    assertEquals(running.reason, "the primary QEMU ended by SIGKILL");

    // The survivor knows nobody, and is told of one as well.
    await pair.side("primary").exited();
    const standby = pair.restart("standby");
    await standby.waitFor("secondary", ({ phase }) => phase === "waiting", 30_000);
    const survivor = await QmpClient.connect(`${pair.directory}/other.sock`);
    assertEquals((await survivor.execute("query-status")).status, "running");
    const [, listen = ""] = /^listen = "(.*)"$/m.exec(
      Deno.readTextFileSync(`${pair.directory}/standby.toml`),
    )!;
    await survivor.executeRaw("colo-reprotect", { address: listen });
    await survivor.close();
    await other.waitFor("primary", ({ phase }) => phase === "protected", 30_000);
    const { pid } = other.reports.findLast((report) => report.event === "qemu-started")!;
    Deno.kill(pid, "SIGKILL");
    await standby.waitFor("running", () => true, 30_000);
  } finally {
    await other.stop();
  }
});
