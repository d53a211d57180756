/**
 * Keeps what comes for a guest from getting lost where a checkpoint stops it.
 *
 * QEMU drops what a card has not taken when its VM stops, "to guarantee we don't modify state later". A
 * frame that comes between the decision to stop and that moment is taken by no card any more: of a client
 * that sends and waits one frame of some sixty checkpoints was lost, and sent again after a second. So
 * what comes waits in a filter from before the decision until the VM stands still. From there it goes
 * into the card's queue, which QEMU empties when the VM runs again.
 *
 * ```text
 *   QEMU asks for a checkpoint    hold()    QEMU is let stop    the VM stands still    release()
 * ```
 *
 * Sources: QEMU `net/net.c` (`net_vm_change_state_handler`), `net/queue.c`, `net/filter-buffer.c`.
 *
 * @module
 */

import type { FilteredNic, FilterMonitor } from "./packet_filters.ts";

/**
 * QEMU lets go of what it holds this often even if nobody tells it to, so that the guest of an engine that
 * has died can be reached. In microseconds of the guest's time; from hold to stop is a millisecond or two.
 */
const LET_GO_US = 50_000;

/** The buffers of one VM's cards. */
export class InboundBuffer {
  readonly #monitor: FilterMonitor;
  readonly #ids: readonly string[];
  #isHolding = false;

  private constructor(monitor: FilterMonitor, nics: readonly FilteredNic[]) {
    this.#monitor = monitor;
    this.#ids = nics.map(bufferId);
  }

  /**
   * Add a buffer to each card, in front of all other filters: what is mirrored is what the guest gets.
   *
   * @throws {QmpError} when QEMU does not take them; frames go by those that it has taken
   */
  static async install(
    monitor: FilterMonitor,
    nics: readonly FilteredNic[],
  ): Promise<InboundBuffer> {
    for (const nic of nics) {
      await removeInboundBuffer(monitor, nic);
      await monitor.execute("object-add", {
        "qom-type": "filter-buffer",
        id: bufferId(nic),
        netdev: nic.id,
        queue: "tx",
        interval: LET_GO_US,
        position: "head",
        status: "off",
      });
    }
    return new InboundBuffer(monitor, nics);
  }

  /** Have what comes from now on wait. Never rejected: a QEMU that fails ends elsewhere. */
  async hold(): Promise<void> {
    this.#isHolding = true;
    await this.#switch("on");
  }

  /** Pass on what has waited, and what comes from now on. */
  release(): void {
    if (!this.#isHolding) return;
    this.#isHolding = false;
    this.#switch("off");
  }

  async #switch(value: "on" | "off"): Promise<void> {
    await Promise.allSettled(
      this.#ids.map((id) =>
        this.#monitor.execute("qom-set", { path: `/objects/${id}`, property: "status", value })
      ),
    );
  }
}

/** Remove the buffer that an engine has left, if it has. */
export async function removeInboundBuffer(
  monitor: FilterMonitor,
  nic: FilteredNic,
): Promise<void> {
  const id = bufferId(nic);
  const objects = await monitor.execute("qom-list", { path: "/objects" });
  if (objects.some(({ name }) => name === id)) await monitor.execute("object-del", { id });
}

function bufferId({ id }: FilteredNic): string {
  return `colo-${id}-buffer`;
}
