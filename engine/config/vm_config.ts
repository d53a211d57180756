/**
 * `vm.toml`: a VM and how it is protected, as one of the two hosts needs it.
 *
 * ```toml
 * [vm]
 * name = "web1"                  # letters, digits, _ . -
 * machine = "pc"                 # pc, q35, pc-i440fx-9.2, pc-q35-9.2, ...; the same on both hosts
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
 * format = "qcow2"               # raw or qcow2: a qcow2 disk written to as raw is destroyed; on the standby a file of
 *                                # the same size, which is made equal to the primary's
 *
 * [[vm.nics]]
 * mac = "52:54:00:12:34:56"
 * netdev = "tap,ifname=tap0,script=no,downscript=no" # or "user,hostfwd=tcp:127.0.0.1:8080-:80"
 * model = "virtio-net-pci"
 * vnetHdr = false
 * bridge = "br0"                 # the tap named by ifname= is put into it: at the start, on a standby when it takes over
 * script = "plug.sh"             # called as: script install|failover|remove primary|secondary VM NIC TAP BRIDGE
 *
 * [replication]
 * mode = "colo"                  # colo: the standby's VM runs too; continuous: it waits, its memory is kept up to date
 * period = 500                   # ms between checkpoints that are loaded at the most; continuous: 100, or "adaptive"
 * microPeriod = 30               # ms between those that are only held; 0, as when left out: none
 * minInterval = 30               # ms between checkpoints at the least
 * pauseShare = 5                 # percent of time at the most that checkpoints may keep it paused; continuous: 50, adaptive: 10
 * inFlight = 1                   # checkpoints on their way to the standby at the most
 * revive = false                 # on the primary: a QEMU that crashes without a standby is started again from the last checkpoint
 * stateDirectory = "/dev/shm/x"  # on a continuous standby: where the guest's memory is kept; chosen by itself when left out
 * sharedMemory = true            # on a continuous standby: whether QEMU runs on that memory itself; if not it has its own
 * overlayDirectory = "/dev/shm/y" # on a colo standby: where its VM's own writes to the disks are kept; chosen by itself when left out
 * encryption = "none"            # only to take addresses of other hosts: the network is trusted
 * peer = "127.0.0.1:7700"        # on the primary: where its standby listens
 * listen = "127.0.0.1:7700"      # on the standby
 *
 * [network]
 * timeout = 200                  # ms that what the VM sends waits for the same from the standby's before a checkpoint is taken
 *
 * [[network.exclude]]            # what leaves at once, compared with nothing; what is left out may be anything
 * protocol = "udp"               # tcp, udp or icmp
 * source = "10.0.0.0/8"          # the guest's address; sourcePort, destination and destinationPort likewise
 * destinationPort = 123
 *
 * [failover]
 * arbiter = "etcd"               # manual: two hosts decide by themselves what is certain, and ask for the rest
 * endpoints = ["http://10.0.9.9:2379"] # of etcd
 * lease = 5000                   # ms that a host may run the VM alone without etcd
 * heartbeat = 100                # ms between two
 * timeout = 500                  # ms of silence that are a loss
 * fence = ["fence_ipmilan"]      # switches the other host off before its VM is taken over; fencePlug, fenceOptions, fenceDelay
 * fencePlug = "host-a"           # = what the device calls it, and further lines for the agent
 * fenceOptions = ["ip=10.0.9.2", "username=admin", "password=secret"]
 *
 * [store]
 * directory = "checkpoints"      # where `colo checkpoint save` puts them
 * retain = 10                    # how many are kept; all, as when left out
 * images = "/dev/shm/web1"       # where `colo restore --instant` has RAM images; beside the checkpoints
 *
 * [control]
 * socket = "web1.sock"           # where `colo checkpoint save` finds the running VM
 *
 * [qemu]
 * path = "/opt/qemu/bin/qemu-system-x86_64"
 * ```
 *
 * Relative paths, those of unix sockets too, are taken from the directory of the file. Pure: whether files exist is not looked at.
 *
 * @module
 */

import { dirname, resolve } from "@std/path/mod.js";
import { parse, stringify } from "@std/toml/mod.js";
import { ConfigError } from "../errors.ts";
import { DISKS_MAX, IN_FLIGHT_MAX } from "../limits.ts";
import { formatAddress, type LinkAddress, parseAddress } from "../link/address.ts";
import { findDuplicate } from "./duplicates.ts";
import {
  FAILOVER_KEYS,
  type FailoverSection,
  formatFailover,
  readFailover,
} from "./failover_section.ts";
import {
  formatNetwork,
  NETWORK_KEYS,
  type NetworkSection,
  readNetwork,
} from "./network_section.ts";
import { show, Table } from "./table.ts";

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
  /** The host's bridge that its tap belongs in. */
  readonly bridge?: string | undefined;
  /** A program that is called when the card is to be plugged in or out; see `host/nics.ts`. */
  readonly script?: string | undefined;
}

/**
 * `colo`: the secondary VM runs too. `continuous`: it does not, its memory is kept up to date and its QEMU
 * stands by.
 */
export type ReplicationMode = "colo" | "continuous";

/** How the VM is protected. */
export interface ReplicationSection {
  readonly mode: ReplicationMode;
  readonly periodMs: number;
  /** Between checkpoints that the secondary only holds, shorter than the period; 0: there are none. */
  readonly microPeriodMs: number;
  readonly minIntervalMs: number;
  /** The largest share of time that the guest may stand still for checkpoints, up to 1. */
  readonly pauseShareMax: number;
  /** Checkpoints that the standby has not committed yet, at most: more than 1 help where it is far away. */
  readonly inFlightMax: number;
  /** Whether a primary QEMU that crashes without a secondary is started again from the mirror. */
  readonly revive: boolean;
  /** Where a continuous secondary keeps the guest's memory; chosen by itself when left out. */
  readonly stateDirectory?: string | undefined;
  /** Whether the standby QEMU maps that memory, or has it fed to memory of its own. */
  readonly sharedMemory: boolean;
  /** Where a secondary that runs keeps what it writes to its disks; chosen by itself when left out. */
  readonly overlayDirectory?: string | undefined;
  /** "none": the link may leave this machine, and anyone on its way can read and change it. */
  readonly encryption?: "none" | undefined;
  readonly peer?: LinkAddress | undefined;
  readonly listen?: LinkAddress | undefined;
}

/** Where checkpoints are stored. */
export interface StoreSection {
  readonly directory: string;
  /** How many checkpoints are kept; all where it is left out. */
  readonly retain?: number | undefined;
  /** Where RAM images are, if not beside the checkpoints. */
  readonly images?: string | undefined;
}

/** A whole `vm.toml`. */
export interface VmConfig {
  /** The file it came from, for messages. */
  readonly path: string;
  readonly vm: VmSection;
  readonly replication: ReplicationSection;
  readonly network: NetworkSection;
  readonly failover: FailoverSection;
  readonly qemuPath?: string | undefined;
  readonly store?: StoreSection | undefined;
  /** Path of the control socket, if not the usual one. */
  readonly controlPath?: string | undefined;
}

const VM_KEYS = [
  "name",
  "machine",
  "memory",
  "cpus",
  "accel",
  "kernel",
  "initrd",
  "append",
  "console",
  "extraArgs",
  "disks",
  "nics",
] as const;
const STORE_KEYS = ["directory", "retain", "images"] as const;
const DISK_KEYS = ["path", "format"] as const;
const NIC_KEYS = ["mac", "netdev", "model", "vnetHdr", "bridge", "script"] as const;
const REPLICATION_KEYS = [
  "mode",
  "period",
  "microPeriod",
  "minInterval",
  "pauseShare",
  "inFlight",
  "revive",
  "stateDirectory",
  "sharedMemory",
  "overlayDirectory",
  "encryption",
  "peer",
  "listen",
] as const;

const NAME = /^[a-zA-Z0-9_.-]{1,63}$/;

/** QEMU's machines for x86, whose pages and device state the engine knows. */
const MACHINE = /^(pc|q35|pc-(i440fx|q35)-\d{1,3}(\.\d{1,3}){1,2})$/;

/** What Linux takes for the name of a network interface. */
const INTERFACE = /^[^\s/:]{1,15}$/;

const MAC = /^(?!00(:00){5})[0-9a-f][02468ace](:[0-9a-f]{2}){5}$/i;

const NETDEV = {
  // Two commas are one within a value.
  test: (text: string) =>
    /^[a-z][a-z0-9-]*(,|$)/.test(text) && !/,id=/.test(text.replaceAll(",,", "")),
};

/** What a unix socket's address holds, with the NUL behind it: `sun_path` of unix(7). */
const UNIX_PATH_BYTES_MAX = 107;

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
  const duplicate = findDuplicate(text);
  if (duplicate !== undefined) {
    const { name, lines } = duplicate;
    throw new ConfigError(
      `Cannot use ${path}: ${name} is given twice, on lines ${lines.join(" and ")}`,
    );
  }
  const root = new Table(parseToml(text, path), path, "", [
    "vm",
    "replication",
    "network",
    "failover",
    "qemu",
    "store",
    "control",
  ]);
  const directory = dirname(path);
  // All keys are looked at before any value is.
  const vmTable = root.table("vm", VM_KEYS);
  const replicationTable = root.table("replication", REPLICATION_KEYS);
  const failoverTable = root.table("failover", FAILOVER_KEYS);
  const networkTable = root.table("network", NETWORK_KEYS);
  const qemuTable = root.table("qemu", ["path"]);
  const storeTable = root.table("store", STORE_KEYS);
  const controlTable = root.table("control", ["socket"]);
  const vm = readVm(vmTable, directory);
  const replication = readReplication(replicationTable, directory);
  if (vm.disks.length > 0) checkForDisks(replicationTable, replication, vm.disks);
  const qemuPath = qemuTable.text("path");
  const store = readStore(storeTable, directory);
  const controlPath = controlTable.text("socket");
  return {
    path,
    vm,
    replication,
    network: readNetwork(networkTable),
    failover: readFailover(failoverTable),
    qemuPath: qemuPath === undefined ? undefined : resolve(directory, qemuPath),
    ...(store === undefined ? {} : { store }),
    ...(controlPath === undefined
      ? {}
      : { controlPath: readSocket(controlTable, resolve(directory, controlPath)) }),
  };
}

function parseToml(text: string, path: string): Readonly<Record<string, unknown>> {
  try {
    return parse(text);
  } catch (error) {
    throw new ConfigError(`Cannot read ${path}: it is no TOML: ${firstLine(error)}`);
  }
}

function readVm(table: Table<typeof VM_KEYS[number]>, directory: string): VmSection {
  const file = (key: "kernel" | "initrd" | "console") => {
    const value = table.text(key);
    return value === undefined ? undefined : resolve(directory, value);
  };
  const vm: VmSection = {
    name: table.required("name", table.text("name", NAME, "1 to 63 letters, digits, _ . or -")),
    machine: table.text(
      "machine",
      MACHINE,
      "pc, q35 or a version of them such as pc-i440fx-9.2 or pc-q35-9.2",
    ) ?? "pc",
    memoryMiB: table.required("memory", table.memoryMiB("memory", 16, 1024 * 1024)),
    cpus: table.integer("cpus", 1, 255) ?? 1,
    accel: table.choice("accel", ["tcg", "kvm"]),
    kernel: file("kernel"),
    initrd: file("initrd"),
    append: table.text("append"),
    console: file("console"),
    extraArgs: table.texts("extraArgs"),
    disks: readDisks(table, directory),
    nics: readNics(table.tables("nics", NIC_KEYS), directory),
  };
  if (vm.kernel === undefined) {
    if (vm.initrd !== undefined) table.fail("initrd", "needs vm.kernel as well");
    if (vm.append !== undefined) table.fail("append", "needs vm.kernel as well");
    if (vm.disks.length === 0) table.fail("kernel", "is missing: give vm.kernel or [[vm.disks]]");
  }
  return vm;
}

function readDisks(
  table: Table<typeof VM_KEYS[number]>,
  directory: string,
): readonly DiskSection[] {
  const disks = table.tables("disks", DISK_KEYS).map((disk) => readDisk(disk, directory));
  if (disks.length <= DISKS_MAX) return disks;
  return table.fail("disks", `has ${disks.length} disks, of which ${DISKS_MAX} can be replicated`);
}

function readDisk(table: Table<typeof DISK_KEYS[number]>, directory: string): DiskSection {
  return {
    path: resolve(directory, table.required("path", table.text("path"))),
    format: table.required(
      "format",
      table.choice("format", ["raw", "qcow2"]),
      ": say raw or qcow2, whichever the disk is: a qcow2 disk that is written to as raw is destroyed",
    ),
  };
}

type NicTable = Table<typeof NIC_KEYS[number]>;

function readNics(tables: readonly NicTable[], directory: string): readonly NicSection[] {
  const holders = new Map<string, string>();
  return tables.map((table) => {
    const nic = readNic(table, directory);
    const mac = nic.mac.toLowerCase();
    const holder = holders.get(mac);
    if (holder !== undefined) table.fail("mac", `is "${nic.mac}", which ${holder} has already`);
    holders.set(mac, table.name);
    return nic;
  });
}

function readNic(table: NicTable, directory: string): NicSection {
  const mac = table.text(
    "mac",
    MAC,
    "six bytes such as 52:54:00:12:34:56, not all zero, the first of them even (an odd one is a " +
      "group's)",
  );
  const netdev = table.text(
    "netdev",
    NETDEV,
    'what follows -netdev, without id=, such as "user" or "tap,ifname=tap0,script=no"',
  );
  const bridge = table.text("bridge", INTERFACE, "the name of a bridge, up to 15 characters");
  if (bridge !== undefined && !/^tap,(.*,)?ifname=/.test(netdev ?? "")) {
    table.fail("bridge", 'needs a tap with a name: netdev = "tap,ifname=...,script=no"');
  }
  const script = table.text("script");
  return {
    mac: table.required("mac", mac),
    netdev: table.required("netdev", netdev),
    model: table.text("model") ?? "virtio-net-pci",
    vnetHdr: table.boolean("vnetHdr") ?? false,
    ...(bridge === undefined ? {} : { bridge }),
    ...(script === undefined ? {} : { script: resolve(directory, script) }),
  };
}

/**
 * What is right for one mode is not for the other: in `continuous` every packet waits for a checkpoint, so
 * that one who sets a period means it, and the bound is but a safeguard.
 */
const DEFAULTS = {
  colo: { periodMs: 500, pausePercent: 5, otherPeriod: "" },
  continuous: { periodMs: 100, pausePercent: 50, otherPeriod: ' or "adaptive"' },
} as const;

/** Between two checkpoints: what waits for one waits so long at the most, and the guest runs meanwhile. */
const DEFAULT_MIN_INTERVAL_MS = 20;

/** As often as the bound on pauses allows, and not more often than this. */
const ADAPTIVE = "adaptive";
const ADAPTIVE_PERIOD_MS = 25;
const ADAPTIVE_PAUSE_PERCENT = 10;

function readReplication(
  table: Table<typeof REPLICATION_KEYS[number]>,
  directory: string,
): ReplicationSection {
  const mode = table.choice("mode", ["colo", "continuous"]) ?? "colo";
  const defaults = DEFAULTS[mode];
  const adaptive = mode === "continuous" && table.is("period", ADAPTIVE);
  const periodMs = adaptive
    ? ADAPTIVE_PERIOD_MS
    : table.integer("period", 10, 600_000, defaults.otherPeriod) ?? defaults.periodMs;
  const microPeriodMs = table.integer("microPeriod", 0, 600_000) ?? 0;
  if (mode === "continuous" && microPeriodMs > 0) {
    table.fail(
      "microPeriod",
      "has no use where nothing is loaded: leave it out in mode continuous",
    );
  }
  if (microPeriodMs >= periodMs) {
    table.fail(
      "microPeriod",
      `is ${microPeriodMs}, but must be shorter than replication.period, which is ${periodMs}`,
    );
  }
  const [shortest, shortestMs] = microPeriodMs > 0
    ? ["microPeriod", microPeriodMs] as const
    : ["period", periodMs] as const;
  const minIntervalMs = table.integer("minInterval", 1, 600_000) ??
    Math.min(DEFAULT_MIN_INTERVAL_MS, shortestMs);
  if (minIntervalMs > shortestMs) {
    table.fail(
      "minInterval",
      `is ${minIntervalMs}, but must not exceed replication.${shortest}, which is ${shortestMs}`,
    );
  }
  const stateDirectory = table.text("stateDirectory");
  const overlayDirectory = table.text("overlayDirectory");
  const encryption = table.choice("encryption", ["none"]);
  const reach = encryption === "none" ? "network" : "host";
  const address = (key: "peer" | "listen") => {
    const text = table.text(key);
    if (text === undefined) return undefined;
    const fail = (detail: string) => table.fail(key, `is ${show(text)}: ${detail}`);
    const address = parseAddress(text, fail, reach);
    if (address.transport === "tcp") return address;
    const path = resolve(directory, address.path);
    const { length } = new TextEncoder().encode(path);
    if (length > UNIX_PATH_BYTES_MAX) {
      fail(`its path has ${length} bytes, the system takes ${UNIX_PATH_BYTES_MAX}`);
    }
    return { transport: "unix", path } as const;
  };
  return {
    mode,
    periodMs,
    microPeriodMs,
    minIntervalMs,
    pauseShareMax: (table.integer("pauseShare", 1, 100) ??
      (adaptive ? ADAPTIVE_PAUSE_PERCENT : defaults.pausePercent)) / 100,
    inFlightMax: table.integer("inFlight", 1, IN_FLIGHT_MAX) ?? 1,
    revive: table.boolean("revive") ?? false,
    stateDirectory: stateDirectory === undefined ? undefined : resolve(directory, stateDirectory),
    sharedMemory: table.boolean("sharedMemory") ?? true,
    overlayDirectory: overlayDirectory && resolve(directory, overlayDirectory),
    encryption,
    peer: address("peer"),
    listen: address("listen"),
  };
}

/** What cannot be had together with disks. */
function checkForDisks(
  table: Table<typeof REPLICATION_KEYS[number]>,
  replication: ReplicationSection,
  disks: readonly DiskSection[],
) {
  if (replication.mode === "continuous" && disks.some(({ format }) => format !== "raw")) {
    table.fail(
      "mode",
      'is "continuous", which keeps raw disks alone: convert them, or use "colo"',
    );
  }
  if (replication.revive) {
    table.fail("revive", "would bring back memory that is older than [[vm.disks]]: leave it out");
  }
}

function readStore(
  table: Table<typeof STORE_KEYS[number]>,
  directory: string,
): StoreSection | undefined {
  const path = table.text("directory");
  const retain = table.integer("retain", 1, 1000);
  const images = table.text("images");
  if (path === undefined) {
    const key = retain !== undefined ? "retain" : images !== undefined ? "images" : undefined;
    return key === undefined ? undefined : table.fail(key, "needs store.directory as well");
  }
  return {
    directory: resolve(directory, path),
    ...(retain === undefined ? {} : { retain }),
    ...(images === undefined ? {} : { images: resolve(directory, images) }),
  };
}

function readSocket(table: Table<"socket">, path: string): string {
  const { length } = new TextEncoder().encode(path);
  if (length <= UNIX_PATH_BYTES_MAX) return path;
  return table.fail("socket", `has ${length} bytes, the system takes ${UNIX_PATH_BYTES_MAX}`);
}

/** The store, which saving and restoring need. */
export function requireStore({ path, store }: VmConfig): StoreSection {
  if (store !== undefined) return store;
  throw new ConfigError(
    `Cannot use ${path}: store.directory is missing: say where checkpoints are to be`,
  );
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
export function formatVmConfig(config: VmConfig): string {
  const { vm, replication, network, qemuPath, store, controlPath } = config;
  const networkTable = formatNetwork(network);
  const failoverTable = formatFailover(config.failover);
  const { memoryMiB, ...rest } = vm;
  const { mode, periodMs, microPeriodMs, minIntervalMs, pauseShareMax, inFlightMax } = replication;
  const { encryption, peer, listen, revive, stateDirectory, sharedMemory, overlayDirectory } =
    replication;
  return stringify({
    vm: present({ ...rest, memory: memoryMiB }),
    replication: present({
      mode,
      period: periodMs,
      microPeriod: microPeriodMs === 0 ? undefined : microPeriodMs,
      minInterval: minIntervalMs,
      pauseShare: Math.round(pauseShareMax * 100),
      inFlight: inFlightMax,
      revive,
      stateDirectory,
      sharedMemory,
      overlayDirectory,
      encryption,
      peer: peer && formatAddress(peer),
      listen: listen && formatAddress(listen),
    }),
    ...(networkTable === undefined ? {} : { network: networkTable }),
    ...(failoverTable === undefined ? {} : { failover: failoverTable }),
    ...(qemuPath === undefined ? {} : { qemu: { path: qemuPath } }),
    ...(store === undefined ? {} : { store: present({ ...store }) }),
    ...(controlPath === undefined ? {} : { control: { socket: controlPath } }),
  });
}

function present(members: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(members).filter(([, value]) => value !== undefined));
}

function firstLine(error: unknown): string {
  const [line = ""] = (error instanceof Error ? error.message : String(error)).split("\n");
  return line.replaceAll(/\p{Cc}/gu, " ");
}
