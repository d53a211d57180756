import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import { diskNames } from "../../engine/block/monitor.ts";
import { OverlayWatch } from "../../engine/block/overlay.ts";
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
  cancelSync,
  changedBytes,
  copyChanges,
  finishMirror,
  forgetChanges,
  syncProgress,
  tightenMirror,
  trackChanges,
} from "../../engine/block/sync.ts";
import { DiskError } from "../../engine/errors.ts";
import { BlockGraph } from "./_block_graph.ts";

const disk = { node: "disk0", device: "disk0-device" };
const secondary = { ...disk, activePath: "/overlays/active", hiddenPath: "/overlays/hidden" };
const address = { socketPath: "/run/nbd", exportName: "disk0" };

Deno.test("a quorum is put over a disk while the guest stands still for three commands", async () => {
  const graph = new BlockGraph();
  await insertQuorum(graph, disk);
  assertEquals(graph.done, [
    "blockdev-add",
    ...["stop", "qom-set", "blockdev-add", "qom-set", "cont"],
    "blockdev-del",
  ]);
  assertEquals([graph.drive, graph.running], ["colo-disk0", true]);
  assertEquals([...graph.nodes.keys()], ["disk0", "colo-disk0"]);
  await insertQuorum(graph, disk);
  assertEquals(graph.done.length, 7);
});

Deno.test("a guest that stands still stays so while a quorum is put over its disk", async () => {
  const graph = new BlockGraph();
  graph.running = false;
  await insertQuorum(graph, disk);
  assertEquals([graph.drive, graph.running], ["colo-disk0", false]);
  assert(!graph.done.includes("cont"));
});

Deno.test("whichever command fails, the guest has its disk as before, and nothing is left", async () => {
  const works: readonly ((graph: BlockGraph) => Promise<void>)[] = [
    (graph) => insertQuorum(graph, disk),
    (graph) => prepareSecondaryDisk(graph, secondary),
  ];
  for (const [index, work] of works.entries()) {
    const whole = new BlockGraph();
    whole.running = index === 0;
    await work(whole);
    for (const [failAt, { name }] of whole.commands.entries()) {
      // The way back itself may fail, and then there is none.
      if (name === "cont" || name === "blockdev-del" || name.startsWith("query-")) continue;
      const graph = new BlockGraph();
      graph.running = index === 0;
      graph.failAt = failAt;
      const error = await assertRejects(() => work(graph), DiskError);
      assert(error.message.endsWith(": it is not to be"), error.message);
      assertEquals([graph.drive, graph.running], ["disk0", index === 0], `${name} ${failAt}`);
      assertEquals([...graph.nodes.keys()], ["disk0"]);
    }
  }
});

Deno.test("a disk that QEMU does not have cannot be replicated", async () => {
  const unknown = { node: "disk7", device: "disk7-device" };
  const error = await assertRejects(() => insertQuorum(new BlockGraph(), unknown), DiskError);
  assertEquals(
    error.message,
    "Cannot replicate the disk disk7: QEMU has no block node of that name",
  );
});

Deno.test("the secondary's disk is connected, attached, and given up again", async () => {
  const graph = new BlockGraph();
  await insertQuorum(graph, disk);
  await connectReplica(graph, disk, address);
  await attachReplica(graph, disk);
  const quorum = graph.nodes.get("colo-disk0")!;
  assertEquals([...quorum.children.values()], ["disk0", "colo-disk0-replica"]);
  await detachReplica(graph, disk);
  assertEquals([...quorum.children.values()], ["disk0"]);
  assertEquals([...graph.nodes.keys()], ["disk0", "colo-disk0"]);
  // However far it had come:
  await detachReplica(graph, disk);
  await connectReplica(graph, disk, address);
  await detachReplica(graph, disk);
  assertEquals([...graph.nodes.keys()], ["disk0", "colo-disk0"]);
});

Deno.test("disks of different sizes are told apart before anything is written", async () => {
  const graph = new BlockGraph();
  graph.replicaBytes = 2048;
  const error = await assertRejects(() => connectReplica(graph, disk, address), DiskError);
  assertEquals(
    error.message,
    "Cannot replicate the disk disk0: it has 1024 bytes, and the secondary's has 2048; " +
      "give both the same size",
  );
  assertEquals([...graph.nodes.keys()], ["disk0"]);
});

Deno.test("a secondary's disk lies under its overlays, and is given back", async () => {
  const graph = new BlockGraph();
  graph.running = false;
  await prepareSecondaryDisk(graph, secondary);
  assertEquals(graph.drive, "colo-disk0");
  const { active, hidden, replication } = diskNames(disk);
  assertEquals([...graph.nodes.keys()], ["disk0", hidden, active, replication, "colo-disk0"]);
  await restoreSecondaryDisk(graph, secondary);
  assertEquals(graph.drive, "disk0");
  assertEquals([...graph.nodes.keys()], ["disk0"]);
});

Deno.test("disks are exported under their names, all or none", async () => {
  const graph = new BlockGraph();
  await startExports(graph, "/run/nbd", [disk]);
  assertEquals([...graph.exports], ["colo-disk0-export"]);
  await stopExports(graph, [disk]);
  assertEquals([graph.hasServer, graph.exports.size], [false, 0]);
  await assertRejects(() => startExports(graph, "/run/nbd", [disk, { node: "no" }]), DiskError);
  assertEquals([graph.hasServer, graph.exports.size], [false, 0]);
});

Deno.test("a mirror is followed to its end", async () => {
  const graph = new BlockGraph();
  await beginMirror(graph, disk);
  assertEquals(await syncProgress(graph, disk), { doneBytes: 10, totalBytes: 20, isReady: true });
  await tightenMirror(graph, disk);
  await finishMirror(graph, disk);
  assertEquals(await syncProgress(graph, disk), undefined);
  await cancelSync(graph, disk);
  await beginMirror(graph, disk);
  await cancelSync(graph, disk);
  assertEquals(await syncProgress(graph, disk), undefined);
});

Deno.test("a copy that fails says why", async () => {
  const graph = new BlockGraph();
  graph.jobError = "Input/output error";
  for (const mirrored of [true, false]) {
    if (mirrored) await beginMirror(graph, disk);
    const error = await assertRejects(
      () => mirrored ? finishMirror(graph, disk) : copyChanges(graph, disk, "since"),
      DiskError,
    );
    assertEquals(error.message, "Cannot copy the disk disk0: Input/output error");
  }
});

Deno.test("changes are tracked, copied and forgotten", async () => {
  const graph = new BlockGraph();
  await insertQuorum(graph, disk);
  assertEquals(await changedBytes(graph, disk, "since"), undefined);
  await trackChanges(graph, disk, "since");
  graph.bitmaps.set("since", 65536);
  assertEquals(await changedBytes(graph, disk, "since"), 65536);
  await copyChanges(graph, disk, "since");
  assertEquals(await changedBytes(graph, disk, "since"), 0);
  await forgetChanges(graph, disk, "since");
  await assertRejects(() => forgetChanges(graph, disk, "since"), DiskError);
});

Deno.test("overlays that fill up are told of once, and again when there is room", () => {
  const watch = new OverlayWatch({ limitBytes: 2000 });
  const events = [0, 799, 800, 1200, 700, 601, 600, 0, 900].map((bytes) =>
    watch.update(bytes).map(({ type }) => type).join()
  );
  assertEquals(events, ["", "", "filling", "", "", "", "relieved", "", "filling"]);
  assert(watch.isFilling);
});
