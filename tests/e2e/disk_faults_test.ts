/** Disks of a protected VM that are full, missing or of another format, on real QEMU. */

import { assert, assertRejects } from "@std/assert/mod.js";
import { makeDisk } from "../../bench/rig/disk_guest.ts";
import { ColoError } from "../../engine/errors.ts";
import { findQemu, qemuTool } from "../../engine/vm/mod.ts";
import { type DiskHost, DiskLoad, DiskPair } from "./_disk_pair.ts";
import { sleep, until } from "./_pair.ts";

const MIB = 1024 * 1024;

/** A file system in memory with room for so much, until the end of a test. */
class SmallRoom implements AsyncDisposable {
  readonly path = Deno.makeTempDirSync({ prefix: "colo-test-" });

  static async of(bytes: number): Promise<SmallRoom> {
    const room = new SmallRoom();
    await run("mount", "-t", "tmpfs", "-o", `size=${bytes}`, "colo-test", room.path);
    return room;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await run("umount", this.path);
    await Deno.remove(this.path);
  }
}

async function run(command: string, ...args: readonly string[]): Promise<void> {
  const { success, stderr } = await new Deno.Command(command, { args: [...args] }).output();
  assert(success, new TextDecoder().decode(stderr));
}

/** Texts of the notices that a host has reported. */
function notices({ engine }: DiskHost): string[] {
  return engine.reports.flatMap((report) => report.event === "notice" ? [report.text] : []);
}

/** How a host says that it protects nothing any more. */
async function isAlone(host: DiskHost): Promise<void> {
  const was = host.engine.reports.findLast(({ event }) => event === "primary");
  const isLater = ({ atMs }: { atMs: number }) => was === undefined || atMs >= was.atMs;
  await host.engine.waitFor(
    "primary",
    (report) => report.phase === "alone" && isLater(report) && !report.reason.includes("connected"),
    20_000,
  );
}

Deno.test("a pair with qcow2 disks loses nothing, one takeover after another", async () => {
  await using pair = await DiskPair.start({ format: "qcow2" });
  let [from, to] = [pair.a, pair.b];
  await from.protects();
  let load = await from.load();
  for (let kill = 0; kill < 2; kill++) {
    await sleep(1500);
    Deno.kill(from.qemuPid, "SIGKILL");
    await to.takesOver();
    await load.ended();
    assert(load.rows.size > 0 && load.sectors.size > 0);
    await from.engine.exited();
    const client = await to.client();
    await load.verify(client);
    from.start("standby");
    [from, to] = [to, from];
    load = new DiskLoad(client, await from.client(), load);
    await from.protects();
  }
  await sleep(1000);
  await load.stop();
  await load.verify(await from.client());
  await pair.assertSameImages();
});

Deno.test("overlays that fill up are said, and emptied by a checkpoint", async () => {
  // What a disk of 48 MiB can fill: an overlay of what the VM writes, one of what that takes the place of.
  await using room = await SmallRoom.of(104 * MIB);
  await using pair = await DiskPair.start({
    // No other checkpoint comes in time.
    periodMs: 60_000,
    replication: [`overlayDirectory = "${room.path}/overlays"`],
  });
  const { a, b } = pair;
  await a.protects();
  const client = await a.client();
  const isSaid = () => notices(b).some((text) => text.includes("fills up"));
  await client.ask("random 6000");
  await until(isSaid, 3000, "the standby says that its overlays fill up");
  const saidMs = b.engine.reports.findLast(({ event }) => event === "notice")!.atMs;
  await b.engine.waitFor("loaded", ({ atMs }) => atMs >= saidMs, 5000);
  const load = await a.load();
  await sleep(1500);
  const phases = a.engine.reports.flatMap((report) =>
    report.event === "primary" ? [report.phase] : []
  );
  assert(phases.at(-1) === "protected", phases.join());
  Deno.kill(a.qemuPid, "SIGKILL");
  await b.takesOver();
  await load.ended();
  await load.verify(await b.client());
});

for (const mode of ["colo", "continuous"] as const) {
  Deno.test(`a standby whose disk is full is given up, and the guest writes on, mode ${mode}`, async () => {
    await using room = await SmallRoom.of(24 * MIB);
    await using pair = await DiskPair.start({
      mode,
      prepare: async ({ b }) => {
        const { size } = await Deno.stat(b.imagePath(1));
        await Deno.remove(b.imagePath(1));
        await makeDisk(`${room.path}/disk`, size);
        await Deno.symlink(`${room.path}/disk`, b.imagePath(1));
      },
    });
    const { a, b } = pair;
    await a.protects();
    const client = await a.client();
    assert((await client.ask("sequential 40960", 60_000)).startsWith("done"));
    await isAlone(a);
    const load = await a.load();
    await sleep(1000);
    await load.stop();
    await load.verify(await a.client());
    const said = [...notices(a), ...notices(b)].filter((text) =>
      /no space|could not write/i.test(text)
    );
    console.log(said);
    assert(said.length > 0, [...notices(a), ...notices(b)].join("\n"));
    client.close();
  });
}

/** What a command that does not begin says, on a host whose second image is as `spoil` makes it. */
async function refusal(
  command: "run" | "standby",
  mode: "colo" | "continuous",
  spoil: (host: DiskHost) => Promise<AsyncDisposable | void>,
): Promise<string> {
  await using pair = await DiskPair.start({ mode, starts: false });
  const host = command === "run" ? pair.a : pair.b;
  await using _spoilt = await spoil(host) ?? undefined;
  host.start(command);
  const error = await assertRejects(
    () => host.engine.waitFor("primary", () => false, 30_000),
    ColoError,
  );
  assert(await host.engine.exited() !== 0);
  return error.message;
}

for (const command of ["run", "standby"] as const) {
  for (const mode of ["colo", "continuous"] as const) {
    Deno.test(`colo ${command} says which image is missing, mode ${mode}`, async () => {
      const said = await refusal(command, mode, (host) => Deno.remove(host.imagePath(1)));
      console.log(said);
      assert(/-1\.raw, which is no file/.test(said), said);
    });
  }
}

/** Somebody else who writes to the second image of a host. */
async function holderOf(host: DiskHost): Promise<AsyncDisposable> {
  const qemu = await findQemu({ role: "primary" });
  const [command = "", ...leading] = qemuTool("qemu-nbd", qemu);
  const socket = `${host.directory}/holder.sock`;
  const child = new Deno.Command(command, {
    args: [...leading, "-t", "-f", "raw", "-k", socket, host.imagePath(1)],
    env: qemu.env,
  }).spawn();
  const isThere = () => Deno.lstat(socket).then(() => true, () => false);
  await until(isThere, 5000, "the image is held");
  const holder = new AsyncDisposableStack();
  holder.defer(async () => {
    child.kill("SIGKILL");
    await child.status;
  });
  return holder;
}

for (
  const [command, mode] of [["run", "colo"], ["standby", "colo"], [
    "standby",
    "continuous",
  ]] as const
) {
  Deno.test(`colo ${command} says which image somebody else uses, mode ${mode}`, async () => {
    const said = await refusal(command, mode, holderOf);
    assert(/another process us.*-1\.raw|-1\.raw.*another process us/i.test(said), said);
  });
}

Deno.test("a standby whose disk has another size is told so, and the VM runs on alone", async () => {
  await using pair = await DiskPair.start({
    prepare: ({ b }) => Deno.truncate(b.imagePath(1), 32 * MIB),
  });
  const { a } = pair;
  const isSaid = () =>
    notices(a).some((text) => /its disk 1 has 33554432 bytes.*give both the same size/.test(text));
  await until(isSaid, 30_000, "the primary says why it has no standby");
  (await a.client()).close();
});
