import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { QemuError } from "../../engine/errors.ts";
import { CLOSED, SocketPoller, UnixSocket } from "../../engine/host/unix_socket.ts";
import { WasmKernels } from "../../wasm/mod.ts";

async function withSockets(
  work: (near: UnixSocket, far: Deno.UnixConn) => Promise<void>,
): Promise<void> {
  const directory = Deno.makeTempDirSync();
  const path = `${directory}/socket`;
  using listener = Deno.listen({ transport: "unix", path });
  const near = new UnixSocket(path);
  using far = await listener.accept();
  try {
    await work(near, far);
  } finally {
    near.close();
    Deno.removeSync(directory, { recursive: true });
  }
}

async function until(holds: () => boolean): Promise<void> {
  for (const deadline = performance.now() + 5000; !holds();) {
    assert(performance.now() < deadline, "it takes too long");
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

Deno.test("UnixSocket tells nothing yet from nothing any more", async () => {
  await withSockets(async (near, far) => {
    const kernels = WasmKernels.create();
    const at = kernels.alloc(64);
    const space = kernels.bytes.subarray(at, at + 64);
    assertEquals(near.receive(space), 0);
    await far.write(Uint8Array.of(1, 2, 3));
    assertEquals(near.receive(space), 3);
    assertEquals([...kernels.bytes.subarray(at, at + 3)], [1, 2, 3]);
    assertEquals(near.receive(space), 0);
    far.closeWrite();
    await until(() => near.receive(space) === CLOSED);
    near.close();
    assertEquals(near.receive(space), CLOSED);
    assertEquals(near.send(space), 0);
  });
});

Deno.test("UnixSocket never waits for a peer that does not read", async () => {
  await withSockets(async (near, far) => {
    const bytes = new Uint8Array(64 * 1024);
    let sent = 0;
    for (let count; (count = near.send(bytes)) > 0;) sent += count;
    assert(sent > 0);
    const poller = new SocketPoller();
    let hasRoom = false;
    poller.watch(near, { readable() {}, writable: () => hasRoom = true, closed() {} });
    poller.awaitRoom(near);
    await new Promise((resolve) => setTimeout(resolve, 20));
    assertEquals(hasRoom, false);
    for (let read = 0; read < sent;) read += await far.read(bytes) ?? 0;
    await until(() => hasRoom);
    await poller.close();
  });
});

Deno.test("UnixSocket says so when nobody listens, or could", () => {
  assertThrows(() => new UnixSocket("/no/such/socket"), QemuError, "nobody listens there");
  assertThrows(() => new UnixSocket(`/${"x".repeat(108)}`), QemuError, "longer");
});

Deno.test("SocketPoller tells each watcher what there is, until it watches no more", async () => {
  await withSockets(async (near, far) => {
    const poller = new SocketPoller();
    const space = new Uint8Array(16);
    const heard: number[] = [];
    poller.watch(near, {
      readable: () => {
        const count = near.receive(space);
        if (count === CLOSED) poller.unwatch(near);
        heard.push(count);
      },
      writable() {},
      closed() {},
    });
    await far.write(Uint8Array.of(1, 2));
    await until(() => heard.length === 1);
    await far.write(Uint8Array.of(3));
    await until(() => heard.length === 2);
    far.closeWrite();
    await until(() => heard.length === 3);
    assertEquals(heard, [2, 1, CLOSED]);
    await poller.close();
    await poller.close();
  });
});

Deno.test("SocketPoller says of a socket that is only written to that its peer is gone, once", async () => {
  await withSockets(async (near, far) => {
    const poller = new SocketPoller();
    let closed = 0;
    poller.watch(near, { writable() {}, closed: () => closed++ });
    far.close();
    await until(() => closed > 0);
    await new Promise((resolve) => setTimeout(resolve, 20));
    assertEquals(closed, 1);
    await poller.close();
  });
});

Deno.test("SocketPoller ends the socket whose watcher throws, and no other", async () => {
  await withSockets(async (one, farOne) => {
    await withSockets(async (other, farOther) => {
      const poller = new SocketPoller();
      const space = new Uint8Array(16);
      const errors: unknown[] = [];
      let heard = 0;
      const fault = new Error("a fault");
      poller.watch(one, {
        readable: () => {
          one.receive(space);
          throw fault;
        },
        writable() {},
        closed: (error) => errors.push(error),
      });
      poller.watch(other, {
        readable: () => heard += other.receive(space),
        writable() {},
        closed() {},
      });
      await farOne.write(Uint8Array.of(1));
      await until(() => errors.length > 0);
      await farOther.write(Uint8Array.of(1, 2));
      await until(() => heard === 2);
      assertEquals(errors, [fault]);
      assertEquals(await farOne.read(space), null);
      await poller.close();
    });
  });
});
