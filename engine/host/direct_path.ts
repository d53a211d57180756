/**
 * Opens the network of a VM whose engine is dead.
 *
 * @module
 */

import type { VmConfig } from "../config/mod.ts";
import { releasePrimary } from "./colo_qemu.ts";
import { removeInboundBuffer } from "./inbound_buffer.ts";
import { filteredNics } from "./nics.ts";
import { removePrimaryFilters } from "./packet_filters.ts";
import type { RunRecord } from "./run_directory.ts";
import { connectMonitor } from "./start_vm.ts";

/**
 * Remove the filters that an engine has left, which lead frames to nobody.
 *
 * @throws {QemuError} when the VM's monitor does not answer
 */
export async function openDirectPath(config: VmConfig, record: RunRecord): Promise<void> {
  const monitor = await connectMonitor(record);
  try {
    // It may stand still for a checkpoint that nobody takes any more.
    await releasePrimary(monitor);
    for (const nic of filteredNics(config)) {
      await removePrimaryFilters(monitor, nic);
      await removeInboundBuffer(monitor, nic);
    }
  } finally {
    await monitor.close();
  }
}
