/**
 * The primary's side at work: runs QEMU, captures its checkpoints, feeds the secondary. What to do is
 * decided by {@linkcode PrimaryMachine}; here it is done.
 *
 * ```text
 *                                   PrimaryHost
 *            events to the machine, its effects to whom they concern
 *     |                |                  |                 |               |
 *  watchPrimary   PrimaryCapture   PrimaryPackets     PrimaryLink     PrimaryClaims
 *  QEMU's end     its memory       its network        its secondary   its right to run
 * ```
 *
 * @module
 */

import type { ControlServer } from "../control/mod.ts";
import { messageOf, QemuError, StateError, StoreError } from "../errors.ts";
import {
  type PrimaryEffect,
  type PrimaryEvent,
  PrimaryMachine,
  type PrimaryPhase,
} from "../failover/primary.ts";
import { formatAddress, type LinkAddress, type LinkConnection, type Message } from "../link/mod.ts";
import type { CheckpointReason } from "../proxy/mod.ts";
import { Saver, type SaveResult } from "../store/mod.ts";
import { Arbitration, arbitrationOptions, volatileArbiter } from "./arbitration.ts";
import { CheckpointLog } from "./checkpoint_log.ts";
import { releasePrimary } from "./colo_qemu.ts";
import { DiskCopyName } from "./disk_copy.ts";
import { InboundBuffer } from "./inbound_buffer.ts";
import { filteredNics, NicPlugs } from "./nics.ts";
import { PrimaryCapture } from "./primary_capture.ts";
import { PrimaryClaims } from "./primary_claims.ts";
import { refuseAll } from "./occupied.ts";
import { openControl, primaryCommands } from "./primary_control.ts";
import { PrimaryDisks } from "./primary_disks.ts";
import { PrimaryLink } from "./primary_link.ts";
import type { PrimaryEnd, PrimaryHostOptions } from "./primary_options.ts";
import { PrimaryPackets } from "./primary_packets.ts";
import { type PrimaryVmEnd, watchPrimary } from "./primary_watch.ts";
import type { CheckpointCause } from "./report.ts";
import { Revivals, reviveVm } from "./revive.ts";
import { saveCheckpoint } from "./save_checkpoint.ts";
import type { Vm } from "./start_vm.ts";
import { StatisticsCounter } from "./statistics.ts";
import { obtainVm } from "./vm_source.ts";

/** How long the secondary may take to say that it took over, or to let go of a guest that has ended. */
const TAKEN_OVER_MS = 5000;
const GOODBYE_MS = 1000;

/** Phases in which the mirror follows the guest. */
const CAPTURED: readonly PrimaryPhase[] = ["alone", "seeding", "joining", "protected"];

/** Runs one VM as primary, until it ends. */
export class PrimaryHost {
  readonly #options: PrimaryHostOptions;
  readonly #machine: PrimaryMachine;
  readonly #log: CheckpointLog;
  readonly #arbitration: Arbitration;
  readonly #link: PrimaryLink;
  readonly #capture: PrimaryCapture;
  readonly #claims: PrimaryClaims;
  readonly #plugs: NicPlugs;
  readonly #revivals: Revivals;
  readonly #saver: Saver | undefined;
  readonly #statistics = new StatisticsCounter();
  readonly #ended = Promise.withResolvers<PrimaryEnd>();
  #vm: Vm | undefined;
  /** What comes for the guest, when it can be held. */
  #inbound: InboundBuffer | undefined;
  /** The network of the VM, once a secondary has come. */
  #packets: PrimaryPackets | undefined;
  readonly #disks: PrimaryDisks;
  #control: ControlServer | undefined;
  #door: Disposable | undefined;
  #wakeTimer: ReturnType<typeof setTimeout> | undefined;
  /** What starts another VM in place of one that died. */
  #reviving: Promise<void> = Promise.resolve();
  /** Why a checkpoint is wished for that has not begun, and why the last one was begun. */
  #wish: CheckpointReason | undefined;
  #cause: CheckpointCause = "periodic";
  /** Whoever wishes that no checkpoint is begun. */
  readonly #holders = new Set<string>();
  /** Nobody has said yet whether the VM may run here. */
  #isBeginning = false;
  #stopped = false;
  #over = false;

  constructor(options: PrimaryHostOptions) {
    this.#options = options;
    const { config, directory, qemu, encoders, answerMs, report, taken } = options;
    this.#machine = new PrimaryMachine(config.replication, performance.now());
    this.#log = new CheckpointLog((checkpoint) => {
      if (checkpoint.event === "checkpoint") this.#statistics.count(checkpoint);
      report(checkpoint);
    });
    const arbitration = taken?.arbitration ?? new Arbitration(
      arbitrationOptions(
        config,
        options.arbiter ?? volatileArbiter(),
        (text) => this.#notice(text),
      ),
    );
    this.#arbitration = arbitration;
    const common = {
      isDone: () => this.#done,
      phase: () => this.#machine.phase,
      step: (event: PrimaryEvent) => this.#step(event),
      notice: (text: string) => this.#notice(text),
    };
    const disks = new PrimaryDisks({
      count: config.vm.disks.length,
      directory,
      undisturbed: (work) => this.#undisturbed(work),
      demand: () => this.#step({ type: "demand" }),
      report,
    });
    this.#disks = disks;
    const link = new PrimaryLink({ config, arbitration, disks, log: this.#log, report, answerMs }, {
      ...common,
      monitor: () => this.#vm?.qmp,
      awaitsCommit: () => this.#machine.awaitsCommit,
      source: () => this.#capture.source,
      guard: (packets) => this.#guard(packets),
      unguard: (packets) => this.#packets?.runAlone(packets),
      captureAnew: () => this.#capture.disconnect(),
    });
    this.#link = link;
    if (taken?.secondary !== undefined) link.reprotect(taken.secondary);
    this.#capture = new PrimaryCapture({ path: `${directory}/capture.sock`, qemu, encoders }, {
      ...common,
      runs: (vm) => this.#vm === vm && !this.#done,
      stopped: (epoch) => {
        this.#packets?.stopped(epoch);
        this.#inbound?.release();
      },
      ended: () => this.#inbound?.release(),
      captured: (epoch, pages) => this.#log.captured(epoch, pages, this.#cause),
      sent: () => link.sent(),
      cutLink: () => link.cut(),
    });
    this.#claims = new PrimaryClaims(arbitration, {
      ...common,
      vm: () => this.#vm,
      isOver: () => this.#over,
      hold: (on) => this.#hold("lease", on),
      isSettled: () => this.#machine.settled || this.#done,
      secondaryGaveUp: () => link.gaveUp,
    });
    taken?.arbitration.handOver(this.#claims.lease);
    this.#plugs = taken?.plugs ?? new NicPlugs(config);
    this.#revivals = new Revivals(config.replication.revive);
    const { vm, store } = config;
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
    const { recordPath, taken } = this.#options;
    try {
      if (recordPath !== undefined) await this.#capture.record(recordPath);
      // What the images here are from now on nobody else has.
      new DiskCopyName(this.#options.config).store("");
      let wasRunning = false;
      const vm = await obtainVm(this.#options, async (runs) => {
        wasRunning = runs;
        await this.#mayBegin(runs);
      });
      this.#vm = vm;
      this.#watch(vm);
      if (taken === undefined) {
        await this.#refuseOthers();
        await this.#plugIn(wasRunning);
      }
      await this.#holdInbound(vm);
      await this.#openControl(vm);
      const isOurs = taken === undefined && !wasRunning;
      // The disks of any other VM are prepared when there is a secondary to write to.
      if (isOurs) await this.#disks.prepare(vm.qmp);
      const begun = await this.#capture.begin(vm).then(() => true, (error) => {
        // Of a VM that the world sees already nothing is ended because it cannot be protected.
        if (isOurs) throw error;
        if (!this.#done) this.#notice(`${messageOf(error)}; trying again`);
        return false;
      });
      this.#capture.follow(vm, begun);
      this.#link.connectAgainAndAgain();
      return await this.#ended.promise;
    } catch (error) {
      if (this.#isBeginning && this.#stopped) return "stopped";
      throw error;
    } finally {
      await this.#close();
    }
  }

  /** Wait for the arbiter and the peer, which may take as long as they like. */
  async #mayBegin(wasRunning: boolean): Promise<void> {
    this.#isBeginning = true;
    const askPeer = () => this.#link.askPeer();
    const { isOrdered } = this.#options;
    await this.#arbitration.begin(this.#claims.lease, wasRunning, askPeer, isOrdered);
    this.#isBeginning = false;
  }

  /** Whoever else is about to run the VM learns that it runs here. */
  async #refuseOthers(): Promise<void> {
    const { listen, peer } = this.#options.config.replication;
    // On one machine the standby itself may be listening there.
    if (listen === undefined || isSame(listen, peer)) return;
    const generation = () => this.#arbitration.generation;
    this.#door = await refuseAll(listen, generation, (text) => this.#notice(text));
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

  /** End the VM and, in good order, its secondary. */
  async stop(reason: string): Promise<void> {
    this.#stopped = true;
    if (this.#isBeginning) await this.#arbitration.close();
    this.#step({ type: "guest-ended", reason });
    await this.#link.heardLastWord(GOODBYE_MS);
    this.#ended.resolve("stopped");
  }

  /**
   * Save a checkpoint of the running guest, which goes on meanwhile.
   *
   * @throws {StoreError} when it cannot be saved; guest and store are as they were
   */
  async save(name: string): Promise<SaveResult> {
    const capture = this.#capture.current;
    const { phase } = this.#machine;
    if (this.#saver !== undefined && (capture === undefined || !CAPTURED.includes(phase))) {
      throw new StoreError(`Cannot save checkpoint ${name}: the primary is ${phase}; try again`);
    }
    return await saveCheckpoint(name, this.#saver, capture!, {
      hold: (on) => this.#hold("save", on),
      isSettled: () => this.#machine.settled,
      isOver: () => this.#capture.current !== capture || this.#done,
      report: this.#options.report,
    });
  }

  #hold(by: string, on: boolean): void {
    if (on) this.#holders.add(by);
    else this.#holders.delete(by);
    this.#step({ type: this.#holders.size > 0 ? "hold" : "release" });
  }

  /** Do something while no checkpoint is under way, and none is begun; the guest runs. */
  async #undisturbed(work: () => Promise<void>): Promise<void> {
    this.#hold("disks", true);
    try {
      while (!this.#machine.settled && !this.#done) {
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      await work();
    } finally {
      this.#hold("disks", false);
      // Whatever was done may have let it run on.
      this.#claims.reapply();
    }
  }

  /** A network without it loses a frame now and then, as any network does. */
  async #holdInbound({ qmp }: Vm): Promise<void> {
    this.#inbound = undefined;
    try {
      this.#inbound = await InboundBuffer.install(qmp, filteredNics(this.#options.config));
    } catch (error) {
      if (!this.#done) this.#notice(messageOf(error));
    }
  }

  /** @param tell Tells QEMU to bring the guest to a stop, and whether it could */
  async #stopGuest(tell: () => boolean): Promise<void> {
    await this.#inbound?.hold();
    if (!tell()) this.#inbound?.release();
  }

  async #openControl({ qmp }: Vm): Promise<void> {
    const { config } = this.#options;
    const status = () => ({
      phase: this.#machine.phase,
      epoch: this.#capture.current?.epoch ?? 0,
      bypass: this.#packets?.isBypassed ?? false,
      statistics: this.#statistics.statistics,
      network: this.#packets?.statistics ?? [],
      ...(this.#disks.copying && { "disks-copying": this.#disks.copying }),
    });
    const commands = primaryCommands({
      qmp,
      status,
      save: (name) => this.save(name),
      bypass: (on) => this.#setBypass(on),
      reprotect: (address) => this.#link.reprotect(address),
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
    watchPrimary(vm, {
      log: this.#log,
      isProtected: () => this.#machine.phase === "protected",
      isMidCheckpoint: () => this.#capture.isMidCheckpoint,
      step: (event) => this.#step(event),
      resumed: () => this.#claims.reapply(),
      exited: (end) => this.#exited(end),
      notice: (text) => this.#notice(text),
    });
  }

  async #exited({ ordered, how }: PrimaryVmEnd): Promise<void> {
    this.#packets?.close();
    this.#packets = undefined;
    if (this.#over) return;
    const seedSent = this.#machine.phase === "joining";
    if (ordered) this.#step({ type: "guest-ended", reason: "the guest was shut down" });
    else {
      const revivable = this.#revivals.mayRevive(performance.now());
      this.#step({ type: "qemu-lost", reason: `the primary QEMU ended by ${how}`, revivable });
      if (this.#machine.phase === "reviving") return;
    }
    if (seedSent) await this.#link.flushed();
    await this.#link.heardLastWord(ordered ? GOODBYE_MS : TAKEN_OVER_MS);
    this.#ended.resolve(ordered ? "guest-ended" : "qemu-lost");
  }

  /** Go on from the last checkpoint with another QEMU. */
  async #revive(reason: string): Promise<void> {
    const capture = this.#capture.current!;
    this.#vm = undefined;
    this.#control?.close();
    // What was on its way into the mirror is let in, or dropped.
    await Promise.all([this.#link.cut(), this.#capture.ended]);
    const vm = await reviveVm(this.#options, capture, reason);
    this.#vm = vm;
    if (this.#done) {
      vm.process.kill();
      this.#ended.resolve("qemu-lost");
      return;
    }
    this.#claims.reapply();
    this.#revivals.revived(performance.now());
    this.#watch(vm);
    await this.#plugIn(true);
    await this.#holdInbound(vm);
    await this.#openControl(vm);
    this.#step({ type: "revived" });
    await this.#capture.begin(vm);
    this.#capture.follow(vm);
  }

  #notRevived(error: unknown): void {
    if (this.#done) return;
    const reason = messageOf(error);
    this.#notice(reason);
    this.#step({ type: "qemu-lost", reason });
    this.#ended.resolve("qemu-lost");
  }

  /** Have the network of the VM led through this engine. */
  async #guard(link: LinkConnection): Promise<void> {
    this.#packets ??= await this.#installPackets(this.#vm!);
    await this.#packets.guard(link, this.#capture.stoppedEpoch);
  }

  async #installPackets({ qmp, process }: Vm): Promise<PrimaryPackets> {
    const { config, directory } = this.#options;
    const { replication: { mode }, network } = config;
    let isGone = false;
    process.exited.then(() => isGone = true);
    const packets = await PrimaryPackets.install({
      monitor: qmp,
      nics: filteredNics(config),
      mode,
      timeoutMs: network.timeoutMs,
      excluded: network.excluded,
      directory,
      mayLeaveUntilMs: () => Math.min(this.#link.unheardAtMs, this.#claims.maySpeakUntilMs),
      demand: ({ reason }) => {
        this.#wish ??= reason;
        this.#step({ type: "demand" });
      },
      notice: (text) => this.#notice(text),
    });
    if (!isGone && !this.#over) return packets;
    packets.close();
    throw new QemuError("Cannot lead packets: the primary QEMU has ended");
  }

  #step(event: PrimaryEvent): void {
    for (const effect of this.#machine.step(event, performance.now())) this.#do(effect);
    this.#packets?.permit();
  }

  #do(effect: PrimaryEffect): void {
    switch (effect.type) {
      case "ready":
        return this.#capture.ready();
      case "reply":
        this.#cause = this.#wish ?? "periodic";
        this.#wish = undefined;
        this.#stopGuest(this.#capture.reply());
        return;
      case "acknowledge":
        return this.#capture.acknowledge();
      case "absorb": {
        const capture = this.#capture.current!;
        this.#log.absorbed(capture.epoch);
        return capture.absorb();
      }
      case "send":
        return this.#link.delta(effect.epoch, effect.load);
      case "seed":
        return this.#link.seed();
      case "commit-seed":
        return this.#link.commitSeed(effect.epoch);
      case "clear-missing":
        return this.#capture.current!.held(effect.epoch);
      case "hold-outputs":
        this.#disks.begin(effect.epoch);
        return this.#packets?.begin(effect.epoch);
      case "release-outputs":
        return this.#packets?.committed(effect.epoch);
      case "run-alone":
        return this.#packets?.runAlone();
      case "claim":
        this.#packets?.secondaryLost();
        this.#claims.claim().catch((error) => this.#notice(messageOf(error)));
        return;
      case "kill-guest":
        this.#vm?.process.kill();
        return;
      case "revive":
        this.#reviving = this.#revive(effect.reason).catch((error) => this.#notRevived(error));
        return;
      case "release-guest":
        this.#capture.disconnect();
        releasePrimary(this.#vm!.qmp).catch((error) => this.#notice(messageOf(error)));
        return;
      case "tell-primary-lost": {
        const message: Message = { type: "primaryLost", reason: effect.reason };
        return effect.behindSeed ? this.#link.tellBehind(message) : this.#link.tell(message);
      }
      case "tell-goodbye":
        return this.#link.tell({ type: "goodbye", reason: effect.reason });
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

  #notice(text: string): void {
    this.#options.report({ event: "notice", atMs: Date.now(), text });
  }

  async #close(): Promise<void> {
    this.#over = true;
    clearTimeout(this.#wakeTimer);
    this.#door?.[Symbol.dispose]();
    this.#control?.close();
    this.#saver?.close();
    this.#link.cut();
    this.#capture.close();
    this.#disks.close();
    await this.#reviving;
    this.#packets?.close();
    await this.#vm?.stop();
    await this.#arbitration.close();
    for (const complaint of await this.#plugs.remove()) this.#notice(complaint);
  }
}

function isSame(a: LinkAddress, b: LinkAddress | undefined): boolean {
  return b !== undefined && formatAddress(a) === formatAddress(b);
}
