/** Disks of a protected VM that are full, missing or of another format, on real QEMU. */

import { assert, assertRejects } from "@std/assert/mod.js";
import { makeDisk } from "../../bench/rig/disk_guest.ts";
import { ColoError } from "../../engine/errors.ts";
import { type DiskHost, DiskLoad, DiskPair } from "./_disk_pair.ts";
import { sleep } from "./_pair.ts";

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
  spoil: (host: DiskHost) => Promise<void>,
): Promise<string> {
  await using pair = await DiskPair.start({ mode, starts: false });
  const host = command === "run" ? pair.a : pair.b;
  await spoil(host);
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
