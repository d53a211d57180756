import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert/mod.js";
import { join } from "@std/path/mod.js";
import { LinkError, WireError } from "../../engine/errors.ts";
import { LINK_QUEUE_BYTES_MAX } from "../../engine/limits.ts";
import type { LinkAddress } from "../../engine/link/address.ts";
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
  const listener = listenLink(address);
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

async function overBoth(run: (address: LinkAddress) => Promise<void>): Promise<void> {
  await run(TCP);
  const directory = await Deno.makeTempDir({ prefix: "colo-link-" });
  try {
    await run({ transport: "unix", path: join(directory, "link.sock") });
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("LinkConnection carries messages both ways and in order, over TCP and unix", async () => {
  await overBoth((address) =>
    withLink(address, async (near, far) => {
      const sent: Message[] = [];
      for (let epoch = 0; epoch < 50; epoch++) {
        sent.push({ type: "pages", epoch, records: noise(epoch * 997) });
        sent.push({ type: "commit", epoch, pagesFrames: 1, pageBytes: epoch, deviceStateBytes: 1 });
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
      { length: 40 },
      (_, epoch) =>
        near.send({ type: "pages", epoch, records }).then(() => "taken", () => "refused"),
    );
    await new Promise((resolve) => setTimeout(resolve, 100));
    near.close();
    assert((await Promise.all(sends)).includes("refused"));
    await assertRejects(() => near.send({ type: "replicaReady" }), LinkError, "it was closed");
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

Deno.test("LinkConnection.receive drops a peer whose bytes are no frames", async () => {
  await withSockets(TCP, async (near, far) => {
    await far.write(new TextEncoder().encode("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"));
    await assertRejects(() => near.next(5000), WireError, 'not with "COLO"');
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

Deno.test("listenLink says what to do about an address in use", () => {
  const listener = listenLink(TCP);
  try {
    const address = addressOf(listener);
    assert(address.transport === "tcp");
    assertThrows(
      () => listenLink(address),
      LinkError,
      `127.0.0.1:${address.port}: the address is in use; ` +
        "choose another `replication.listen` or stop the other process",
    );
  } finally {
    listener.close();
  }
});

Deno.test("connectLink says that nobody listens", async () => {
  const listener = listenLink(TCP);
  const address = addressOf(listener);
  listener.close();
  await assertRejects(
    () => connectLink(address),
    LinkError,
    "Cannot connect to the standby at 127.",
  );
});
