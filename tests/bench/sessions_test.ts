import { assertEquals, assertRejects, assertStringIncludes } from "@std/assert/mod.js";
import { formatServer } from "../../bench/rig/client_connection.ts";
import { ClosedLoop, quantile } from "../../bench/rig/closed_loop.ts";
import {
  CountSession,
  GuestDialer,
  pageContent,
  PageSession,
  RandomPageSession,
  type Session,
} from "../../bench/rig/sessions.ts";
import { isSynTo } from "../../bench/rig/syn_watch.ts";

/** A server that says what it is told to, once a line. */
async function withServer(
  answers: readonly (string | Uint8Array)[],
  work: (server: { readonly address: string; readonly port: number }) => Promise<void>,
): Promise<void> {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const serving = serve(listener, answers);
  await work({ address: "127.0.0.1", port: listener.addr.port });
  await serving;
}

async function serve(
  listener: Deno.TcpListener,
  answers: readonly (string | Uint8Array)[],
): Promise<void> {
  using connection = await listener.accept();
  const writer = connection.writable.getWriter();
  for (const answer of answers) {
    await connection.read(new Uint8Array(4096));
    await writer.write(typeof answer === "string" ? new TextEncoder().encode(answer) : answer);
  }
  await connection.read(new Uint8Array(4096)).catch(() => {});
}

function http(content: string | Uint8Array): Uint8Array {
  const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
  const head = `HTTP/1.1 200 OK\r\nContent-Length: ${bytes.length}\r\n\r\n`;
  return Uint8Array.from([...new TextEncoder().encode(head), ...bytes]);
}

async function failure(session: Session): Promise<string> {
  try {
    return (await assertRejects(() => session.next(), Error)).message;
  } finally {
    session.close();
  }
}

/** The sum over what a client says first: `xx1`. */
const FIRST_SUM = [120, 120, 49, 10].reduce((sum, byte) => (sum * 31 + byte) % 2147483647, 0);

Deno.test("pageContent numbers its lines and is cut to its size", () => {
  const text = new TextDecoder().decode(pageContent(130));
  assertEquals(text.length, 130);
  assertEquals(text.split("\n").map((line) => line.slice(0, 15)), [
    "000000000000000",
    "000000000000001",
    "00",
  ]);
  assertEquals(text.indexOf("\n"), 63);
});

Deno.test("formatServer puts an IPv6 address in brackets", () => {
  assertEquals(formatServer({ address: "10.0.0.1", port: 80 }), "10.0.0.1:80");
  assertEquals(formatServer({ address: "fd00::1", port: 80 }), "[fd00::1]:80");
});

Deno.test("CountSession takes what is right, and nothing else", async () => {
  const right = `1 ${FIRST_SUM} xx1\n`;
  await withServer([right], async (server) => {
    const session = await CountSession.open(server);
    await session.next();
    session.close();
  });
  const wrong = [
    right.replace("1 ", "2 "),
    right.replace("xx1", "xy1"),
    right.replace("xx1", "x1"),
    right + right,
  ];
  for (const answer of wrong) {
    await withServer([answer], async (server) => {
      assertStringIncludes(await failure(await CountSession.open(server)), "was answered");
    });
  }
});

Deno.test("PageSession finds a byte that is wrong, missing or too much", async () => {
  const content = pageContent(200);
  const open = (server: { readonly address: string; readonly port: number }) =>
    PageSession.open(server, content);
  await withServer([http(content), http(content)], async (server) => {
    const session = await open(server);
    await session.next();
    await session.next();
    session.close();
  });
  const wrong = content.slice();
  wrong[150] = 0;
  const cases = [
    [http(wrong), "byte 150 of the page is wrong"],
    [http(content.subarray(1)), "byte 14 of the page is wrong"],
    [http(content.subarray(0, 199)), "the page has 199 bytes"],
    [Uint8Array.from([...http(content), 0]), "more than was asked for"],
    ["HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "answered by"],
    ["HTTP/1.1 200 OK\r\n\r\n", "an answer without a length"],
  ] as const;
  for (const [answer, message] of cases) {
    await withServer([answer], async (server) => {
      assertStringIncludes(await failure(await open(server)), message);
    });
  }
});

Deno.test("RandomPageSession finds two pages in one, and one page twice", async () => {
  const [one, two] = ["0123456789abcdef".repeat(2), "f".repeat(32)];
  await withServer([http(one.repeat(2)), http(two.repeat(2))], async (server) => {
    const session = await RandomPageSession.open(server, 64);
    await session.next();
    await session.next();
    session.close();
  });
  await withServer([http(one + two)], async (server) => {
    const message = await failure(await RandomPageSession.open(server, 64));
    assertEquals(message, "byte 32 of the page is wrong");
  });
  await withServer([http(one.repeat(2)), http(one.repeat(2))], async (server) => {
    const session = await RandomPageSession.open(server, 64);
    await session.next();
    assertEquals(await failure(session), "the page is the one before");
  });
});

Deno.test("GuestDialer counts on a connection that the guest has opened", async () => {
  await withServer([http("connected\n")], async (server) => {
    const dialer = new GuestDialer(server, { address: "127.0.0.1", port: 0 });
    const dialed = dialer.dial();
    const { address, port } = dialer.own;
    using guest = await Deno.connect({ hostname: address, port });
    const session = await dialed;
    const next = session.next();
    await guest.read(new Uint8Array(100));
    await guest.write(new TextEncoder().encode(`1 ${FIRST_SUM} xx1\n`));
    await next;
    session.close();
    dialer.close();
  });
});

Deno.test("isSynTo takes a SYN to its port alone, of both families", () => {
  const tcp = (port: number, flags: number) => {
    const bytes = new Uint8Array(20);
    new DataView(bytes.buffer).setUint16(2, port);
    bytes[13] = flags;
    return bytes;
  };
  const ip4 = [0x46, ...new Uint8Array(8), 6, ...new Uint8Array(14)];
  const ip6 = [0x60, ...new Uint8Array(5), 6, ...new Uint8Array(33)];
  for (const header of [ip4, ip6]) {
    const packet = (port: number, flags: number) =>
      Uint8Array.from([...header, ...tcp(port, flags)]);
    assertEquals(isSynTo(packet(7711, 0x02), 7711), true);
    assertEquals(isSynTo(packet(7711, 0xc2), 7711), true);
    assertEquals(isSynTo(packet(7711, 0x12), 7711), false);
    assertEquals(isSynTo(packet(7712, 0x02), 7711), false);
    assertEquals(isSynTo(packet(7711, 0x02).subarray(0, header.length + 13), 7711), false);
  }
  assertEquals(isSynTo(new Uint8Array(0), 7711), false);
  assertEquals(isSynTo(new Uint8Array(60), 7711), false);
});

Deno.test("quantile is a value that was seen", () => {
  assertEquals(quantile([3, 1, 2], 0.5), 2);
  assertEquals(quantile([3, 1, 2], 0.99), 3);
  assertEquals(quantile([], 0.5), NaN);
});

/** A session that answers after a time, or fails. */
function scripted(answers: readonly ("ok" | "lost" | "never")[]): () => Promise<Session> {
  let asked = 0;
  return () => {
    const end = Promise.withResolvers<number>();
    end.promise.catch(() => {});
    const next = async () => {
      const answer = answers[asked++] ?? "ok";
      if (answer === "never") return await end.promise;
      await new Promise((resolve) => setTimeout(resolve, 1));
      if (answer === "lost") throw new Error("lost");
      return performance.now();
    };
    return Promise.resolve({ next, close: () => end.reject(new Error("closed")) });
  };
}

Deno.test("ClosedLoop goes on after an error, and reports it", async () => {
  const options = { connections: 1, durationMs: 5000, requestsMax: 3 };
  const loop = new ClosedLoop(options, scripted(["ok", "lost", "ok", "ok"]));
  const { answers, errorCount, errors, longestGapMs } = await loop.run();
  await loop.connected;
  assertEquals([answers, errorCount, errors], [3, 1, ["lost"]]);
  assertEquals(longestGapMs >= 100, true, `${longestGapMs} ms with the time until it asked again`);
});

Deno.test("ClosedLoop gives up an answer that does not come", async () => {
  const options = { connections: 1, durationMs: 5000, requestsMax: 2, answerTimeoutMs: 10 };
  const { answers, errors } = await new ClosedLoop(options, scripted(["ok", "never", "ok"])).run();
  assertEquals([answers, errors], [2, ["the server did not answer in time"]]);
});

Deno.test("ClosedLoop ends in time, and counts what it still waits for", async () => {
  const options = { connections: 2, durationMs: 60 };
  const loop = new ClosedLoop(options, scripted(["never", "never"]));
  const { answers, errorCount, longestGapMs } = await loop.run();
  assertEquals([answers, errorCount], [0, 0]);
  assertEquals(longestGapMs >= 50, true);
});
