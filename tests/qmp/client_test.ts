import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert/mod.js";
import fc from "fast-check";
import {
  QmpClosedError,
  QmpCommandError,
  QmpError,
  QmpProtocolError,
  QmpTimeoutError,
} from "../../engine/errors.ts";
import { QMP_EVENTS_UNREAD_MAX, QMP_UNSENT_BYTES_MAX } from "../../engine/limits.ts";
import { QmpClient } from "../../engine/qmp/client.ts";
import type { QmpEvent } from "../../engine/qmp/events.ts";
import {
  GREETING,
  type ReceivedCommand,
  ScriptedServer,
  ScriptedSession,
} from "./scripted_server.ts";

Deno.test.sanitizer({ ops: true, resources: true });

/** Runs `body` with a client and the server's end of its connection, and closes both. */
async function withClient(
  body: (client: QmpClient, session: ScriptedSession) => Promise<void>,
): Promise<void> {
  await using server = new ScriptedServer().listen();
  const connecting = QmpClient.connect(server.path, { timeoutMs: 5000 });
  using session = await server.accept();
  await session.welcome();
  await using client = await connecting;
  await body(client, session);
}

/** One greeting's worth of an in-memory connection: what the test writes, the client reads. */
function pipes() {
  const toClient = new TransformStream<Uint8Array, Uint8Array>();
  const toServer = new TransformStream<Uint8Array, Uint8Array>();
  const closed = Promise.withResolvers<void>();
  return {
    connection: {
      readable: toClient.readable,
      writable: toServer.writable,
      close: () => closed.resolve(),
    },
    closed: closed.promise,
    toClient: toClient.writable.getWriter(),
    fromClient: toServer.readable,
  };
}

function line(message: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(message) + "\r\n");
}

Deno.test("QmpClient reads the greeting and negotiates before it can be used", async () => {
  await withClient(async (client) => {
    assertEquals(client.greeting.version.qemu, { major: 11, minor: 1, micro: 3 });
    assertEquals(client.greeting.capabilities, ["oob"]);
    await Promise.resolve();
  });
});

Deno.test("QmpClient sends arguments and returns what the server returns", async () => {
  await withClient(async (client, session) => {
    const status = client.execute("query-status");
    const first = await session.next();
    assertEquals([first.execute, first.arguments], ["query-status", undefined]);
    await session.send({ return: { running: true, status: "colo" }, id: first.id });
    assertEquals(await status, { running: true, status: "colo" });

    const migrate = client.execute("migrate", { uri: "unix:/run/m.sock" });
    const second = await session.next();
    assertEquals(second.arguments, { uri: "unix:/run/m.sock" });
    await session.send({ return: {}, id: second.id });
    assertEquals(await migrate, {});

    const raw = client.executeRaw("x-new-command", { any: [1, "two"] });
    const third = await session.next();
    assertEquals([third.execute, third.arguments], ["x-new-command", { any: [1, "two"] }]);
    await session.send({ return: "text", id: third.id });
    assertEquals(await raw, "text");
  });
});

Deno.test("QmpClient matches answers that come in any order", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.shuffledSubarray([...Array(24).keys()], { minLength: 24 }),
      (order) =>
        withClient(async (client, session) => {
          const answers = order.map((_, i) => client.executeRaw("query-status", { number: i }));
          const commands: ReceivedCommand[] = [];
          for (const _ of order) commands.push(await session.next());
          assertEquals(commands.map((c) => c.arguments?.number), [...order.keys()]);
          for (const i of order) await session.send({ return: `#${i}`, id: commands[i]?.id });
          assertEquals(await Promise.all(answers), order.map((_, i) => `#${i}`));
        }),
    ),
    { numRuns: 10 },
  );
});

Deno.test("QmpClient rejects a refused command with its error class and stays usable", async () => {
  await withClient(async (client, session) => {
    const refused = client.executeRaw("no-such-command");
    const { id } = await session.next();
    const description = "The command no-such-command has not been found";
    await session.send({ error: { class: "CommandNotFound", desc: description }, id });
    const error = await assertRejects(() => refused, QmpCommandError);
    assertEquals(error.errorClass, "CommandNotFound");
    assertEquals(error.message, `Cannot execute no-such-command: ${description}`);

    const next = client.execute("query-name");
    await session.send({ return: { name: "vm" }, id: (await session.next()).id });
    assertEquals(await next, { name: "vm" });
  });
});

Deno.test("QmpClient gives up a command in time, ignores the late answer and stays usable", async () => {
  await withClient(async (client, session) => {
    const error = await assertRejects(
      () => client.execute("stop", undefined, { timeoutMs: 20 }),
      QmpTimeoutError,
    );
    assertEquals([error.command, error.timeoutMs], ["stop", 20]);
    const late = await session.next();
    const next = client.execute("query-name");
    const { id } = await session.next();
    await session.send({ return: { name: "late" }, id: late.id }, { return: { name: "vm" }, id });
    assertEquals(await next, { name: "vm" });
  });
});

Deno.test("QmpClient ignores answers it cannot match", async () => {
  await withClient(async (client, session) => {
    const answer = client.execute("query-name");
    const { id } = await session.next();
    await session.send(
      { return: {}, id: 999 },
      { return: {}, id: String(id) },
      { error: { class: "GenericError", desc: "JSON parse error" } },
      { return: { name: "vm" }, id },
    );
    assertEquals(await answer, { name: "vm" });
  });
});

Deno.test("QmpClient fails the pending commands when the monitor closes", async () => {
  await withClient(async (client, session) => {
    const pending = [client.execute("stop"), client.execute("cont"), client.waitFor("STOP")];
    const rejected = pending.map((call) => assertRejects(() => call, QmpClosedError));
    await session.next();
    session[Symbol.dispose]();
    await client.closed;
    for (const error of await Promise.all(rejected)) {
      assertStringIncludes(error.message, "QEMU closed the monitor");
    }
    const later = await assertRejects(() => client.execute("query-status"), QmpClosedError);
    assertStringIncludes(later.message, "Cannot execute query-status: ");
    await assertRejects(() => client.waitFor("STOP"), QmpClosedError);
  });
});

Deno.test("QmpClient hands over an answer that came just before the monitor closed", async () => {
  await withClient(async (client, session) => {
    const quit = client.execute("quit");
    const { id } = await session.next();
    await session.send({ return: {}, id });
    session[Symbol.dispose]();
    assertEquals(await quit, {});
    await client.closed;
  });
});

Deno.test("QmpClient fails the pending commands when the monitor closes in the middle of an answer", async () => {
  await withClient(async (client, session) => {
    const pending = assertRejects(() => client.execute("query-block"), QmpClosedError);
    const { id } = await session.next();
    await session.sendText(`{"id": ${id}, "return": [{"device": "dr`);
    session[Symbol.dispose]();
    await pending;
    await client.closed;
  });
});

Deno.test("QmpClient.close fails what is pending, closes the connection and is idempotent", async () => {
  await withClient(async (client, session) => {
    const pending = assertRejects(() => client.execute("stop"), QmpClosedError);
    await session.next();
    await Promise.all([client.close(), client.close()]);
    await client.close();
    await pending;
    await client.closed;
    assert(await session.ended());
    await assertRejects(() => client.execute("cont"), QmpClosedError, "closed on this side");
  });
});

Deno.test("QmpClient can be closed from within an event handler", async () => {
  await withClient(async (client, session) => {
    const seen: string[] = [];
    client.on("STOP", () => {
      seen.push("STOP");
      client.close();
      client.on("RESUME", () => seen.push("RESUME"));
    });
    const timestamp = { seconds: 1, microseconds: 0 };
    await session.send({ event: "STOP", timestamp }, { event: "RESUME", timestamp });
    await client.closed;
    assertEquals(seen, ["STOP"]);
  });
});

Deno.test("QmpClient closes on garbage and says what came", async () => {
  await withClient(async (client, session) => {
    const pending = assertRejects(() => client.execute("stop"), QmpProtocolError);
    await session.next();
    await session.sendText("qemu-system-x86_64: oops\r\n");
    assertStringIncludes((await pending).message, '"qemu-system-x86_64: oops"');
    await client.closed;
    assert(await session.ended());
    const later = await assertRejects(() => client.execute("cont"), QmpClosedError);
    assert(later.cause instanceof QmpProtocolError);
  });
});

Deno.test("QmpClient reads a reply of 5 MB, in pieces, with events around it", async () => {
  await withClient(async (client, session) => {
    const stops: QmpEvent[] = [];
    client.on("STOP", (event) => stops.push(event));
    const large = Array.from({ length: 50_000 }, (_, i) => `${i}:${"é".repeat(50)}`);
    const answer = client.executeRaw("query-qmp-schema");
    const { id } = await session.next();
    await session.event("STOP");
    await session.send({ return: large, id });
    await session.event("STOP");
    assertEquals(await answer, large);
    while (stops.length < 2) await client.waitFor("STOP");
  });
});

Deno.test("QmpClient drains a flood of events that nobody reads", async () => {
  await withClient(async (client, session) => {
    using unread = client.events();
    using alsoUnread = client.events();
    const flood = 5 * QMP_EVENTS_UNREAD_MAX;
    // About 2 MB: more than a socket holds, so this ends only if the client reads.
    for (let i = 0; i < flood; i++) await session.event("MIGRATION_PASS", { pass: i });
    const answer = client.execute("query-name");
    await session.send({ return: {}, id: (await session.next()).id });
    await answer;
    for (const stream of [unread, alsoUnread]) {
      assertEquals(stream.dropped, flood - QMP_EVENTS_UNREAD_MAX);
      const oldest = await stream.next();
      assertEquals(oldest.value?.data, { pass: flood - QMP_EVENTS_UNREAD_MAX });
    }
  });
});

Deno.test("QmpClient.events gives every subscriber all events since it subscribed", async () => {
  await withClient(async (client, session) => {
    const numbers = async (stream: AsyncIterable<QmpEvent>) => {
      const seen = [];
      for await (const { event, timestamp } of stream) seen.push([event, timestamp.microseconds]);
      return seen;
    };
    const first = numbers(client.events());
    await session.event("STOP", {}, 1);
    await client.waitFor("STOP");
    const second = numbers(client.events());
    await session.event("X_UNKNOWN_EVENT", {}, 2);
    session[Symbol.dispose]();
    assertEquals(await first, [["STOP", 1], ["X_UNKNOWN_EVENT", 2]]);
    assertEquals(await second, [["X_UNKNOWN_EVENT", 2]]);
    assertEquals(await numbers(client.events()), []);
  });
});

Deno.test("QmpClient.on calls handlers in order of arrival, before the answer that follows", async () => {
  await withClient(async (client, session) => {
    const seen: unknown[] = [];
    const offStop = client.on("STOP", (event) => seen.push(["STOP", event.timestamp.microseconds]));
    client.on("MIGRATION", (event) => seen.push(["MIGRATION", event.data.status]));
    client.onAny((event) => seen.push(["any", event.event]));
    const answer = client.execute("stop").then(() => seen.push("answer"));
    const { id } = await session.next();
    await session.event("STOP", {}, 7);
    await session.event("MIGRATION", { status: "colo" });
    await session.send({ return: {}, id });
    await answer;
    offStop();
    await session.event("STOP", {}, 8);
    await client.waitFor("STOP");
    assertEquals(seen, [
      ["STOP", 7],
      ["any", "STOP"],
      ["MIGRATION", "colo"],
      ["any", "MIGRATION"],
      "answer",
      ["any", "STOP"],
    ]);
  });
});

Deno.test("QmpClient.on reports what a handler throws and goes on", async () => {
  await withClient(async (client, session) => {
    const reported: unknown[] = [];
    const onError = (event: ErrorEvent) => {
      event.preventDefault();
      reported.push(event.error);
    };
    globalThis.addEventListener("error", onError);
    try {
      const bug = new Error("a bug in a handler");
      let others = 0;
      client.on("STOP", () => {
        throw bug;
      });
      client.on("STOP", () => others++);
      await session.event("STOP");
      await session.event("RESUME");
      await client.waitFor("RESUME");
      assertEquals(others, 1);
      assertEquals(reported, [bug]);
    } finally {
      globalThis.removeEventListener("error", onError);
    }
  });
});

Deno.test("QmpClient.waitFor passes over events its predicate refuses", async () => {
  await withClient(async (client, session) => {
    const asked: string[] = [];
    const colo = client.waitFor("MIGRATION", ({ data: { status } }) => {
      asked.push(status);
      return status === "colo";
    });
    await session.event("STOP", {}, 1);
    await session.event("MIGRATION", { status: "active" }, 2);
    await session.event("MIGRATION", { status: "colo" }, 3);
    assertEquals((await colo).timestamp.microseconds, 3);
    const next = client.waitFor("MIGRATION");
    await session.event("MIGRATION", { status: "completed" }, 4);
    await next;
    assertEquals(asked, ["active", "colo"]);
  });
});

Deno.test("QmpClient.waitFor gives up in time and rejects with what its predicate throws", async () => {
  await withClient(async (client, session) => {
    const late = await assertRejects(
      () => client.waitFor("STOP", undefined, { timeoutMs: 20 }),
      QmpTimeoutError,
    );
    assertEquals(late.message, "Cannot wait for STOP: no such event within 20 ms");
    const bug = new RangeError("a bug in a predicate");
    const failing = assertRejects(
      () =>
        client.waitFor("STOP", () => {
          throw bug;
        }),
      RangeError,
    );
    await session.event("STOP");
    assert(await failing === bug);
  });
});

Deno.test("QmpClient keeps waiting for ever when told so", async () => {
  await withClient(async (client, session) => {
    const answer = client.execute("query-name", {}, { timeoutMs: Infinity });
    const stopped = client.waitFor("STOP", undefined, { timeoutMs: Infinity });
    await new Promise((resolve) => setTimeout(resolve, 30));
    await session.event("STOP");
    await session.send({ return: {}, id: (await session.next()).id });
    await Promise.all([answer, stopped]);
  });
});

Deno.test("QmpClient refuses commands a hung server does not read, and takes them again later", async () => {
  const { connection, toClient, fromClient } = pipes();
  toClient.write(line(GREETING));
  const connecting = QmpClient.attach(connection);
  const reader = fromClient.getReader();
  await reader.read();
  toClient.write(line({ return: {}, id: 1 }));
  await using client = await connecting;

  // More than the bound, but nothing is before it.
  const large = client.executeRaw("x-blob", { blob: "x".repeat(QMP_UNSENT_BYTES_MAX) });
  const failed = assertRejects(() => large, QmpClosedError);
  const refused = await assertRejects(() => client.execute("stop"), QmpError);
  assertStringIncludes(refused.message, "Cannot execute stop: QEMU has not read the last ");

  await reader.read();
  // The client learns of it in a microtask.
  await new Promise((resolve) => setTimeout(resolve));
  const next = client.execute("stop");
  const { value } = await reader.read();
  const { execute, id }: ReceivedCommand = JSON.parse(new TextDecoder().decode(value));
  assertEquals(execute, "stop");
  await toClient.write(line({ return: {}, id }));
  await next;
  await client.close();
  await failed;
});

Deno.test("QmpClient.attach owns its connection and closes it", async () => {
  const { connection, closed, toClient, fromClient } = pipes();
  toClient.write(line(GREETING));
  const connecting = QmpClient.attach(connection);
  const reader = fromClient.getReader();
  await reader.read();
  toClient.write(line({ return: {}, id: 1 }));
  const client = await connecting;
  await client.close();
  await closed;
});

Deno.test("QmpClient.attach does nothing with a signal that is aborted already", async () => {
  const { connection, closed } = pipes();
  const reason = new Error("too late");
  const signal = AbortSignal.abort(reason);
  const attaching = QmpClient.attach(connection, { timeoutMs: Infinity, signal });
  assert(await attaching.catch((error) => error) === reason);
  await closed;
});

Deno.test("QmpClient.connect waits for a socket that is not there yet", async () => {
  await using server = new ScriptedServer();
  const connecting = QmpClient.connect(server.path, { retryForMs: 5000 });
  await new Promise((resolve) => setTimeout(resolve, 50));
  server.listen();
  using session = await server.accept();
  await session.welcome();
  await using client = await connecting;
  assertEquals(client.greeting.version.package, "scripted");
});

Deno.test("QmpClient.connect says that there is no socket", async () => {
  await using server = new ScriptedServer();
  for (const retryForMs of [0, 30]) {
    const error = await assertRejects(
      () => QmpClient.connect(server.path, { retryForMs }),
      QmpClosedError,
    );
    assertStringIncludes(
      error.message,
      `Cannot connect to the monitor ${server.path}: there is no`,
    );
  }
});

Deno.test("QmpClient.connect stops trying when it is told so", async () => {
  await using server = new ScriptedServer();
  const abort = new AbortController();
  const reason = new Error("QEMU exited");
  setTimeout(() => abort.abort(reason), 20);
  const connecting = QmpClient.connect(server.path, { retryForMs: 60_000, signal: abort.signal });
  assert(await connecting.catch((error) => error) === reason);
});

Deno.test("QmpClient.connect gives up when told so while it waits for the greeting", async () => {
  await using server = new ScriptedServer().listen();
  const abort = new AbortController();
  const connecting = QmpClient.connect(server.path, { signal: abort.signal });
  using session = await server.accept();
  const reason = new Error("never mind");
  abort.abort(reason);
  assert(await connecting.catch((error) => error) === reason);
  assert(await session.ended());
});

Deno.test("QmpClient.connect gives up in time when no greeting comes", async () => {
  await using server = new ScriptedServer().listen();
  const error = await assertRejects(
    () => QmpClient.connect(server.path, { timeoutMs: 30 }),
    QmpTimeoutError,
  );
  assertEquals(
    error.message,
    `Cannot connect to the monitor ${server.path}: no greeting within 30 ms; ` +
      "is another client connected to it?",
  );
  using session = await server.accept();
  assert(await session.ended());
});

Deno.test("QmpClient.connect refuses what does not speak QMP", async () => {
  await using server = new ScriptedServer().listen();
  const refused = assertRejects(() => QmpClient.connect(server.path), QmpProtocolError);
  using session = await server.accept();
  await session.sendText("QEMU 11.1.3 monitor - type 'help' for more information\r\n(qemu) ");
  assertStringIncludes((await refused).message, "type 'help'");
  assert(await session.ended());
});

Deno.test("QmpClient.connect fails when QEMU ends before it greets or agrees", async () => {
  await using server = new ScriptedServer().listen();
  for (const greet of [false, true]) {
    const refused = assertRejects(() => QmpClient.connect(server.path), QmpClosedError);
    using session = await server.accept();
    if (greet) {
      await session.send(GREETING);
      await session.next();
    }
    session[Symbol.dispose]();
    await refused;
  }
});

Deno.test("QmpClient's types know the commands and events", async () => {
  await withClient(async (client) => {
    const typed = async () => {
      const { status } = await client.execute("query-status");
      const known: "colo" | "running" = status === "colo" ? status : "running";
      // @ts-expect-error: not a command of the type map
      await client.execute("query-sttaus");
      // @ts-expect-error: the arguments are required
      await client.execute("qom-set");
      // @ts-expect-error: no such argument
      await client.execute("job-cancel", { job: "mirror0" });
      // @ts-expect-error: not an event of the type map
      client.on("STOPPED", () => {});
      client.on("STOP", (event) => {
        // @ts-expect-error: this event has no data
        const status: string = event.data.status;
        return status;
      });
      return known;
    };
    assertEquals(typeof typed, "function");
    await Promise.resolve();
  });
});
