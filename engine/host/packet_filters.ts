/**
 * QEMU's net filters, which lead a network card's frames through this engine. They are added to a VM
 * that runs, in this order:
 *
 * ```text
 *  primary     mirror   netdev -> guest   a copy of each frame to `mirror`
 *              in       frames from `in` go on to the netdev
 *              out      guest -> netdev   each frame to `out` instead
 *  secondary   in       frames from `in` go on to the guest
 *              out      guest -> netdev   each frame to `out` instead
 *              rewrite  maps the TCP sequence numbers of the secondary's own connections
 * ```
 *
 * In front of a primary's stands the buffer of `inbound_buffer.ts`.
 *
 * A VM that has taken over has its `rewrite` still: its filters as a primary are inserted before that.
 *
 * On the way from the guest the filters are passed last one first: with `out` added before `in`, what
 * comes from `in` would go to `out` again, without end. `rewrite` stays after a takeover: connections
 * that it has begun to map would break.
 *
 * Sources: QEMU `net/filter-mirror.c`, `net/filter-rewriter.c`, `docs/system/qemu-colo.rst`.
 *
 * @module
 */

import type { QmpClient } from "../qmp/mod.ts";
import { StreamSocket } from "./stream_socket.ts";

/** A network card to be led through this engine. */
export interface FilteredNic {
  /** Id of its netdev. */
  readonly id: string;
  /** Whether its frames carry a vnet header. */
  readonly vnetHeader: boolean;
}

/** What a chardev is for. */
type Port = "mirror" | "in" | "out" | "late";

type FilterName = Port | "rewrite";

/** The monitor, as far as it is needed here. */
export type FilterMonitor = Pick<QmpClient, "execute">;

/** A connection to a chardev. */
export interface ChardevSocket {
  /** Whoever has it closes it. */
  readonly fd: number;
  /** Where another one can be had. */
  readonly path: string;
}

/** Sockets to a primary's filters. */
export interface PrimarySockets {
  /** What the guest is sent. */
  readonly mirror: ChardevSocket;
  /** What the guest sends. */
  readonly out: ChardevSocket;
  /** What leaves. */
  readonly in: ChardevSocket;
}

/** Sockets to a secondary's filters. */
export type SecondarySockets = Record<"in" | "out", ChardevSocket>;

/** Close what nobody has taken. */
export function closeSockets(sockets: readonly ChardevSocket[]): void {
  for (const { fd } of sockets) new StreamSocket(fd).close();
}

/**
 * Add a primary's filters, switched off: frames pass them by.
 *
 * @param directory For the sockets
 * @throws {QmpError} when QEMU does not take them; no socket is left open
 * @throws {QemuError} when QEMU's sockets cannot be connected to
 */
export async function addPrimaryFilters(
  monitor: FilterMonitor,
  nic: FilteredNic,
  directory: string,
): Promise<PrimarySockets> {
  const objects = await monitor.execute("qom-list", { path: "/objects" });
  const rewrite = filterId(nic, "rewrite");
  const place = objects.some(({ name }) => name === rewrite)
    ? { insert: "before", position: `id=${rewrite}` }
    : {};
  return await withChardevs(monitor, nic, directory, async (open) => {
    const sockets = {
      mirror: await open("mirror"),
      out: await open("out"),
      in: await open("in"),
    };
    await addFilter(monitor, nic, "mirror", {
      ...place,
      "qom-type": "filter-mirror",
      queue: "tx",
      outdev: chardevId(nic, "mirror"),
      status: "off",
    });
    // It takes nothing out of the guest's way, and so can stay switched on.
    await addFilter(monitor, nic, "in", {
      ...place,
      "qom-type": "filter-redirector",
      queue: "rx",
      indev: chardevId(nic, "in"),
    });
    await addFilter(monitor, nic, "out", {
      ...place,
      "qom-type": "filter-redirector",
      queue: "rx",
      outdev: chardevId(nic, "out"),
      status: "off",
    });
    return sockets;
  });
}

/** Lead a primary's frames through this engine, or past it. */
export async function switchPrimaryFilters(
  monitor: FilterMonitor,
  nic: FilteredNic,
  on: boolean,
): Promise<void> {
  for (const name of ["mirror", "out"] as const) {
    await monitor.execute("qom-set", {
      path: `/objects/${filterId(nic, name)}`,
      property: "status",
      value: on ? "on" : "off",
    });
  }
}

/**
 * Add a secondary's filters.
 *
 * @throws {QmpError} when QEMU does not take them; no socket is left open
 * @throws {QemuError} when QEMU's sockets cannot be connected to
 */
export async function addSecondaryFilters(
  monitor: FilterMonitor,
  nic: FilteredNic,
  directory: string,
): Promise<SecondarySockets> {
  return await withChardevs(monitor, nic, directory, async (open) => {
    const sockets = { in: await open("in"), out: await open("out") };
    await addFilter(monitor, nic, "in", {
      "qom-type": "filter-redirector",
      queue: "tx",
      indev: chardevId(nic, "in"),
    });
    await addFilter(monitor, nic, "out", {
      "qom-type": "filter-redirector",
      queue: "rx",
      outdev: chardevId(nic, "out"),
    });
    await addFilter(monitor, nic, "rewrite", { "qom-type": "filter-rewriter", queue: "all" });
    return sockets;
  });
}

/**
 * Have frames go on to the guest of a VM that runs, or to the netdev, as if they came from the other.
 *
 * @param records As far as QEMU takes them at once
 * @param directory For the socket
 * @throws {QmpError} when QEMU refuses
 * @throws {QemuError} when QEMU's socket cannot be connected to
 */
export async function passFrames(
  monitor: FilterMonitor,
  nic: FilteredNic,
  to: "guest" | "netdev",
  records: readonly Uint8Array[],
  directory: string,
): Promise<void> {
  if (records.length === 0) return;
  const socket = new StreamSocket((await openChardev(monitor, nic, "late", directory)).fd);
  try {
    await addFilter(monitor, nic, "late", {
      "qom-type": "filter-redirector",
      queue: to === "guest" ? "tx" : "rx",
      indev: chardevId(nic, "late"),
      // What a `rewrite` has mapped is not to pass it again, and what it is to map has to pass it.
      position: "head",
    });
    await socket.sendLast(records);
    await monitor.execute("object-del", { id: filterId(nic, "late") });
    await monitor.execute("chardev-remove", { id: chardevId(nic, "late") });
  } finally {
    socket.close();
  }
}

/** Give a secondary's network card its netdev: what the VM says from now on it says to the world. */
export async function openSecondaryFilters(
  monitor: FilterMonitor,
  nic: FilteredNic,
): Promise<void> {
  await monitor.execute("object-del", { id: filterId(nic, "out") });
}

/** Remove what {@linkcode openSecondaryFilters} has left, when the sockets are closed. */
export async function removeSecondaryFilters(
  monitor: FilterMonitor,
  nic: FilteredNic,
): Promise<void> {
  await monitor.execute("object-del", { id: filterId(nic, "in") });
  for (const name of ["out", "in"] as const) {
    await monitor.execute("chardev-remove", { id: chardevId(nic, name) });
  }
}

/**
 * Remove what an engine that has ended has left of its filters, so that frames are led nowhere.
 * `rewrite`, which a VM that took over has, stays.
 */
export async function removePrimaryFilters(
  monitor: FilterMonitor,
  nic: FilteredNic,
): Promise<void> {
  const ports = ["out", "mirror", "in", "late"] as const;
  const chardevs = new Set((await monitor.execute("query-chardev", {})).map(({ label }) => label));
  for (const port of ports.filter((port) => chardevs.has(chardevId(nic, port)))) {
    // It may be missing: the engine may have ended while it added them.
    await monitor.execute("object-del", { id: filterId(nic, port) }).catch(() => {});
    await monitor.execute("chardev-remove", { id: chardevId(nic, port) });
  }
}

/** Let the network know that the guest is here now. Times in milliseconds, as QEMU's own COLO has them. */
export async function announce(monitor: FilterMonitor): Promise<void> {
  await monitor.execute("announce-self", { initial: 50, max: 550, rounds: 5, step: 100 });
}

function filterId({ id }: FilteredNic, name: FilterName): string {
  return `colo-${id}-${name}`;
}

function chardevId({ id }: FilteredNic, port: Port): string {
  return `colo-${id}-${port}-socket`;
}

/** Add filters on chardevs that are connected to; when one cannot be added, no socket stays open. */
async function withChardevs<Sockets>(
  monitor: FilterMonitor,
  nic: FilteredNic,
  directory: string,
  add: (open: (port: Port) => Promise<ChardevSocket>) => Promise<Sockets>,
): Promise<Sockets> {
  const opened: ChardevSocket[] = [];
  try {
    return await add(async (port) => {
      const socket = await openChardev(monitor, nic, port, directory);
      opened.push(socket);
      return socket;
    });
  } catch (error) {
    closeSockets(opened);
    throw error;
  }
}

async function openChardev(
  monitor: FilterMonitor,
  nic: FilteredNic,
  port: Port,
  directory: string,
): Promise<ChardevSocket> {
  const path = `${directory}/${nic.id}-${port}-${crypto.randomUUID().slice(0, 8)}`;
  await monitor.execute("chardev-add", {
    id: chardevId(nic, port),
    backend: {
      type: "socket",
      data: { addr: { type: "unix", data: { path } }, server: true, wait: false },
    },
  });
  return { fd: StreamSocket.connect(path).fd, path };
}

async function addFilter(
  monitor: FilterMonitor,
  { id, vnetHeader }: FilteredNic,
  name: FilterName,
  properties: { readonly "qom-type": string; readonly [property: string]: unknown },
): Promise<void> {
  await monitor.execute("object-add", {
    ...properties,
    id: filterId({ id, vnetHeader }, name),
    netdev: id,
    vnet_hdr_support: vnetHeader,
  });
}
