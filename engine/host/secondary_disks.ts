/**
 * The disks of a secondary VM that runs along: what the primary's writes go to, when it may see them, and
 * what it has written itself.
 *
 * @module
 */

import {
  type BlockMonitor,
  createOverlays,
  DiskGate,
  type GateEffect,
  type GuestDisk,
  type ImageTool,
  overlayBytes,
  OverlayWatch,
  prepareSecondaryDisk,
  requireNode,
  startExports,
  stopExports,
} from "../block/mod.ts";
import type { VmConfig } from "../config/mod.ts";
import { DiskError, LinkError, WireError } from "../errors.ts";
import { freeBuffer } from "../buffers.ts";
import type { LinkConnection, Message } from "../link/mod.ts";
import { freeBytesOf, memoryDirectory } from "./image_directory.ts";
import { NbdSocket } from "./nbd_socket.ts";
import { formatBytes } from "./report.ts";

/** What a server's answers are read to. */
const READ_BYTES = 64 * 1024;

/** Between two looks at the overlays. */
const WATCH_MS = 1000;

type NbdMessage = Extract<Message, { type: "nbd" }>;

/** What the disks of a secondary need. */
export interface SecondaryDisksOptions {
  readonly monitor: BlockMonitor;
  readonly disks: readonly GuestDisk[];
  readonly tool: ImageTool;
  /** Where the overlays go; made if need be. */
  readonly overlayDirectory: string;
  /** Of this process's own, for sockets. */
  readonly directory: string;
  /** A disk is no copy any more; without a reason where QEMU has closed its connection. */
  readonly failed: (reason?: string) => void;
  /** Too much waits: have it loaded. */
  readonly full: () => void;
  readonly notice: (text: string) => void;
}

/** The disks of one secondary QEMU. */
export class SecondaryDisks {
  readonly #options: SecondaryDisksOptions;
  readonly #socketPath: string;
  /** Of one link each; empty without disks. */
  #copies: readonly DiskCopy[] = [];
  /** In bytes. */
  readonly sizes: readonly number[];
  #link: LinkConnection | undefined;
  #watching: ReturnType<typeof setInterval> | undefined;

  private constructor(options: SecondaryDisksOptions, sizes: readonly number[]) {
    this.#options = options;
    this.#socketPath = nbdPath(options);
    this.sizes = sizes;
  }

  /**
   * Give a VM that waits for its primary its overlays, and let its disks be written to.
   *
   * @throws {DiskError} when QEMU cannot, or there is no room
   */
  static async install(options: SecondaryDisksOptions): Promise<SecondaryDisks> {
    const { monitor, disks, tool, overlayDirectory } = options;
    const sizes: number[] = [];
    if (disks.length > 0) await makePrivate(overlayDirectory);
    for (const disk of disks) {
      const sizeBytes = (await requireNode(monitor, disk.node)).image["virtual-size"];
      const overlays = await createOverlays(tool, overlayDirectory, disk, sizeBytes);
      await prepareSecondaryDisk(monitor, { ...disk, ...overlays });
      sizes.push(sizeBytes);
    }
    const path = nbdPath(options);
    await Deno.remove(path).catch(() => {});
    if (disks.length > 0) await startExports(monitor, path, disks);
    const installed = new SecondaryDisks(options, sizes);
    if (disks.length > 0) installed.#watchOverlays();
    return installed;
  }

  /** The primary's engine, or nobody: what it has said is done all the same. */
  connect(link: LinkConnection | undefined): void {
    const { disks, failed, full } = this.#options;
    this.#link = link;
    if (link === undefined) {
      for (const copy of this.#copies) copy.disconnected();
      return;
    }
    for (const copy of this.#copies) copy.close();
    this.#copies = disks.map(({ node }, index) =>
      new DiskCopy(this.#socketPath, {
        say: (bytes) => link.send({ type: "nbd", epoch: 0, disk: index, bytes }),
        failed: (what) =>
          failed(what && `the disk ${node} of the secondary is no copy any more: ${what}`),
        full,
      })
    );
  }

  /**
   * The primary's QEMU has said something. Fulfilled when there is room for more. The bytes are its own.
   *
   * @throws {NbdError} when it makes no sense: drop the link
   * @throws {WireError} likewise
   */
  async received({ disk, epoch, bytes }: NbdMessage): Promise<void> {
    const copy = this.#copies[disk];
    if (copy === undefined) throw new WireError(`Cannot take writes to disk ${disk}`, 0);
    await copy.received(epoch, bytes);
  }

  /**
   * Fulfilled when all that was written before this checkpoint is here.
   *
   * @throws {LinkError} when it will not come
   */
  async arrived(epoch: number): Promise<void> {
    await Promise.all(this.#copies.map((copy) => copy.arrived(epoch)));
  }

  /** Fulfilled when the disks have all that was written before this checkpoint, which is loaded next. */
  async settle(epoch: number): Promise<void> {
    await Promise.all(this.#copies.map((copy) => copy.settle(epoch)));
  }

  /**
   * Fulfilled when QEMU may load its seed, which is of this checkpoint: it has answered all that it was
   * given, and is given nothing more until that is loaded.
   */
  async enter(epoch: number): Promise<void> {
    await Promise.all(this.#copies.map((copy) => copy.enter(epoch)));
  }

  /** The VM runs from this checkpoint. */
  loaded(epoch: number): void {
    for (const copy of this.#copies) copy.loaded(epoch);
  }

  /** The VM is about to take over: nothing that waits gets to its disks any more. */
  async release(): Promise<void> {
    this.close();
    const { monitor, disks } = this.#options;
    if (disks.length > 0) await stopExports(monitor, disks);
  }

  /** Tell when the overlays fill up, and have a checkpoint taken, whose load empties them. */
  #watchOverlays(): void {
    const { monitor, disks, overlayDirectory, notice } = this.#options;
    const watch = new OverlayWatch({ limitBytes: freeBytesOf(overlayDirectory) });
    this.#watching = setInterval(async () => {
      try {
        const used = await Promise.all(disks.map((disk) => overlayBytes(monitor, disk)));
        for (const { type, limitBytes } of watch.update(used.reduce((sum, of) => sum + of, 0))) {
          if (type !== "filling") continue;
          notice(
            `${overlayDirectory} fills up: what the standby's VM may write to its disks before a ` +
              `checkpoint is ${
                formatBytes(limitBytes)
              }, and most of it is used; a checkpoint is taken`,
          );
        }
        if (watch.isFilling) await this.#link?.send({ type: "checkpointWanted" });
      } catch {
        // A QEMU or a link that has ended is noticed elsewhere.
      }
    }, WATCH_MS);
  }

  /** Give up the sockets; QEMU is not told. */
  close(): void {
    clearInterval(this.#watching);
    for (const copy of this.#copies) copy.close();
  }
}

function nbdPath({ directory }: SecondaryDisksOptions): string {
  return `${directory}/nbd.sock`;
}

/** Where the overlays of this VM go: the same at every start, best in memory. */
export function overlayDirectory(config: VmConfig): string {
  return config.replication.overlayDirectory ?? `${memoryDirectory(config)}-disks`;
}

/** What the guest writes lies in it. */
async function makePrivate(directory: string): Promise<void> {
  try {
    await Deno.mkdir(directory, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new DiskError(
      `Cannot keep the overlays of the disks in ${directory}: ${cause}; give ` +
        "replication.overlayDirectory another",
      { cause },
    );
  }
}

interface CopyEvents {
  readonly say: (bytes: Uint8Array) => Promise<void>;
  readonly failed: (what?: string) => void;
  readonly full: () => void;
}

/** One disk during one link. */
class DiskCopy {
  readonly #gate = new DiskGate();
  readonly #path: string;
  readonly #events: CopyEvents;
  #server: NbdSocket | undefined;
  #isConnected = true;
  #isClosed = false;
  #epoch = 0;
  /** Whoever waits for something to happen looks again then. */
  #news = Promise.withResolvers<void>();
  #settled = -1;

  constructor(path: string, events: CopyEvents) {
    this.#path = path;
    this.#events = events;
  }

  async received(epoch: number, bytes: Uint8Array): Promise<void> {
    await this.#open();
    if (epoch < this.#epoch) {
      throw new WireError(`Cannot take writes of epoch ${epoch}: ${this.#epoch} has begun`, 0);
    }
    if (epoch > this.#epoch) {
      this.#epoch = epoch;
      this.#gate.checkpoint(epoch);
      this.#tellNews();
    }
    const effects = this.#gate.fromClient(bytes);
    // What the gate holds none of is needed until it is written; the rest is the garbage collector's.
    const isPassed = this.#gate.heldBytes === 0;
    this.#do(effects, isPassed ? () => freeBuffer(bytes) : undefined);
    while (this.#gate.full && !this.#isClosed) await this.#news.promise;
  }

  async arrived(epoch: number): Promise<void> {
    while (this.#epoch < epoch) {
      if (!this.#isConnected || this.#isClosed) {
        throw new LinkError("Cannot take a checkpoint: what was written before it did not come");
      }
      await this.#news.promise;
    }
  }

  async settle(epoch: number): Promise<void> {
    if (this.#server !== undefined) await this.#settledAfter(epoch, this.#gate.loading(epoch));
  }

  async enter(epoch: number): Promise<void> {
    await this.#settledAfter(epoch, this.#gate.entering(epoch));
  }

  async #settledAfter(epoch: number, effects: readonly GateEffect[]): Promise<void> {
    this.#do(effects);
    while (this.#settled < epoch && !this.#isClosed) await this.#news.promise;
  }

  loaded(epoch: number): void {
    this.#do(this.#gate.loaded(epoch));
  }

  disconnected(): void {
    this.#isConnected = false;
    this.#tellNews();
  }

  close(): void {
    this.#isClosed = true;
    this.#gate.cut();
    this.#server?.close();
    this.#tellNews();
  }

  async #open(): Promise<void> {
    if (this.#server !== undefined || this.#isClosed) return;
    const server = new NbdSocket(await Deno.connect({ transport: "unix", path: this.#path }));
    if (this.#isClosed) return server.close();
    this.#server = server;
    this.#serve(server).catch((error) => {
      this.#events.failed(String(error));
    }).finally(() => {
      server.close();
      if (!this.#isClosed && this.#isConnected) this.#events.failed();
    });
  }

  async #serve(server: NbdSocket): Promise<void> {
    const buffer = new Uint8Array(READ_BYTES);
    for (let count; (count = await server.read(buffer)) !== undefined;) {
      this.#do(this.#gate.fromServer(buffer.slice(0, count)));
    }
  }

  /** @param written Called when what goes to the server is written */
  #do(effects: readonly GateEffect[], written?: () => void): void {
    const toServer: Uint8Array[] = [];
    for (const effect of effects) {
      switch (effect.type) {
        case "to-server":
          toServer.push(effect.bytes);
          break;
        case "to-client":
          this.#events.say(effect.bytes).catch((error) => {
            if (!(error instanceof LinkError)) throw error;
          });
          break;
        case "settled":
          this.#settled = effect.epoch;
          break;
        case "full":
          this.#events.full();
          break;
        case "failed":
          this.#events.failed(`QEMU could not write to it: ${effect.reason}`);
      }
    }
    if (toServer.length > 0) this.#server?.write(toServer, written);
    this.#tellNews();
  }

  #tellNews(): void {
    this.#news.resolve();
    this.#news = Promise.withResolvers();
  }
}
