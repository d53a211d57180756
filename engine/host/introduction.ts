/**
 * What an engine says of itself before a link is made.
 *
 * @module
 */

import type { VmConfig } from "../config/mod.ts";
import type { Introduction } from "../link/mod.ts";
import { ENGINE_VERSION } from "../version.ts";

/**
 * @param share The generation that this side has a share in, and its engine's name
 * @param disks Sizes of the VM's disks in bytes
 */
export function introductionOf(
  { vm, replication }: VmConfig,
  share: Pick<Introduction, "generation" | "holder">,
  disks: readonly number[],
): Introduction {
  return {
    vmName: vm.name,
    memoryMiB: vm.memoryMiB,
    mode: replication.mode,
    nics: vm.nics.length,
    disks,
    generation: share.generation,
    holder: share.holder,
    engineVersion: ENGINE_VERSION,
  };
}
