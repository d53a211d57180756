import { assertEquals } from "@std/assert/mod.js";
import { beginPrimary } from "../../engine/host/colo_qemu.ts";
import { QmpClient } from "../../engine/qmp/mod.ts";
import { ScriptedServer } from "../qmp/scripted_server.ts";

Deno.test("QEMU is not told to migrate before it has cleared up after the migration before: it would abort", async () => {
  await using server = new ScriptedServer().listen();
  const connecting = QmpClient.connect(server.path);
  using session = await server.accept();
  await session.welcome();
  await using client = await connecting;
  const beginning = beginPrimary(client, ["x-colo"], "/run/capture.sock");
  const chardev = { type: "chardev", id: "serial0" };
  const answers = [[chardev, { type: "migration" }], [{ type: "migration" }], [chardev]];
  const said: string[] = [];
  while (said.at(-1) !== "migrate") {
    const { execute, id } = await session.next();
    said.push(execute);
    await session.send({ return: execute === "query-yank" ? answers.shift() ?? [] : {}, id });
  }
  await beginning;
  assertEquals(answers, []);
  assertEquals(said.slice(-2), ["query-yank", "migrate"]);
});
