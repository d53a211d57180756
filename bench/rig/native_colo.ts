/**
 * The peer, with a network: two QEMUs with net filters and `colo-compare`, and nothing else, joined as
 * QEMU's guide says.
 *
 * Source: QEMU, docs/system/qemu-colo.rst.
 *
 * @module
 */

import { startVm, type Vm } from "../../engine/host/start_vm.ts";
import { QmpPrimary, setCapabilities } from "./contender.ts";
import type { BenchGuest } from "./guest.ts";
import { GUEST, type Hosts } from "./hosts.ts";
import { inside } from "./native_pair.ts";
import { freshDirectory } from "./rig.ts";

const MIGRATION_PORT = 9998;

/** The id that the guest's first network card has on the command line. */
const NETDEV = "nic0";

const PORTS = { mirror: 9003, secondaryIn: 9004, primaryIn: 9001, out: 9005 } as const;

/** What the filters of the two and `colo-compare` say to each other, all of it to the primary. */
type Channel = keyof typeof PORTS;

/** Where a channel is, seen from one side: what QEMU is told of a socket. */
export type ChannelPlace = (channel: Channel, side: "primary" | "secondary") => string;

/** The network filters of both sides, as arguments of their QEMUs. */
export function nativeFilters(place: ChannelPlace): Record<"primary" | "secondary", string[]> {
  const listening = (id: string, channel: Channel) => [
    "-chardev",
    `socket,id=${id},${place(channel, "primary")},server=on,wait=off`,
  ];
  const connecting = (id: string, channel: Channel) => [
    "-chardev",
    `socket,id=${id},${place(channel, "primary")}`,
  ];
  const reconnecting = (id: string, channel: Channel) => [
    "-chardev",
    `socket,id=${id},${place(channel, "secondary")},reconnect-ms=1000`,
  ];
  return {
    // The order of the two redirectors matters: the other way round packets go round in a loop.
    primary: [
      ...listening("mirror0", "mirror"),
      ...listening("compare1", "secondaryIn"),
      ...listening("compare0", "primaryIn"),
      ...connecting("compare0-0", "primaryIn"),
      ...listening("compare_out", "out"),
      ...connecting("compare_out0", "out"),
      ...["-object", `filter-mirror,id=m0,netdev=${NETDEV},queue=tx,outdev=mirror0`],
      ...["-object", `filter-redirector,id=redire0,netdev=${NETDEV},queue=rx,indev=compare_out`],
      ...["-object", `filter-redirector,id=redire1,netdev=${NETDEV},queue=rx,outdev=compare0`],
      ...["-object", "iothread,id=iothread1"],
      "-object",
      "colo-compare,id=comp0,primary_in=compare0-0,secondary_in=compare1,outdev=compare_out0," +
      "iothread=iothread1",
    ],
    secondary: [
      ...reconnecting("red0", "mirror"),
      ...reconnecting("red1", "secondaryIn"),
      ...["-object", `filter-redirector,id=f1,netdev=${NETDEV},queue=tx,indev=red0`],
      ...["-object", `filter-redirector,id=f2,netdev=${NETDEV},queue=rx,outdev=red1`],
      ...["-object", `filter-rewriter,id=rew0,netdev=${NETDEV},queue=all`],
    ],
  };
}

/** A native COLO pair on two hosts. */
export class NativeColo {
  readonly #vms: readonly Vm[];

  private constructor(vms: readonly Vm[]) {
    this.#vms = vms;
  }

  /** Start both and migrate; returns when the guest runs under COLO. */
  static async start(guest: BenchGuest, hosts: Hosts, periodMs: number): Promise<NativeColo> {
    const { rig } = guest;
    const directory = await freshDirectory(rig);
    const vms: Vm[] = [];
    const start = async (side: "primary" | "secondary", qemuArgs: readonly string[]) => {
      const nic = [`netdev = "${GUEST.netdev}"`];
      const vm = await startVm({
        config: guest.config({ side, nic, qemuArgs }, directory),
        qemu: inside(rig.qemu, (side === "primary" ? hosts.a : hosts.b).prefix),
        directory,
        incoming: side === "secondary",
        report: () => {},
      });
      vms.push(vm);
      return vm;
    };
    const pair = new NativeColo(vms);
    const filters = nativeFilters((channel, side) =>
      `host=${side === "primary" ? "0.0.0.0" : hosts.a.address},port=${PORTS[channel]}`
    );
    try {
      const primary = await start("primary", filters.primary);
      const secondary = await start("secondary", filters.secondary);
      await setCapabilities(secondary.qmp, rig);
      await secondary.qmp.execute("migrate-incoming", { uri: `tcp:0.0.0.0:${MIGRATION_PORT}` });
      await new QmpPrimary(rig, primary.qmp).migrate(`tcp:${hosts.b.address}:${MIGRATION_PORT}`);
      await primary.qmp.execute("migrate-set-parameters", { "x-checkpoint-delay": periodMs });
      // The secondary's tap stays out: its VM hears what the primary's mirror says, and only that.
      await hosts.plug(hosts.a);
      return pair;
    } catch (error) {
      await pair.close();
      throw error;
    }
  }

  async close(): Promise<void> {
    for (const vm of this.#vms) vm.process.kill();
    await Promise.all(this.#vms.map((vm) => vm.stop()));
  }
}
