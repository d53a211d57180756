/**
 * The peer: two QEMUs and nothing between them, as QEMU's own COLO works.
 *
 * @module
 */

import { startVm, type Vm } from "../../engine/host/start_vm.ts";
import type { Qemu } from "../../engine/vm/mod.ts";
import { type Checkpoint, type Contender, QmpPrimary, setCapabilities } from "./contender.ts";
import type { BenchGuest } from "./guest.ts";
import type { NetworkPair } from "./namespaces.ts";
import { CountingRelay } from "./relay.ts";
import { freshDirectory } from "./rig.ts";

/** How the two are joined. */
export interface NativeOptions {
  readonly periodMs: number;
  /** TCP between two namespaces; a unix socket when left out. */
  readonly network?: NetworkPair | undefined;
  /** Count bytes: only on a unix socket. */
  readonly counted?: boolean;
  readonly httpPort?: number | undefined;
}

const PORT = 7701;

/** A native COLO pair. */
export class NativePair implements Contender {
  readonly #vms: Vm[];
  readonly #primary: QmpPrimary;
  readonly #relay: CountingRelay | undefined;
  readonly #periodMs: number;
  #countedBytes = 0;

  private constructor(
    readonly seedMs: number,
    vms: Vm[],
    primary: QmpPrimary,
    relay: CountingRelay | undefined,
    periodMs: number,
  ) {
    this.#vms = vms;
    this.#primary = primary;
    this.#relay = relay;
    this.#periodMs = periodMs;
    this.#countedBytes = this.seedBytes = relay?.forwardBytes ?? 0;
  }

  /** What the migration put on the link, where it is counted. */
  readonly seedBytes: number;

  /** Start both and migrate; returns when the guest runs under COLO. */
  static async start(guest: BenchGuest, options: NativeOptions): Promise<NativePair> {
    const { rig } = guest;
    const { periodMs, network, counted = false, httpPort } = options;
    const directory = await freshDirectory(rig);
    const vms: Vm[] = [];
    let relay: CountingRelay | undefined;
    const start = async (side: "primary" | "secondary", qemu: Qemu) => {
      const vm = await startVm({
        config: guest.config(side === "primary" ? { side, httpPort } : { side }, directory),
        qemu,
        directory,
        incoming: side === "secondary",
        report: () => {},
      });
      vms.push(vm);
      return vm;
    };
    try {
      const secondary = await start("secondary", inside(rig.qemu, network?.secondary.prefix));
      await setCapabilities(secondary.qmp, rig);
      const path = `${directory}/in`;
      const listenAt = network === undefined
        ? `unix:${path}`
        : `tcp:${network.secondary.address}:${PORT}`;
      await secondary.qmp.execute("migrate-incoming", { uri: listenAt });
      if (counted) relay = new CountingRelay(`${directory}/relay`, path);
      const primary = await start("primary", inside(rig.qemu, network?.primary.prefix));
      const driven = new QmpPrimary(rig, primary.qmp);
      const { durationMs } = await driven.migrate(relay ? `unix:${relay.path}` : listenAt);
      return new NativePair(durationMs, vms, driven, relay, periodMs);
    } catch (error) {
      relay?.close();
      await Promise.all(vms.map((vm) => vm.stop()));
      throw error;
    }
  }

  take(count: number): Promise<Checkpoint[]> {
    return this.#primary.take(count, this.#periodMs, () => {
      if (this.#relay === undefined) return {};
      const bytes = this.#relay.forwardBytes - this.#countedBytes;
      this.#countedBytes = this.#relay.forwardBytes;
      return { bytes };
    });
  }

  async close(): Promise<void> {
    for (const vm of this.#vms) vm.process.kill();
    await Promise.all(this.#vms.map((vm) => vm.stop()));
    this.#relay?.close();
  }
}

/** A QEMU that runs behind a prefix. */
export function inside(qemu: Qemu, prefix: readonly string[] = []): Qemu {
  return { ...qemu, command: [...prefix, ...qemu.command] };
}
