/**
 * The guest's copy on a secondary whose VM does not run: a worker that keeps the image, and a QEMU that
 * stands by for it. The image is what protects; a standby QEMU that dies is replaced.
 *
 * @module
 */

import type { ReplicaEffect } from "../checkpoint/replica.ts";
import {
  LinkError,
  LocalProtocolError,
  messageOf,
  QemuError,
  StoreError,
  WireError,
} from "../errors.ts";
import { closeLink, type Link, type Message } from "../link/mod.ts";
import type { FromDisks } from "../block/disk_keeper.ts";
import type { FromKeeper, Target } from "../image/keeper.ts";
import type { HeldCheckpoint, Recovery } from "../image/store.ts";
import { InboundGate } from "../proxy/inbound_gate.ts";
import { type ImagePlace, imagePlace } from "./image_directory.ts";
import { ImagePort } from "./image_port.ts";
import { filteredNics } from "./nics.ts";
import { type FilteredNic, type FilterMonitor, passFrames } from "./packet_filters.ts";
import type { ReplicaSide, SideOptions } from "./replica_side.ts";
import { StandbyQemu } from "./standby_qemu.ts";
import type { Vm } from "./start_vm.ts";

/** Between two attempts to start the standby QEMU. */
const RESTART_MS = 500;

/** A standby QEMU that dies sooner than this will die again. */
const STABLE_MS = 2000;
const EARLY_DEATHS_MAX = 5;

/** Keeps one image and its QEMU. */
export class ImageSide implements ReplicaSide {
  readonly #options: SideOptions;
  readonly #place: ImagePlace;
  readonly #image: ImagePort;
  readonly #nics: readonly FilteredNic[];
  /** Of each card, what its primary has received since the checkpoint that is held. */
  readonly #received: readonly InboundGate[];
  readonly #recovered = Promise.withResolvers<Recovery>();
  readonly #taken = Promise.withResolvers<HeldCheckpoint>();
  /** What is stood by for, and by whom. */
  #target: Target | undefined;
  #standing: Promise<void> = Promise.resolve();
  #standby: StandbyQemu | undefined;
  #feeding = 0;
  #primary: Link | undefined;
  /** A primary writes to the disks; the last checkpoint whose mark has come, for each. */
  #hasBegun = false;
  readonly #epochs: number[];
  /** Whoever waits for a mark looks again then. */
  #news = Promise.withResolvers<void>();
  /** The one that has all it needs. */
  #fed = Promise.withResolvers<StandbyQemu>();
  #isFed = false;
  #running = false;
  #handedOver = false;
  #over = false;

  constructor(options: SideOptions) {
    this.#options = options;
    this.#epochs = options.config.vm.disks.map(() => 0);
    this.#place = imagePlace(options.config);
    this.#nics = filteredNics(options.config);
    this.#received = this.#nics.map(({ vnetHeader }) => new InboundGate(vnetHeader ? 8 : 4));
    if (this.#place.notice !== undefined) this.#notice(this.#place.notice);
    this.#image = new ImagePort(
      this.#place.directory,
      options.config.vm.disks.map(({ path }) => path),
      (answer) => this.#answered(answer),
      (error) => {
        this.#recovered.reject(error);
        this.#taken.reject(error);
        // The guest is in QEMU by then, and nothing of it is read from the image any more.
        if (this.#running) this.#notice(messageOf(error));
        else options.events.failed(error);
      },
    );
    this.#recovered.promise.catch(() => {});
    this.#taken.promise.catch(() => {});
  }

  /** @throws {StoreError} when the image cannot be kept, or its VM runs already */
  async start(): Promise<void> {
    const { events } = this.#options;
    this.#image.tell({ type: "recover" });
    const recovery = await this.#recovered.promise;
    if (recovery.type === "held") {
      const { checkpoint, mended } = recovery;
      if (mended) {
        this.#notice(
          `checkpoint ${checkpoint.epoch} was on its way into the image: it is there now`,
        );
      }
      const { lineage, epoch } = checkpoint;
      events.answered({ type: "recovered", held: { lineage, epoch } });
    } else if (recovery.type === "taken") {
      this.#requireEnded(recovery.pid);
      this.#image.tell({ type: "discard" });
      this.#notice("the VM was taken over here before, and has ended: its checkpoint is no more");
    }
    events.ready();
  }

  do(effect: Exclude<ReplicaEffect, { type: "loaded" }>): void {
    if (effect.type !== "image") {
      throw new LocalProtocolError(`Cannot do ${effect.type}: no QEMU runs along`);
    }
    this.#image.tell(effect.command);
  }

  get monitor(): FilterMonitor | undefined {
    return this.#standby?.qmp;
  }

  loaded(epoch: number): void {
    for (const gate of this.#received) gate.loaded(epoch);
  }

  /** No VM runs that could say anything, but its disks answer. */
  connect(primary: Link | undefined): void {
    this.#primary = primary;
    this.#epochs.fill(0);
    this.#hasBegun = false;
    this.#tellNews();
  }

  /** Kept for the VM that goes on from the last checkpoint: it has not received them. */
  frames({ epoch, nic, records }: Extract<Message, { type: "frames" }>): void {
    const gate = this.#received[nic];
    if (gate === undefined) throw new WireError(`Cannot take frames of network card ${nic}`, 0);
    gate.received(epoch, records);
  }

  get diskSizes(): readonly number[] {
    return this.#options.config.vm.disks.map(({ path }) => Deno.statSync(path).size);
  }

  async written({ disk, epoch, bytes }: Extract<Message, { type: "nbd" }>): Promise<void> {
    if (disk >= this.#epochs.length) throw new WireError(`Cannot take writes to disk ${disk}`, 0);
    if (!this.#hasBegun) this.#image.tell({ type: "disks-begin" });
    this.#hasBegun = true;
    this.#image.tell({ type: "disk-bytes", disk, epoch, bytes });
    this.#epochs[disk] = Math.max(epoch, this.#epochs[disk]!);
    this.#tellNews();
    await this.#image.roomForWrites();
  }

  async arrived(epoch: number): Promise<void> {
    const primary = this.#primary;
    // What is told behind it comes behind it.
    while (this.#epochs.some((marked) => marked < epoch)) {
      if (primary === undefined || this.#primary !== primary) {
        throw new LinkError("Cannot take a checkpoint: what was written before it did not come");
      }
      await this.#news.promise;
    }
  }

  #tellNews(): void {
    this.#news.resolve();
    this.#news = Promise.withResolvers();
  }

  async merge(): Promise<void> {}

  room(): Promise<void> {
    return this.#image.room();
  }

  async takeOver(): Promise<number> {
    const standby = await this.#fed.promise;
    this.#image.tell({ type: "take", pid: standby.pid });
    const { deviceState, epoch } = await this.#taken.promise;
    this.#running = true;
    this.loaded(epoch);
    const atMs = await standby.run(deviceState, () => this.#options.events.late());
    this.#image.tell({ type: "taken" });
    await standby.release().catch((error) => this.#notice(messageOf(error)));
    return atMs;
  }

  /** What the primary had received since the checkpoint it cannot answer any more; this VM can. */
  async release(): Promise<void> {
    for (const [index, nic] of this.#nics.entries()) {
      const pieces = this.#received[index]!.take();
      await passFrames(this.#standby!.qmp, nic, "guest", pieces, this.#options.directory);
    }
  }

  handOver(): Vm {
    this.#handedOver = true;
    return this.#standby!.vm;
  }

  /** The QEMU is no part of what is held: it is replaced when it ends. */
  restart(): void {}

  kill(): void {
    this.#standby?.kill();
  }

  async stop(keep: boolean): Promise<void> {
    this.#over = true;
    await this.#standby?.stop();
    await this.#standing;
    if (this.#running || !keep) this.#image.tell({ type: "discard" });
    await this.#image.close();
  }

  #answered(answer: FromKeeper | FromDisks): void {
    const { events } = this.#options;
    switch (answer.type) {
      case "disk-answer": {
        const { disk, bytes } = answer;
        this.#primary?.disks.send({ type: "nbd", epoch: 0, disk, bytes }).catch(() => {});
        return;
      }
      case "disk-failed":
        this.#notice(answer.reason);
        if (this.#primary !== undefined) closeLink(this.#primary);
        return;
      case "recovered":
        return this.#recovered.resolve(answer.recovery);
      case "taken":
        return this.#taken.resolve(answer.checkpoint);
      case "target":
        return this.#standByFor(answer.target);
      case "applied":
      case "stored":
      case "refused":
        return events.answered(answer);
      case "fed":
        return this.#feed(answer);
      case "fed-all":
        if (answer.feeding !== this.#feeding || this.#standby === undefined) return;
        this.#isFed = true;
        this.#fed.resolve(this.#standby);
        return events.answered({ type: "standby-ready" });
    }
  }

  #feed({ feeding, chunk, more }: Extract<FromKeeper, { type: "fed" }>): void {
    // What was meant for a QEMU that is no more concerns nobody.
    if (feeding !== this.#feeding) return;
    this.#standby?.feed(chunk).then(() => {
      if (more && feeding === this.#feeding) this.#image.tell({ type: "feed-next" });
    });
  }

  #standByFor(target: Target | undefined): void {
    if (this.#target === target) return;
    this.#target = target;
    this.#standby?.kill();
    this.#standing = this.#standing.then(() => this.#standBy(target)).catch((error) => {
      this.#options.events.failed(error);
    });
  }

  /** Keep a QEMU standing by for as long as this is what is wanted. */
  async #standBy(target: Target | undefined): Promise<void> {
    if (target === undefined) return;
    let earlyDeaths = 0;
    while (this.#target === target && !this.#over) {
      const startedMs = performance.now();
      const ended = await this.#standByOnce(target);
      if (this.#over || this.#target !== target) return;
      if (this.#handedOver) return;
      if (this.#running) return this.#options.events.lost(`QEMU ${ended.how}`, ended.orderly);
      earlyDeaths = performance.now() - startedMs < STABLE_MS ? earlyDeaths + 1 : 0;
      if (earlyDeaths >= EARLY_DEATHS_MAX) {
        throw new QemuError(
          `Cannot stand by: the standby QEMU ${ended.how}, ${EARLY_DEATHS_MAX} times in a row`,
        );
      }
      this.#notice(`the standby QEMU ${ended.how}: another is started`);
      if (earlyDeaths > 0) await new Promise((resolve) => setTimeout(resolve, RESTART_MS));
    }
  }

  /** @returns How it ended, when it has */
  async #standByOnce(target: Target): Promise<{ readonly how: string; readonly orderly: boolean }> {
    const { config, qemu, directory, report, run } = this.#options;
    const { imageName, machine, blocks } = target;
    const { shared } = this.#place;
    const memoryPath = shared ? `${this.#place.directory}/${imageName}` : undefined;
    const standby = await StandbyQemu.start({
      config,
      qemu,
      directory,
      report,
      run,
      memoryPath,
      machine,
      blocks,
    });
    this.#standby = standby;
    if (this.#over || this.#target !== target) standby.kill();
    else {
      const feeding = ++this.#feeding;
      this.#image.tell({ type: "feed", feeding, imageName, shared });
    }
    const { code, signal, stderrTail } = await standby.exited;
    this.#feeding++;
    this.#standby = undefined;
    if (this.#isFed) this.#fed = Promise.withResolvers();
    this.#isFed = false;
    await standby.stop();
    const words = stderrTail.trimEnd().split("\n").at(-1) || "it said nothing";
    const how = signal === null ? `ended with exit code ${code} (${words})` : `ended by ${signal}`;
    return { how, orderly: code === 0 };
  }

  /** @throws {StoreError} when the process still has the memory of our VM */
  #requireEnded(pid: number): void {
    const { directory } = this.#place;
    let line = "";
    try {
      line = Deno.readTextFileSync(`/proc/${pid}/cmdline`);
    } catch {
      return;
    }
    if (!line.includes(this.#options.config.vm.name)) return;
    throw new StoreError(
      `Cannot stand by: the VM was taken over from ${directory}, and runs as process ${pid}; ` +
        "end it first",
    );
  }

  #notice(text: string): void {
    this.#options.report({ event: "notice", atMs: Date.now(), text });
  }
}
