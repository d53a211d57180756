/**
 * What this machine has and lacks for colo: the facts (`diagnose`), and the facts for people
 * (`formatDiagnosis`). Looks, changes nothing, fetches nothing.
 *
 * @module
 */

import { join } from "@std/path/mod.js";
import { type AcceleratorChoice, detectAccelerator } from "./accelerator.ts";
import { whyNoApt } from "./apt.ts";
import { cacheDirectory } from "./cache.ts";
import { examineQemu, QEMU_VARIABLE, type QemuSource, SYSTEM_QEMU } from "./find.ts";
import {
  hasPrivateQemu,
  type Launch,
  privateLaunch,
  privateQemuDirectory,
} from "./private_qemu.ts";
import { which } from "./run.ts";
import type { Accelerator, RoleVerdict, Suitability } from "./suitability.ts";

/** All that is known about a machine. */
export interface Diagnosis {
  readonly denoVersion: string;
  readonly cores: number;
  readonly memoryMiB: number;
  readonly memoryAvailableMiB: number;
  readonly accelerator: AcceleratorChoice;
  /** In the order in which they would be taken */
  readonly qemus: readonly QemuCandidate[];
  /** Whether packages can be fetched from Debian */
  readonly fetching: RoleVerdict;
  readonly cache: {
    readonly directory: string;
    readonly entries: readonly { readonly name: string; readonly sizeBytes: number }[];
  };
  readonly network: {
    /** Paths of the programs, null where they are missing */
    readonly ip: string | null;
    readonly tc: string | null;
    /** Whether tap devices can be made */
    readonly tap: RoleVerdict;
  };
}

/** A QEMU that is there, or was named and is not. */
export interface QemuCandidate {
  readonly source: QemuSource;
  readonly path: string;
  /** Absent when it does not answer */
  readonly version?: string;
  /** Absent when it does not answer */
  readonly suitability?: Suitability;
  /** Why it does not answer */
  readonly problem?: string;
}

/** What the user named. */
export interface DiagnoseOptions {
  readonly path?: string | undefined;
  readonly accel?: Accelerator | undefined;
}

/** The bit of the capability to change networks, in the kernel's capability masks. */
const CAP_NET_ADMIN_BIT = 12n;

/** Look at this machine. */
export async function diagnose(options: DiagnoseOptions = {}): Promise<Diagnosis> {
  const accelerator = await detectAccelerator(options.accel);
  const obstacle = await whyNoApt();
  const memory = Deno.systemMemoryInfo();
  return {
    denoVersion: Deno.version.deno,
    cores: navigator.hardwareConcurrency,
    memoryMiB: Math.round(memory.total / 2 ** 20),
    memoryAvailableMiB: Math.round(memory.available / 2 ** 20),
    accelerator,
    qemus: await findCandidates(options.path, accelerator.accel),
    fetching: obstacle === undefined
      ? { ok: true, reason: "apt-get, dpkg-deb and the Debian keyring are there" }
      : { ok: false, reason: obstacle },
    cache: { directory: cacheDirectory(), entries: await listCache() },
    network: {
      ip: await whichOrNull("ip"),
      tc: await whichOrNull("tc"),
      tap: await judgeTap(),
    },
  };
}

/** A diagnosis as text for people, with a line feed at its end. Pure. */
export function formatDiagnosis(diagnosis: Diagnosis): string {
  const { accelerator, cache, fetching, network } = diagnosis;
  return [
    `Deno         ${diagnosis.denoVersion}`,
    `machine      ${diagnosis.cores} cores, ${diagnosis.memoryMiB} MiB ` +
    `(${diagnosis.memoryAvailableMiB} MiB available)`,
    `accelerator  ${accelerator.accel}: ${accelerator.reason}`,
    ...(diagnosis.qemus.length === 0 ? ["QEMU         none found"] : []),
    ...diagnosis.qemus.flatMap(formatCandidate),
    `fetching     ${formatVerdict(fetching)}`,
    `cache        ${cache.directory}${cache.entries.length === 0 ? ": empty" : ""}`,
    ...cache.entries.map(({ name, sizeBytes }) =>
      `             ${name}: ${(sizeBytes / 2 ** 20).toFixed(1)} MiB`
    ),
    `network      ip: ${network.ip ?? "missing"}, tc: ${network.tc ?? "missing"}`,
    `tap devices  ${formatVerdict(network.tap)}`,
    `primary      ${summarize(diagnosis, "primary")}`,
    `secondary    ${summarize(diagnosis, "secondary")}`,
    "",
  ].join("\n");
}

function formatCandidate({ source, path, version, suitability, problem }: QemuCandidate): string[] {
  const name = `QEMU         ${version ?? "?"} (${source}) ${path}`;
  if (suitability === undefined) return [name, `             ${problem}`];
  return [
    name,
    `             primary: ${formatVerdict(suitability.primary)}`,
    `             secondary: ${formatVerdict(suitability.secondary)}`,
  ];
}

function formatVerdict({ ok, reason }: RoleVerdict): string {
  return `${ok ? "yes" : "no"}, ${reason}`;
}

/** What a run would do: a QEMU that was named is never replaced by another. */
function summarize({ qemus, fetching }: Diagnosis, role: "primary" | "secondary"): string {
  const named = qemus.find(({ source }) => source === "option" || source === "environment");
  const usable = named === undefined ? qemus : [named];
  const taken = usable.find(({ suitability }) => suitability?.[role].ok);
  if (taken !== undefined) return `runs with ${taken.path}`;
  if (named !== undefined) return `does not run: ${named.path} was named and cannot`;
  return fetching.ok
    ? "runs, after fetching QEMU once (about 45 MB)"
    : "does not run: install QEMU 11.1 or newer and name it with --qemu PATH or COLO_QEMU";
}

async function findCandidates(
  option: string | undefined,
  accel: Accelerator,
): Promise<QemuCandidate[]> {
  const environment = Deno.env.get(QEMU_VARIABLE);
  const system = await which(SYSTEM_QEMU);
  const prefix = privateQemuDirectory();
  const plain = (path: string): Launch => ({ command: [path], env: {} });
  return await Promise.all([
    ...(option === undefined ? [] : [examine(option, plain(option), "option", accel)]),
    ...(environment ? [examine(environment, plain(environment), "environment", accel)] : []),
    ...(system === undefined ? [] : [examine(system, plain(system), "system", accel)]),
    ...(await hasPrivateQemu() ? [examine(prefix, privateLaunch(prefix), "fetched", accel)] : []),
  ]);
}

async function examine(
  path: string,
  launch: Launch,
  source: QemuSource,
  accel: Accelerator,
): Promise<QemuCandidate> {
  try {
    const { qemu, suitability } = await examineQemu(launch, source, accel);
    return { source, path, version: qemu.version, suitability };
  } catch (error) {
    return { source, path, problem: error instanceof Error ? error.message : String(error) };
  }
}

async function judgeTap(): Promise<RoleVerdict> {
  try {
    (await Deno.open("/dev/net/tun", { read: true, write: true })).close();
  } catch {
    return { ok: false, reason: "/dev/net/tun cannot be opened for reading and writing" };
  }
  const status = await Deno.readTextFile("/proc/self/status");
  const mask = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)/m.exec(status)?.[1] ?? "0"}`);
  if ((mask >> CAP_NET_ADMIN_BIT & 1n) === 0n) {
    return {
      ok: false,
      reason: "making them needs root (CAP_NET_ADMIN); user networks need nothing",
    };
  }
  return { ok: true, reason: "/dev/net/tun opens and networks can be changed" };
}

async function listCache(): Promise<{ name: string; sizeBytes: number }[]> {
  const directory = cacheDirectory();
  const entries = await Array.fromAsync(Deno.readDir(directory)).catch(() => []);
  const folders = entries.filter((entry) => entry.isDirectory).map(({ name }) => name).sort();
  return await Promise.all(folders.map(async (name) => ({
    name,
    sizeBytes: await treeSizeBytes(join(directory, name)),
  })));
}

/** What vanishes while it is looked at counts nothing. */
async function treeSizeBytes(directory: string): Promise<number> {
  const entries = await Array.fromAsync(Deno.readDir(directory)).catch(() => []);
  const sizes = await Promise.all(entries.map((entry) => {
    const path = join(directory, entry.name);
    if (entry.isDirectory) return treeSizeBytes(path);
    return Deno.lstat(path).then((info) => info.size, () => 0);
  }));
  return sizes.reduce((sum, size) => sum + size, 0);
}

async function whichOrNull(name: string): Promise<string | null> {
  return await which(name) ?? await which(`/usr/sbin/${name}`) ?? null;
}
