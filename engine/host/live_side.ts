/**
 * The QEMU that runs along on a secondary.
 *
 * @module
 */

import type { ReplicaEffect } from "../checkpoint/replica.ts";
import { LocalProtocolError, QemuError } from "../errors.ts";
import type { Link, Message } from "../link/mod.ts";
import { eventTimeMs, type QmpClient } from "../qmp/mod.ts";
import { qemuTool } from "../vm/mod.ts";
import { beginSecondary, forgetTranslations, takeOver } from "./colo_qemu.ts";
import { watchForHang } from "./hang_watch.ts";
import { filteredNics } from "./nics.ts";
import { ReplicaPort } from "./replica_port.ts";
import { mergeOverlays } from "./merge_overlays.ts";
import { guestDisks } from "./primary_disks.ts";
import { overlayDirectory, SecondaryDisks } from "./secondary_disks.ts";
import { SecondaryPackets } from "./secondary_packets.ts";
import type { ReplicaSide, SideOptions } from "./replica_side.ts";
import { startVm, type Vm } from "./start_vm.ts";
import { untilItRuns } from "./vm_end.ts";

/** Between two attempts to start the QEMU. */
const RESTART_MS = 500;

/** A QEMU that dies sooner than this will die again. */
const STABLE_MS = 2000;
const EARLY_DEATHS_MAX = 5;

/** Keeps one secondary QEMU. */
export class LiveSide implements ReplicaSide {
  readonly #options: SideOptions;
  /** The start of another QEMU, when one is under way. */
  #starting: Promise<void> = Promise.resolve();
  #vm: Vm | undefined;
  #port: ReplicaPort | undefined;
  #packets: SecondaryPackets | undefined;
  #disks: SecondaryDisks | undefined;
  #diskSizes: readonly number[] = [];
  #primary: Link | undefined;
  #resumedMs: number | undefined;
  #earlyDeaths = 0;
  #over = false;

  constructor(options: SideOptions) {
    this.#options = options;
  }

  get monitor(): QmpClient | undefined {
    return this.#vm?.qmp;
  }

  /** @throws {QemuError} when QEMU cannot be started; nothing is left running */
  async start(): Promise<void> {
    const { config, qemu, directory, report, events, run } = this.#options;
    const vm = await startVm({ config, qemu, directory, incoming: true, report, run });
    this.#vm = vm;
    if (this.#over) return;
    const startedMs = performance.now();
    vm.qmp.on("RESUME", (event) => this.#resumedMs = eventTimeMs(event));
    const path = `${directory}/replica.sock`;
    await Deno.remove(path).catch(() => {});
    const notice = (text: string) => report({ event: "notice", atMs: Date.now(), text });
    const packets = await SecondaryPackets.install(vm.qmp, filteredNics(config), directory, notice);
    this.#packets = packets;
    packets.connect(this.#primary?.packets);
    const disks = await this.#installDisks(vm);
    this.#disks = disks;
    this.#diskSizes = disks.sizes;
    disks.connect(this.#primary?.disks);
    vm.process.exited.then(() => {
      disks.close();
      packets.close();
      if (this.#packets === packets) this.#packets = undefined;
    });
    await beginSecondary(vm.qmp, qemu.capabilities, path);
    const port = new ReplicaPort(path);
    this.#port = port;
    watchForHang(vm, () => this.#port !== undefined, () => {
      if (this.#over || this.#vm !== vm || this.#port === undefined) return;
      notice("the secondary QEMU hangs, and is replaced");
      vm.process.kill();
    });
    vm.process.exited.then((exit) => {
      if (this.#over || this.#vm !== vm) return;
      this.#earlyDeaths = performance.now() - startedMs < STABLE_MS ? this.#earlyDeaths + 1 : 0;
      const how = exit.signal === null ? `exit code ${exit.code}` : exit.signal;
      events.lost(`the secondary QEMU ended by ${how}`, exit.code === 0);
    });
    port.read((bytes) => {
      // The last words of a QEMU that was replaced concern nobody.
      if (this.#port === port) events.answered({ type: "qemu-answer", bytes });
    }).catch(() => {}).then(() => this.#broken(port));
    events.ready();
  }

  do(effect: Exclude<ReplicaEffect, { type: "loaded" }>): void {
    switch (effect.type) {
      case "write": {
        const port = this.#port;
        return port?.write(effect.bytes, () => this.#broken(port));
      }
      case "prepare":
        this.#prepare().catch((error) => this.#options.events.failed(error));
        return;
      case "stopped":
        return this.#packets?.stopped(effect.epoch);
      case "settle":
        return this.#settle(effect);
      default:
        throw new LocalProtocolError(`Cannot do ${effect.type}: a QEMU runs along`);
    }
  }

  loaded(epoch: number): void {
    this.#packets?.loaded(epoch);
    this.#disks?.loaded(epoch);
  }

  get diskSizes(): readonly number[] {
    return this.#diskSizes;
  }

  connect(primary: Link | undefined): void {
    this.#primary = primary;
    this.#packets?.connect(primary?.packets);
    this.#disks?.connect(primary?.disks);
  }

  async written(message: Extract<Message, { type: "nbd" }>): Promise<void> {
    await this.#disks?.received(message);
  }

  async arrived(epoch: number): Promise<void> {
    await this.#disks?.arrived(epoch);
  }

  async room(): Promise<void> {
    await this.#port?.room();
  }

  async takeOver(): Promise<number> {
    this.#resumedMs = undefined;
    // Whatever becomes of its stream from here on, this QEMU is the only one that the guest has.
    const port = this.#port;
    this.#port = undefined;
    try {
      await this.#disks?.release();
      const vm = this.#vm!;
      const running = takeOver(vm.qmp, () => this.#resumedMs);
      return await untilItRuns(vm, running, () => this.#options.events.late());
    } finally {
      port?.close();
    }
  }

  async release(): Promise<void> {
    await this.#packets?.release();
  }

  async merge(): Promise<void> {
    const { config: { vm }, report } = this.#options;
    await mergeOverlays(this.#vm!.qmp, guestDisks(vm.disks.length), report);
  }

  handOver(): Vm {
    const vm = this.#vm!;
    this.#vm = undefined;
    return vm;
  }

  restart(): void {
    this.#starting = this.#startAnother().catch((error) => this.#options.events.failed(error));
  }

  /** A QEMU that leaves COLO by itself may live on, and is of no use. */
  #broken(port: ReplicaPort): void {
    if (this.#port === port && !this.#over) this.kill();
  }

  kill(): void {
    this.#vm?.process.kill();
  }

  async stop(): Promise<void> {
    this.#over = true;
    await this.#starting;
    this.#port?.close();
    await this.#vm?.stop();
  }

  async #installDisks({ qmp, process }: Vm): Promise<SecondaryDisks> {
    const { config, qemu, directory, report, events } = this.#options;
    return await SecondaryDisks.install({
      monitor: qmp,
      disks: guestDisks(config.vm.disks.length),
      tool: { command: qemuTool("qemu-img", qemu), env: qemu.env },
      overlayDirectory: overlayDirectory(config),
      directory,
      failed: (reason) => {
        if (this.#over || this.#vm?.process !== process || this.#port === undefined) return;
        if (reason !== undefined) report({ event: "notice", atMs: Date.now(), text: reason });
        process.kill();
      },
      full: events.full,
      notice: (text) => report({ event: "notice", atMs: Date.now(), text }),
    });
  }

  #settle({ epoch, enters }: Extract<ReplicaEffect, { type: "settle" }>): void {
    const { events } = this.#options;
    const settled = () => events.answered({ type: "disks-settled" });
    if (this.#disks === undefined || this.#diskSizes.length === 0) return settled();
    const disks = enters ? this.#disks.enter(epoch) : this.#disks.settle(epoch);
    disks.then(settled).catch((error) => events.failed(error));
  }

  async #prepare(): Promise<void> {
    const vm = this.#vm!;
    if (this.#options.qemu.accel === "tcg") {
      // A QEMU that dies meanwhile is dealt with where its end is noticed.
      await forgetTranslations(vm.qmp).catch(() => {});
    }
    if (this.#vm === vm) this.#options.events.answered({ type: "prepared" });
  }

  async #startAnother(): Promise<void> {
    if (this.#earlyDeaths >= EARLY_DEATHS_MAX) {
      throw new QemuError(
        `Cannot stand by: the secondary QEMU died ${EARLY_DEATHS_MAX} times in a row`,
      );
    }
    const vm = this.#vm;
    this.#vm = undefined;
    this.#port?.close();
    this.#port = undefined;
    await vm?.stop();
    if (this.#earlyDeaths > 0) await new Promise((resolve) => setTimeout(resolve, RESTART_MS));
    if (!this.#over) await this.start();
  }
}
