/**
 * Captures the guest of a primary for as long as its QEMU lives, and anew when that breaks.
 *
 * @module
 */

import { WasmKernels } from "../../wasm/mod.ts";
import { Capture, type CaptureEvent } from "../checkpoint/capture.ts";
import { messageOf } from "../errors.ts";
import type { PrimaryEvent } from "../failover/primary.ts";
import type { Qemu } from "../vm/mod.ts";
import { CapturePort, initialTaken } from "./capture_port.ts";
import { beginPrimary, releasePrimary } from "./colo_qemu.ts";
import { defaultEncoders, EncoderPool } from "./encoder_pool.ts";
import type { Vm } from "./start_vm.ts";
import { exitNoticed } from "./vm_end.ts";

/** The primary, as far as it is needed here. */
export interface CapturedPrimary {
  /** Whether this VM is still the one to be looked after. */
  runs(vm: Vm): boolean;
  step(event: PrimaryEvent): void;
  /** The guest stands still for this checkpoint. */
  stopped(epoch: number): void;
  /** A checkpoint has come as a whole, with so many pages that the guest had written. */
  captured(epoch: number, pages: number): void;
  /** QEMU's stream has ended: no checkpoint stops the guest any more. */
  ended(): void;
  /** Fulfilled when nothing is being sent from the mirror. */
  sent(): Promise<void>;
  /** Close the link to the secondary; fulfilled when nothing is being sent any more. */
  cutLink(): Promise<void>;
  notice(text: string): void;
}

/** What a secondary is seeded from. */
export interface SeedSource {
  readonly capture: Capture;
  readonly encoders: EncoderPool;
  /** No other capture's, wherever it is. */
  readonly lineage: string;
}

/** What a {@linkcode PrimaryCapture} works with. */
export interface PrimaryCaptureOptions {
  /** The unix socket that QEMU migrates to. */
  readonly path: string;
  readonly qemu: Qemu;
  /** Threads that encode checkpoints; as many as suit the machine when left out. */
  readonly encoders?: number | undefined;
}

/** Before a guest whose capture broke is captured anew. */
const RECAPTURE_MS = 1000;

/** The capture of one primary's guest. */
export class PrimaryCapture {
  readonly #options: PrimaryCaptureOptions;
  readonly #primary: CapturedPrimary;
  readonly #port: CapturePort;
  #source: SeedSource | undefined;
  /** The one whose stream has not ended. */
  #served: Capture | undefined;
  #stoppedEpoch = 0;
  #ended: Promise<void> = Promise.resolve();

  constructor(options: PrimaryCaptureOptions, primary: CapturedPrimary) {
    this.#options = options;
    this.#primary = primary;
    this.#port = new CapturePort(options.path);
  }

  /** The one that goes on, or went on last; none before QEMU has been told to begin. */
  get current(): Capture | undefined {
    return this.#source?.capture;
  }

  /** What a secondary is seeded from; only when something is being captured. */
  get source(): SeedSource {
    return this.#source!;
  }

  /** The last checkpoint that the guest has stood still for; 0 before the first. */
  get stoppedEpoch(): number {
    return this.#stoppedEpoch;
  }

  /** QEMU is writing a checkpoint, and busy with that. */
  get isMidCheckpoint(): boolean {
    return ["sending", "whole"].includes(this.current?.state ?? "idle");
  }

  /** Fulfilled when the VM that was followed last is not followed any more. */
  get ended(): Promise<void> {
    return this.#ended;
  }

  /** @throws {ConfigError} when the file cannot be written */
  async record(path: string): Promise<void> {
    await this.#port.record(path, (reason) => this.#primary.notice(reason));
  }

  /**
   * Have QEMU begin to send its memory.
   *
   * @throws {QmpError} when it does not
   */
  async begin(vm: Vm): Promise<void> {
    await beginPrimary(vm.qmp, this.#options.qemu.capabilities, this.#port.path);
  }

  /**
   * Capture the guest; when that breaks, for whatever reason, let it run and capture it anew. No fault
   * of this engine's may end or freeze the guest.
   *
   * @param begun Whether QEMU has begun to send its memory
   */
  follow(vm: Vm, begun = true): void {
    this.#ended = this.#captureAgainAndAgain(vm, begun);
  }

  /** Tell QEMU that its secondary is ready. */
  ready(): void {
    this.#port.write([this.current!.ready()]);
  }

  /**
   * Let QEMU begin the checkpoint that it asked for.
   *
   * @returns Tells QEMU so, unless its stream has ended; then it is false
   */
  reply(): () => boolean {
    const served = this.#served;
    const message = this.current!.reply();
    return () => {
      if (served === undefined || served !== this.#served) return false;
      this.#port.write([message]);
      return true;
    };
  }

  /** Let the guest run again. */
  acknowledge(): void {
    this.#port.write(this.current!.acknowledge());
  }

  /** Drop the stream, which is of no use any more: the guest is captured anew. */
  disconnect(): void {
    this.#port.disconnect();
  }

  close(): void {
    this.#port.close();
  }

  async #captureAgainAndAgain(vm: Vm, begun: boolean): Promise<void> {
    const primary = this.#primary;
    for (let first = !begun; primary.runs(vm); first = false) {
      const reason = first ? "QEMU did not begin" : await this.#captureOnce(vm);
      await exitNoticed(vm);
      if (!primary.runs(vm)) return;
      await primary.cutLink();
      primary.step({ type: "capture-lost", reason });
      let complaint: string | undefined = "";
      do {
        await new Promise((resolve) => setTimeout(resolve, RECAPTURE_MS));
        const last = complaint;
        complaint = primary.runs(vm) ? await this.#beginAnew(vm) : undefined;
        const isNews = complaint !== undefined && complaint !== last;
        if (isNews && primary.runs(vm)) primary.notice(`${complaint}; trying again`);
      } while (complaint !== undefined);
    }
  }

  /** @returns Why QEMU has not begun to send its memory again, if it has not */
  async #beginAnew(vm: Vm): Promise<string | undefined> {
    try {
      await releasePrimary(vm.qmp);
      await this.begin(vm);
      return undefined;
    } catch (error) {
      return messageOf(error);
    }
  }

  /** @returns Why it ended */
  async #captureOnce(vm: Vm): Promise<string> {
    const capture = new Capture(WasmKernels.create(), {
      createKernels: () => WasmKernels.create(),
    });
    this.#stoppedEpoch = 0;
    const encoders = new EncoderPool(
      this.#options.encoders ?? defaultEncoders(navigator.hardwareConcurrency),
    );
    this.#source = { capture, encoders, lineage: crypto.randomUUID() };
    let serving = true;
    this.#served = capture;
    vm.qmp.waitFor("MIGRATION", ({ data }) => data.status === "colo", { timeoutMs: Infinity })
      // A status that comes when this stream has ended is that of a later one.
      .then(() => this.#entered(capture, () => serving), () => {});
    try {
      await this.#port.serve(capture, (event) => this.#captured(event));
      return "the primary QEMU closed its stream";
    } catch (error) {
      return messageOf(error);
    } finally {
      serving = false;
      this.#served = undefined;
      this.#primary.ended();
      // A checkpoint that came whole is sent to its end, and what is said of the guest's end behind it.
      this.#primary.sent().finally(() => encoders.close());
    }
  }

  async #entered(capture: Capture, isServing: () => boolean): Promise<void> {
    await initialTaken(capture, isServing);
    if (isServing()) this.#primary.step({ type: "initial" });
  }

  #captured(event: CaptureEvent): void {
    const primary = this.#primary;
    switch (event.type) {
      case "initial":
        // It counts when QEMU has entered COLO.
        break;
      case "request":
        primary.step({ type: "request" });
        break;
      case "stopped":
        this.#stoppedEpoch = event.epoch;
        primary.stopped(event.epoch);
        break;
      case "whole":
        primary.captured(event.epoch, event.pages);
        primary.step({ type: "whole", epoch: event.epoch });
        break;
    }
  }
}
