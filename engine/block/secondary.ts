/**
 * The secondary's side of a replicated disk in mode `colo`, over QMP.
 *
 * ```text
 *   device ── quorum ── replication ── active ── hidden ── disk <── NBD server <── the primary's writes
 *
 *   active   what the secondary VM itself has written since its last load
 *   hidden   what the disk had where the primary has written since: the replication driver puts it there
 * ```
 *
 * A load empties both, so that the VM sees what the primary has written. At a takeover QEMU writes both
 * back into the disk while the VM runs, and takes them out of the chain when it is through; what is left
 * is the quorum that a primary needs ({@linkcode dropOverlays}).
 *
 * Source: QEMU `docs/block-replication.txt`, `block/replication.c`.
 *
 * @module
 */

import type { BlockdevOptions } from "../qmp/mod.ts";
import {
  type BlockMonitor,
  diskNames,
  execute,
  type GuestDisk,
  moveDevice,
  orDiskError,
  requireNode,
  withPlaceholder,
} from "./monitor.ts";

/** A disk on a secondary. */
export interface SecondaryDisk extends GuestDisk {
  /** Empty qcow2 images of the disk's size: see `overlay.ts`. */
  readonly activePath: string;
  readonly hiddenPath: string;
}

/** The nodes above the disk, from the lowest on. */
export function secondaryNodes(disk: SecondaryDisk): readonly BlockdevOptions[] {
  const { active, hidden, replication, quorum } = diskNames(disk);
  const overlay = (name: string, filename: string, backing: string) => ({
    driver: "qcow2",
    "node-name": name,
    file: { driver: "file", filename },
    backing,
  });
  return [
    overlay(hidden, disk.hiddenPath, disk.node),
    overlay(active, disk.activePath, hidden),
    {
      driver: "replication",
      "node-name": replication,
      mode: "secondary",
      "top-id": quorum,
      file: active,
    },
    {
      driver: "quorum",
      "node-name": quorum,
      "vote-threshold": 1,
      "read-pattern": "fifo",
      children: [replication],
    },
  ];
}

/**
 * Put the nodes under the device of a VM that waits to be migrated to.
 *
 * @throws {DiskError} when QEMU cannot; the VM has its disk as before, and no node is left
 */
export async function prepareSecondaryDisk(
  monitor: BlockMonitor,
  disk: SecondaryDisk,
): Promise<void> {
  const { image } = await requireNode(monitor, disk.node);
  const nodes = secondaryNodes(disk);
  const move = {
    from: disk.node,
    to: diskNames(disk).quorum,
    make: () => addNodes(monitor, nodes),
    undo: () => removeNodes(monitor, nodes),
  };
  const sizeBytes = image["virtual-size"];
  const work = withPlaceholder(monitor, disk, sizeBytes, () => moveDevice(monitor, disk, move));
  await orDiskError(`prepare the disk ${disk.node} of the secondary`, work);
}

/** Undo it, as long as the VM does not run. */
export async function restoreSecondaryDisk(
  monitor: BlockMonitor,
  disk: SecondaryDisk,
): Promise<void> {
  const { image } = await requireNode(monitor, disk.node);
  const nodes = secondaryNodes(disk);
  const move = {
    from: diskNames(disk).quorum,
    to: disk.node,
    make: () => removeNodes(monitor, nodes),
    undo: () => addNodes(monitor, nodes),
  };
  const sizeBytes = image["virtual-size"];
  const work = withPlaceholder(monitor, disk, sizeBytes, () => moveDevice(monitor, disk, move));
  await orDiskError(`give the secondary its disk ${disk.node} back`, work);
}

/** Whether the VM has taken over, and all of its disk is where it was before there were overlays. */
export async function isMerged(monitor: BlockMonitor, disk: GuestDisk): Promise<boolean> {
  const { children } = await requireNode(monitor, diskNames(disk).replication);
  return children?.some((child) => child["node-name"] === disk.node) ?? false;
}

/** Forget the overlays of a disk that is merged; their files may be removed then. */
export async function dropOverlays(monitor: BlockMonitor, disk: GuestDisk): Promise<void> {
  const { active, hidden } = diskNames(disk);
  for (const node of [active, hidden]) {
    await execute(monitor, "blockdev-del", { "node-name": node });
  }
}

/**
 * Let the primary write to disks, under the names of their nodes.
 *
 * @param socketPath Where the NBD server listens
 * @throws {DiskError} when QEMU cannot; no server is left
 */
export async function startExports(
  monitor: BlockMonitor,
  socketPath: string,
  disks: readonly Pick<GuestDisk, "node">[],
): Promise<void> {
  const addr = { type: "unix", data: { path: socketPath } } as const;
  const what = "let the primary write to the disks";
  await orDiskError(what, execute(monitor, "nbd-server-start", { addr }));
  try {
    for (const disk of disks) {
      await orDiskError(
        what,
        execute(monitor, "block-export-add", {
          type: "nbd",
          id: diskNames(disk).export,
          "node-name": disk.node,
          name: disk.node,
          writable: true,
        }),
      );
    }
  } catch (error) {
    await execute(monitor, "nbd-server-stop", {});
    throw error;
  }
}

/** The primary is not to write any more: before a takeover. Whoever is connected is cut off. */
export async function stopExports(
  monitor: BlockMonitor,
  disks: readonly Pick<GuestDisk, "node">[],
): Promise<void> {
  // A QEMU that is about to take over is not given up because it is slow.
  const patiently = { timeoutMs: Infinity };
  for (const disk of disks) {
    const id = diskNames(disk).export;
    await execute(monitor, "block-export-del", { id, mode: "hard" }, patiently);
  }
  await execute(monitor, "nbd-server-stop", {}, patiently);
}

async function addNodes(monitor: BlockMonitor, nodes: readonly BlockdevOptions[]): Promise<void> {
  const added: BlockdevOptions[] = [];
  try {
    for (const options of nodes) {
      await execute(monitor, "blockdev-add", options);
      added.push(options);
    }
  } catch (error) {
    await removeNodes(monitor, added);
    throw error;
  }
}

async function removeNodes(
  monitor: BlockMonitor,
  nodes: readonly BlockdevOptions[],
): Promise<void> {
  for (const { "node-name": name = "" } of nodes.toReversed()) {
    await execute(monitor, "blockdev-del", { "node-name": name });
  }
}
