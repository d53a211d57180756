/** A disk under QEMU's own COLO, set up as the engine does: a takeover, and the next generation. */

import { assertEquals } from "@std/assert/mod.js";
import { createOverlays } from "../../engine/block/overlay.ts";
import {
  dropOverlays,
  isMerged,
  prepareSecondaryDisk,
  startExports,
  stopExports,
} from "../../engine/block/secondary.ts";
import { attachReplica, connectReplica, insertQuorum } from "../../engine/block/setup.ts";
import { beginMirror, finishMirror, syncProgress } from "../../engine/block/sync.ts";
import { beginPrimary, beginSecondary } from "../../engine/host/colo_qemu.ts";
import { findQemu, qemuTool } from "../../engine/vm/mod.ts";
import { assertSame, DISK_BYTES, DiskGuest, exportedDisk, Place } from "./_disk_rig.ts";
import { until } from "./_pair.ts";

/** Make a disk equal to that of a running guest, and keep it so. */
async function replicate({ client, disk }: DiskGuest, socketPath: string): Promise<void> {
  await insertQuorum(client, disk);
  await connectReplica(client, disk, { socketPath, exportName: disk.node });
  await beginMirror(client, disk);
  const isReady = async () => (await syncProgress(client, disk))?.isReady === true;
  await until(isReady, 30_000, "the disk is copied");
  await client.execute("stop");
  await finishMirror(client, disk);
  await attachReplica(client, disk);
  await client.execute("cont");
}

/** Each of the last numbers is in its block; whoever wrote them knows of the last one. */
async function assertHolds(path: string, last: number): Promise<void> {
  const content = await Deno.readFile(path);
  const wrong: string[] = [];
  for (let number = Math.max(1, last - 511); number <= last; number++) {
    const at = (number % 512) * 4096;
    const [found] = new TextDecoder().decode(content.subarray(at, at + 12)).split("\n");
    if (found !== String(number)) wrong.push(`${found} in place of ${number}`);
  }
  assertEquals(wrong, []);
}

Deno.test("a survivor's disk is that of its memory, merges by itself, and is replicated in its turn", async () => {
  await using place = new Place();
  const guest = await DiskGuest.boot(place, await place.disk("own", DISK_BYTES));
  const qemu = await findQemu({ role: "secondary" });
  const path = await place.disk("other", DISK_BYTES);
  const survivor = await DiskGuest.start(place, "survivor", path, true);
  const { disk } = survivor;
  const tool = { command: qemuTool("qemu-img", qemu), env: qemu.env };
  const overlays = await createOverlays(tool, place.directory, disk, DISK_BYTES);
  await prepareSecondaryDisk(survivor.client, { ...disk, ...overlays });
  await startExports(survivor.client, place.path("nbd"), [disk]);
  await beginSecondary(survivor.client, qemu.capabilities, place.path("migration"));

  await guest.startWriting();
  await replicate(guest, place.path("nbd"));
  let loads = 0;
  survivor.client.on("STOP", () => loads++);
  await beginPrimary(guest.client, qemu.capabilities, place.path("migration"));
  await guest.client.execute("migrate-set-parameters", { "x-checkpoint-delay": 400 });
  await until(() => loads >= 3, 60_000, "the secondary loads checkpoints");
  await guest.writesOn(10);

  guest.kill();
  await stopExports(survivor.client, [disk]);
  await survivor.client.execute("x-colo-lost-heartbeat");
  await survivor.writesOn(10);
  await until(() => isMerged(survivor.client, disk), 20_000, "the overlays are merged");
  await dropOverlays(survivor.client, disk);
  for (const overlay of Object.values(overlays)) await Deno.remove(overlay);
  await survivor.writesOn(10);

  const next = await exportedDisk(place, "next");
  await replicate(survivor, next.socketPath);
  await survivor.writesOn(10);
  const last = await survivor.stopWriting();
  await survivor.client.execute("stop");
  await assertHolds(path, last);
  await assertSame(path, next.path);
});
