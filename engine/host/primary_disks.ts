/**
 * The disks of a primary: made equal on the secondary while the guest runs, and kept so.
 *
 * ```text
 *  guest -- quorum -+- disk
 *                   +- NBD client --unix--> this engine ==link==> the secondary's: gate --> its disk
 * ```
 *
 * A write of the guest's is done when its own disk has it, and it is on its way to the secondary: see
 * `block/early_answers`. When the secondary is lost the client's socket is closed at once, and the guest goes
 * on with its own disk alone: the quorum hides the error.
 *
 * @module
 */

import {
  attachReplica,
  beginMirror,
  type BlockMonitor,
  blockNodes,
  cancelSync,
  changedBytes,
  connectReplica,
  copyChanges,
  detachReplica,
  finishMirror,
  forgetChanges,
  type GuestDisk,
  insertQuorum,
  syncProgress,
  tightenMirror,
  trackChanges,
} from "../block/mod.ts";
import { DiskError, LinkError, messageOf, WireError } from "../errors.ts";
import type { LinkConnection, Message } from "../link/mod.ts";
import { DiskTunnel } from "./disk_tunnel.ts";
import { mergeOverlays } from "./merge_overlays.ts";
import type { DisksCopying } from "./primary_control.ts";
import type { Reporter } from "./report.ts";

/** Between two looks at how far a copy has come, and between two reports of it. */
const POLL_MS = 20;
const REPORT_MS = 1000;

/** How often a younger bitmap takes the place of one that remembers more than it must. */
const ROTATE_MS = 5000;

/** So little may be left for the moment in which the guest stands still, or after so many rounds more. */
const LAST_ROUND_BYTES = 1024 * 1024;
const ROUNDS_MAX = 5;

/** A copy that is ready ends at once, unless its target does not answer. */
const FINISH_MS = 1000;

/** What the disks of a primary need. */
export interface PrimaryDisksOptions {
  /** How many the VM has. */
  readonly count: number;
  /** Of this process's own, for sockets. */
  readonly directory: string;
  /** Does something while no checkpoint is under way, and none is begun. */
  readonly undisturbed: (work: () => Promise<void>) => Promise<void>;
  /** A checkpoint that the secondary loads is wanted soon. */
  readonly demand: () => void;
  readonly report: Reporter;
}

/** The disks of one VM, one after another of its QEMUs. */
export class PrimaryDisks {
  readonly #options: PrimaryDisksOptions;
  readonly #disks: readonly GuestDisk[];
  #monitor: BlockMonitor | undefined;
  #sizes: readonly number[] = [];
  #tunnels: DiskTunnel[] = [];
  #link: LinkConnection | undefined;
  /** The last checkpoint that the secondary was told of. */
  #epoch = 0;
  /** What the secondary says that its disks are; said once on each link. */
  #theirCopy = Promise.withResolvers<string>();
  /** The copy that was made last, and what remembers where the guest has written since. */
  #copy: { readonly name: string; bitmap: string } | undefined;
  /** The name is told when a checkpoint is loaded that began behind the copy: all of it is there then. */
  #untold: { readonly name: string; epoch?: number } | undefined;
  /** A younger bitmap, which takes that one's place when this checkpoint is loaded. */
  #younger: { readonly bitmap: string; readonly epoch: number } | undefined;
  #bitmaps = 0;
  #copying: DisksCopying | undefined;
  #rotatedMs = 0;
  /** What is being done to QEMU's nodes: one thing after another. */
  #working: Promise<void> = Promise.resolve();

  constructor(options: PrimaryDisksOptions) {
    this.#options = options;
    this.#disks = guestDisks(options.count);
  }

  /** In bytes, once they are {@linkcode prepare}d. */
  get sizes(): readonly number[] {
    return this.#sizes;
  }

  /** How far they are copied, while they are. */
  get copying(): DisksCopying | undefined {
    return this.#copying;
  }

  /**
   * Put the disks of a VM on what they can be replicated from, unless they are.
   *
   * @throws {DiskError} when QEMU cannot; the guest has its disks as before
   */
  async prepare(monitor: BlockMonitor): Promise<void> {
    if (this.#disks.length === 0 || this.#monitor === monitor) return;
    await mergeOverlays(monitor, this.#disks, this.#options.report);
    await this.#options.undisturbed(async () => {
      // An engine before this one may have left its connections, which are gone.
      for (const disk of this.#disks) {
        await cancelSync(monitor, disk);
        await detachReplica(monitor, disk);
        await insertQuorum(monitor, disk);
      }
    });
    this.#copy = this.#younger = undefined;
    const nodes = await blockNodes(monitor);
    this.#sizes = this.#disks.map(({ node }) => nodes.get(node)?.image["virtual-size"] ?? 0);
    this.#monitor = monitor;
  }

  /** What is written to the sockets on the secondary's behalf, until the link is gone. */
  async serve(link: LinkConnection): Promise<void> {
    if (this.#disks.length === 0) return;
    this.#link = link;
    this.#epoch = 0;
    this.#theirCopy = Promise.withResolvers();
    try {
      for await (const message of link.receive()) this.#received(message);
    } catch (error) {
      if (!(error instanceof LinkError || error instanceof WireError)) throw error;
    } finally {
      this.cut();
    }
  }

  /**
   * Make the secondary's disks equal, and have the guest write to them as well.
   *
   * @throws {DiskError} when that cannot be; the guest has its own disks
   */
  async synchronise(): Promise<void> {
    if (this.#disks.length === 0) return;
    const link = this.#link;
    const work = this.#working.then(() => this.#synchronise(link));
    this.#working = work.catch(() => {});
    await work;
  }

  async #synchronise(link: LinkConnection | undefined): Promise<void> {
    const monitor = this.#monitor;
    const beganMs = performance.now();
    if (monitor === undefined || link === undefined) throw gone();
    for (const [index, disk] of this.#disks.entries()) {
      const socketPath = `${this.#options.directory}/disk${index}.sock`;
      await Deno.remove(socketPath).catch(() => {});
      // QEMU does nothing else while it waits for an answer: there must be somebody to give it.
      if (this.#link !== link) throw gone();
      this.#tunnels.push(new DiskTunnel(socketPath, (bytes) => this.#tell(index, bytes)));
      await connectReplica(monitor, disk, { socketPath, exportName: disk.node });
    }
    const bitmap = await this.#returned(monitor);
    await link.send({ type: "diskCopy", copy: "" });
    if (bitmap === undefined) await this.#beginCopy(monitor);
    else await this.#copyChanged(monitor, bitmap);
    let pauseMs = 0;
    await this.#options.undisturbed(async () => {
      pauseMs = await stoodStill(monitor, async () => {
        for (const disk of this.#disks) {
          if (bitmap === undefined) await finishMirror(monitor, disk, { timeoutMs: FINISH_MS });
          else await copyChanges(monitor, disk, bitmap, { timeoutMs: FINISH_MS });
          await attachReplica(monitor, disk);
        }
        await this.#nameCopy(monitor, bitmap);
      });
    });
    this.#options.report({
      event: "disks-synchronised",
      atMs: Date.now(),
      changesOnly: bitmap !== undefined,
      totalBytes: this.#sizes.reduce((sum, bytes) => sum + bytes, 0),
      wireBytes: link.bytesQueued,
      durationMs: performance.now() - beganMs,
      pauseMs,
    });
  }

  /**
   * The secondary runs, or would run, from this checkpoint: what was written before it need not be
   * remembered any more.
   */
  loaded(epoch: number): void {
    const monitor = this.#monitor;
    if (monitor === undefined || this.#copy === undefined) return;
    const untold = this.#untold;
    if (untold?.epoch !== undefined && epoch >= untold.epoch) {
      this.#untold = undefined;
      // A link that broke is noticed where it is read.
      this.#link?.send({ type: "diskCopy", copy: untold.name }).catch(() => {});
    }
    const younger = this.#younger;
    if (younger !== undefined && epoch >= younger.epoch) {
      this.#younger = undefined;
      const { bitmap } = this.#copy;
      this.#copy.bitmap = younger.bitmap;
      this.#work(() => this.#forget(monitor, bitmap));
    } else if (younger === undefined && performance.now() - this.#rotatedMs > ROTATE_MS) {
      this.#rotatedMs = performance.now();
      this.#work(() => this.#rotate(monitor));
    }
  }

  /** The guest stands still for this checkpoint, which the secondary is to take over from. */
  begin(epoch: number): void {
    for (const tunnel of this.#tunnels) tunnel.flush();
    this.#epoch = epoch;
    if (this.#untold !== undefined) this.#untold.epoch ??= epoch;
    for (const index of this.#tunnels.keys()) this.#tell(index, new Uint8Array(0));
  }

  /** The secondary is lost: from now on nothing of the guest's waits for it. */
  cut(): void {
    this.#theirCopy.resolve("");
    this.#untold = undefined;
    const tunnels = this.#tunnels.splice(0);
    for (const tunnel of tunnels) tunnel.close();
    this.#link = undefined;
    const monitor = this.#monitor;
    if (monitor === undefined || tunnels.length === 0) return;
    this.#work(() => this.#detach(monitor));
  }

  /** Nothing more is to be done; QEMU is not told. */
  close(): void {
    this.#monitor = undefined;
    this.cut();
  }

  #work(work: () => Promise<void>): void {
    this.#working = this.#working.then(work).catch((error) => {
      if (this.#monitor === undefined) return;
      this.#options.report({ event: "notice", atMs: Date.now(), text: messageOf(error) });
    });
  }

  async #rotate(monitor: BlockMonitor): Promise<void> {
    if (this.#copy === undefined || this.#link === undefined) return;
    const bitmap = this.#nextBitmap();
    for (const disk of this.#disks) await trackChanges(monitor, disk, bitmap);
    this.#younger = { bitmap, epoch: this.#epoch + 1 };
  }

  #nextBitmap(): string {
    return `since-${++this.#bitmaps}`;
  }

  async #forget(monitor: BlockMonitor, bitmap: string): Promise<void> {
    for (const disk of this.#disks) {
      if (await changedBytes(monitor, disk, bitmap) === undefined) continue;
      await forgetChanges(monitor, disk, bitmap);
    }
  }

  /** @returns What remembers all that the secondary's disks lack, where that is known */
  async #returned(monitor: BlockMonitor): Promise<string | undefined> {
    const copy = this.#copy;
    if (this.#younger !== undefined) await this.#forget(monitor, this.#younger.bitmap);
    this.#younger = undefined;
    if (copy === undefined) return undefined;
    if (await this.#theirCopy.promise === copy.name) return copy.bitmap;
    this.#copy = undefined;
    await this.#forget(monitor, copy.bitmap);
    return undefined;
  }

  /** Copy all, until only what the guest writes is left. */
  async #beginCopy(monitor: BlockMonitor): Promise<void> {
    for (const disk of this.#disks) await beginMirror(monitor, disk);
    await this.#copied(monitor);
    for (const disk of this.#disks) await tightenMirror(monitor, disk);
  }

  /** Copy what has changed, until little is left. */
  async #copyChanged(monitor: BlockMonitor, bitmap: string): Promise<void> {
    for (let round = 0; round < ROUNDS_MAX; round++) {
      const sizes = await Promise.all(
        this.#disks.map((disk) => changedBytes(monitor, disk, bitmap)),
      );
      if (sizes.reduce((sum: number, bytes) => sum + (bytes ?? 0), 0) <= LAST_ROUND_BYTES) return;
      for (const disk of this.#disks) await copyChanges(monitor, disk, bitmap);
    }
  }

  /**
   * The disks are equal at this moment, or will be when all has come that is under way.
   *
   * @param known What remembers where the guest has written since, if something does already
   */
  async #nameCopy(monitor: BlockMonitor, known: string | undefined): Promise<void> {
    const bitmap = known ?? this.#nextBitmap();
    if (known === undefined) {
      for (const disk of this.#disks) await trackChanges(monitor, disk, bitmap);
    }
    const name = crypto.randomUUID();
    this.#copy = { name, bitmap };
    this.#untold = { name };
    this.#rotatedMs = performance.now();
  }

  async #detach(monitor: BlockMonitor): Promise<void> {
    for (const disk of this.#disks) {
      await cancelSync(monitor, disk);
      await detachReplica(monitor, disk);
    }
  }

  /** Wait until all is copied but for what the guest writes. */
  async #copied(monitor: BlockMonitor): Promise<void> {
    try {
      await this.#watchCopy(monitor);
    } finally {
      this.#copying = undefined;
    }
  }

  async #watchCopy(monitor: BlockMonitor): Promise<void> {
    let reportedMs = performance.now();
    for (;;) {
      const jobs = await Promise.all(this.#disks.map((disk) => syncProgress(monitor, disk)));
      const failed = jobs.findIndex((job) => job === undefined);
      if (failed >= 0) {
        throw new DiskError(
          `Cannot replicate the disk ${this.#disks[failed]!.node}: its copy broke off`,
        );
      }
      if (jobs.every((job) => job!.isReady)) return;
      const sum = (key: "doneBytes" | "totalBytes") =>
        jobs.reduce((sum, job) => sum + job![key], 0);
      const [doneBytes, totalBytes] = [sum("doneBytes"), sum("totalBytes")];
      this.#copying = { "done-bytes": doneBytes, "total-bytes": totalBytes };
      if (performance.now() - reportedMs >= REPORT_MS) {
        reportedMs = performance.now();
        this.#options.report({ event: "disks-copying", atMs: Date.now(), doneBytes, totalBytes });
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }

  #received(message: Message): void {
    if (message.type === "diskCopy") this.#theirCopy.resolve(message.copy);
    if (message.type === "checkpointWanted") this.#options.demand();
    if (message.type !== "nbd") return;
    this.#tunnels[message.disk]?.answered(message.bytes);
  }

  async #tell(disk: number, bytes: Uint8Array): Promise<void> {
    try {
      await this.#link?.send({ type: "nbd", epoch: this.#epoch, disk, bytes });
    } catch (error) {
      // The end of the link is noticed where it is read.
      if (!(error instanceof LinkError)) throw error;
    }
  }
}

function gone(): DiskError {
  return new DiskError("Cannot replicate the disks: the secondary is gone");
}

/** The disks of a VM, as its command line names them. */
export function guestDisks(count: number): readonly GuestDisk[] {
  return Array.from({ length: count }, (_, index) => ({
    node: `disk${index}`,
    device: `disk${index}-device`,
  }));
}

/** @returns How long the guest stood still, in milliseconds */
async function stoodStill(monitor: BlockMonitor, work: () => Promise<void>): Promise<number> {
  const { running } = await monitor.executeRaw("query-status") as { readonly running: boolean };
  const stoppedMs = performance.now();
  await monitor.executeRaw("stop");
  try {
    await work();
  } finally {
    if (running) await monitor.executeRaw("cont");
  }
  return performance.now() - stoppedMs;
}
