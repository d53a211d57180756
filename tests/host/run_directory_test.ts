import { assertEquals, assertThrows } from "@std/assert/mod.js";
import { ConfigError } from "../../engine/errors.ts";
import { readRunRecord, RunDirectory, runDirectoryOf } from "../../engine/host/mod.ts";
import { coloCapabilities, identify, isAlive, killLeftover } from "../../engine/vm/mod.ts";

/** A config that no other test has. */
function config() {
  return { path: `/etc/colo/${crypto.randomUUID()}.toml` };
}

function startSleep(): Deno.ChildProcess {
  return new Deno.Command("sleep", { args: ["60"], stdin: "null" }).spawn();
}

Deno.test("RunDirectory is one engine's, and gone with the VM", () => {
  const own = config();
  {
    using run = RunDirectory.take(own);
    assertEquals(run.path, runDirectoryOf(own));
    assertThrows(() => RunDirectory.take(own), ConfigError, "another engine has it");
    using other = RunDirectory.take(config());
    assertEquals(other.path === run.path, false);
    assertEquals(run.record, undefined);
  }
  assertThrows(() => Deno.statSync(runDirectoryOf(own)), Deno.errors.NotFound);
});

Deno.test("RunDirectory remembers a QEMU for as long as that runs", async () => {
  const own = config();
  const child = startSleep();
  const qemu = {
    command: ["/usr/bin/qemu", "-L", "/share"],
    env: { QEMU_MODULE_DIR: "/modules" },
    version: "11.1.3",
    accel: "tcg",
    source: "fetched",
    capabilities: coloCapabilities("11.1.3"),
  } as const;
  const record = { ...identify(child.pid)!, qmpPath: "/tmp/qmp", runsVm: true, qemu };
  {
    using run = RunDirectory.take(own);
    run.record = record;
  }
  using run = RunDirectory.take(own);
  assertEquals(run.record, record);
  // The number alone is no proof: it may be another process's by now.
  run.record = { ...record, startTicks: record.startTicks - 1 };
  assertEquals(run.record, undefined);
  // An engine of before did not say what it was.
  run.record = { ...record, qemu: undefined };
  assertEquals(run.record, { ...record, qemu: undefined });
  await Promise.all([killLeftover(record), child.status]);
  assertEquals(isAlive(record), false);
  assertEquals(run.record, undefined);
  await killLeftover(record);
});

Deno.test("readRunRecord takes rubbish for nothing", () => {
  const own = config();
  using run = RunDirectory.take(own);
  for (const text of ["", "{", "[]", "null", '{"pid":1}', `{"pid":"${Deno.pid}"}`]) {
    Deno.writeTextFileSync(`${run.path}/qemu.json`, text);
    assertEquals(readRunRecord(run.path), undefined, text);
  }
});
