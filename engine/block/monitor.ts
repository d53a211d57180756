/**
 * What the block part needs of a QEMU monitor, and what it calls its nodes there.
 *
 * @module
 */

import { DiskError, messageOf } from "../errors.ts";
import type {
  BlockDeviceInfo,
  QmpArguments,
  QmpCommandName,
  QmpEventName,
  QmpEventOf,
  QmpReturns,
  QmpWaitOptions,
} from "../qmp/mod.ts";

/** A monitor, such as a `QmpClient`. */
export interface BlockMonitor {
  executeRaw(
    name: string,
    args?: Readonly<Record<string, unknown>>,
    options?: QmpWaitOptions,
  ): Promise<unknown>;
  waitFor<Name extends QmpEventName>(
    name: Name,
    predicate: (event: QmpEventOf<Name>) => boolean,
    options?: QmpWaitOptions,
  ): Promise<QmpEventOf<Name>>;
}

/** A disk of a guest's, as the command line has it. */
export interface GuestDisk {
  /** Its block node, such as `disk0`. */
  readonly node: string;
  /** The id of its device, such as `disk0-device`. */
  readonly device: string;
}

/** What the name of every primary's connection to a secondary's disk ends with. */
export const REPLICA_SUFFIX = "-replica";

/** What the nodes, exports and jobs of a disk are called. QEMU takes 31 characters. */
export function diskNames({ node }: Pick<GuestDisk, "node">) {
  const quorum = `colo-${node}`;
  return {
    /** What the guest's disk is on when it is replicated. */
    quorum,
    /** In the place of the disk for a moment. */
    placeholder: `${quorum}-none`,
    /** The primary's connection to the secondary's disk. */
    replica: `${quorum}${REPLICA_SUFFIX}`,
    /** The job that makes the secondary's disk equal. */
    job: `${quorum}-sync`,
    /** On the secondary: what its own VM writes, and what the primary's writes cover. */
    active: `${quorum}-active`,
    hidden: `${quorum}-hidden`,
    replication: `${quorum}-child`,
    export: `${quorum}-export`,
  } as const;
}

/** Execute a command that has a type. */
export async function execute<Name extends QmpCommandName>(
  monitor: BlockMonitor,
  name: Name,
  args: QmpArguments<Name>,
  options?: QmpWaitOptions,
): Promise<QmpReturns<Name>> {
  return await monitor.executeRaw(name, args, options) as QmpReturns<Name>;
}

/** Block nodes by their names. */
export async function blockNodes(
  monitor: BlockMonitor,
): Promise<ReadonlyMap<string, BlockDeviceInfo>> {
  const nodes = await execute(monitor, "query-named-block-nodes", { flat: true });
  return new Map(nodes.map((info) => [info["node-name"] ?? "", info]));
}

/**
 * A node of a disk's.
 *
 * @throws {DiskError} when there is none
 */
export async function requireNode(monitor: BlockMonitor, node: string): Promise<BlockDeviceInfo> {
  const info = (await blockNodes(monitor)).get(node);
  if (info !== undefined) return info;
  throw new DiskError(`Cannot replicate the disk ${node}: QEMU has no block node of that name`);
}

/** A node that a disk is to be moved to. */
export interface Move {
  readonly from: string;
  readonly to: string;
  /** Makes `to`, or what lies under it; QEMU does that only while no device uses it. */
  readonly make: () => Promise<void>;
  /** Undoes that. */
  readonly undo: () => Promise<void>;
}

/**
 * Change what a guest's disk is on, by way of the placeholder. The guest must stand still, or not run
 * yet.
 *
 * @throws what QEMU says; the disk is on `from` then, and nothing that was made is left
 */
export async function moveDevice(
  monitor: BlockMonitor,
  disk: GuestDisk,
  { from, to, make, undo }: Move,
): Promise<void> {
  const setDrive = async (value: string) => {
    const path = `/machine/peripheral/${disk.device}`;
    await execute(monitor, "qom-set", { path, property: "drive", value });
  };
  await setDrive(diskNames(disk).placeholder);
  try {
    await make();
    try {
      await setDrive(to);
    } catch (error) {
      await undo();
      throw error;
    }
  } catch (error) {
    await setDrive(from);
    throw error;
  }
}

/** Have the placeholder of {@linkcode moveDevice} while something is done. */
export async function withPlaceholder<T>(
  monitor: BlockMonitor,
  disk: GuestDisk,
  sizeBytes: number,
  work: () => Promise<T>,
): Promise<T> {
  const { placeholder } = diskNames(disk);
  const options = { driver: "null-co", "node-name": placeholder, size: sizeBytes };
  await execute(monitor, "blockdev-add", options);
  try {
    return await work();
  } finally {
    await execute(monitor, "blockdev-del", { "node-name": placeholder });
  }
}

/** Give an error of QEMU's the sentence of what it prevents. */
export async function orDiskError<T>(what: string, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (cause) {
    if (cause instanceof DiskError) throw cause;
    throw new DiskError(`Cannot ${what}: ${messageOf(cause)}`, { cause });
  }
}
