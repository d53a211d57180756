/**
 * What the benchmark runs on and with.
 *
 * @module
 */

import { ENGINE_VERSION } from "../engine/version.ts";
import { findQemu } from "../engine/vm/mod.ts";
import type { AreaName, HostFacts, Versions } from "./area.ts";

/** What an area is measured with. */
export async function readVersions(area: AreaName): Promise<Versions> {
  const qemu = area === "kernels" ? undefined : await findQemu({ role: "primary" });
  return {
    colo: ENGINE_VERSION,
    deno: Deno.version.deno,
    qemu: qemu === undefined ? null : `${qemu.version} (${qemu.accel})`,
  };
}

/** What it is measured on. */
export async function readHostFacts(): Promise<HostFacts> {
  const cpus = await Deno.readTextFile("/proc/cpuinfo").catch(() => "");
  return {
    cores: navigator.hardwareConcurrency,
    cpu: /^model name\s*:\s*(.+)$/m.exec(cpus)?.[1] ?? Deno.build.arch,
    memoryGiB: Math.round(Deno.systemMemoryInfo().total / 2 ** 30),
    kernel: Deno.osRelease(),
  };
}
