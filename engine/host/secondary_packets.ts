/**
 * The network of a secondary VM that runs along: QEMU's filters, and the thread between them and the
 * link. Nothing else reaches or leaves the VM before it takes over.
 *
 * @module
 */

import { LinkError } from "../errors.ts";
import type { LinkConnection } from "../link/mod.ts";
import {
  addSecondaryFilters,
  closeSockets,
  type FilteredNic,
  type FilterMonitor,
  openSecondaryFilters,
  passFrames,
  removeSecondaryFilters,
  type SecondarySockets,
} from "./packet_filters.ts";
import { PacketThread } from "./packet_thread.ts";
import type { SecondaryCards } from "./secondary_cards.ts";

/** The network of one secondary VM. */
export class SecondaryPackets {
  readonly #monitor: FilterMonitor;
  readonly #nics: readonly FilteredNic[];
  readonly #directory: string;
  readonly #thread: PacketThread<SecondaryCards>;

  private constructor(
    monitor: FilterMonitor,
    nics: readonly FilteredNic[],
    directory: string,
    thread: PacketThread<SecondaryCards>,
  ) {
    this.#monitor = monitor;
    this.#nics = nics;
    this.#directory = directory;
    this.#thread = thread;
  }

  /**
   * Add the filters to a VM that does not run yet.
   *
   * @throws {QmpError} when QEMU does not take them
   */
  static async install(
    monitor: FilterMonitor,
    nics: readonly FilteredNic[],
    directory: string,
    notice: (text: string) => void,
  ): Promise<SecondaryPackets> {
    const sockets: SecondarySockets[] = [];
    try {
      for (const nic of nics) sockets.push(await addSecondaryFilters(monitor, nic, directory));
      const cards = nics.map((nic, index) => ({ nic, sockets: sockets[index]! }));
      const thread = await PacketThread.start<SecondaryCards>(
        { side: "secondary", options: { cards } },
        { notice },
        directory,
      );
      return new SecondaryPackets(monitor, nics, directory, thread);
    } catch (error) {
      for (const of of sockets) closeSockets(Object.values(of));
      throw error;
    }
  }

  /** The primary's engine, or nobody. */
  connect(link: LinkConnection | undefined): void {
    if (link === undefined) return this.#thread.disconnect();
    try {
      this.#thread.connect(link);
    } catch (error) {
      // It has broken already, which others notice.
      if (!(error instanceof LinkError)) throw error;
      link.close();
    }
  }

  /** The VM stands still and will go on from this checkpoint: all that it has said was said before. */
  stopped(epoch: number): void {
    this.#thread.call("stopped", epoch);
  }

  /** The VM runs from this checkpoint. */
  loaded(epoch: number): void {
    this.#thread.call("loaded", epoch);
  }

  /**
   * The VM has taken over, and the network finds it here: its network cards get what their netdevs have,
   * and what it said of late leaves, for the primary that was to let it go is dead.
   *
   * @throws {QmpError} when QEMU refuses
   */
  async release(): Promise<void> {
    for (const nic of this.#nics) await openSecondaryFilters(this.#monitor, nic);
    const late = this.#thread.call("takeLate");
    this.close();
    for (const [index, nic] of this.#nics.entries()) {
      const { said, received } = late[index]!;
      await passFrames(this.#monitor, nic, "netdev", said, this.#directory);
      await passFrames(this.#monitor, nic, "guest", received, this.#directory);
      await removeSecondaryFilters(this.#monitor, nic);
    }
  }

  /** Give up the sockets; QEMU is not told. */
  close(): void {
    this.#thread.close();
  }
}
