/**
 * What is left to be done with the disks of a VM that has taken over.
 *
 * @module
 */

import { dirname } from "@std/path/mod.js";
import {
  type BlockMonitor,
  blockNodes,
  diskNames,
  dropOverlays,
  type GuestDisk,
  isMerged,
} from "../block/mod.ts";
import type { Reporter } from "./report.ts";

const POLL_MS = 100;

/**
 * Wait until QEMU has written the overlays of disks into them, and remove them. Does nothing where there
 * are none.
 */
export async function mergeOverlays(
  monitor: BlockMonitor,
  disks: readonly GuestDisk[],
  report: Reporter,
): Promise<void> {
  for (const disk of disks) {
    const { active, hidden } = diskNames(disk);
    const nodes = await blockNodes(monitor);
    const paths = [active, hidden].flatMap((node) => nodes.get(node)?.image.filename ?? []);
    if (paths.length === 0) continue;
    const beganMs = performance.now();
    while (!await isMerged(monitor, disk)) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    await dropOverlays(monitor, disk);
    for (const path of paths) {
      await Deno.remove(path).catch(() => {});
      // Theirs was the directory.
      await Deno.remove(dirname(path)).catch(() => {});
    }
    report({
      event: "disk-merged",
      atMs: Date.now(),
      disk: disk.node,
      durationMs: performance.now() - beganMs,
    });
  }
}
