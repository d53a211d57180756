/**
 * `vm.toml`: a VM and how it is protected, as one of the two hosts needs it.
 *
 * ```toml
 * [vm]
 * name = "web1"                  # letters, digits, _ . -
 * machine = "pc"                 # pc, q35, or a versioned one; the same on both hosts
 * memory = "2GiB"                # or a number of MiB
 * cpus = 2
 * accel = "kvm"                  # kvm or tcg; chosen by itself when left out
 * kernel = "vmlinuz"             # kernel, initrd and append: to boot without a disk
 * initrd = "initrd.img"
 * append = "console=ttyS0"
 * console = "console.log"        # the file that serial output goes to
 * extraArgs = ["-device", "virtio-rng-pci"]
 *
 * [[vm.disks]]
 * path = "web1.qcow2"
 * format = "qcow2"               # raw or qcow2
 *
 * [[vm.nics]]
 * mac = "52:54:00:12:34:56"
 * netdev = "user,hostfwd=tcp:127.0.0.1:8080-:80"
 * model = "virtio-net-pci"
 * vnetHdr = false
 *
 * [replication]
 * mode = "colo"
 * period = 500                   # ms between checkpoints at the most
 * minInterval = 50               # ms between checkpoints at the least
 * peer = "127.0.0.1:7700"        # on the primary: where its standby listens
 * listen = "127.0.0.1:7700"      # on the standby
 *
 * [qemu]
 * path = "/opt/qemu/bin/qemu-system-x86_64"
 * ```
 *
 * Relative paths are taken from the directory of the file. Pure: whether files exist is not looked at.
 *
 * @module
 */

import { dirname, resolve } from "@std/path/mod.js";
import { parse, stringify } from "@std/toml/mod.js";
import { ConfigError } from "../errors.ts";
import { formatAddress, type LinkAddress, parseAddress } from "../link/address.ts";
import { Table } from "./table.ts";

/** The VM, as QEMU is to run it. */
export interface VmSection {
  readonly name: string;
  readonly machine: string;
  readonly memoryMiB: number;
  readonly cpus: number;
  readonly accel?: "tcg" | "kvm" | undefined;
  readonly kernel?: string | undefined;
  readonly initrd?: string | undefined;
  readonly append?: string | undefined;
  readonly console?: string | undefined;
  readonly extraArgs: readonly string[];
  readonly disks: readonly DiskSection[];
  readonly nics: readonly NicSection[];
}

/** One disk. */
export interface DiskSection {
  readonly path: string;
  readonly format: "raw" | "qcow2";
}

/** One network card. */
export interface NicSection {
  readonly mac: string;
  /** The value of QEMU's `-netdev` without an id. */
  readonly netdev: string;
  readonly model: string;
  readonly vnetHdr: boolean;
}

/** How the VM is protected. */
export interface ReplicationSection {
  readonly mode: "colo";
  readonly periodMs: number;
  readonly minIntervalMs: number;
  readonly peer?: LinkAddress | undefined;
  readonly listen?: LinkAddress | undefined;
}

/** A whole `vm.toml`. */
export interface VmConfig {
  /** The file it came from, for messages. */
  readonly path: string;
  readonly vm: VmSection;
  readonly replication: ReplicationSection;
  readonly qemuPath?: string | undefined;
}

const NAME = /^[a-zA-Z0-9_.-]{1,63}$/;
const MACHINE = /^[a-zA-Z0-9_.-]{1,63}$/;
const MAC = /^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$/;

/**
 * Read the text of a `vm.toml`.
 *
 * @param path Where it came from: named in messages, and relative paths are taken from its directory
 * @throws {ConfigError} One sentence that names file and key, and says what is allowed
 *
 * @example
 * ```ts
 * import { parseVmConfig } from "./vm_config.ts";
 *
 * const config = parseVmConfig('[vm]\nname = "a"\nmemory = 256\nkernel = "vmlinuz"', "/etc/a.toml");
 * if (!(config.vm.kernel === "/etc/vmlinuz" && config.replication.periodMs === 500)) throw new Error("not as expected");
 * ```
 */
export function parseVmConfig(text: string, path: string): VmConfig {
  let root: Table;
  try {
    root = new Table(parse(text), path, "");
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    throw new ConfigError(`Cannot read ${path}: it is no TOML: ${firstLine(error)}`);
  }
  const vm = readVm(root.table("vm"), dirname(path));
  const replication = readReplication(root.table("replication"));
  const qemu = root.table("qemu");
  const qemuPath = qemu.text("path");
  qemu.end();
  root.end();
  return {
    path,
    vm,
    replication,
    qemuPath: qemuPath === undefined ? undefined : resolve(dirname(path), qemuPath),
  };
}

function readVm(table: Table, directory: string): VmSection {
  const file = (key: string) => {
    const value = table.text(key);
    return value === undefined ? undefined : resolve(directory, value);
  };
  const vm: VmSection = {
    name: table.required("name", table.text("name", NAME, "1 to 63 letters, digits, _ . or -")),
    machine: table.text("machine", MACHINE, "a machine type such as pc or q35") ?? "pc",
    memoryMiB: table.required("memory", table.memoryMiB("memory", 16, 1024 * 1024)),
    cpus: table.integer("cpus", 1, 255) ?? 1,
    accel: table.choice("accel", ["tcg", "kvm"]),
    kernel: file("kernel"),
    initrd: file("initrd"),
    append: table.text("append"),
    console: file("console"),
    extraArgs: table.texts("extraArgs"),
    disks: table.tables("disks").map((disk) => readDisk(disk, directory)),
    nics: table.tables("nics").map(readNic),
  };
  if (vm.kernel === undefined) {
    if (vm.initrd !== undefined) table.fail("initrd", "needs vm.kernel as well");
    if (vm.append !== undefined) table.fail("append", "needs vm.kernel as well");
    if (vm.disks.length === 0) table.fail("kernel", "is missing: give vm.kernel or [[vm.disks]]");
  }
  table.end();
  return vm;
}

function readDisk(table: Table, directory: string): DiskSection {
  const path = resolve(directory, table.required("path", table.text("path")));
  const format = table.choice("format", ["raw", "qcow2"]) ?? "raw";
  table.end();
  return { path, format };
}

function readNic(table: Table): NicSection {
  const nic: NicSection = {
    mac: table.required("mac", table.text("mac", MAC, "six bytes such as 52:54:00:12:34:56")),
    netdev: table.required("netdev", table.text("netdev")),
    model: table.text("model") ?? "virtio-net-pci",
    vnetHdr: table.boolean("vnetHdr") ?? false,
  };
  table.end();
  return nic;
}

function readReplication(table: Table): ReplicationSection {
  const address = (key: string) => {
    const text = table.text(key);
    if (text === undefined) return undefined;
    try {
      return parseAddress(text);
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      return table.fail(key, `is wrong: ${error.message}`);
    }
  };
  const replication: ReplicationSection = {
    mode: table.choice("mode", ["colo"]) ?? "colo",
    periodMs: table.integer("period", 10, 600_000) ?? 500,
    minIntervalMs: table.integer("minInterval", 1, 600_000) ?? 50,
    peer: address("peer"),
    listen: address("listen"),
  };
  table.end();
  return replication;
}

/** The standby's address, which a primary needs. */
export function requirePeer({ path, replication }: VmConfig): LinkAddress {
  if (replication.peer !== undefined) return replication.peer;
  throw new ConfigError(
    `Cannot use ${path}: replication.peer is missing: say where the standby listens, such as "127.0.0.1:7700"`,
  );
}

/** The address to listen at, which a standby needs. */
export function requireListen({ path, replication }: VmConfig): LinkAddress {
  if (replication.listen !== undefined) return replication.listen;
  throw new ConfigError(
    `Cannot use ${path}: replication.listen is missing: say where to wait for the primary, such as "127.0.0.1:7700"`,
  );
}

/** The TOML text of a config: {@linkcode parseVmConfig} reads the same from it. */
export function formatVmConfig({ vm, replication, qemuPath }: VmConfig): string {
  const { memoryMiB, ...rest } = vm;
  const { mode, periodMs, minIntervalMs, peer, listen } = replication;
  return stringify({
    vm: present({ ...rest, memory: memoryMiB }),
    replication: present({
      mode,
      period: periodMs,
      minInterval: minIntervalMs,
      peer: peer && formatAddress(peer),
      listen: listen && formatAddress(listen),
    }),
    ...(qemuPath === undefined ? {} : { qemu: { path: qemuPath } }),
  });
}

function present(members: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined));
}

function firstLine(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).split("\n")[0] ?? "";
}
