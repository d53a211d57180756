/**
 * Making the secondary's disk equal to the primary's while the guest runs, over QMP.
 *
 * ```text
 *  the first time   connectReplica, beginMirror ... until it is ready ... tightenMirror,
 *                   then, while the guest stands still: finishMirror, attachReplica, trackChanges
 *  lost             detachReplica; the bitmap goes on
 *  returned         connectReplica, copyChanges until few are left,
 *                   then, while the guest stands still: copyChanges, attachReplica
 * ```
 *
 * A bitmap says what was written since it was begun. It must be older than the first write that the
 * secondary may lack after a failure; so while all goes well it is replaced from time to time: begin
 * another one, wait for a checkpoint that the secondary holds and a flush of its disk, remove the first.
 *
 * Source: QEMU `qapi/block-core.json`, `docs/interop/live-block-operations.rst`, `docs/interop/bitmaps.rst`.
 *
 * @module
 */

import { DiskError } from "../errors.ts";
import type { QmpWaitOptions } from "../qmp/mod.ts";
import {
  type BlockMonitor,
  blockNodes,
  diskNames,
  execute,
  type GuestDisk,
  orDiskError,
} from "./monitor.ts";

/** How far a copy has come. */
export interface SyncProgress {
  readonly doneBytes: number;
  /** Grows when the guest writes. */
  readonly totalBytes: number;
  /** Whether all was copied once, and only what the guest writes is left. */
  readonly isReady: boolean;
}

/** Bytes that one bit of a bitmap stands for. */
const GRANULARITY_BYTES = 64 * 1024;

/** One bitmap of a disk. */
interface DirtyBitmapInfo {
  readonly name?: string;
  readonly count: number;
}

/**
 * Begin to copy the whole disk. A target that hangs or fails does the guest no harm.
 *
 * @param bytesPerSecond 0 is as fast as it goes
 */
export async function beginMirror(
  monitor: BlockMonitor,
  disk: GuestDisk,
  bytesPerSecond = 0,
): Promise<void> {
  const { quorum, replica, job } = diskNames(disk);
  const mirror = {
    "job-id": job,
    device: quorum,
    target: replica,
    sync: "full",
    speed: bytesPerSecond,
  } as const;
  await orDiskError(`copy the disk ${disk.node}`, execute(monitor, "blockdev-mirror", mirror));
}

/** How far the copy of a disk has come, or nothing when none is under way, because it failed, say. */
export async function syncProgress(
  monitor: BlockMonitor,
  disk: GuestDisk,
): Promise<SyncProgress | undefined> {
  const { job } = diskNames(disk);
  const jobs = await execute(monitor, "query-block-jobs", {});
  const found = jobs.find(({ device }) => device === job);
  if (found === undefined) return undefined;
  return { doneBytes: found.offset, totalBytes: found.len, isReady: found.ready };
}

/** Have what the guest writes copied as it is written, so that little is left when it stands still. */
export async function tightenMirror(monitor: BlockMonitor, disk: GuestDisk): Promise<void> {
  const { job } = diskNames(disk);
  const change = { id: job, type: "mirror", "copy-mode": "write-blocking" };
  await orDiskError(
    `copy the disk ${disk.node}`,
    monitor.executeRaw("block-job-change", change),
  );
}

/**
 * End a copy that is ready. The guest must stand still, from now until {@linkcode attachReplica}.
 *
 * @throws {DiskError} when it did not become equal; the copy is over then
 */
export async function finishMirror(
  monitor: BlockMonitor,
  disk: GuestDisk,
  options: QmpWaitOptions = {},
): Promise<void> {
  const { job } = diskNames(disk);
  const end = async () => {
    await execute(monitor, "block-job-cancel", { device: job });
  };
  await runToItsEnd(monitor, disk, end, options);
}

/** Give a copy up, if one is under way. */
export async function cancelSync(monitor: BlockMonitor, disk: GuestDisk): Promise<void> {
  const { job } = diskNames(disk);
  if (await syncProgress(monitor, disk) === undefined) return;
  const isOurs = ({ data }: { readonly data: { readonly device: string } }) => data.device === job;
  // Whichever comes: a job that is just ending completes.
  const ended = Promise.any([
    monitor.waitFor("BLOCK_JOB_CANCELLED", isOurs),
    monitor.waitFor("BLOCK_JOB_COMPLETED", isOurs),
  ]);
  ended.catch(() => {});
  await execute(monitor, "block-job-cancel", { device: job, force: true });
  await orDiskError(`give up the copy of the disk ${disk.node}`, ended);
}

/** From now on, remember where the guest writes. */
export async function trackChanges(
  monitor: BlockMonitor,
  disk: GuestDisk,
  bitmap: string,
): Promise<void> {
  const { quorum } = diskNames(disk);
  const options = { node: quorum, name: bitmap, granularity: GRANULARITY_BYTES };
  await orDiskError(
    `track the changes of the disk ${disk.node}`,
    monitor.executeRaw("block-dirty-bitmap-add", options),
  );
}

/** Remember it no longer. */
export async function forgetChanges(
  monitor: BlockMonitor,
  disk: GuestDisk,
  bitmap: string,
): Promise<void> {
  const { quorum } = diskNames(disk);
  await orDiskError(
    `forget the changes of the disk ${disk.node}`,
    monitor.executeRaw("block-dirty-bitmap-remove", { node: quorum, name: bitmap }),
  );
}

/** Bytes that may differ, or nothing where they are not tracked. */
export async function changedBytes(
  monitor: BlockMonitor,
  disk: GuestDisk,
  bitmap: string,
): Promise<number | undefined> {
  const { quorum } = diskNames(disk);
  const info = (await blockNodes(monitor)).get(quorum);
  const { "dirty-bitmaps": bitmaps } = (info ?? {}) as {
    readonly "dirty-bitmaps"?: readonly DirtyBitmapInfo[];
  };
  return bitmaps?.find(({ name }) => name === bitmap)?.count;
}

/**
 * Copy what has changed, as it is at this moment; the bitmap has what is written from then on, or all of
 * it again where this fails. What the guest overwrites waits for its old content to be copied, so a
 * target that hangs must be cut; one that fails does the guest no harm. Needs QEMU 10.1.
 *
 * @throws {DiskError} when it failed
 */
export async function copyChanges(
  monitor: BlockMonitor,
  disk: GuestDisk,
  bitmap: string,
  options: QmpWaitOptions = {},
): Promise<void> {
  const { quorum, replica, job } = diskNames(disk);
  const begin = async () => {
    await monitor.executeRaw("blockdev-backup", {
      "job-id": job,
      device: quorum,
      target: replica,
      sync: "bitmap",
      bitmap,
      "bitmap-mode": "on-success",
      "on-cbw-error": "break-snapshot",
    });
  };
  await runToItsEnd(monitor, disk, begin, options);
}

/** Give a command, and wait for the end of the disk's job. */
async function runToItsEnd(
  monitor: BlockMonitor,
  disk: GuestDisk,
  command: () => Promise<void>,
  { timeoutMs = Infinity }: QmpWaitOptions,
): Promise<void> {
  const { job } = diskNames(disk);
  const what = `copy the disk ${disk.node}`;
  const completed = monitor.waitFor(
    "BLOCK_JOB_COMPLETED",
    ({ data }) => data.device === job,
    { timeoutMs },
  );
  completed.catch(() => {});
  await orDiskError(what, command());
  const { data: { error } } = await orDiskError(what, completed);
  if (error !== undefined) throw new DiskError(`Cannot ${what}: ${error}`);
}
