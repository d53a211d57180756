import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert/mod.js";
import { ControlServer } from "../../engine/control/mod.ts";
import { ColoError, QmpCommandError } from "../../engine/errors.ts";
import { CONTROL_CLIENTS_MAX } from "../../engine/limits.ts";
import { QmpClient } from "../../engine/qmp/mod.ts";

const COMMANDS = {
  "query-name": { arguments: {}, run: () => ({ name: "web1" }) },
  "colo-wait": {
    arguments: { ms: "integer" as const },
    run: async ({ ms }: Readonly<Record<string, unknown>>) => {
      await new Promise((resolve) => setTimeout(resolve, Number(ms)));
    },
  },
  "colo-fail": {
    arguments: {},
    run: () => {
      throw new ColoError("Cannot do it: it is broken");
    },
  },
};

async function served(work: (path: string, server: ControlServer) => Promise<void>) {
  const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
  const server = await ControlServer.listen(`${directory}/run/vm.sock`, COMMANDS);
  try {
    await work(server.path, server);
  } finally {
    server.close();
    await Deno.remove(directory, { recursive: true });
  }
}

/** What an engine leaves that is killed. */
async function leaveSocket(path: string): Promise<void> {
  const code = `Deno.listen({ transport: "unix", path: ${JSON.stringify(path)} });`;
  const args = ["eval", `${code} Deno.kill(Deno.pid, "SIGKILL");`];
  await new Deno.Command(Deno.execPath(), { args }).output();
  await Deno.lstat(path);
}

Deno.test("the QMP client of QEMU's own monitor speaks to it", async () => {
  await served(async (path) => {
    await using client = await QmpClient.connect(path);
    assertEquals(await client.executeRaw("query-name"), { name: "web1" });
    assertEquals(await client.executeRaw("colo-wait", { ms: 5 }), {});
    const error = await assertRejects(() => client.executeRaw("colo-fail"), QmpCommandError);
    assertEquals(error.description, "Cannot do it: it is broken");
    assertEquals(error.errorClass, "GenericError");
    assertEquals(await client.executeRaw("query-name"), { name: "web1" });
  });
});

Deno.test("clients do not wait for each other, and one that breaks off harms nobody", async () => {
  await served(async (path) => {
    await using slow = await QmpClient.connect(path);
    const waiting = slow.executeRaw("colo-wait", { ms: 300 });
    const rude = await Deno.connect({ transport: "unix", path });
    await rude.write(crypto.getRandomValues(new Uint8Array(60_000)));
    await rude.write(new TextEncoder().encode('\n{"execute": "qmp_capabilities"}'.repeat(5)));
    rude.close();
    await using quick = await QmpClient.connect(path);
    assertEquals(await quick.executeRaw("query-name"), { name: "web1" });
    await waiting;
  });
});

Deno.test("there is room for so many clients, and again when one has gone", async () => {
  await served(async (path) => {
    const clients: QmpClient[] = [];
    for (let count = 0; count < CONTROL_CLIENTS_MAX; count++) {
      clients.push(await QmpClient.connect(path));
    }
    await assertRejects(() => QmpClient.connect(path, { timeoutMs: 1000 }));
    await clients.pop()!.close();
    // The server notices a moment later.
    while (clients.length < CONTROL_CLIENTS_MAX) {
      await QmpClient.connect(path, { timeoutMs: 1000 }).then(
        (client) => clients.push(client),
        () => {},
      );
    }
    assertEquals(await clients.at(-1)!.executeRaw("query-name"), { name: "web1" });
    for (const client of clients) await client.close();
  });
});

Deno.test("a socket that was left behind is taken, one that is served is not, nor is a file", async () => {
  await served(async (path, server) => {
    const said = await assertRejects(() => ControlServer.listen(path, COMMANDS), ColoError);
    assertStringIncludes(said.message, "another engine listens there");
    server.close();
    await leaveSocket(path);
    const next = await ControlServer.listen(path, COMMANDS);
    await using client = await QmpClient.connect(path);
    assertEquals(await client.executeRaw("query-name"), { name: "web1" });
    next.close();
    while (await Deno.lstat(path).then(() => true, () => false)) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    await Deno.writeTextFile(path, "mine");
    await assertRejects(() => ControlServer.listen(path, COMMANDS), ColoError, "there is a file");
    assertEquals(await Deno.readTextFile(path), "mine");
  });
});

Deno.test("the directory that is made for a socket is this user's alone", async () => {
  await served(async (path) => {
    const { mode } = await Deno.stat(path.replace("/vm.sock", ""));
    assertEquals((mode ?? 0) & 0o777, 0o700);
  });
});
