/**
 * The network cards of a VM on this host: how they are called, and where they are plugged in.
 *
 * @module
 */

import type { NicSection, VmConfig } from "../config/mod.ts";
import { messageOf, QemuError } from "../errors.ts";
import { run } from "../vm/run.ts";
import type { FilteredNic } from "./packet_filters.ts";

/** Why a {@linkcode NicSection.script} is called. */
export type NicAction =
  /** A VM is about to run here, or to stand by. */
  | "install"
  /** The VM that stood by has taken over. */
  | "failover"
  /** The VM has ended. */
  | "remove";

/** What a VM is on this host. */
export type NicRole = "primary" | "secondary";

/** One card, with what the config says of it. */
interface Nic extends FilteredNic {
  readonly section: NicSection;
  /** The tap behind it, where there is one. */
  readonly tap: string | undefined;
}

/** The cards as QEMU's filters know them. */
export function filteredNics({ vm }: VmConfig): readonly FilteredNic[] {
  return nicsOf(vm.nics);
}

function nicsOf(sections: readonly NicSection[]): readonly Nic[] {
  return sections.map((section, index) => {
    const isTap = /^tap(,|$)/.test(section.netdev);
    return {
      id: `nic${index}`,
      // Only a tap carries the header.
      vnetHeader: isTap && section.vnetHdr,
      section,
      tap: isTap ? /(?:^|,)ifname=([^,]+)/.exec(section.netdev)?.[1] : undefined,
    };
  });
}

/**
 * Plugs a VM's taps into bridges, and calls the operator's scripts.
 *
 * ```text
 *              install               failover           remove
 *  primary     tap into its bridge                      script alone
 *  secondary   tap out of it         tap into it        script alone
 * ```
 *
 * A script is called as `script ACTION ROLE VM NIC TAP BRIDGE`, with `-` for what there is not.
 */
export class NicPlugs {
  readonly #vmName: string;
  readonly #nics: readonly Nic[];
  #installed: NicRole | undefined;

  constructor({ vm }: VmConfig) {
    this.#vmName = vm.name;
    this.#nics = nicsOf(vm.nics);
  }

  /**
   * Get the cards ready for a VM, whose taps exist by now.
   *
   * @throws {QemuError} when one cannot be plugged in, or its script fails
   */
  async install(role: NicRole): Promise<void> {
    this.#installed = role;
    for (const nic of this.#nics) {
      if (role === "primary") await plug(nic);
      else await unplug(nic);
      await this.#call(nic, "install", role);
    }
  }

  /**
   * The VM runs here now: the network is to find it here.
   *
   * @throws {QemuError} when a card cannot be plugged in, or its script fails; the others are done
   */
  async failOver(): Promise<void> {
    const results = await Promise.allSettled(this.#nics.map(async (nic) => {
      await plug(nic);
      await this.#call(nic, "failover", "secondary");
    }));
    const failed = results.find((result) => result.status === "rejected");
    if (failed !== undefined) throw failed.reason;
  }

  /** The VM has ended. What goes wrong is returned, for nobody can wait for it to be put right. */
  async remove(): Promise<readonly string[]> {
    const role = this.#installed;
    if (role === undefined) return [];
    this.#installed = undefined;
    const results = await Promise.allSettled(
      this.#nics.map((nic) => this.#call(nic, "remove", role)),
    );
    return results.filter((result) => result.status === "rejected").map(({ reason }) =>
      messageOf(reason)
    );
  }

  async #call({ id, section, tap }: Nic, action: NicAction, role: NicRole): Promise<void> {
    const { script, bridge } = section;
    if (script === undefined) return;
    await attempt(
      `run ${script} ${action}`,
      () => run(script, [action, role, this.#vmName, id, tap ?? "-", bridge ?? "-"]),
    );
  }
}

async function plug({ section: { bridge }, tap }: Nic): Promise<void> {
  if (bridge === undefined || tap === undefined) return;
  await attempt(
    `put ${tap} into bridge ${bridge}`,
    () => run("ip", ["link", "set", "dev", tap, "up", "master", bridge]),
  );
}

async function unplug({ section: { bridge }, tap }: Nic): Promise<void> {
  if (bridge === undefined || tap === undefined) return;
  // Mode "continuous" stands by without a QEMU, which may be the one to make it.
  if (!await exists(tap)) return;
  await attempt(
    `keep ${tap} out of bridge ${bridge}`,
    () => run("ip", ["link", "set", "dev", tap, "up", "nomaster"]),
  );
}

function exists(tap: string): Promise<boolean> {
  return run("ip", ["link", "show", "dev", tap]).then(() => true, () => false);
}

async function attempt(what: string, work: () => Promise<unknown>): Promise<void> {
  try {
    await work();
  } catch (error) {
    throw new QemuError(`Cannot ${what}: ${messageOf(error)}`);
  }
}
