/** Disks on real QEMU: what its NBD client and server say, and what the primary and secondary are told. */

import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import { DiskReplica } from "../../engine/block/disk_replica.ts";
import type { GuestDisk } from "../../engine/block/monitor.ts";
import { NbdConversation } from "../../engine/block/nbd_reader.ts";
import { createOverlays, overlayBytes } from "../../engine/block/overlay.ts";
import {
  prepareSecondaryDisk,
  restoreSecondaryDisk,
  startExports,
  stopExports,
} from "../../engine/block/secondary.ts";
import {
  attachReplica,
  connectReplica,
  detachReplica,
  insertQuorum,
} from "../../engine/block/setup.ts";
import {
  beginMirror,
  changedBytes,
  copyChanges,
  finishMirror,
  syncProgress,
  tightenMirror,
  trackChanges,
} from "../../engine/block/sync.ts";
import { DiskError } from "../../engine/errors.ts";
import { ImageDirectory } from "../../engine/host/image_directory.ts";
import { eventTimeMs, type QmpClient } from "../../engine/qmp/mod.ts";
import { qemuArgs } from "../../engine/vm/command_line.ts";
import { findQemu, qemuTool } from "../../engine/vm/mod.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import {
  assertSame,
  assertSameBytes,
  DISK_BYTES,
  DiskGuest,
  exportedDisk,
  GateRelay,
  MonitoredQemu,
  Place,
  ReplicaSocket,
} from "./_disk_rig.ts";
import { until } from "./_pair.ts";

const MIB = 1024 * 1024;

/** What takes milliseconds, on a host that has other work. */
const SOON_MS = 10_000;

function nbdNode(socketPath: string) {
  const server = { type: "unix", path: socketPath };
  const options = { driver: "nbd", "node-name": "client", discard: "unmap" };
  return { ...options, server, export: "disk0" };
}

/** Copy a disk to its replica, but for what the guest writes. */
async function copyWhole(client: QmpClient, disk: GuestDisk): Promise<void> {
  await beginMirror(client, disk);
  const isReady = async () => {
    const progress = await syncProgress(client, disk);
    assert(progress !== undefined, "the copy has failed");
    return progress.isReady;
  };
  await until(isReady, 30_000, "the disk is copied");
}

/** How long the guest stood still while something was done. */
async function pauseOf(client: QmpClient, work: () => Promise<void>): Promise<number> {
  const times: Record<string, number> = {};
  const unsubscribe = client.onAny((event) => times[event.event] = eventTimeMs(event));
  try {
    await work();
    await until(() => "RESUME" in times, 1000, "the guest runs again");
    return times["RESUME"]! - times["STOP"]!;
  } finally {
    unsubscribe();
  }
}

Deno.test("what a real client and a real server say is understood by the gate between them", async () => {
  await using place = new Place();
  const server = await exportedDisk(place, "server");
  const relay = place.use(new GateRelay(place.path("relay"), server.socketPath));
  const conversation = new NbdConversation();
  const kinds = new Set<string>();
  relay.onBytes = (way, bytes) => {
    if (way === "toServer") {
      for (const piece of conversation.fromClient(bytes)) {
        kinds.add(piece.type === "request" ? `command ${piece.request.command}` : piece.type);
      }
    } else if (way === "toClient") conversation.fromServer(bytes);
  };
  const client = await MonitoredQemu.bare(place, "client");
  await client.client.execute("blockdev-add", nbdNode(place.path("relay")));
  await client.io("client", "write -P 0x11 0 2M");
  await client.io("client", "write -z 1M 64k");
  await client.io("client", "discard 3M 1M");
  await client.io("client", "flush");
  await client.io("client", "read -P 0x11 0 1M");
  await client.io("client", "read -P 0 1M 64k");
  await client.io("client", "map");
  // A goodbye that has to wait for a request before it goes down with the client's connection.
  await until(() => relay.gate!.isIdle, SOON_MS, "the server has done all");
  await client.client.execute("blockdev-del", { "node-name": "client" });
  assertEquals(conversation.form, "extended");
  assertEquals(conversation.requests.size, 0);
  for (const kind of ["option", "command 0", "command 1", "command 3", "command 4", "command 6"]) {
    assert(kinds.has(kind), `${kind} was not said: ${[...kinds]}`);
  }
  const content = await Deno.readFile(server.path);
  assertEquals([content[0], content[MIB], content[MIB + 65536], content[2 * MIB]], [17, 0, 17, 0]);
});

Deno.test("writes of a real client wait in a gate, and the client does not", async () => {
  await using place = new Place();
  const server = await exportedDisk(place, "server");
  const relay = place.use(new GateRelay(place.path("relay"), server.socketPath));
  const client = await MonitoredQemu.bare(place, "client");
  await client.client.execute("blockdev-add", nbdNode(place.path("relay")));
  await client.io("client", "write -P 1 0 1M");
  await until(() => relay.gate!.isIdle, SOON_MS, "the server has the first");
  relay.checkpoint(1);
  await client.io("client", "write -P 2 0 1M");
  assert(relay.gate!.heldBytes > MIB, "the gate holds the write");
  const firstByte = async () => (await Deno.readFile(server.path))[0];
  assertEquals(await firstByte(), 1);
  relay.loaded(1);
  await until(() => relay.gate!.isIdle, SOON_MS, "the server has all");
  assertEquals(await firstByte(), 2);
  await client.io("client", "read -P 2 0 1M");
  await client.io("client", "flush");
  assertEquals(relay.said, []);
});

Deno.test("a running guest's disk is replicated, given up, and made equal again by what changed", async () => {
  await using place = new Place();
  const own = await place.disk("own", DISK_BYTES);
  const guest = await DiskGuest.boot(place, own);
  const { client, disk } = guest;
  const server = await exportedDisk(place, "secondary");
  const relay = place.use(new GateRelay(place.path("relay"), server.socketPath));
  const address = { socketPath: place.path("relay"), exportName: "disk0" };
  await guest.startWriting();
  await guest.writesOn(3);

  const insertedMs = await pauseOf(client, () => insertQuorum(client, disk));
  console.log(`quorum put over the disk: the guest stood still for ${insertedMs.toFixed(1)} ms`);
  assert(insertedMs < 100, `${insertedMs} ms`);
  await guest.writesOn(3);

  await connectReplica(client, disk, address);
  await copyWhole(client, disk);
  await tightenMirror(client, disk);
  await guest.writesOn(3);
  const attach = async (finish: () => Promise<void>) => {
    await client.execute("stop");
    await finish();
    await attachReplica(client, disk);
    await client.execute("cont");
  };
  const attachedMs = await pauseOf(client, () =>
    attach(async () => {
      await finishMirror(client, disk);
      await trackChanges(client, disk, "since");
    }));
  console.log(`replica attached: the guest stood still for ${attachedMs.toFixed(1)} ms`);
  assert(attachedMs < 300, `${attachedMs} ms`);
  await guest.writesOn(5);
  await client.execute("stop");
  await until(() => relay.gate!.isIdle, SOON_MS, "the secondary has all");
  await assertSame(own, server.path);
  await client.execute("cont");

  // A secondary that does not load is given up.
  relay.checkpoint(1);
  await until(() => relay.gate!.heldBytes > 0, 5000, "a write of the guest's waits");
  relay.cut();
  await detachReplica(client, disk);
  await guest.writesOn(10);
  await guest.write(4000, "alone");

  // It returns: only what has changed since goes over.
  const changed = await changedBytes(client, disk, "since");
  assert(
    changed !== undefined && changed > 0 && changed < 8 * MIB,
    `${changed} bytes have changed`,
  );
  relay.bytes.toServer = 0;
  relay.expect();
  await connectReplica(client, disk, address);
  for (let round = 0; round < 3; round++) await copyChanges(client, disk, "since");
  const returnedMs = await pauseOf(client, () => attach(() => copyChanges(client, disk, "since")));
  await guest.writesOn(5);
  console.log(
    `returned: ${changed} bytes had changed, ${relay.bytes.toServer} went over, of ${DISK_BYTES}; ` +
      `the guest stood still for ${returnedMs.toFixed(1)} ms`,
  );
  assert(relay.bytes.toServer < DISK_BYTES / 4);
  await client.execute("stop");
  await until(() => relay.gate!.isIdle, SOON_MS, "the secondary has all");
  await assertSame(own, server.path);
  await client.execute("cont");
  await guest.writesOn(3);
});

Deno.test("a guest whose writes wait on the secondary writes on, and can be stopped", async () => {
  await using place = new Place();
  const guest = await DiskGuest.boot(place, await place.disk("own", DISK_BYTES));
  const { client, disk } = guest;
  const server = await exportedDisk(place, "secondary");
  await insertQuorum(client, disk);
  await guest.startWriting();
  const socketPath = place.path("relay");
  const relay = place.use(new GateRelay(socketPath, server.socketPath));
  await connectReplica(client, disk, { socketPath, exportName: "disk0" });
  await copyWhole(client, disk);
  await client.execute("stop");
  await finishMirror(client, disk);
  await attachReplica(client, disk);
  await client.execute("cont");
  relay.checkpoint(1);
  await until(() => relay.gate!.heldBytes > 0, 5000, "a write of the guest's waits");
  await guest.writesOn(3);
  await client.execute("stop");
  assert(!relay.gate!.isIdle);
  relay.loaded(1);
  await client.execute("cont");
  await guest.writesOn(3);
  relay.cut();
  await detachReplica(client, disk);
});

Deno.test("a guest takes no harm from a copy whose target breaks", async () => {
  await using place = new Place();
  const own = await place.disk("own", DISK_BYTES);
  const guest = await DiskGuest.boot(place, own);
  const { client, disk } = guest;
  const server = await exportedDisk(place, "secondary");
  const relay = place.use(new GateRelay(place.path("relay"), server.socketPath));
  const address = { socketPath: place.path("relay"), exportName: "disk0" };
  await insertQuorum(client, disk);
  await guest.startWriting();
  await trackChanges(client, disk, "since");
  await guest.writesOn(3);
  await connectReplica(client, disk, address);
  relay.cut();
  const error = await assertRejects(() => copyChanges(client, disk, "since"), DiskError);
  console.log(error.message);
  await guest.writesOn(3);
  await detachReplica(client, disk);
  const changed = await changedBytes(client, disk, "since");
  assert(changed !== undefined && changed > 0, "what was not copied must stay in the bitmap");
});

Deno.test("a replica of ours takes a real guest's writes, and has them with their checkpoint", async () => {
  await using place = new Place();
  const own = await place.disk("own", DISK_BYTES);
  const guest = await DiskGuest.boot(place, own);
  const { client, disk } = guest;
  Deno.mkdirSync(place.path("state"));
  const copy = place.path("state/copy");
  await place.disk("state/copy", DISK_BYTES);
  using files = new ImageDirectory(place.path("state"));
  const replica = new DiskReplica({
    files,
    kernels: WasmKernels.create(),
    name: "disk0",
    target: files.open("copy")!,
  });
  const socket = place.use(new ReplicaSocket(place.path("nbd"), replica));
  replica.begin(1, true);
  await guest.startWriting();
  await insertQuorum(client, disk);
  await connectReplica(client, disk, { socketPath: place.path("nbd"), exportName: "disk0" });
  await copyWhole(client, disk);
  await client.execute("stop");
  await finishMirror(client, disk);
  await attachReplica(client, disk);
  await assertSame(own, copy);
  socket.do(replica.checkpoint(1));
  await client.execute("cont");
  let last: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  for (let epoch = 2; epoch < 6; epoch++) {
    await guest.writesOn(5);
    await client.execute("stop");
    last = await Deno.readFile(own);
    socket.do(replica.checkpoint(epoch));
    await client.execute("cont");
    await guest.writesOn(2);
    socket.do(replica.commit(epoch));
    assertSameBytes(await Deno.readFile(copy), last, `checkpoint ${epoch}`);
  }
  await guest.write(4001, "never-committed");
  assert(replica.heldBytes > 0);
  // A takeover; the guest, if it lives, goes on without.
  socket.do(replica.drop());
  assertSameBytes(await Deno.readFile(copy), last);
  assertEquals(socket.failures, []);
  await guest.writesOn(3);
  assertEquals(files.list().sort(), ["copy", "lock"]);
  Deno.removeSync(copy);
});

Deno.test("a secondary that waits is given its overlays, exports its disk, and is given it back", async () => {
  await using place = new Place();
  const path = await place.disk("disk", DISK_BYTES);
  const qemu = await findQemu({ role: "secondary" });
  const qmpPath = place.path("qmp");
  const args = qemuArgs({
    name: "secondary",
    machine: "pc",
    accel: qemu.accel,
    memoryMiB: 64,
    cpus: 1,
    disks: [{ path, format: "raw" }],
    nics: [],
    qmpPath,
    incoming: true,
    extraArgs: [],
  });
  const { client } = place.use(await MonitoredQemu.start(qemu, qmpPath, args));
  const disk = { node: "disk0", device: "disk0-device" };
  const tool = { command: qemuTool("qemu-img", qemu), env: qemu.env };
  const overlays = await createOverlays(tool, place.directory, disk, DISK_BYTES);
  await prepareSecondaryDisk(client, { ...disk, ...overlays });
  const [found] = await client.execute("query-block");
  assertEquals(found?.inserted?.["node-name"], "colo-disk0");
  assert(await overlayBytes(client, disk) < 2 * MIB);
  await startExports(client, place.path("nbd"), [disk]);
  const other = await MonitoredQemu.bare(place, "client");
  await other.client.execute("blockdev-add", nbdNode(place.path("nbd")));
  await other.io("client", "write -P 7 0 64k");
  await other.io("client", "flush");
  assertEquals((await Deno.readFile(path))[65535], 7);
  await stopExports(client, [disk]);
  await restoreSecondaryDisk(client, { ...disk, ...overlays });
  const [back] = await client.execute("query-block");
  assertEquals(back?.inserted?.["node-name"], "disk0");
  const refused = createOverlays(tool, place.path("nowhere"), disk, DISK_BYTES);
  const error = await assertRejects(() => refused, DiskError);
  assert(error.message.includes("make room there, or name another directory"), error.message);
});
