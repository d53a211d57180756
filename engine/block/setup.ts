/**
 * The primary's side of a replicated disk, over QMP.
 *
 * ```text
 *   device ── quorum ─┬─ disk (the node that it had)         reads come from here
 *                     └─ nbd: replica                        writes go to both
 * ```
 *
 * The guest waits for both, and is told of an error only when both fail: the quorum's threshold is 1.
 * QEMU says `QUORUM_REPORT_BAD` when the replica fails; from then on it is no copy.
 *
 * The replica is attached as it is, without QEMU's `replication` driver: that one passes writes on only
 * when a checkpoint of COLO has begun after it was added, and the primary never leaves COLO here. All
 * that it does on a primary is to hide errors, which the quorum does as well.
 *
 * Source: QEMU `docs/COLO-FT.txt`, `block/quorum.c`, `block/replication.c`.
 *
 * @module
 */

import { DiskError } from "../errors.ts";
import {
  type BlockMonitor,
  blockNodes,
  diskNames,
  execute,
  type GuestDisk,
  moveDevice,
  orDiskError,
  requireNode,
  withPlaceholder,
} from "./monitor.ts";

/** Where the secondary's disk is to be found. */
export interface ReplicaAddress {
  /** A unix socket whose server speaks at once: while it does not, QEMU does nothing else. */
  readonly socketPath: string;
  readonly exportName: string;
}

/**
 * Put a quorum over a disk, unless it has one. A guest that runs stands still for some milliseconds.
 *
 * @throws {DiskError} when QEMU cannot; the guest has its disk as before, and runs if it did
 */
export async function insertQuorum(monitor: BlockMonitor, disk: GuestDisk): Promise<void> {
  const { quorum } = diskNames(disk);
  if ((await blockNodes(monitor)).has(quorum)) return;
  const { image } = await requireNode(monitor, disk.node);
  const { running } = await execute(monitor, "query-status", {});
  const options = {
    driver: "quorum",
    "node-name": quorum,
    "vote-threshold": 1,
    "read-pattern": "fifo",
    children: [disk.node],
  };
  const move = {
    from: disk.node,
    to: quorum,
    make: async () => {
      await execute(monitor, "blockdev-add", options);
    },
    undo: async () => {
      await execute(monitor, "blockdev-del", { "node-name": quorum });
    },
  };
  const work = withPlaceholder(monitor, disk, image["virtual-size"], async () => {
    if (running) await execute(monitor, "stop", {});
    try {
      await moveDevice(monitor, disk, move);
    } finally {
      if (running) await execute(monitor, "cont", {});
    }
  });
  await orDiskError(`prepare the disk ${disk.node} for replication`, work);
}

/**
 * Connect to the secondary's disk. The guest does not write to it yet.
 *
 * @throws {DiskError} when nothing answers there, or the disks' sizes differ; nothing is left then
 */
export async function connectReplica(
  monitor: BlockMonitor,
  disk: GuestDisk,
  { socketPath, exportName }: ReplicaAddress,
): Promise<void> {
  const { replica } = diskNames(disk);
  const options = {
    driver: "nbd",
    "node-name": replica,
    server: { type: "unix", path: socketPath },
    export: exportName,
  };
  await orDiskError(
    `reach the secondary's disk ${exportName}`,
    execute(monitor, "blockdev-add", options),
  );
  const nodes = await blockNodes(monitor);
  const [own, other] = [disk.node, replica].map((node) => nodes.get(node)?.image["virtual-size"]);
  if (own === other) return;
  await execute(monitor, "blockdev-del", { "node-name": replica });
  throw new DiskError(
    `Cannot replicate the disk ${disk.node}: it has ${own} bytes, and the secondary's has ${other}; ` +
      "give both the same size",
  );
}

/**
 * Have the guest write to the secondary's disk as well. That must be equal at this moment: see `sync.ts`.
 *
 * @throws {DiskError} when QEMU cannot; the guest has its disk as before
 */
export async function attachReplica(monitor: BlockMonitor, disk: GuestDisk): Promise<void> {
  const { quorum, replica } = diskNames(disk);
  await orDiskError(
    `replicate the disk ${disk.node}`,
    execute(monitor, "x-blockdev-change", { parent: quorum, node: replica }),
  );
}

/**
 * Go on without the secondary's disk, however far the connection to it has come. When the secondary is
 * lost, the connection must have been cut: QEMU waits here for the answers to what it has written.
 *
 * @throws {DiskError} when QEMU cannot
 */
export async function detachReplica(monitor: BlockMonitor, disk: GuestDisk): Promise<void> {
  const { quorum, replica } = diskNames(disk);
  await orDiskError(
    `give up the secondary's disk of ${disk.node}`,
    detach(monitor, quorum, replica),
  );
}

async function detach(monitor: BlockMonitor, quorum: string, replica: string): Promise<void> {
  const nodes = await blockNodes(monitor);
  const children = nodes.get(quorum)?.children ?? [];
  const child = children.find((child) => child["node-name"] === replica)?.child;
  if (child !== undefined) {
    await execute(monitor, "x-blockdev-change", { parent: quorum, child });
  }
  if (nodes.has(replica)) await execute(monitor, "blockdev-del", { "node-name": replica });
}
