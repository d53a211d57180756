/**
 * A guest with two disks that writes to the second: on its own, under QEMU's own COLO, and under ours.
 *
 * @module
 */

import {
  attachReplica,
  beginMirror,
  connectReplica,
  createOverlays,
  finishMirror,
  type GuestDisk,
  insertQuorum,
  prepareSecondaryDisk,
  startExports,
  syncProgress,
} from "../../engine/block/mod.ts";
import { EngineProcess } from "../../cli/demo/engine_process.ts";
import { freePort } from "../../cli/demo/session.ts";
import { parseVmConfig, type ReplicationMode } from "../../engine/config/mod.ts";
import { DiskCopyName } from "../../engine/host/disk_copy.ts";
import type { Report } from "../../engine/host/mod.ts";
import { startVm, type Vm } from "../../engine/host/start_vm.ts";
import type { DemoGuest } from "../../engine/vm/mod.ts";
import { qemuTool } from "../../engine/vm/mod.ts";
import { QmpPrimary, setCapabilities } from "./contender.ts";
import { DISK_PORT, DiskClient, makeDisk, prepareDiskGuest } from "./disk_guest.ts";
import { nativeFilters } from "./native_colo.ts";
import { freshDirectory, pause, type Rig, until } from "./rig.ts";

const DISK_BYTES = 256 * 1024 * 1024;
const DISKS: readonly GuestDisk[] = [0, 1].map((index) => ({
  node: `disk${index}`,
  device: `disk${index}-device`,
}));

const READY_MS = 60_000;

/** A primary remembers up to 10 s more than it must of what its disks were written. */
const SETTLED_MS = 12_000;

/** Whoever is measured. */
export interface DiskContender {
  readonly client: DiskClient;
  close(): Promise<void>;
}

/** One side of it: its images, config and port. */
class Side {
  readonly port = freePort();
  /** For QEMU, besides what the config says. */
  qemuArgs: readonly string[] = [];

  constructor(
    readonly directory: string,
    readonly name: "primary" | "secondary",
    readonly guest: DemoGuest,
    readonly replication: readonly string[],
  ) {}

  get tomlPath(): string {
    return `${this.directory}/${this.name}.toml`;
  }

  get toml(): string {
    const disks = DISKS.map(({ node }) => `${this.directory}/${this.name}-${node}.raw`);
    return [
      "[vm]",
      'name = "disks"',
      "memory = 128",
      `kernel = ${JSON.stringify(this.guest.kernelPath)}`,
      `initrd = ${JSON.stringify(this.guest.initrdPath)}`,
      `append = ${JSON.stringify(`${this.guest.append} colo.load=idle`)}`,
      `extraArgs = ${JSON.stringify(this.qemuArgs)}`,
      ...disks.flatMap((path) => ["[[vm.disks]]", `path = "${path}"`, 'format = "raw"']),
      "[[vm.nics]]",
      'mac = "52:54:00:c0:10:01"',
      `netdev = "user,restrict=on,hostfwd=tcp:127.0.0.1:${this.port}-:${DISK_PORT}"`,
      ...this.replication,
    ].join("\n");
  }

  async prepare(): Promise<void> {
    await Deno.writeTextFile(this.tomlPath, this.toml);
    for (const { path } of parseVmConfig(this.toml, this.tomlPath).vm.disks) {
      await makeDisk(path, DISK_BYTES);
    }
  }

  async start(rig: Rig, incoming: boolean): Promise<Vm> {
    return await startVm({
      config: parseVmConfig(this.toml, this.tomlPath),
      qemu: rig.qemu,
      directory: this.directory,
      incoming,
      report: () => {},
    });
  }

  async client({ signal }: Rig): Promise<DiskClient> {
    let client: DiskClient | undefined;
    const isUp = async () => {
      client = await DiskClient.connect(this.port).catch(() => undefined);
      const answer = await client?.ask("sectors 0", 3000).catch(() => undefined);
      if (answer === undefined) client?.close();
      return answer !== undefined;
    };
    await until(isUp, "the guest answers", READY_MS, signal);
    return client!;
  }
}

async function sides(
  rig: Rig,
  replication: (end: "peer" | "listen") => readonly string[] = () => [],
) {
  const directory = await freshDirectory(rig);
  const guest = await prepareDiskGuest(directory);
  const primary = new Side(directory, "primary", guest, replication("peer"));
  const secondary = new Side(directory, "secondary", guest, replication("listen"));
  await primary.prepare();
  await secondary.prepare();
  return { directory, primary, secondary };
}

/** A guest that nobody protects. */
export async function startUnprotected(rig: Rig): Promise<DiskContender> {
  const { primary } = await sides(rig);
  const vm = await primary.start(rig, false);
  return { client: await primary.client(rig), close: () => endAll([vm]) };
}

/**
 * QEMU's own COLO: the primary writes to the NBD server of the secondary, whose VM hears what the primary's
 * hears, and does what it does; `colo-compare` lets out what both say.
 */
export async function startNative(rig: Rig, periodMs: number): Promise<DiskContender> {
  const { directory, primary, secondary } = await sides(rig);
  const filters = nativeFilters((channel) => `path=${directory}/${channel}.sock`);
  primary.qemuArgs = filters.primary;
  secondary.qemuArgs = filters.secondary;
  const vms: Vm[] = [];
  try {
    const own = await primary.start(rig, false);
    vms.push(own);
    const other = await secondary.start(rig, true);
    vms.push(other);
    const tool = { command: qemuTool("qemu-img", rig.qemu), env: rig.qemu.env };
    const overlays = await Deno.makeTempDir({ dir: "/dev/shm", prefix: "colo-bench-" });
    for (const disk of DISKS) {
      const paths = await createOverlays(tool, overlays, disk, DISK_BYTES);
      await prepareSecondaryDisk(other.qmp, { ...disk, ...paths });
    }
    await startExports(other.qmp, `${directory}/nbd`, DISKS);
    await setCapabilities(other.qmp, rig);
    await other.qmp.execute("migrate-incoming", { uri: `unix:${directory}/in` });
    for (const disk of DISKS) {
      await insertQuorum(own.qmp, disk);
      await connectReplica(own.qmp, disk, {
        socketPath: `${directory}/nbd`,
        exportName: disk.node,
      });
      await beginMirror(own.qmp, disk);
      const isReady = async () => (await syncProgress(own.qmp, disk))?.isReady === true;
      await until(isReady, "a disk is copied", READY_MS, rig.signal);
    }
    await own.qmp.execute("stop");
    for (const disk of DISKS) {
      await finishMirror(own.qmp, disk);
      await attachReplica(own.qmp, disk);
    }
    await own.qmp.execute("cont");
    await new QmpPrimary(rig, own.qmp).migrate(`unix:${directory}/in`);
    await own.qmp.execute("migrate-set-parameters", { "x-checkpoint-delay": periodMs });
    // Alone the primary says nothing: all of it is compared.
    const client = await primary.client(rig);
    return {
      client,
      close: async () => {
        await endAll(vms);
        await Deno.remove(overlays, { recursive: true });
      },
    };
  } catch (error) {
    await endAll(vms);
    throw error;
  }
}

/** Ours: the two commands. */
export async function startOurs(
  rig: Rig,
  periodMs: number,
  mode: ReplicationMode,
): Promise<DiskContender> {
  const { primary, secondary } = await ourSides(rig, periodMs, mode);
  const standby = new EngineProcess(["standby", secondary.tomlPath]);
  const engine = new EngineProcess(["run", primary.tomlPath]);
  const close = async () => {
    await Promise.all([engine.stop(), standby.stop()]);
  };
  try {
    await engine.waitFor("primary", ({ phase }) => phase === "protected", READY_MS);
    return { client: await primary.client(rig), close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** What a standby is sent of the disks. */
export interface Returns {
  /** One that was away for a time, in which the guest has written a little. */
  readonly returnedBytes: number;
  /** One that has no copy of them. */
  readonly wholeBytes: number;
}

/** Have a standby go and come again. */
export async function measureReturns(
  rig: Rig,
  periodMs: number,
  awayMs: number,
): Promise<Returns> {
  const { primary, secondary } = await ourSides(rig, periodMs, "colo");
  let standby = new EngineProcess(["standby", secondary.tomlPath]);
  const engine = new EngineProcess(["run", primary.tomlPath]);
  const copyName = new DiskCopyName(parseVmConfig(secondary.toml, secondary.tomlPath));
  try {
    await engine.waitFor("primary", ({ phase }) => phase === "protected", READY_MS);
    const client = await primary.client(rig);
    await client.ask(`sequential ${DISK_BYTES / 1024}`, READY_MS);
    const comeAgain = async () => {
      const before = engine.reports.length;
      const isNew = (report: Report) => engine.reports.indexOf(report) >= before;
      standby = new EngineProcess(["standby", secondary.tomlPath]);
      const isProtected = (report: Report) =>
        report.event === "primary" && report.phase === "protected" && isNew(report);
      await engine.waitFor("primary", isProtected, READY_MS);
      return (await engine.waitFor("disks-synchronised", isNew, READY_MS)).wireBytes;
    };
    // Its copy is known, and what was written before it forgotten.
    await pause(SETTLED_MS, rig.signal);
    await standby.stop();
    await client.ask("random 500", READY_MS);
    await pause(awayMs, rig.signal);
    const returnedBytes = await comeAgain();
    await standby.stop();
    copyName.store("");
    const wholeBytes = await comeAgain();
    client.close();
    return { returnedBytes, wholeBytes };
  } finally {
    await Promise.all([engine.stop(), standby.stop()]);
    copyName.store("");
  }
}

async function ourSides(rig: Rig, periodMs: number, mode: ReplicationMode) {
  const port = freePort();
  return await sides(rig, (end) => [
    "[replication]",
    `mode = "${mode}"`,
    `period = ${periodMs}`,
    `${end} = "127.0.0.1:${port}"`,
  ]);
}

async function endAll(vms: readonly Vm[]): Promise<void> {
  for (const vm of vms) vm.process.kill();
  await Promise.all(vms.map((vm) => vm.stop()));
}
