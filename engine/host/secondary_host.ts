/**
 * The secondary's side at work: keeps a standby QEMU, takes checkpoints from the link, takes over.
 * What to do is decided by {@linkcode SecondaryMachine}; here it is done.
 *
 * @module
 */

import { requireListen, type VmConfig } from "../config/mod.ts";
import { LinkError, QemuError, QmpError, StreamError, WireError } from "../errors.ts";
import {
  type SecondaryEffect,
  type SecondaryEvent,
  SecondaryMachine,
} from "../failover/secondary.ts";
import {
  acceptPairs,
  closePair,
  type LinkAddress,
  type LinkPair,
  listenLink,
  type Message,
} from "../link/mod.ts";
import { eventTimeMs } from "../qmp/mod.ts";
import { ENGINE_VERSION } from "../version.ts";
import type { Qemu } from "../vm/mod.ts";
import { beginSecondary, forgetTranslations, takeOver } from "./colo_qemu.ts";
import { ReplicaPort } from "./replica_port.ts";
import type { Reporter } from "./report.ts";
import { startVm, type Vm } from "./start_vm.ts";

/** What a secondary needs. */
export interface SecondaryHostOptions {
  readonly config: VmConfig;
  readonly qemu: Qemu;
  /** A directory of this process's own, for sockets. */
  readonly directory: string;
  readonly report: Reporter;
  /** Bytes of checkpoints that may wait for QEMU before the primary has to wait. */
  readonly heldBytesMax?: number;
}

/** How a secondary ended. */
export type SecondaryEnd = "guest-ended" | "qemu-lost" | "stopped";

/** Between two attempts to start the standby QEMU. */
const RESTART_MS = 500;

/** A standby QEMU that dies sooner than this will die again. */
const STABLE_MS = 2000;
const EARLY_DEATHS_MAX = 5;

/** Runs the standby of one VM, and the VM itself once it was taken over, until that ends. */
export class SecondaryHost {
  readonly #options: SecondaryHostOptions;
  readonly #machine: SecondaryMachine;
  readonly #address: LinkAddress;
  readonly #ended = Promise.withResolvers<SecondaryEnd>();
  #listener: Deno.Listener | undefined;
  /** The start of another QEMU, when one is under way. */
  #starting: Promise<void> = Promise.resolve();
  #vm: Vm | undefined;
  #port: ReplicaPort | undefined;
  #link: LinkPair | undefined;
  #resumedMs: number | undefined;
  #earlyDeaths = 0;
  #over = false;

  /** @throws {ConfigError} when `replication.listen` is missing */
  constructor(options: SecondaryHostOptions) {
    this.#options = options;
    this.#machine = new SecondaryMachine(options.heldBytesMax);
    this.#address = requireListen(options.config);
  }

  /**
   * Stand by, and run the VM when it was taken over, until it ends or {@linkcode stop} is called.
   *
   * @throws {LinkError} when the address of `replication.listen` cannot be had
   * @throws {QemuError} when the standby QEMU cannot be started; nothing is left running
   */
  async run(): Promise<SecondaryEnd> {
    try {
      const listener = await listenLink(this.#address);
      this.#listener = listener;
      await this.#startQemu();
      this.#acceptPrimaries(listener).catch((error) => this.#fail(error));
      return await this.#ended.promise;
    } finally {
      await this.#close();
    }
  }

  /** End, whatever the VM is doing. */
  stop(): void {
    this.#ended.resolve("stopped");
  }

  async #startQemu(): Promise<void> {
    const { config, qemu, directory, report } = this.#options;
    const vm = await startVm({ config, qemu, directory, incoming: true, report });
    this.#vm = vm;
    if (this.#over) return;
    const startedMs = performance.now();
    vm.qmp.on("RESUME", (event) => this.#resumedMs = eventTimeMs(event));
    const path = `${directory}/replica.sock`;
    await Deno.remove(path).catch(() => {});
    await beginSecondary(vm.qmp, qemu.capabilities, path);
    const port = await ReplicaPort.connect(path);
    this.#port = port;
    vm.process.exited.then((exit) => {
      if (this.#over || this.#vm !== vm) return;
      this.#earlyDeaths = performance.now() - startedMs < STABLE_MS ? this.#earlyDeaths + 1 : 0;
      const how = exit.signal === null ? `exit code ${exit.code}` : exit.signal;
      const ended = this.#machine.phase === "promoted" && exit.code === 0;
      this.#step({ type: "qemu-lost", reason: `the secondary QEMU ended by ${how}` });
      if (this.#machine.phase === "ended") this.#ended.resolve(ended ? "guest-ended" : "qemu-lost");
    });
    port.read((bytes) => {
      // The last words of a QEMU that was replaced concern nobody.
      if (this.#port === port) this.#guard(() => this.#step({ type: "qemu-answer", bytes }));
    }).catch(() => {});
    this.#step({ type: "qemu-ready" });
  }

  async #acceptPrimaries(listener: Deno.Listener): Promise<void> {
    const { vm } = this.#options.config;
    const pairs = acceptPairs(listener, ENGINE_VERSION, (introduction) => {
      if (this.#machine.phase === "promoted" || this.#machine.phase === "taking-over") {
        return "it runs the VM itself, since it took over";
      }
      if (this.#link !== undefined) return "another primary is connected to it";
      if (introduction.vmName !== vm.name) {
        return `it stands by for VM "${vm.name}", not "${introduction.vmName}"`;
      }
      if (introduction.memoryMiB !== vm.memoryMiB) {
        return `its VM has ${vm.memoryMiB} MiB of memory, the primary's ${introduction.memoryMiB} MiB`;
      }
      return undefined;
    });
    for await (const link of pairs) {
      if (this.#link === undefined) this.#serve(link).catch((error) => this.#fail(error));
      else closePair(link);
    }
  }

  /** Work with one primary, until the link is gone. */
  async #serve(link: LinkPair): Promise<void> {
    this.#link = link;
    let reason = "the link to the primary broke";
    const read = async (connection: LinkPair["bulk"]) => {
      try {
        for await (const message of connection.receive()) {
          this.#guard(() => this.#message(message));
          // A seed goes through as it comes; what comes after it is bounded by the machine.
          if (connection === link.bulk && this.#machine.phase === "seeding") {
            await this.#port?.room();
          }
        }
      } catch (error) {
        if (!(error instanceof LinkError || error instanceof WireError)) throw error;
        reason = error.message;
      } finally {
        closePair(link);
      }
    };
    this.#step({ type: "link-up" });
    await Promise.all([read(link.control), read(link.bulk)]);
    this.#link = undefined;
    if (!this.#over) this.#step({ type: "link-lost", reason });
  }

  #message(message: Message): void {
    switch (message.type) {
      case "seedBegin":
        return this.#step({ type: "seed-begin", seed: message });
      case "pages":
        return this.#step({ type: "pages", chunk: message.records });
      case "deviceState":
        return this.#step({ type: "device-state", piece: message.bytes, delta: false });
      case "deviceStateDelta":
        return this.#step({ type: "device-state", piece: message.bytes, delta: true });
      case "commit":
        return this.#step({ type: "commit", epoch: message.epoch, commit: message });
      case "primaryLost":
        return this.#step({ type: "primary-lost", reason: message.reason });
      case "goodbye":
        this.#step({ type: "goodbye", reason: message.reason });
        if (this.#machine.phase === "ended") this.#ended.resolve("guest-ended");
        return;
    }
  }

  /** Run what may stumble over foreign bytes: each side's own fault ends only that side. */
  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (error instanceof StreamError) {
        this.#vm?.process.kill();
        this.#notice(error.message);
      } else if (error instanceof WireError) {
        this.#notice(error.message);
        if (this.#link !== undefined) closePair(this.#link);
      } else {
        this.#fail(error);
      }
    }
  }

  #step(event: SecondaryEvent): void {
    for (const effect of this.#machine.step(event)) this.#do(effect);
  }

  #do(effect: SecondaryEffect): void {
    switch (effect.type) {
      case "write":
        return this.#port?.write(effect.bytes, () => this.#vm?.process.kill());
      case "prepare":
        this.#prepare().catch((error) => this.#fail(error));
        return;
      case "tell-ready":
        return this.#tell({ type: "replicaReady" });
      case "tell-committed":
        return this.#tell({ type: "committed", epoch: effect.epoch });
      case "tell-loaded":
        this.#options.report({ event: "loaded", atMs: Date.now(), epoch: effect.epoch });
        return this.#tell({ type: "loaded", epoch: effect.epoch });
      case "tell-failed":
        return this.#tell({ type: "replicaFailed", reason: effect.reason });
      case "take-over":
        this.#takeOver(effect.reason).catch((error) => this.#fail(error));
        return;
      case "restart-qemu":
        this.#starting = this.#restartQemu().catch((error) => this.#fail(error));
        return;
      case "report": {
        const { phase, reason } = effect;
        return this.#options.report({ event: "secondary", atMs: Date.now(), phase, reason });
      }
    }
  }

  async #prepare(): Promise<void> {
    const vm = this.#vm!;
    if (this.#options.qemu.accel === "tcg") {
      // A QEMU that dies meanwhile is dealt with where its end is noticed.
      await forgetTranslations(vm.qmp).catch(() => {});
    }
    if (this.#vm === vm) this.#guard(() => this.#step({ type: "prepared" }));
  }

  async #takeOver(reason: string): Promise<void> {
    const vm = this.#vm!;
    this.#resumedMs = undefined;
    const atMs = await takeOver(vm.qmp, () => this.#resumedMs);
    const { epoch } = this.#machine;
    this.#step({ type: "promoted" });
    this.#options.report({ event: "running", atMs, epoch, reason });
    this.#link?.control.send({ type: "takenOver", epoch, runningAtMs: atMs }).catch(() => {});
  }

  async #restartQemu(): Promise<void> {
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
    if (!this.#over) await this.#startQemu();
  }

  #tell(message: Message): void {
    // A link that broke says so on its own.
    this.#link?.bulk.send(message).catch(() => {});
  }

  #notice(text: string): void {
    this.#options.report({ event: "notice", atMs: Date.now(), text });
  }

  #fail(error: unknown): void {
    if (this.#over) return;
    if (error instanceof QmpError) this.#ended.reject(new QemuError(error.message));
    else this.#ended.reject(error);
  }

  async #close(): Promise<void> {
    this.#over = true;
    this.#listener?.close();
    if (this.#link !== undefined) closePair(this.#link);
    await this.#starting;
    this.#port?.close();
    await this.#vm?.stop();
  }
}
