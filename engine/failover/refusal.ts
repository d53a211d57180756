/**
 * Which primaries a standby does not serve, and what it tells them. Pure.
 *
 * @module
 */

import type { Introduction, Refusal } from "../link/mod.ts";
import type { SecondaryPhase } from "./secondary.ts";

/** The standby, as far as it is needed here. */
export interface StandbyState {
  /** What it would say of itself. */
  readonly own: Introduction;
  readonly phase: SecondaryPhase;
  /** Whether there is a third party, who knows engines by their names. */
  readonly hasThirdParty: boolean;
  /** It is being decided who runs the VM. */
  readonly isClaiming: boolean;
  /** Another primary is connected. */
  readonly isLinked: boolean;
}

/**
 * Why a primary is not served.
 *
 * @returns Nothing when it is; with a generation when the VM runs here, in that generation
 */
export function refusalOf(
  introduction: Introduction,
  standby: StandbyState,
): Refusal | undefined {
  const { own, phase } = standby;
  const { generation, holder } = own;
  if (phase === "promoted" || phase === "taking-over") {
    return { reason: "it runs the VM itself, since it took over", generation };
  }
  if (phase === "deciding" || standby.isClaiming) {
    return { reason: "it is being decided who runs the VM" };
  }
  if (standby.isLinked) return { reason: "another primary is connected to it" };
  // An engine that is about to start its VM asks, and is to find nothing changed by that.
  if (introduction.generation === 0) return { reason: "it does not run the VM" };
  if (introduction.holder === holder && standby.hasThirdParty) {
    return {
      reason: `both engines call themselves ${holder}, so the arbiter cannot tell them apart: ` +
        "give one host another name or its config another path",
    };
  }
  if (introduction.generation < generation) {
    return {
      reason: `it stands by for generation ${generation} of the VM, and this is generation ` +
        `${introduction.generation}: start the standby again if that is meant`,
    };
  }
  if (introduction.vmName !== own.vmName) {
    return { reason: `it stands by for VM "${own.vmName}", not "${introduction.vmName}"` };
  }
  if (introduction.mode !== own.mode) {
    return {
      reason: `its replication.mode is "${own.mode}", the primary's "${introduction.mode}": ` +
        "make them the same",
    };
  }
  const differs = (what: string, ours: number, theirs: number) => ({
    reason: `its VM has ${ours} ${what}, the primary's ${theirs}`,
  });
  if (introduction.memoryMiB !== own.memoryMiB) {
    return differs("MiB of memory", own.memoryMiB, introduction.memoryMiB);
  }
  if (introduction.nics !== own.nics) {
    return differs("network cards", own.nics, introduction.nics);
  }
  if (introduction.disks.length !== own.disks.length) {
    return differs("disks", own.disks.length, introduction.disks.length);
  }
  const other = own.disks.findIndex((sizeBytes, index) => sizeBytes !== introduction.disks[index]);
  if (other >= 0) {
    return {
      reason: `its disk ${other} has ${own.disks[other]} bytes, the primary's ` +
        `${introduction.disks[other]}: give both the same size`,
    };
  }
  return undefined;
}
