import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { QemuError } from "../../engine/errors.ts";
import { CLOSED, Doorbell, SocketLoop, StreamSocket } from "../../engine/host/stream_socket.ts";
import { WasmKernels } from "../../wasm/mod.ts";

async function withSockets(
  work: (near: StreamSocket, far: Deno.UnixConn) => Promise<void>,
): Promise<void> {
  const directory = Deno.makeTempDirSync();
  const path = `${directory}/socket`;
  using listener = Deno.listen({ transport: "unix", path });
  const near = StreamSocket.connect(path);
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

Deno.test("StreamSocket tells nothing yet from nothing any more", async () => {
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

Deno.test("StreamSocket never waits for a peer that does not read", async () => {
  await withSockets(async (near, far) => {
    const bytes = new Uint8Array(64 * 1024);
    let sent = 0;
    for (let count; (count = near.send(bytes)) > 0;) sent += count;
    assert(sent > 0);
    const loop = new SocketLoop();
    let told = 0;
    loop.watch(near, { readable() {}, writable: () => told++, closed() {} });
    loop.awaitRoom(near);
    loop.turn(20);
    assertEquals(told, 0);
    for (let read = 0; read < sent;) read += await far.read(bytes) ?? 0;
    loop.turn(5000);
    assertEquals(told, 1);
    loop.turn(20);
    assertEquals(told, 1, "told once, for it was asked for once");
  });
});

Deno.test("StreamSocket says so when nobody listens, or could", () => {
  assertThrows(() => StreamSocket.connect("/no/such/socket"), QemuError, "nobody listens there");
  assertThrows(() => StreamSocket.connect(`/${"x".repeat(108)}`), QemuError, "longer");
});

for (const hostname of ["127.0.0.1", "::1"]) {
  Deno.test(`StreamSocket copies a connection of Deno's, of which that hears no more, ${hostname}`, async () => {
    using listener = Deno.listen({ hostname, port: 0 });
    const { port } = listener.addr;
    using other = await Deno.connect({ hostname, port });
    using otherEnd = await listener.accept();
    for (const isAccepted of [false, true]) {
      const connected = await Deno.connect({ hostname, port });
      const accepted = await listener.accept();
      const [given, far] = isAccepted ? [accepted, connected] : [connected, accepted];
      const copy = StreamSocket.copyOf(given);
      assert(copy !== undefined);
      const space = new Uint8Array(16);
      copy.send(Uint8Array.of(1, 2, 3));
      assertEquals([await far.read(space), ...space.subarray(0, 3)], [3, 1, 2, 3]);
      await far.write(Uint8Array.of(4));
      await until(() => copy.receive(space) === 1);
      await otherEnd.write(Uint8Array.of(5, 6));
      assertEquals(await other.read(space), 2, "the others are as they were");
      copy.close();
      given.close();
      assertEquals(await far.read(space), null);
      far.close();
    }
  });
}

Deno.test("StreamSocket cannot tell one unix connection from another", async () => {
  await withSockets((_near, far) => {
    assertEquals(StreamSocket.copyOf(far), undefined);
    return Promise.resolve();
  });
});

Deno.test("SocketLoop tells each watcher what there is, until it watches no more", async () => {
  await withSockets(async (near, far) => {
    const loop = new SocketLoop();
    const space = new Uint8Array(16);
    const heard: number[] = [];
    loop.watch(near, {
      readable: () => {
        const count = near.receive(space);
        if (count === CLOSED) loop.unwatch(near);
        heard.push(count);
      },
      closed() {},
    });
    await far.write(Uint8Array.of(1, 2));
    loop.turn(5000);
    await far.write(Uint8Array.of(3));
    loop.turn(5000);
    far.closeWrite();
    loop.turn(5000);
    loop.turn(10);
    assertEquals(heard, [2, 1, CLOSED]);
  });
});

Deno.test("SocketLoop says of a socket that is only written to that its peer is gone, once", async () => {
  await withSockets((near, far) => {
    const loop = new SocketLoop();
    let closed = 0;
    loop.watch(near, { writable() {}, closed: () => closed++ });
    far.close();
    for (let turns = 0; turns < 3; turns++) loop.turn(10);
    assertEquals(closed, 1);
    return Promise.resolve();
  });
});

Deno.test("SocketLoop ends the socket whose watcher throws, and no other", async () => {
  await withSockets(async (one, farOne) => {
    await withSockets(async (other, farOther) => {
      const loop = new SocketLoop();
      const space = new Uint8Array(16);
      const errors: unknown[] = [];
      let heard = 0;
      const fault = new Error("a fault");
      loop.watch(one, {
        readable: () => {
          one.receive(space);
          throw fault;
        },
        closed: (error) => errors.push(error),
      });
      loop.watch(other, { readable: () => heard += other.receive(space), closed() {} });
      await farOne.write(Uint8Array.of(1));
      loop.turn(5000);
      await farOther.write(Uint8Array.of(1, 2));
      loop.turn(5000);
      assertEquals([errors, heard], [[fault], 2]);
      assertEquals(await farOne.read(space), null);
    });
  });
});

Deno.test("SocketLoop hears the doorbell, calls at intervals, and stops when it is told to", () => {
  const loop = new SocketLoop();
  const bell = new Doorbell();
  let [rung, ticks] = [0, 0];
  loop.watch(bell, {
    readable: () => {
      bell.answer();
      rung++;
    },
    closed() {},
  });
  new Doorbell(bell.fd).ring();
  bell.ring();
  loop.turn(5000);
  loop.turn(0);
  assertEquals(rung, 1, "once for all that have rung");
  const sinceMs = performance.now();
  loop.every(5, () => ++ticks === 3 && loop.stop());
  loop.run();
  assertEquals(ticks, 3);
  assert(performance.now() - sinceMs >= 15);
  loop.every(0);
  loop.turn(10);
  assertEquals(ticks, 3);
  bell.close();
});
