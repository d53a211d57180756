/**
 * QEMU 7.2 as Debian 12 has it, fetched once into the cache, in the way of the private QEMU 11.
 */

import { join } from "@std/path/mod.js";
import { openApt, unpackPackages, whyNoApt } from "../../engine/vm/apt.ts";
import { cacheDirectory, exists, makeOnce } from "../../engine/vm/cache.ts";
import type { Qemu } from "../../engine/vm/mod.ts";
import { type Launch, privateLaunch } from "../../engine/vm/private_qemu.ts";
import { probeQemu } from "../../engine/vm/probe.ts";

/** Debian 12 has its libraries in two trees, which Debian sid has put together. */
async function mergeTrees(prefix: string): Promise<void> {
  for (const name of ["lib", "lib64"]) {
    const [old, merged] = [join(prefix, name), join(prefix, "usr", name)];
    if (!await exists(old)) continue;
    await Deno.mkdir(merged, { recursive: true });
    const { success } = await new Deno.Command("cp", { args: ["-a", `${old}/.`, merged] }).output();
    if (!success) throw new Error(`cannot merge ${old} into ${merged}`);
  }
}

/** The QEMU, or why it cannot be had here. */
export async function qemuOfBookworm(): Promise<Qemu | string> {
  const prefix = join(cacheDirectory(), "qemu-bookworm-amd64");
  if (!await exists(prefix)) {
    const obstacle = await whyNoApt();
    if (obstacle !== undefined) return obstacle;
  }
  await makeOnce({
    target: prefix,
    what: "QEMU 7.2",
    progress: console.log,
    make: async (directory) => {
      const apt = await openApt(join(cacheDirectory(), "apt-bookworm-qemu"), "bookworm");
      const files = await apt.downloadClosure(["qemu-system-x86"], "QEMU 7.2");
      await unpackPackages(files, directory);
      await mergeTrees(directory);
      await apt.clear();
    },
  });
  const launch: Launch = privateLaunch(prefix);
  const { version } = await probeQemu(launch.command, launch.env);
  return { ...launch, version, accel: "tcg", source: "fetched", capabilities: ["x-colo"] };
}
