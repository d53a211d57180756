/**
 * The primary's side at work: runs QEMU, captures its checkpoints, feeds the secondary. What to do is
 * decided by {@linkcode PrimaryMachine}; here it is done.
 *
 * @module
 */

import { WasmKernels } from "../../wasm/mod.ts";
import { Capture, type CaptureEvent } from "../checkpoint/capture.ts";
import type { ControlServer } from "../control/mod.ts";
import { requirePeer } from "../config/mod.ts";
import { LinkError, messageOf, NotOursError, StateError, StoreError } from "../errors.ts";
import {
  type PrimaryEffect,
  type PrimaryEvent,
  PrimaryMachine,
  type PrimaryPhase,
} from "../failover/primary.ts";
import {
  closeLink,
  formatAddress,
  type Introduction,
  type Link,
  type LinkAddress,
  type Message,
  openLink,
  RefusedError,
} from "../link/mod.ts";
import { eventTimeMs } from "../qmp/mod.ts";
import type { CheckpointReason } from "../proxy/mod.ts";
import { ENGINE_VERSION } from "../version.ts";
import { Saver, type SaveResult } from "../store/mod.ts";
import {
  Arbitration,
  arbitrationOptions,
  type LeaseEvents,
  volatileArbiter,
} from "./arbitration.ts";
import { CapturePort, initialTaken } from "./capture_port.ts";
import { CheckpointLog } from "./checkpoint_log.ts";
import { beginPrimary, releasePrimary } from "./colo_qemu.ts";
import { defaultEncoders, EncoderPool } from "./encoder_pool.ts";
import { watchForHang } from "./hang_watch.ts";
import { LeasePause } from "./lease_pause.ts";
import { LinkWatch } from "./link_watch.ts";
import { filteredNics, NicPlugs } from "./nics.ts";
import { PrimaryPackets } from "./primary_packets.ts";
import { ReplicaSender } from "./replica_sender.ts";
import type { CheckpointCause } from "./report.ts";
import { StatisticsCounter } from "./statistics.ts";
import { openControl, primaryCommands } from "./primary_control.ts";
import type { PrimaryEnd, PrimaryHostOptions } from "./primary_options.ts";
import { Revivals, reviveVm } from "./revive.ts";
import { saveCheckpoint } from "./save_checkpoint.ts";
import type { Vm } from "./start_vm.ts";
import { exitNoticed, isDying, watchForDeath, within } from "./vm_end.ts";
import { obtainVm } from "./vm_source.ts";

/** Between two attempts to reach the secondary. */
const RECONNECT_MS = 200;

/** A peer that takes longer to answer is asked when the VM runs. */
const ASK_PEER_MS = 1000;

/** Before a guest whose capture broke is captured anew. */
const RECAPTURE_MS = 1000;

/** How long the secondary may take to say that it took over, or to let go of a guest that has ended. */
const TAKEN_OVER_MS = 5000;
const GOODBYE_MS = 1000;

/** A secondary that owes an answer is slow, not lost, for so long. */
const ANSWER_MS = 10_000;

/** Phases in which the mirror follows the guest. */
const CAPTURED: readonly PrimaryPhase[] = ["alone", "seeding", "joining", "protected"];

/** Runs one VM as primary, until it ends. */
export class PrimaryHost {
  readonly #options: PrimaryHostOptions;
  readonly #machine: PrimaryMachine;
  readonly #port: CapturePort;
  readonly #log: CheckpointLog;
  readonly #peer: LinkAddress;
  #encoders: EncoderPool | undefined;
  readonly #ended = Promise.withResolvers<PrimaryEnd>();
  #vm: Vm | undefined;
  #capture: Capture | undefined;
  #link: Link | undefined;
  #sender: ReplicaSender | undefined;
  readonly #arbitration: Arbitration;
  /** Fulfilled when the secondary has said its last word on the link that there is. */
  #lastWord: Promise<void> = Promise.resolve();
  readonly #plugs: NicPlugs;
  /** The network of the VM, once a secondary has come. */
  #packets: PrimaryPackets | undefined;
  /** What is being sent; settled before the loss of a link is acted upon. */
  #sending: Promise<void> = Promise.resolve();
  #seedBeganMs = 0;
  #wakeTimer: ReturnType<typeof setTimeout> | undefined;
  #shutDown = false;
  #over = false;
  /** The capture of the VM that runs, and what starts another in its place. */
  #capturing: Promise<void> = Promise.resolve();
  #reviving: Promise<void> = Promise.resolve();
  readonly #revivals: Revivals;
  #control: ControlServer | undefined;
  readonly #statistics = new StatisticsCounter();
  /** Why a checkpoint is wished for that has not begun, and why the last one was begun. */
  #wish: CheckpointReason | undefined;
  #cause: CheckpointCause = "periodic";
  readonly #saver: Saver | undefined;

  constructor(options: PrimaryHostOptions) {
    this.#options = options;
    this.#peer = requirePeer(options.config);
    this.#machine = new PrimaryMachine(options.config.replication, performance.now());
    this.#port = new CapturePort(`${options.directory}/capture.sock`);
    this.#log = new CheckpointLog((report) => {
      if (report.event === "checkpoint") this.#statistics.count(report);
      options.report(report);
    });
    this.#arbitration = options.taken?.arbitration ?? new Arbitration(
      arbitrationOptions(
        options.config,
        options.arbiter ?? volatileArbiter(),
        (text) => this.#notice(text),
      ),
    );
    this.#plugs = options.taken?.plugs ?? new NicPlugs(options.config);
    options.taken?.arbitration.handOver(this.#leaseEvents);
    this.#revivals = new Revivals(options.config.replication.revive);
    const { vm, store } = options.config;
    this.#saver = store && new Saver(store.directory, vm.name, store.retain);
  }

  /**
   * Start the VM and keep it protected until it ends or {@linkcode stop} is called.
   *
   * @throws {QemuError} when QEMU cannot be started or cannot be made a primary; nothing is left running
   * @throws {ConfigError} when `recordPath` cannot be written; nothing was started
   * @throws {ArbiterError} when the VM is another's; nothing is left running
   */
  async run(): Promise<PrimaryEnd> {
    const { qemu, recordPath, taken } = this.#options;
    try {
      if (recordPath !== undefined) {
        await this.#port.record(recordPath, (reason) => this.#notice(reason));
      }
      let wasRunning = false;
      const vm = await obtainVm(this.#options, async (runs) => {
        wasRunning = runs;
        await this.#askPeer();
        await this.#arbitration.begin(this.#leaseEvents, runs);
      });
      this.#vm = vm;
      this.#watch(vm);
      if (taken === undefined) await this.#plugIn(wasRunning);
      await this.#openControl(vm);
      const isOurs = taken === undefined && !wasRunning;
      const begun = await beginPrimary(vm.qmp, qemu.capabilities, this.#port.path)
        .then(() => true, (error) => {
          // Of a VM that the world sees already nothing is ended because it cannot be protected.
          if (isOurs) throw error;
          if (!this.#done) this.#notice(`${messageOf(error)}; trying again`);
          return false;
        });
      this.#capturing = this.#captureAgainAndAgain(vm, begun);
      this.#connectAgainAndAgain();
      return await this.#ended.promise;
    } finally {
      await this.#close();
    }
  }

  /** Of a VM that the world sees already nothing is ended because its network is not as it should be. */
  async #plugIn(wasRunning: boolean): Promise<void> {
    try {
      await this.#plugs.install("primary");
    } catch (error) {
      if (!wasRunning) throw error;
      this.#notice(messageOf(error));
    }
  }

  /** Whoever wishes that no checkpoint is begun. */
  readonly #holders = new Set<string>();
  /** The last checkpoint that the guest has stood still for. */
  #stoppedEpoch = 0;
  /** The secondary has said that it cannot take over. */
  #gaveUp = false;

  #hold(by: string, on: boolean): void {
    if (on) this.#holders.add(by);
    else this.#holders.delete(by);
    this.#step({ type: this.#holders.size > 0 ? "hold" : "release" });
  }

  readonly #leasePause = new LeasePause({
    monitor: () => this.#vm?.qmp,
    hold: (on) => this.#hold("lease", on),
    isSettled: () => this.#machine.settled || this.#done,
    // A secondary vouches for the VM; and what is being decided about says nothing.
    isExempt: () => ["protected", "deciding", "ended"].includes(this.#machine.phase),
    notice: (text) => this.#notice(text),
  });

  readonly #leaseEvents: LeaseEvents = {
    pause: () => this.#leasePause.pause(),
    resume: () => this.#leasePause.resume(),
    stale: (reason) => this.#step({ type: "stale", reason }),
  };

  /**
   * Whether the VM runs at the peer, which may be the only one to know.
   *
   * @throws {NotOursError} when it does
   */
  async #askPeer(): Promise<void> {
    try {
      closeLink(await openLink(this.#peer, this.#introduction, ASK_PEER_MS));
    } catch (error) {
      // One that cannot be reached, or does not want this primary, says nothing about it.
      if (!(error instanceof RefusedError && error.generation > 0)) return;
      throw new NotOursError(
        `Cannot run the VM: it runs at ${
          formatAddress(this.#peer)
        }, which has taken it over; stand by ` +
          "for it with `colo standby`, or end it there first",
      );
    }
  }

  get #introduction(): Introduction {
    const { vm, replication: { mode } } = this.#options.config;
    return {
      vmName: vm.name,
      memoryMiB: vm.memoryMiB,
      mode,
      nics: vm.nics.length,
      generation: this.#arbitration.generation,
      holder: this.#arbitration.holder,
      engineVersion: ENGINE_VERSION,
    };
  }

  /** The secondary is lost, and may have taken over. */
  async #claim(): Promise<void> {
    const evidence = this.#gaveUp ? "reported" : this.#arbitration.evidenceOfPrimary;
    const vm = this.#vm;
    const lives = () => vm !== undefined && this.#vm === vm && !this.#done && !isDying(vm);
    const verdict = await this.#arbitration.claim(evidence, "pair", this.#leaseEvents, lives);
    if (this.#over) return;
    if (verdict.type === "undecided") this.#notice(verdict.reason);
    else this.#step(verdict);
  }

  /** End the VM and, in good order, its secondary. */
  async stop(reason: string): Promise<void> {
    this.#step({ type: "guest-ended", reason });
    await this.#heardLastWord(GOODBYE_MS);
    this.#ended.resolve("stopped");
  }

  /**
   * Save a checkpoint of the running guest, which goes on meanwhile.
   *
   * @throws {StoreError} when it cannot be saved; guest and store are as they were
   */
  async save(name: string): Promise<SaveResult> {
    const capture = this.#capture;
    const { phase } = this.#machine;
    if (this.#saver !== undefined && (capture === undefined || !CAPTURED.includes(phase))) {
      throw new StoreError(`Cannot save checkpoint ${name}: the primary is ${phase}; try again`);
    }
    return await saveCheckpoint(name, this.#saver, capture!, {
      hold: (on) => this.#hold("save", on),
      isSettled: () => this.#machine.settled,
      isOver: () => this.#capture !== capture || this.#done,
      report: this.#options.report,
    });
  }

  async #openControl({ qmp }: Vm): Promise<void> {
    const { config } = this.#options;
    const status = () => ({
      phase: this.#machine.phase,
      epoch: this.#capture?.epoch ?? 0,
      bypass: this.#packets?.isBypassed ?? false,
      statistics: this.#statistics.statistics,
      network: this.#packets?.statistics ?? [],
    });
    const commands = primaryCommands({
      qmp,
      status,
      save: (name) => this.save(name),
      bypass: (on) => this.#setBypass(on),
    }, config);
    this.#control = await openControl(config, commands, (text) => this.#notice(text));
  }

  async #setBypass(on: boolean): Promise<void> {
    if (this.#packets === undefined) {
      throw new StateError(
        "Cannot open or close the network: no frames are led through this engine yet",
        this.#machine.phase,
        "a secondary that has been connected once",
      );
    }
    await this.#packets.bypass(on);
    this.#options.report({ event: "network", atMs: Date.now(), bypass: on });
    this.#step({ type: "demand" });
  }

  /** Nothing more is to be started. */
  get #done(): boolean {
    return this.#over || this.#machine.phase === "ended";
  }

  #watch(vm: Vm): void {
    vm.qmp.on("STOP", (event) => this.#log.stopped(eventTimeMs(event)));
    vm.qmp.on("RESUME", (event) => {
      const pauseMs = this.#log.resumed(eventTimeMs(event));
      if (pauseMs !== undefined) this.#step({ type: "paused", pauseMs });
    });
    vm.qmp.on("SHUTDOWN", () => this.#shutDown = true);
    // A secondary that can take over is told before the system has cleared away what was killed.
    const isWanted = () => this.#machine.phase === "protected" && !this.#shutDown;
    watchForDeath(vm, isWanted, (signal) => {
      this.#step({ type: "qemu-lost", reason: `the primary QEMU ended by ${signal}` });
    });
    const isBusy = () => !["initial", "idle", "asked"].includes(this.#capture?.state ?? "idle");
    watchForHang(vm, isBusy, () => {
      // There is nobody who could go on in its place, and it may come round.
      if (this.#machine.phase !== "protected") {
        return this.#notice("the primary QEMU does not answer its monitor");
      }
      this.#notice("the primary QEMU hangs, and is ended");
      vm.process.kill();
    });
    vm.process.exited.then(async (exit) => {
      this.#packets?.close();
      this.#packets = undefined;
      if (this.#over) return;
      const ordered = this.#shutDown && exit.code === 0;
      const seedSent = this.#machine.phase === "joining";
      const how = exit.signal === null ? `exit code ${exit.code}` : exit.signal;
      if (ordered) this.#step({ type: "guest-ended", reason: "the guest was shut down" });
      else {
        const reason = `the primary QEMU ended by ${how}`;
        this.#step({
          type: "qemu-lost",
          reason,
          revivable: this.#revivals.mayRevive(performance.now()),
        });
        if (this.#machine.phase === "reviving") return;
      }
      if (seedSent) {
        await this.#sending;
        await this.#link?.bulk.flush();
      }
      await this.#heardLastWord(ordered ? GOODBYE_MS : TAKEN_OVER_MS);
      this.#ended.resolve(ordered ? "guest-ended" : "qemu-lost");
    });
  }

  /**
   * Capture the guest; when that breaks, for whatever reason, let it run and capture it anew. No fault
   * of this engine's may end or freeze the guest.
   */
  async #captureAgainAndAgain(vm: Vm, begun = true): Promise<void> {
    const over = () => this.#done || this.#vm !== vm;
    for (let first = !begun; !over(); first = false) {
      const reason = first ? "QEMU did not begin" : await this.#captureOnce(vm);
      await exitNoticed(vm);
      if (over()) return;
      if (this.#link !== undefined) closeLink(this.#link);
      await this.#sending;
      this.#step({ type: "capture-lost", reason });
      do {
        await new Promise((resolve) => setTimeout(resolve, RECAPTURE_MS));
      } while (!over() && !await this.#captureAnew(vm));
    }
  }

  /** Go on from the last checkpoint with another QEMU. */
  async #revive(reason: string): Promise<void> {
    const capture = this.#capture!;
    this.#vm = undefined;
    this.#control?.close();
    if (this.#link !== undefined) closeLink(this.#link);
    // What was on its way into the mirror is let in, or dropped.
    await Promise.all([this.#capturing, this.#sending]);
    const vm = await reviveVm(this.#options, capture, reason);
    this.#vm = vm;
    if (this.#done) {
      vm.process.kill();
      this.#ended.resolve("qemu-lost");
      return;
    }
    this.#leasePause.reapply();
    this.#revivals.revived(performance.now());
    this.#watch(vm);
    await this.#plugIn(true);
    await this.#openControl(vm);
    this.#step({ type: "revived" });
    await beginPrimary(vm.qmp, this.#options.qemu.capabilities, this.#port.path);
    this.#capturing = this.#captureAgainAndAgain(vm);
  }

  #notRevived(error: unknown): void {
    if (this.#done) return;
    const reason = messageOf(error);
    this.#notice(reason);
    this.#step({ type: "qemu-lost", reason });
    this.#ended.resolve("qemu-lost");
  }

  /** Wait until the secondary has acted on what it was told: it says that it took over, or breaks off. */
  async #heardLastWord(timeoutMs: number): Promise<void> {
    await within(timeoutMs, this.#lastWord);
  }

  /** @returns Whether QEMU has begun to send its memory again */
  async #captureAnew(vm: Vm): Promise<boolean> {
    try {
      await releasePrimary(vm.qmp);
      await beginPrimary(vm.qmp, this.#options.qemu.capabilities, this.#port.path);
      return true;
    } catch (error) {
      if (!this.#done) this.#notice(`${messageOf(error)}; trying again`);
      return false;
    }
  }

  /** @returns Why it ended */
  async #captureOnce(vm: Vm): Promise<string> {
    const capture = new Capture(WasmKernels.create(), {
      createKernels: () => WasmKernels.create(),
    });
    this.#capture = capture;
    this.#stoppedEpoch = 0;
    const encoders = new EncoderPool(
      this.#options.encoders ?? defaultEncoders(navigator.hardwareConcurrency),
    );
    this.#encoders = encoders;
    let serving = true;
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
      // A checkpoint that came whole is sent to its end, and what is said of the guest's end behind it.
      this.#sending.finally(() => encoders.close());
    }
  }

  async #entered(capture: Capture, isServing: () => boolean): Promise<void> {
    await initialTaken(capture, isServing);
    if (isServing()) this.#step({ type: "initial" });
  }

  #captured(event: CaptureEvent): void {
    switch (event.type) {
      case "initial":
        // It counts when QEMU has entered COLO.
        break;
      case "request":
        this.#step({ type: "request" });
        break;
      case "stopped":
        this.#stoppedEpoch = event.epoch;
        this.#packets?.stopped(event.epoch);
        break;
      case "whole":
        this.#log.captured(event.epoch, event.pages, this.#cause);
        this.#step({ type: "whole", epoch: event.epoch });
        break;
    }
  }

  async #connectAgainAndAgain(): Promise<void> {
    let complaint = "";
    while (!this.#done) {
      try {
        // A generation that is being claimed is no other's to share.
        while (this.#arbitration.isClaiming && !this.#done) await sleep(RECONNECT_MS);
        if (this.#done) return;
        const { generation } = this.#arbitration;
        const link = await openLink(this.#peer, this.#introduction);
        complaint = "";
        if (this.#done) return closeLink(link);
        const { isClaiming } = this.#arbitration;
        if (isClaiming || generation !== this.#arbitration.generation) closeLink(link);
        else await this.#serve(link);
      } catch (error) {
        const message = messageOf(error);
        const refused = error instanceof RefusedError ? error.generation : 0;
        // Without a third party both sides may have gone on from the same generation.
        if (refused > 0 && refused >= this.#arbitration.generation) {
          return this.#step({ type: "stale", reason: `${message} (generation ${refused})` });
        }
        if (message !== complaint && !this.#done) this.#notice(`${message}; trying again`);
        complaint = message;
      }
      await sleep(RECONNECT_MS);
    }
  }

  /** Work with one secondary, until it is lost. */
  async #serve(link: Link): Promise<void> {
    this.#link = link;
    this.#gaveUp = false;
    let reason = "the link to the secondary broke";
    let ready = false;
    const watch = this.#watchLink(link);
    this.#lastWord = watch.lastWord;
    try {
      for await (const message of link.bulk.receive()) {
        if (message.type === "replicaFailed") {
          this.#gaveUp = true;
          reason = message.reason;
          break;
        }
        if (message.type === "replicaReady") {
          if (ready) throw new LinkError("the secondary began anew without a word");
          ready = true;
          this.#begin(link).catch((error) => {
            this.#notice(messageOf(error));
            closeLink(link);
          });
        } else if (message.type === "committed" || message.type === "loaded") {
          this.#answered(message.type, message.epoch);
        }
      }
    } catch (error) {
      reason = messageOf(error);
    } finally {
      watch.stop();
      reason = watch.loss ?? reason;
      closeLink(link);
      this.#sender?.cancel();
      for (let sending; sending !== this.#sending;) await (sending = this.#sending);
      await watch.ended;
      this.#link = undefined;
      this.#sender = undefined;
      if (!this.#over) this.#step({ type: "replica-lost", reason });
    }
  }

  #watchLink(link: Link): LinkWatch {
    const { config: { failover }, answerMs = ANSWER_MS } = this.#options;
    return new LinkWatch(link, {
      heartbeat: { intervalMs: failover.heartbeatMs, timeoutMs: failover.timeoutMs },
      answerMs,
      awaitsAnswer: () => this.#machine.awaitsCommit,
      frames: (message) => this.#packets?.received(message),
      notice: (text) => this.#notice(text),
    });
  }

  /** Have the network of the VM led through this engine. */
  async #guard(link: Link): Promise<void> {
    const { config, directory } = this.#options;
    const { replication: { mode }, network } = config;
    this.#packets ??= await PrimaryPackets.install({
      monitor: this.#vm!.qmp,
      nics: filteredNics(config),
      mode,
      timeoutMs: network.timeoutMs,
      excluded: network.excluded,
      directory,
      demand: ({ reason }) => {
        this.#wish ??= reason;
        this.#step({ type: "demand" });
      },
      notice: (text) => this.#notice(text),
    });
    await this.#packets.guard(link.packets, this.#stoppedEpoch);
  }

  /** The secondary waits to be seeded: do so as soon as there is something to seed from. */
  async #begin(link: Link): Promise<void> {
    const over = () => this.#done || this.#link !== link;
    const isAlone = () => this.#machine.phase === "alone";
    do {
      while (!isAlone()) {
        await new Promise((resolve) => setTimeout(resolve, 20));
        if (over()) return;
      }
      await this.#guard(link);
    } while (!isAlone() && !over());
    if (over()) return this.#packets?.runAlone(link.packets);
    const [capture, encoders] = [this.#capture!, this.#encoders!];
    encoders.attach(capture.mirror);
    this.#sender = new ReplicaSender(capture, link.bulk, encoders);
    this.#seedBeganMs = performance.now();
    this.#step({ type: "replica-ready" });
  }

  #answered(type: "committed" | "loaded", epoch: number): void {
    const { phase } = this.#machine;
    this.#step({ type, epoch });
    if (type === "committed") this.#log.committed(epoch);
    if (phase !== "joining" || this.#machine.phase !== "protected") return;
    this.#options.report({
      event: "seeded",
      atMs: Date.now(),
      durationMs: performance.now() - this.#seedBeganMs,
      wireBytes: this.#link?.bulk.bytesQueued ?? 0,
    });
  }

  #step(event: PrimaryEvent): void {
    for (const effect of this.#machine.step(event, performance.now())) this.#do(effect);
  }

  #do(effect: PrimaryEffect): void {
    const capture = this.#capture!;
    switch (effect.type) {
      case "ready":
        return this.#port.write([capture.ready()]);
      case "reply":
        this.#cause = this.#wish ?? "periodic";
        this.#wish = undefined;
        return this.#port.write([capture.reply()]);
      case "acknowledge":
        return this.#port.write(capture.acknowledge());
      case "absorb":
        this.#log.absorbed(capture.epoch);
        return capture.absorb();
      case "send":
        return this.#send((sender) => this.#sendDelta(sender, effect.epoch, effect.load));
      case "seed":
        return this.#send((sender) => this.#seed(sender));
      case "commit-seed":
        return this.#send((sender) => sender.commit(effect.epoch, true));
      case "clear-missing":
        return capture.mirror.clearMissing();
      case "hold-outputs":
        return this.#packets?.begin(effect.epoch);
      case "release-outputs":
        return this.#packets?.committed(effect.epoch);
      case "run-alone":
        return this.#packets?.runAlone();
      case "claim":
        this.#claim().catch((error) => this.#notice(messageOf(error)));
        return;
      case "kill-guest":
        this.#vm?.process.kill();
        return;
      case "revive":
        this.#reviving = this.#revive(effect.reason).catch((error) => this.#notRevived(error));
        return;
      case "release-guest":
        this.#port.disconnect();
        releasePrimary(this.#vm!.qmp).catch((error) => this.#notice(messageOf(error)));
        return;
      case "tell-primary-lost": {
        const message: Message = { type: "primaryLost", reason: effect.reason };
        if (!effect.behindSeed) return this.#tell(message);
        return this.#send((sender) => sender.bulk.send(message));
      }
      case "tell-goodbye":
        return this.#tell({ type: "goodbye", reason: effect.reason });
      case "report": {
        const { phase, reason } = effect;
        return this.#options.report({ event: "primary", atMs: Date.now(), phase, reason });
      }
      case "wake":
        clearTimeout(this.#wakeTimer);
        this.#wakeTimer = setTimeout(
          () => this.#step({ type: "tick" }),
          Math.max(0, effect.atMs - performance.now()),
        );
    }
  }

  /**
   * Queue work for the secondary behind what is being sent. A broken link ends the work and is noticed
   * where the link is read; anything else that fails leaves the mirror in doubt, so the guest is
   * captured anew.
   */
  #send(work: (sender: ReplicaSender) => Promise<void>): void {
    const sender = this.#sender;
    if (sender === undefined) return;
    this.#sending = this.#sending.then(() => work(sender)).catch((error) => {
      // Whoever has ended has something to say about it yet.
      if (this.#done) return;
      if (this.#link !== undefined) closeLink(this.#link);
      if (error instanceof LinkError) return;
      this.#notice(messageOf(error));
      this.#port.disconnect();
    });
  }

  async #sendDelta(sender: ReplicaSender, epoch: number, load: boolean): Promise<void> {
    const before = sender.bulk.bytesQueued;
    const counts = await sender.delta(epoch, load, () => this.#step({ type: "encoded" }));
    this.#log.sent(epoch, counts, sender.bulk.bytesQueued - before, !load);
  }

  #seed(sender: ReplicaSender): Promise<void> {
    return sender.seed(
      (missingPages) => this.#step({ type: "seed-pass", missingPages }),
      (epoch) => this.#step({ type: "seed-sent", epoch }),
    );
  }

  #tell(message: Message): void {
    // A link that broke says so on its own.
    this.#link?.control.send(message).catch(() => {});
  }

  #notice(text: string): void {
    this.#options.report({ event: "notice", atMs: Date.now(), text });
  }

  async #close(): Promise<void> {
    this.#over = true;
    clearTimeout(this.#wakeTimer);
    this.#control?.close();
    this.#saver?.close();
    if (this.#link !== undefined) closeLink(this.#link);
    this.#port.close();
    await this.#reviving;
    await this.#packets?.close();
    await this.#vm?.stop();
    await this.#arbitration.close();
    for (const complaint of await this.#plugs.remove()) this.#notice(complaint);
  }
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
