import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import { join } from "@std/path/mod.js";
import { LinkError, LocalProtocolError, WireError } from "../../engine/errors.ts";
import { LINK_QUEUE_BYTES_MAX, LINK_UNSENT_BYTES_MAX } from "../../engine/limits.ts";
import { formatAddress, type LinkAddress } from "../../engine/link/address.ts";
import { encodeMessage, type Message } from "../../engine/link/messages.ts";
import { connectLink, LinkConnection, listenLink } from "../../engine/link/transport.ts";
import { FrameEncoder } from "../../engine/link/wire.ts";
import { WasmKernels } from "../../wasm/mod.ts";

const CHUNK_BYTES = 256 * 1024;

/** Does not become smaller by compression. */
function noise(sizeBytes: number): Uint8Array {
  const bytes = new Uint8Array(sizeBytes);
  for (let at = 0; at < sizeBytes; at += 65536) {
    crypto.getRandomValues(bytes.subarray(at, at + 65536));
  }
  return bytes;
}

/** Runs with a listener and the two ends of a connection; the far end is the bare socket. */
async function withSockets(
  address: LinkAddress,
  run: (near: LinkConnection, far: Deno.Conn) => Promise<void>,
): Promise<void> {
  const listener = await listenLink(address);
  try {
    const accepting = listener.accept();
    const near = await connectLink(addressOf(listener));
    const far = await accepting;
    try {
      await run(near, far);
    } finally {
      near.close();
      try {
        far.close();
      } catch {
        // The test closed it.
      }
    }
  } finally {
    listener.close();
  }
}

function withLink(
  address: LinkAddress,
  run: (near: LinkConnection, far: LinkConnection) => Promise<void>,
): Promise<void> {
  return withSockets(address, async (near, socket) => {
    const far = new LinkConnection(socket);
    try {
      await run(near, far);
    } finally {
      far.close();
    }
  });
}

function addressOf({ addr }: Deno.Listener): LinkAddress {
  if (addr.transport === "unix") return { transport: "unix", path: addr.path };
  if (addr.transport !== "tcp") throw new Error(`no link over ${addr.transport}`);
  return { transport: "tcp", hostname: addr.hostname, port: addr.port };
}

/** The system picks a free port. */
const TCP: LinkAddress = { transport: "tcp", hostname: "127.0.0.1", port: 0 };

async function inDirectory(run: (directory: string) => Promise<void>): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "colo-link-" });
  try {
    await run(directory);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

async function overBoth(run: (address: LinkAddress) => Promise<void>): Promise<void> {
  await run(TCP);
  await inDirectory((directory) => run({ transport: "unix", path: join(directory, "link.sock") }));
}

Deno.test("LinkConnection carries messages both ways and in order, over TCP and unix", async () => {
  await overBoth((address) =>
    withLink(address, async (near, far) => {
      const sent: Message[] = [];
      for (let epoch = 0; epoch < 50; epoch++) {
        sent.push({ type: "pages", epoch, records: noise(epoch * 997) });
        const totals = { pagesFrames: 1, pageBytes: epoch, deviceStateBytes: 1 };
        sent.push({ type: "commit", epoch, ...totals, load: epoch % 2 === 0 });
      }
      const sending = (async () => {
        for (const message of sent) await near.send(message);
        await near.flush();
        near.close();
      })();
      const received: Message[] = [];
      for await (const message of far.receive()) received.push(message);
      await sending;
      assertEquals(received, sent);
      assertEquals(far.bytesReceived, near.bytesSent);
      assertEquals(far.bytesReceived, near.bytesQueued);
      assert(near.bytesSent > 997 * 49 * 25);
    })
  );
  await withLink(TCP, async (near, far) => {
    await far.send({ type: "replicaReady" });
    assertEquals(await near.next(5000), { type: "replicaReady" });
    await near.send({ type: "goodbye", reason: "done" });
    assertEquals(await far.next(5000), { type: "goodbye", reason: "done" });
  });
});

Deno.test("LinkConnection takes a copy of what is sent before send returns", async () => {
  await withLink(TCP, async (near, far) => {
    const records = noise(CHUNK_BYTES);
    const expected = records.slice();
    const sending = near.send({ type: "pages", epoch: 1, records });
    records.fill(0);
    const message = await far.next(5000);
    await sending;
    assert(message.type === "pages" && message.records.every((byte, i) => byte === expected[i]));
  });
});

Deno.test("LinkConnection holds a sender back whose peer does not read", async () => {
  await withSockets(TCP, async (near, far) => {
    const records = noise(CHUNK_BYTES);
    let acceptedBytes = 0;
    let heldBack = false;
    // The system's own buffers take some MiB before the queue begins to fill.
    for (let i = 0; i < 400 && !heldBack; i++) {
      const accepted = near.send({ type: "pages", epoch: i, records });
      acceptedBytes += CHUNK_BYTES;
      const waited = new Promise<boolean>((resolve) => setTimeout(() => resolve(true), 200));
      heldBack = await Promise.race([accepted.then(() => false), waited]);
      if (heldBack) {
        const waitingBytes = acceptedBytes - near.bytesSent;
        assert(near.bytesQueued > acceptedBytes, "what waits was taken for sending");
        assert(waitingBytes > LINK_QUEUE_BYTES_MAX - CHUNK_BYTES, `${waitingBytes} bytes wait`);
        assert(waitingBytes < LINK_QUEUE_BYTES_MAX + 2 * CHUNK_BYTES, `${waitingBytes} bytes wait`);
        // It goes on when the peer reads.
        const peer = new LinkConnection(far);
        const reading = (async () => {
          for await (const message of peer.receive()) {
            if (message.type === "pages" && message.epoch === i) return;
          }
          throw new Error("the chunk did not arrive");
        })();
        await accepted;
        await reading;
      }
    }
    assert(heldBack, `${acceptedBytes} bytes were taken without any wait`);
  });
});

Deno.test("LinkConnection rejects a sender that waits when it is closed", async () => {
  await withSockets(TCP, async (near) => {
    const records = noise(1024 * 1024);
    const sends = Array.from(
      { length: 20 },
      (_, epoch) =>
        near.send({ type: "pages", epoch, records }).then(() => "taken", () => "refused"),
    );
    await new Promise((resolve) => setTimeout(resolve, 100));
    near.close();
    assert((await Promise.all(sends)).includes("refused"));
    await assertRejects(() => near.send({ type: "replicaReady" }), LinkError, "it was closed");
  });
});

Deno.test("LinkConnection closes itself on a caller that sends without waiting", async () => {
  await withSockets(TCP, async (near) => {
    const records = noise(1024 * 1024);
    const count = 2 * LINK_UNSENT_BYTES_MAX / records.length;
    const ends = await Promise.all(
      Array.from(
        { length: count },
        (_, epoch) => near.send({ type: "pages", epoch, records }).then(() => "", String),
      ),
    );
    const refused = ends.filter((end) => end.includes("send must be awaited"));
    // What was below the queue's bound is taken, what waited behind it is refused with the rest.
    assert(ends.slice(0, 7).every((end) => end === ""), ends[0]);
    assertEquals(refused.length, count - LINK_QUEUE_BYTES_MAX / records.length + 1);
    await assertRejects(() => near.send({ type: "replicaReady" }), LinkError, "must be awaited");
  });
});

Deno.test("LinkConnection.send rejects what no frame can hold, and goes on", async () => {
  await withLink(TCP, async (near, far) => {
    const records = new Uint8Array(1024 * 1024 + 1);
    // It must not throw before there is a promise: a caller may only have a catch on that.
    const sent = near.send({ type: "pages", epoch: 1, records });
    await assertRejects(() => sent, LocalProtocolError);
    await assertRejects(() => near.send({ type: "committed", epoch: -1 }), LocalProtocolError);
    await near.send({ type: "replicaReady" });
    assertEquals(await far.next(5000), { type: "replicaReady" });
  });
});

Deno.test("LinkConnection fails its sender when the peer is gone in the middle", async () => {
  await overBoth((address) =>
    withSockets(address, async (near, far) => {
      const records = noise(CHUNK_BYTES);
      far.close();
      await assertRejects(async () => {
        for (let i = 0; i < 200; i++) {
          await near.send({ type: "pages", epoch: 1, records });
          await near.flush();
        }
      }, LinkError);
    })
  );
});

Deno.test("LinkConnection.receive ends when the peer closes after whole frames", async () => {
  await withLink(TCP, async (near, far) => {
    await far.send({ type: "committed", epoch: 3 });
    await far.flush();
    far.close();
    const received: Message[] = [];
    for await (const message of near.receive()) received.push(message);
    assertEquals(received, [{ type: "committed", epoch: 3 }]);
  });
});

Deno.test("LinkConnection.receive fails when the peer breaks off in the middle of a message", async () => {
  const frame = new FrameEncoder(WasmKernels.create())
    .encode(encodeMessage({ type: "primaryLost", reason: "killed" }));
  for (const count of [1, 32, frame.length - 1, frame.length + 3]) {
    await withSockets(TCP, async (near, far) => {
      await far.write(Uint8Array.of(...frame, ...frame).subarray(0, count));
      far.close();
      const received: Message[] = [];
      const reading = async () => {
        for await (const message of near.receive()) received.push(message);
      };
      const detail = "the peer broke off in the middle of a message";
      await assertRejects(reading, LinkError, detail);
      assertEquals(received.length, count > frame.length ? 1 : 0);
      await assertRejects(() => near.send({ type: "replicaReady" }), LinkError, detail);
    });
  }
});

Deno.test("LinkConnection.next says that the peer closed", async () => {
  await withSockets(TCP, async (near, far) => {
    far.close();
    await assertRejects(() => near.next(5000), LinkError, "the peer closed it");
  });
});

Deno.test("LinkConnection.next tells a peer that speaks otherwise why it is dropped", async () => {
  await withSockets(TCP, async (near, far) => {
    await far.write(new TextEncoder().encode("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"));
    await assertRejects(() => near.next(5000), WireError, 'not with "COLO"');
    const peer = new LinkConnection(far);
    const answer = await peer.next(5000);
    assert(answer.type === "refuse" && answer.reason.includes('not with "COLO"'));
    await assertRejects(() => peer.next(5000), LinkError, "the peer closed it");
  });
});

Deno.test("LinkConnection has one reader at a time", async () => {
  await withLink(TCP, async (near, far) => {
    const first = near.next(5000);
    await assertRejects(() => near.next(5000), LinkError, "somebody does already");
    await assertRejects(() => near.receive().next(), LinkError, "somebody does already");
    await far.send({ type: "replicaReady" });
    assertEquals(await first, { type: "replicaReady" });
  });
});

Deno.test("LinkConnection.receive drops a peer whose bytes are no frames", async () => {
  await withSockets(TCP, async (near, far) => {
    await far.write(new TextEncoder().encode("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"));
    await assertRejects(() => near.receive().next(), WireError, 'not with "COLO"');
    await assertRejects(() => near.send({ type: "replicaReady" }), LinkError);
    assertEquals(await far.read(new Uint8Array(1)).catch(() => null), null);
  });
});

Deno.test("LinkConnection.receive drops such a peer without waiting for more of it", async () => {
  await withSockets(TCP, async (near, far) => {
    const encoder = new FrameEncoder(WasmKernels.create());
    const good = encoder.encode(encodeMessage({ type: "committed", epoch: 9 }));
    const both = new Uint8Array(good.length + 32);
    both.set(good);
    await far.write(both);
    const messages = near.receive();
    assertEquals((await messages.next()).value, { type: "committed", epoch: 9 });
    const watchdog = setTimeout(() => near.close("the test waited in vain"), 2000);
    await assertRejects(() => messages.next(), WireError);
    clearTimeout(watchdog);
  });
});

Deno.test("LinkConnection.next gives up on a silent peer", async () => {
  await withSockets(TCP, async (near) => {
    await assertRejects(() => near.next(50), LinkError, "no answer within 50 ms");
  });
});

Deno.test("LinkConnection.close may be called again and again", async () => {
  await withSockets(TCP, async (near) => {
    near.close();
    near.close("once more");
    await assertRejects(() => near.send({ type: "replicaReady" }), LinkError, "it was closed");
  });
});

Deno.test("listenLink says what to do about an address in use", async () => {
  await overBoth(async (free) => {
    const listener = await listenLink(free);
    try {
      const address = addressOf(listener);
      await assertRejects(
        () => listenLink(address),
        LinkError,
        `${formatAddress(address)}: the address is in use; ` +
          "choose another `replication.listen` or stop the other process",
      );
    } finally {
      listener.close();
    }
  });
});

Deno.test("listenLink takes over the socket of a process that was killed", async () => {
  await inDirectory(async (directory) => {
    const path = join(directory, "link.sock");
    // Renamed, the socket outlives its listener, as it does when a process is killed.
    const killed = await listenLink({ transport: "unix", path: `${path}.1` });
    await Deno.rename(`${path}.1`, path);
    killed.close();
    assert((await Deno.lstat(path)).isSocket);
    await withLink({ transport: "unix", path }, async (near, far) => {
      await near.send({ type: "replicaReady" });
      assertEquals(await far.next(5000), { type: "replicaReady" });
    });
  });
});

Deno.test("listenLink leaves a file alone that is no socket", async () => {
  await inDirectory(async (directory) => {
    const path = join(directory, "notes.txt");
    await Deno.writeTextFile(path, "precious");
    await assertRejects(() => listenLink({ transport: "unix", path }), LinkError, "in use");
    assertEquals(await Deno.readTextFile(path), "precious");
  });
});

Deno.test("connectLink says that nobody listens", async () => {
  const listener = await listenLink(TCP);
  const address = addressOf(listener);
  listener.close();
  await assertRejects(
    () => connectLink(address),
    LinkError,
    "Cannot connect to the standby at 127.",
  );
});

Deno.test("connectLink gives up on a host that does not answer", async () => {
  // Nobody accepts: once the backlog is full the system answers no further connection.
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0, tcpBacklog: 1 });
  const address = addressOf(listener);
  const opened: LinkConnection[] = [];
  try {
    const error = await assertRejects(async () => {
      while (opened.length < 16) opened.push(await connectLink(address, 200));
    }, LinkError);
    assert(error.message.endsWith(": no answer within 200 ms"), error.message);
  } finally {
    for (const connection of opened) connection.close();
    listener.close();
  }
});
