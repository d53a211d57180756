/** The QMP client against a real QEMU that has no machine: nothing but a monitor. */

import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import { QmpClosedError, QmpCommandError } from "../../engine/errors.ts";
import { eventTimeMs, QmpClient } from "../../engine/qmp/mod.ts";
import { findQemu } from "../../engine/vm/mod.ts";
import { COMMAND_MEMBERS, EVENT_MEMBERS } from "../qmp/schema_members.ts";

Deno.test.sanitizer({ ops: true, resources: true });

/** Runs `body` with a monitor of a fresh QEMU, which is killed afterwards if it still runs. */
async function withQemu(
  body: (client: QmpClient, process: Deno.ChildProcess) => Promise<void>,
): Promise<void> {
  const { command: [program = "", ...leading], env } = await findQemu({ role: "primary" });
  const directory = await Deno.makeTempDir({ prefix: "qmp-" });
  const socket = `${directory}/qmp.sock`;
  const machine = ["-machine", "none", "-nodefaults", "-display", "none"];
  const args = [...leading, ...machine, "-qmp", `unix:${socket},server=on,wait=off`];
  const process = new Deno.Command(program, { args, env, stdin: "null" }).spawn();
  const exited = new AbortController();
  const status = process.status.finally(() => exited.abort(new Error("QEMU exited")));
  try {
    const options = { retryForMs: 10_000, signal: exited.signal };
    await using client = await QmpClient.connect(socket, options);
    await body(client, process);
  } finally {
    try {
      process.kill("SIGKILL");
    } catch {
      // It has ended already.
    }
    await status;
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("QmpClient speaks to a real QEMU", async () => {
  await withQemu(async (client) => {
    assertEquals(await client.execute("query-version"), client.greeting.version);
    const { running, status } = await client.execute("query-status");
    assertEquals([running, status], [true, "running"]);
    const machines = await client.execute("query-machines");
    const pc = machines.find(({ alias }) => alias === "pc");
    assertEquals(pc?.name.startsWith("pc-i440fx-"), true);
    const capabilities = await client.execute("query-migrate-capabilities");
    assert(capabilities.some(({ capability, state }) => capability === "x-colo" && !state));
  });
});

Deno.test("QmpClient tells why a real QEMU refuses a command", async () => {
  await withQemu(async (client) => {
    const unknown = await assertRejects(() => client.executeRaw("no-such"), QmpCommandError);
    assertEquals(unknown.errorClass, "CommandNotFound");
    const wrong = await assertRejects(
      () => client.executeRaw("qom-get", { path: "/" }),
      QmpCommandError,
    );
    assertEquals(wrong.errorClass, "GenericError");
    assertEquals(wrong.message, "Cannot execute qom-get: Parameter 'property' is missing");
  });
});

Deno.test("QmpClient gets a real QEMU's events in order, with their time", async () => {
  await withQemu(async (client) => {
    const seen: string[] = [];
    client.onAny(({ event }) => seen.push(event));
    const stopped = client.waitFor("STOP");
    const resumed = client.waitFor("RESUME");
    const beforeMs = Date.now();
    await client.execute("stop");
    await client.execute("cont");
    const [stopMs, resumeMs] = [eventTimeMs(await stopped), eventTimeMs(await resumed)];
    assertEquals(seen, ["STOP", "RESUME"]);
    assert(beforeMs <= stopMs + 1 && stopMs < resumeMs && resumeMs <= Date.now() + 1);
  });
});

Deno.test("QmpClient keeps many commands of a real QEMU under way", async () => {
  await withQemu(async (client) => {
    const answers = Array.from(
      { length: 500 },
      (_, i) =>
        i % 2 === 0
          ? client.execute("qom-get", { path: "/machine", property: "type" })
          : client.execute("query-version"),
    );
    for (const [i, answer] of (await Promise.all(answers)).entries()) {
      assertEquals(answer, i % 2 === 0 ? "none-machine" : client.greeting.version);
    }
  });
});

Deno.test("QmpClient closes when a real QEMU quits, and fails what was pending", async () => {
  await withQemu(async (client) => {
    const shutdown = client.waitFor("SHUTDOWN");
    const pending = assertRejects(() => client.waitFor("RESET"), QmpClosedError);
    await client.execute("quit");
    assertEquals((await shutdown).data, { guest: false, reason: "host-qmp-quit" });
    await client.closed;
    await pending;
    await assertRejects(() => client.execute("query-status"), QmpClosedError);
  });
});

Deno.test("QmpClient fails the pending command when a real QEMU is killed", async () => {
  await withQemu(async (client, process) => {
    process.kill("SIGSTOP");
    const pending = assertRejects(() => client.execute("query-status"), QmpClosedError);
    process.kill("SIGKILL");
    const error = await pending;
    assertEquals(error.message, "Cannot execute query-status: QEMU closed the monitor");
    await client.closed;
  });
});

/** The entry of a type in `query-qmp-schema`; source: QEMU `qapi/introspect.json`. */
interface SchemaEntry {
  readonly name: string;
  readonly "meta-type": string;
  readonly "arg-type"?: string;
  readonly "ret-type"?: string;
  readonly "element-type"?: string;
  readonly members?: readonly { readonly name: string }[];
  readonly variants?: readonly { readonly type: string }[];
}

/** The names of a type's members: of its elements if it is an array, of all branches if a union. */
function memberNames(schema: ReadonlyMap<string, SchemaEntry>, type: string = ""): string[] {
  const entry = schema.get(type);
  if (entry === undefined) throw new Error(`no type ${type}`);
  if (entry["meta-type"] === "array") return memberNames(schema, entry["element-type"]);
  const branches = (entry.variants ?? []).flatMap((variant) => memberNames(schema, variant.type));
  return [...(entry.members ?? []).map(({ name }) => name), ...branches];
}

Deno.test("The typed commands and events are those of a real QEMU", async () => {
  await withQemu(async (client) => {
    const entries = await client.executeRaw("query-qmp-schema") as readonly SchemaEntry[];
    assert(JSON.stringify(entries).length > 100_000);
    const schema = new Map(entries.map((entry) => [entry.name, entry]));
    const unknown: string[] = [];
    const compare = (where: string, ours: object, theirs: readonly string[]) => {
      for (const name of Object.keys(ours)) {
        if (!theirs.includes(name)) unknown.push(`${where} ${name}`);
      }
    };
    for (const [name, [args, returns]] of Object.entries(COMMAND_MEMBERS)) {
      // The negotiation is over: QEMU does not know this command any more.
      if (name === "qmp_capabilities") continue;
      const command = schema.get(name);
      assertEquals(command?.["meta-type"], "command", name);
      compare(`argument of ${name}:`, args, memberNames(schema, command?.["arg-type"]));
      compare(`answer of ${name}:`, returns, memberNames(schema, command?.["ret-type"]));
    }
    for (const [name, data] of Object.entries(EVENT_MEMBERS)) {
      const event = schema.get(name);
      assertEquals(event?.["meta-type"], "event", name);
      compare(`data of ${name}:`, data, memberNames(schema, event?.["arg-type"]));
    }
    assertEquals(unknown, []);
  });
});
