import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert/mod.js";
import { LinkError } from "../../engine/errors.ts";
import { LINK_HALF_OPEN_MAX } from "../../engine/limits.ts";
import type { LinkAddress } from "../../engine/link/address.ts";
import { encodeMessage, type HelloPayload, type Message } from "../../engine/link/messages.ts";
import { acceptPairs, closePair, connectPair, type LinkPair } from "../../engine/link/pair.ts";
import { connectLink, LinkConnection, listenLink } from "../../engine/link/transport.ts";
import { FrameEncoder } from "../../engine/link/wire.ts";
import { WasmKernels } from "../../wasm/mod.ts";

const INTRODUCTION = {
  vmName: "web1",
  memoryMiB: 256,
  mode: "colo",
  engineVersion: "0.1.0",
} as const;
const encoder = new FrameEncoder(WasmKernels.create());

/** A test that fails when a timer or a connection is left behind. */
function test(name: string, fn: () => Promise<void>): void {
  Deno.test({ name, fn, sanitizeOps: true, sanitizeResources: true });
}

/** A standby that a test connects to. */
interface Standby {
  readonly address: LinkAddress;
  readonly listener: Deno.Listener;
  readonly pairs: AsyncGenerator<LinkPair, void>;
  /** The next pair, or nothing when the standby has ended. */
  readonly take: () => Promise<LinkPair | void>;
}

interface StandbyOptions {
  readonly refusal?: Parameters<typeof acceptPairs>[2];
  readonly handshakeMs?: number;
}

async function listenOnLoopback(): Promise<[Deno.Listener, LinkAddress]> {
  const listener = await listenLink({ transport: "tcp", hostname: "127.0.0.1", port: 0 });
  const { port } = listener.addr as Deno.NetAddr;
  return [listener, { transport: "tcp", hostname: "127.0.0.1", port }];
}

/** Runs beside a standby, which is gone with all its timers and connections afterwards. */
async function withStandby(
  options: StandbyOptions,
  run: (standby: Standby) => Promise<void>,
): Promise<void> {
  const [listener, address] = await listenOnLoopback();
  const { refusal = () => undefined, handshakeMs } = options;
  const pairs = acceptPairs(listener, "0.2.0", refusal, handshakeMs);
  // It accepts from the first demand on.
  let demand: ReturnType<typeof pairs.next> | undefined = pairs.next();
  const take = async () => {
    const { value } = await (demand ?? pairs.next());
    demand = undefined;
    return value;
  };
  try {
    await run({ address, listener, pairs, take });
  } finally {
    try {
      listener.close();
    } catch {
      // The test closed it.
    }
    for (let pair; (pair = await take()) !== undefined;) closePair(pair);
  }
}

/** Runs with a standby that is a script: it answers the first connection's hello with these bytes. */
async function withScripted(
  answer: readonly Uint8Array<ArrayBuffer>[],
  run: (address: LinkAddress) => Promise<void>,
): Promise<void> {
  const [listener, address] = await listenOnLoopback();
  const sockets: Deno.Conn[] = [];
  const serving = (async () => {
    for await (const socket of listener) {
      sockets.push(socket);
      await socket.read(new Uint8Array(4096));
      for (const bytes of answer) await socket.write(bytes);
    }
  })();
  try {
    await run(address);
  } finally {
    listener.close();
    await serving;
    for (const socket of sockets) socket.close();
  }
}

function frame(message: Message): Uint8Array<ArrayBuffer> {
  return encoder.encode(encodeMessage(message));
}

/** The frame as an engine of a later protocol version would begin it. */
function ofVersion2(bytes: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  const changed = bytes.slice();
  changed[4] = 2;
  return changed;
}

function hello(role: HelloPayload["role"], session = "s"): Message {
  return { type: "hello", role, session, ...INTRODUCTION };
}

/** Open one connection of a pair by hand. */
async function say(address: LinkAddress, message: Message): Promise<LinkConnection> {
  const connection = await connectLink(address);
  await connection.send(message);
  return connection;
}

async function takePair({ take }: Standby): Promise<LinkPair> {
  const pair = await take();
  assert(pair !== undefined, "no pair came");
  return pair;
}

test("connectPair and acceptPairs agree on a control and a bulk connection", async () => {
  const seen: unknown[] = [];
  const refusal = (introduction: unknown) => void seen.push(introduction);
  await withStandby({ refusal }, async (standby) => {
    const near = await connectPair(standby.address, INTRODUCTION);
    const far = await takePair(standby);
    for (const role of ["control", "bulk"] as const) {
      await near[role].send({ type: "goodbye", reason: role });
      assertEquals(await far[role].next(5000), { type: "goodbye", reason: role });
      await far[role].send({ type: "committed", epoch: 7 });
      assertEquals(await near[role].next(5000), { type: "committed", epoch: 7 });
    }
    closePair(near);
    closePair(far);
  });
  assertEquals(seen.length, 2);
  for (const introduction of seen as HelloPayload[]) {
    assertEquals(introduction.vmName, INTRODUCTION.vmName);
    assertEquals(introduction.memoryMiB, INTRODUCTION.memoryMiB);
  }
});

test("acceptPairs keeps the connections of two primaries apart", async () => {
  await withStandby({}, async (standby) => {
    const controls = [
      await say(standby.address, hello("control", "a")),
      await say(standby.address, hello("control", "b")),
    ];
    const bulks = [
      await say(standby.address, hello("bulk", "b")),
      await say(standby.address, hello("bulk", "a")),
    ];
    for (const name of ["b", "a"]) {
      const pair = await takePair(standby);
      const index = name === "a" ? 0 : 1;
      for (const connection of [controls[index]!, bulks[1 - index]!]) {
        assertEquals((await connection.next(5000)).type, "welcome");
        await connection.send({ type: "goodbye", reason: name });
      }
      assertEquals(await pair.control.next(5000), { type: "goodbye", reason: name });
      assertEquals(await pair.bulk.next(5000), { type: "goodbye", reason: name });
      closePair(pair);
    }
    for (const connection of [...controls, ...bulks]) connection.close();
  });
});

test("connectPair says why the standby refuses", async () => {
  const refusal = ({ vmName }: { vmName: string }) => `it stands by for VM "db", not "${vmName}"`;
  await withStandby({ refusal }, async ({ address }) => {
    const { message } = await assertRejects(() => connectPair(address, INTRODUCTION), LinkError);
    assertEquals(message, 'Cannot join the standby: it stands by for VM "db", not "web1"');
  });
});

test("acceptPairs refuses a second connection of the same role", async () => {
  await withStandby({}, async (standby) => {
    const control = await say(standby.address, hello("control"));
    assertEquals((await control.next(5000)).type, "welcome");
    const again = await say(standby.address, hello("control"));
    const answer = await again.next(5000);
    assert(answer.type === "refuse");
    assertStringIncludes(answer.reason, "has its control connection already");
    await assertRejects(() => again.next(5000), LinkError, "the peer closed it");
    // The first is as good as before.
    const bulk = await say(standby.address, hello("bulk"));
    closePair(await takePair(standby));
    for (const connection of [control, bulk]) connection.close();
    again.close();
  });
});

test("acceptPairs drops a connection whose twin does not come", async () => {
  await withStandby({ handshakeMs: 100 }, async ({ address }) => {
    const control = await say(address, hello("control"));
    assertEquals((await control.next(5000)).type, "welcome");
    await assertRejects(() => control.next(5000), LinkError, "the peer closed it");
    control.close();
  });
});

test("acceptPairs drops a connection that says nothing", async () => {
  await withStandby({ handshakeMs: 100 }, async ({ address }) => {
    const silent = await connectLink(address);
    await assertRejects(() => silent.next(5000), LinkError, "the peer closed it");
    silent.close();
  });
});

test("acceptPairs refuses whoever does not introduce itself", async () => {
  await withStandby({}, async ({ address }) => {
    const stranger = await say(address, { type: "committed", epoch: 1 });
    const answer = await stranger.next(5000);
    assert(answer.type === "refuse");
    assertStringIncludes(answer.reason, "began with committed, not with hello");
    stranger.close();
  });
});

test("acceptPairs answers foreign bytes and goes on", async () => {
  await withStandby({}, async (standby) => {
    const { port } = standby.listener.addr as Deno.NetAddr;
    const browser = await Deno.connect({ hostname: "127.0.0.1", port });
    await browser.write(new TextEncoder().encode("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"));
    const answered = new LinkConnection(browser);
    const answer = await answered.next(5000);
    assert(answer.type === "refuse" && answer.reason.includes('not with "COLO"'));
    answered.close();
    const near = await connectPair(standby.address, INTRODUCTION);
    closePair(await takePair(standby));
    closePair(near);
  });
});

test("acceptPairs tells a primary of another protocol version what to do", async () => {
  await withStandby({}, async ({ listener }) => {
    const { port } = listener.addr as Deno.NetAddr;
    const socket = await Deno.connect({ hostname: "127.0.0.1", port });
    await socket.write(ofVersion2(frame(hello("control"))));
    // A refusal is the same in every version.
    const primary = new LinkConnection(socket);
    const answer = await primary.next(5000);
    assert(answer.type === "refuse");
    assertStringIncludes(
      answer.reason,
      "its version is 2, not 1: run the same release of colo on both hosts",
    );
    primary.close();
  });
});

test("connectPair says what to do about a standby of another protocol version", async () => {
  await withScripted([ofVersion2(frame({ type: "refuse", reason: "?" }))], async (address) => {
    await assertRejects(
      () => connectPair(address, INTRODUCTION),
      LinkError,
      "its version is 2, not 1: run the same release of colo on both hosts",
    );
  });
});

test("connectPair takes foreign bytes for a LinkError", async () => {
  const greeting = new TextEncoder().encode("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n");
  await withScripted([greeting], async (address) => {
    await assertRejects(() => connectPair(address, INTRODUCTION), LinkError, 'not with "COLO"');
  });
});

test("connectPair gives up on a standby that says nothing", async () => {
  await withScripted([], async (address) => {
    await assertRejects(
      () => connectPair(address, INTRODUCTION, 100),
      LinkError,
      "no answer within 100 ms",
    );
  });
});

test("connectPair loses nothing that comes right behind the welcome", async () => {
  const welcome = frame({ type: "welcome", engineVersion: "0.2.0" });
  const ready = frame({ type: "replicaReady" });
  // One write: both arrive in one read.
  await withScripted([Uint8Array.of(...welcome, ...ready)], async (address) => {
    const pair = await connectPair(address, INTRODUCTION);
    const { value } = await pair.bulk.receive().next();
    assertEquals(value, { type: "replicaReady" });
    assertEquals(await pair.control.next(5000), { type: "replicaReady" });
    closePair(pair);
  });
});

test("acceptPairs ends with its listener, and what was half open with it", async () => {
  await withStandby({}, async (standby) => {
    const control = await say(standby.address, hello("control"));
    assertEquals((await control.next(5000)).type, "welcome");
    const silent = await connectLink(standby.address);
    const startedMs = performance.now();
    standby.listener.close();
    assertEquals(await standby.take(), undefined);
    await assertRejects(() => control.next(5000), LinkError);
    await assertRejects(() => silent.next(5000), LinkError);
    assert(performance.now() - startedMs < 2000);
    control.close();
    silent.close();
  });
});

test("acceptPairs closes what is half open when nobody wants pairs any more", async () => {
  await withStandby({}, async (standby) => {
    const near = await connectPair(standby.address, INTRODUCTION);
    const control = await say(standby.address, hello("control"));
    assertEquals((await control.next(5000)).type, "welcome");
    closePair(await takePair(standby));
    const startedMs = performance.now();
    await standby.pairs.return();
    await assertRejects(() => control.next(5000), LinkError, "the peer closed it");
    const late = await connectLink(standby.address);
    await assertRejects(() => late.next(5000), LinkError, "the peer closed it");
    assert(performance.now() - startedMs < 2000);
    closePair(near);
    for (const connection of [control, late]) connection.close();
  });
});

test("acceptPairs bounds the connections that are half open", async () => {
  await withStandby({}, async (standby) => {
    const { port } = standby.listener.addr as Deno.NetAddr;
    const sockets: Deno.Conn[] = [];
    for (let i = 0; i < LINK_HALF_OPEN_MAX; i++) {
      sockets.push(await Deno.connect({ hostname: "127.0.0.1", port }));
    }
    const tooMany = await Deno.connect({ hostname: "127.0.0.1", port });
    const startedMs = performance.now();
    assertEquals(await tooMany.read(new Uint8Array(1)).catch(() => null), null);
    assert(performance.now() - startedMs < 2000, "it was taken, and dropped for its silence");
    tooMany.close();
    // As soon as some are gone, primaries are taken again.
    for (const socket of sockets) socket.close();
    let near: LinkPair | undefined;
    for (let i = 0; i < 50 && near === undefined; i++) {
      near = await connectPair(standby.address, INTRODUCTION).catch(() => undefined);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    assert(near !== undefined);
    closePair(await takePair(standby));
    closePair(near);
  });
});
