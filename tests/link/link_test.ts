import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert/mod.js";
import { LinkError } from "../../engine/errors.ts";
import { LINK_HALF_OPEN_MAX } from "../../engine/limits.ts";
import type { LinkAddress } from "../../engine/link/address.ts";
import {
  encodeMessage,
  type HelloPayload,
  LINK_ROLES,
  type LinkRole,
  type Message,
} from "../../engine/link/messages.ts";
import {
  acceptLinks,
  closeLink,
  type Link,
  openLink,
  RefusedError,
} from "../../engine/link/link.ts";
import { connectLink, LinkConnection, listenLink } from "../../engine/link/transport.ts";
import { FrameEncoder } from "../../engine/link/wire.ts";
import { WasmKernels } from "../../wasm/mod.ts";

const INTRODUCTION = {
  vmName: "web1",
  memoryMiB: 256,
  mode: "colo",
  nics: 1,
  disks: [],
  generation: 3,
  holder: "host-a",
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
  readonly links: AsyncGenerator<Link, void>;
  /** The next link, or nothing when the standby has ended. */
  readonly take: () => Promise<Link | void>;
}

interface StandbyOptions {
  readonly refusal?: Parameters<typeof acceptLinks>[2];
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
  const links = acceptLinks(listener, "0.2.0", refusal, handshakeMs);
  // It accepts from the first demand on.
  let demand: ReturnType<typeof links.next> | undefined = links.next();
  const take = async () => {
    const { value } = await (demand ?? links.next());
    demand = undefined;
    return value;
  };
  try {
    await run({ address, listener, links, take });
  } finally {
    try {
      listener.close();
    } catch {
      // The test closed it.
    }
    for (let link; (link = await take()) !== undefined;) closeLink(link);
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
function ofVersion3(bytes: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
  const changed = bytes.slice();
  changed[4] = 3;
  return changed;
}

function hello(role: HelloPayload["role"], session = "s"): Message {
  return { type: "hello", role, session, ...INTRODUCTION };
}

/** Open one connection of a link by hand. */
async function say(address: LinkAddress, message: Message): Promise<LinkConnection> {
  const connection = await connectLink(address);
  await connection.send(message);
  return connection;
}

async function takeLink({ take }: Standby): Promise<Link> {
  const link = await take();
  assert(link !== undefined, "no link came");
  return link;
}

test("openLink and acceptLinks agree on all connections", async () => {
  const seen: unknown[] = [];
  const refusal = (introduction: unknown) => {
    seen.push(introduction);
    return undefined;
  };
  await withStandby({ refusal }, async (standby) => {
    const near = await openLink(standby.address, INTRODUCTION);
    const far = await takeLink(standby);
    for (const role of LINK_ROLES) {
      await near[role].send({ type: "goodbye", reason: role });
      assertEquals(await far[role].next(5000), { type: "goodbye", reason: role });
      await far[role].send({ type: "committed", epoch: 7 });
      assertEquals(await near[role].next(5000), { type: "committed", epoch: 7 });
    }
    closeLink(near);
    closeLink(far);
  });
  assertEquals(seen.length, LINK_ROLES.length);
  for (const introduction of seen as HelloPayload[]) {
    assertEquals(introduction.vmName, INTRODUCTION.vmName);
    assertEquals(introduction.memoryMiB, INTRODUCTION.memoryMiB);
  }
});

test("acceptLinks keeps the connections of two primaries apart, in whatever order they come", async () => {
  await withStandby({}, async (standby) => {
    const opened: Record<string, LinkConnection[]> = { a: [], b: [] };
    const order = [
      ...[["a", "control"], ["b", "packets"], ["b", "control"], ["b", "disks"], ["b", "bulk"]],
      ...[["a", "bulk"], ["a", "disks"], ["a", "packets"]],
    ] as const satisfies readonly (readonly ["a" | "b", LinkRole])[];
    for (const [session, role] of order) {
      opened[session]!.push(await say(standby.address, hello(role, session)));
    }
    for (const name of ["b", "a"]) {
      const link = await takeLink(standby);
      for (const connection of opened[name]!) {
        assertEquals((await connection.next(5000)).type, "welcome");
        await connection.send({ type: "goodbye", reason: name });
      }
      for (const role of LINK_ROLES) {
        assertEquals(await link[role].next(5000), { type: "goodbye", reason: name });
      }
      closeLink(link);
    }
    for (const connection of [...opened.a!, ...opened.b!]) connection.close();
  });
});

test("openLink says why the standby refuses", async () => {
  const refusal = ({ vmName }: { vmName: string }) => ({
    reason: `it stands by for VM "db", not "${vmName}"`,
    generation: 4,
  });
  await withStandby({ refusal }, async ({ address }) => {
    const error = await assertRejects(() => openLink(address, INTRODUCTION), RefusedError);
    const { message, generation } = error;
    assertEquals(generation, 4);
    assertEquals(message, 'Cannot join the standby: it stands by for VM "db", not "web1"');
  });
});

test("acceptLinks refuses a second connection of the same role", async () => {
  await withStandby({}, async (standby) => {
    const control = await say(standby.address, hello("control"));
    assertEquals((await control.next(5000)).type, "welcome");
    const again = await say(standby.address, hello("control"));
    const answer = await again.next(5000);
    assert(answer.type === "refuse");
    assertStringIncludes(answer.reason, "has its control connection already");
    await assertRejects(() => again.next(5000), LinkError, "the peer closed it");
    // The first is as good as before.
    const others = [
      await say(standby.address, hello("bulk")),
      await say(standby.address, hello("packets")),
      await say(standby.address, hello("disks")),
    ];
    closeLink(await takeLink(standby));
    for (const connection of [control, ...others]) connection.close();
    again.close();
  });
});

test("acceptLinks drops a connection whose siblings do not come", async () => {
  await withStandby({ handshakeMs: 100 }, async ({ address }) => {
    const control = await say(address, hello("control"));
    assertEquals((await control.next(5000)).type, "welcome");
    await assertRejects(() => control.next(5000), LinkError, "the peer closed it");
    control.close();
  });
});

test("acceptLinks drops a connection that says nothing", async () => {
  await withStandby({ handshakeMs: 100 }, async ({ address }) => {
    const silent = await connectLink(address);
    await assertRejects(() => silent.next(5000), LinkError, "the peer closed it");
    silent.close();
  });
});

test("acceptLinks refuses whoever does not introduce itself", async () => {
  await withStandby({}, async ({ address }) => {
    const stranger = await say(address, { type: "committed", epoch: 1 });
    const answer = await stranger.next(5000);
    assert(answer.type === "refuse");
    assertStringIncludes(answer.reason, "began with committed, not with hello");
    stranger.close();
  });
});

test("acceptLinks answers foreign bytes and goes on", async () => {
  await withStandby({}, async (standby) => {
    const { port } = standby.listener.addr as Deno.NetAddr;
    const browser = await Deno.connect({ hostname: "127.0.0.1", port });
    await browser.write(new TextEncoder().encode("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"));
    const answered = new LinkConnection(browser);
    const answer = await answered.next(5000);
    assert(answer.type === "refuse" && answer.reason.includes('not with "COLO"'));
    answered.close();
    const near = await openLink(standby.address, INTRODUCTION);
    closeLink(await takeLink(standby));
    closeLink(near);
  });
});

test("acceptLinks tells a primary of another protocol version what to do", async () => {
  await withStandby({}, async ({ listener }) => {
    const { port } = listener.addr as Deno.NetAddr;
    const socket = await Deno.connect({ hostname: "127.0.0.1", port });
    await socket.write(ofVersion3(frame(hello("control"))));
    // A refusal is the same in every version.
    const primary = new LinkConnection(socket);
    const answer = await primary.next(5000);
    assert(answer.type === "refuse");
    assertStringIncludes(
      answer.reason,
      "its version is 3, not 2: run the same release of colo on both hosts",
    );
    primary.close();
  });
});

test("openLink says what to do about a standby of another protocol version", async () => {
  await withScripted(
    [ofVersion3(frame({ type: "refuse", reason: "?", generation: 0 }))],
    async (address) => {
      await assertRejects(
        () => openLink(address, INTRODUCTION),
        LinkError,
        "its version is 3, not 2: run the same release of colo on both hosts",
      );
    },
  );
});

test("openLink takes foreign bytes for a LinkError", async () => {
  const greeting = new TextEncoder().encode("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n");
  await withScripted([greeting], async (address) => {
    await assertRejects(() => openLink(address, INTRODUCTION), LinkError, 'not with "COLO"');
  });
});

test("openLink gives up on a standby that says nothing", async () => {
  await withScripted([], async (address) => {
    await assertRejects(
      () => openLink(address, INTRODUCTION, 100),
      LinkError,
      "no answer within 100 ms",
    );
  });
});

test("openLink loses nothing that comes right behind the welcome", async () => {
  const welcome = frame({ type: "welcome", engineVersion: "0.2.0" });
  const ready = frame({ type: "replicaReady" });
  // One write: both arrive in one read.
  await withScripted([Uint8Array.of(...welcome, ...ready)], async (address) => {
    const link = await openLink(address, INTRODUCTION);
    const { value } = await link.bulk.receive().next();
    assertEquals(value, { type: "replicaReady" });
    assertEquals(await link.control.next(5000), { type: "replicaReady" });
    closeLink(link);
  });
});

test("acceptLinks ends with its listener, and what was half open with it", async () => {
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

test("acceptLinks closes what is half open when nobody wants links any more", async () => {
  await withStandby({}, async (standby) => {
    const near = await openLink(standby.address, INTRODUCTION);
    const control = await say(standby.address, hello("control"));
    assertEquals((await control.next(5000)).type, "welcome");
    closeLink(await takeLink(standby));
    const startedMs = performance.now();
    await standby.links.return();
    await assertRejects(() => control.next(5000), LinkError, "the peer closed it");
    const late = await connectLink(standby.address);
    await assertRejects(() => late.next(5000), LinkError, "the peer closed it");
    assert(performance.now() - startedMs < 2000);
    closeLink(near);
    for (const connection of [control, late]) connection.close();
  });
});

test("acceptLinks bounds the connections that are half open", async () => {
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
    let near: Link | undefined;
    for (let i = 0; i < 50 && near === undefined; i++) {
      near = await openLink(standby.address, INTRODUCTION).catch(() => undefined);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    assert(near !== undefined);
    closeLink(await takeLink(standby));
    closeLink(near);
  });
});
