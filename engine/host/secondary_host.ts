/**
 * The secondary's side at work: takes checkpoints from the link, takes over. What to do is decided by
 * {@linkcode SecondaryMachine}, and what concerns QEMU is done by a {@linkcode ReplicaSide}.
 *
 * @module
 */

import { ImageReplica } from "../checkpoint/image_replica.ts";
import { LiveReplica } from "../checkpoint/live_replica.ts";
import { requireListen, type VmConfig } from "../config/mod.ts";
import { type ControlServer, standbyControlPath } from "../control/mod.ts";
import {
  messageOf,
  QemuError,
  QmpError,
  StateError,
  StoreError,
  StreamError,
  WireError,
} from "../errors.ts";
import type { Arbiter, LossEvidence } from "../failover/arbiter.ts";
import { refusalOf } from "../failover/refusal.ts";
import {
  type SecondaryEffect,
  type SecondaryEvent,
  SecondaryMachine,
} from "../failover/secondary.ts";
import { secondaryEvent, secondaryMessage } from "../failover/secondary_words.ts";
import {
  acceptLinks,
  closeLink,
  type Introduction,
  type Link,
  type LinkAddress,
  listenLink,
  type Message,
} from "../link/mod.ts";
import { ENGINE_VERSION } from "../version.ts";
import { killLeftover, type Qemu } from "../vm/mod.ts";
import { Arbitration, arbitrationOptions, volatileArbiter } from "./arbitration.ts";
import { DiskCopyName } from "./disk_copy.ts";
import { requireFree } from "./image_lock.ts";
import { introductionOf } from "./introduction.ts";
import { ImageSide } from "./image_side.ts";
import { LiveSide } from "./live_side.ts";
import { NicPlugs } from "./nics.ts";
import { openControl } from "./primary_control.ts";
import { PrimaryHost } from "./primary_host.ts";
import { announce } from "./packet_filters.ts";
import type { ReplicaSide, SideOptions } from "./replica_side.ts";
import { standbyCommands } from "./secondary_control.ts";
import { SecondaryLink } from "./secondary_link.ts";
import type { Reporter } from "./report.ts";
import { createStandbys, StandbyOffer } from "./standby_registry.ts";
import { overlayDirectory } from "./secondary_disks.ts";
import type { RunNotebook } from "./start_vm.ts";
import { survivorCommands } from "./survivor_control.ts";
import { within } from "./vm_end.ts";

/** What a secondary needs. */
export interface SecondaryHostOptions {
  readonly config: VmConfig;
  readonly qemu: Qemu;
  /** A directory of this process's own, for sockets. */
  readonly directory: string;
  /** Where its QEMU is written down, and was by an engine before; left out: it is not. */
  readonly run?: RunNotebook | undefined;
  readonly report: Reporter;
  /** Who decides whether the VM may be taken over; left out: nobody but this side. */
  readonly arbiter?: Arbiter | undefined;
  /** Bytes of checkpoints that may wait for QEMU before the primary has to wait. */
  readonly heldBytesMax?: number;
  /** Run the VM from the checkpoint that an earlier standby has left, without a word of its primary. */
  readonly takeOver?: boolean;
}

/** How long the primary is tried to be told that its secondary ends. */
const GOODBYE_MS = 200;

/** How a secondary ended. */
export type SecondaryEnd = "guest-ended" | "qemu-lost" | "stopped";

/** Runs the standby of one VM, and the VM itself once it was taken over, until that ends. */
export class SecondaryHost {
  readonly #options: SecondaryHostOptions;
  readonly #machine: SecondaryMachine;
  readonly #address: LinkAddress;
  readonly #ended = Promise.withResolvers<SecondaryEnd>();
  readonly #plugs: NicPlugs;
  readonly #diskCopy: DiskCopyName;
  readonly #arbitration: Arbitration;
  /** What the primary that was accepted last says of itself. */
  #introduction: Introduction | undefined;
  #serving: SecondaryLink | undefined;
  #offered: StandbyOffer | undefined;
  #listener: Deno.Listener | undefined;
  #control: ControlServer | undefined;
  #side: ReplicaSide | undefined;
  #link: Link | undefined;
  /** Looks after the VM once it was taken over. */
  #successor: PrimaryHost | undefined;
  #failed = false;
  #over = false;

  /** @throws {ConfigError} when `replication.listen` is missing */
  constructor(options: SecondaryHostOptions) {
    this.#options = options;
    const { vm, replication } = options.config;
    const isLive = replication.mode === "colo";
    this.#machine = new SecondaryMachine(
      () => isLive ? new LiveReplica(options.heldBytesMax) : new ImageReplica(),
      vm.disks.length === 0,
    );
    this.#address = requireListen(options.config);
    this.#diskCopy = new DiskCopyName(options.config);
    this.#plugs = new NicPlugs(options.config);
    const arbiter = options.arbiter ?? volatileArbiter();
    this.#arbitration = new Arbitration(
      arbitrationOptions(options.config, arbiter, (text) => this.#notice(text)),
    );
    // It may be rejected before anybody waits for it.
    this.#ended.promise.catch(() => {});
  }

  /**
   * Stand by, and run the VM when it was taken over, until it ends or {@linkcode stop} is called.
   *
   * @throws {LinkError} when the address of `replication.listen` cannot be had
   * @throws {QemuError} when the standby QEMU cannot be started; nothing is left running
   * @throws {DiskError} when somebody else uses its disks
   * @throws {StoreError} when the guest's memory cannot be kept, or there is none to take over from
   */
  async run(): Promise<SecondaryEnd> {
    try {
      const listener = await listenLink(this.#address);
      this.#listener = listener;
      await this.#clearUp();
      requireFree(this.#options.config.vm.disks.map(({ path }) => path));
      const side = this.#createSide();
      this.#side = side;
      await side.start();
      await this.#plugs.install("secondary");
      await this.#openControl();
      this.#offer();
      if (this.#options.takeOver) this.#takeOverUnasked();
      this.#acceptPrimaries(listener).catch((error) => this.#fail(error));
      return await this.#ended.promise;
    } finally {
      await this.#close();
    }
  }

  /** Have a primary that has no secondary find this one. */
  #offer(): void {
    const { config } = this.#options;
    const standbys = createStandbys(config);
    if (standbys === undefined) return;
    const standby = { id: this.#arbitration.holder, address: this.#address };
    const { leaseMs } = config.failover;
    this.#offered = new StandbyOffer(standbys, standby, leaseMs, (text) => this.#notice(text));
  }

  /**
   * End what an engine has left that has ended.
   *
   * @throws {QemuError} when it is the VM itself, which the world sees
   */
  async #clearUp(): Promise<void> {
    const record = this.#options.run?.record;
    if (record === undefined) return;
    if (!record.runsVm) return await killLeftover(record);
    throw new QemuError(
      `Cannot stand by: the VM itself runs here, as process ${record.pid}; ` +
        "protect it with `colo run`, or end it first",
    );
  }

  /** End, whatever the VM is doing. */
  stop(): void {
    if (this.#successor === undefined) this.#ended.resolve("stopped");
    else this.#successor.stop("the operator ended it").catch((error) => this.#fail(error));
  }

  #createSide(): ReplicaSide {
    const { config, qemu, directory, report, run } = this.#options;
    const options: SideOptions = {
      config,
      qemu,
      directory,
      report,
      run,
      events: {
        ready: () => this.#step({ type: "qemu-ready" }),
        answered: (answer) => this.#guard(() => this.#step(answer)),
        lost: (reason, orderly) => this.#lost(reason, orderly),
        full: () => this.#step({ type: "load-held" }),
        late: () =>
          this.#notice("the takeover takes long: QEMU is not running yet, and waited for"),
        failed: (error) => this.#giveUp(error),
      },
    };
    return config.replication.mode === "colo" ? new LiveSide(options) : new ImageSide(options);
  }

  async #openControl(): Promise<void> {
    const { config } = this.#options;
    const commands = standbyCommands({
      status: () => ({ phase: this.#machine.phase, epoch: this.#machine.epoch }),
      takeOver: () => this.#takeOverOrdered(),
    }, config.vm.name);
    const notice = (text: string) => this.#notice(text);
    this.#control = await openControl(config, commands, notice, standbyControlPath);
  }

  /** @throws {StateError} when the VM may be running, or nothing is held of it */
  #takeOverOrdered(): void {
    const { phase } = this.#machine;
    // The operator has done what the fence command could not.
    if (phase === "deciding" && this.#arbitration.confirmOff()) return;
    if (phase === "orphaned" && this.#link === undefined) {
      return this.#step({ type: "take-over", reason: "the operator ordered it" });
    }
    const why = this.#link !== undefined
      ? "the primary is connected; end it there first"
      : phase === "deciding"
      ? "it is being decided who runs the VM"
      : `the standby is ${phase}`;
    throw new StateError(`Cannot take over: ${why}`, phase, "orphaned");
  }

  #takeOverUnasked(): void {
    if (this.#machine.phase !== "orphaned") {
      throw new StoreError(
        "Cannot take over: no checkpoint is held here; start the standby without --take-over",
      );
    }
    this.#step({ type: "take-over", reason: "the operator ordered it" });
  }

  #lost(reason: string, orderly: boolean): void {
    if (this.#over) return;
    const ended = this.#machine.phase === "promoted" && orderly;
    this.#step({ type: "qemu-lost", reason });
    if (this.#machine.phase === "ended") this.#ended.resolve(ended ? "guest-ended" : "qemu-lost");
  }

  async #acceptPrimaries(listener: Deno.Listener): Promise<void> {
    const links = acceptLinks(listener, ENGINE_VERSION, (introduction) => {
      const { config } = this.#options;
      const refusal = refusalOf(introduction, {
        own: introductionOf(config, this.#arbitration, this.#side?.diskSizes ?? []),
        phase: this.#machine.phase,
        hasThirdParty: config.failover.arbiter !== "manual",
        isClaiming: this.#arbitration.isClaiming,
        isLinked: this.#link !== undefined,
      });
      if (refusal === undefined) this.#introduction = introduction;
      return refusal;
    });
    for await (const link of links) {
      if (this.#link === undefined) this.#serve(link).catch((error) => this.#fail(error));
      else closeLink(link);
    }
  }

  /** Work with one primary, until the link is gone. */
  async #serve(link: Link): Promise<void> {
    this.#link = link;
    const { generation, holder } = this.#introduction!;
    await this.#arbitration.share(generation, holder);
    const { heartbeatMs, timeoutMs } = this.#options.config.failover;
    const side = this.#side!;
    const serving = new SecondaryLink(link, {
      side,
      diskCopy: this.#diskCopy,
      heartbeat: { intervalMs: heartbeatMs, timeoutMs },
      takesPages: () => this.#machine.takesPages,
      take: (message) => this.#guard(() => this.#take(message)),
    });
    this.#serving = serving;
    side.connect(link);
    this.#step({ type: "link-up" });
    const reason = await serving.serve();
    this.#link = undefined;
    side.connect(undefined);
    if (!this.#over) this.#step({ type: "link-lost", reason });
  }

  #take(message: Message): void {
    if (message.type === "frames") return this.#side?.frames?.(message);
    const event = secondaryEvent(message);
    if (event === undefined) return;
    this.#step(event);
    if (event.type === "goodbye" && this.#machine.phase === "ended") {
      this.#ended.resolve("guest-ended");
    }
  }

  /** Run what may stumble over foreign bytes: each side's own fault ends only that side. */
  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (error instanceof StreamError) {
        this.#side?.kill();
        this.#notice(error.message);
      } else if (error instanceof WireError) {
        this.#notice(error.message);
        if (this.#link !== undefined) closeLink(this.#link);
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
      case "prepare":
      case "settle":
      case "image":
      case "stopped":
        return this.#side?.do(effect);
      case "tell-loaded":
        this.#side?.loaded(effect.epoch);
        this.#options.report({ event: "loaded", atMs: Date.now(), epoch: effect.epoch });
        return this.#tell(secondaryMessage(effect));
      case "tell-ready":
      case "tell-committed":
      case "tell-failed":
        return this.#tell(secondaryMessage(effect));
      case "claim":
        this.#claim(effect.evidence).catch((error) => this.#fail(error));
        return;
      case "take-over":
        this.#takeOver(effect.reason).catch((error) => this.#giveUp(error));
        return;
      case "restart-qemu":
        return this.#side?.restart();
      case "report": {
        const { phase, reason } = effect;
        return this.#options.report({ event: "secondary", atMs: Date.now(), phase, reason });
      }
    }
  }

  async #claim(evidence: LossEvidence): Promise<void> {
    const knowsAll = this.#machine.entitled || evidence === "reported";
    const standing = knowsAll ? "pair" : "outside";
    const verdict = await this.#arbitration.claim(
      evidence,
      standing,
      {
        pause: () => this.#side?.monitor?.execute("stop").catch(() => {}),
        resume: () => this.#side?.monitor?.execute("cont").catch(() => {}),
        stale: (reason) => {
          this.#notice(reason);
          this.#side?.kill();
        },
      },
      () => this.#machine.phase === "deciding",
      this.#options.config.failover.fence?.delayMs,
    );
    if (!this.#over) this.#step(verdict);
  }

  async #takeOver(reason: string): Promise<void> {
    const side = this.#side!;
    this.#offered?.withdraw();
    this.#diskCopy.store("");
    const [atMs] = await Promise.all([
      side.takeOver().finally(() => this.#noteThatItRuns()),
      this.#plugs.failOver().catch((error) => this.#notice(messageOf(error))),
    ]);
    const { epoch } = this.#machine;
    if (side.monitor !== undefined) {
      announce(side.monitor).catch((error) => this.#notice(messageOf(error)));
    }
    this.#step({ type: "promoted" });
    this.#control?.close();
    this.#options.report({ event: "running", atMs, epoch, reason });
    this.#link?.control.send({ type: "takenOver", epoch, runningAtMs: atMs }).catch(() => {});
    await side.release().catch((error) => this.#notice(messageOf(error)));
    const { replication: { peer }, failover: { arbiter } } = this.#options.config;
    if (peer !== undefined || arbiter === "etcd") this.#protectAgain();
    else await this.#awaitOrder(side.merge().catch((error) => this.#notice(messageOf(error))));
  }

  /**
   * Nobody is known who could protect the VM: the operator may name one.
   *
   * @param merged Fulfilled when its disks are what they were
   */
  async #awaitOrder(merged: Promise<void>): Promise<void> {
    const { config } = this.#options;
    const protect = async (address: LinkAddress) => {
      await merged;
      this.#control?.close();
      if (!this.#over) this.#protectAgain(address);
    };
    const commands = survivorCommands(() => this.#side?.monitor, protect, config);
    this.#control = await openControl(config, commands, (text) => this.#notice(text));
  }

  /** Whoever comes after this engine must not take it for a standby that nobody needs. */
  #noteThatItRuns(): void {
    const { run } = this.#options;
    try {
      if (run?.record !== undefined) run.record = { ...run.record, runsVm: true };
    } catch (error) {
      this.#notice(`Cannot write down that the VM runs here: ${messageOf(error)}`);
    }
  }

  /** The VM runs here: protect it as any other, by this standby or whoever is found. */
  #protectAgain(secondary?: LinkAddress): void {
    const { config, qemu, directory, run, report } = this.#options;
    const successor = new PrimaryHost({
      config,
      qemu,
      directory,
      run,
      report,
      taken: {
        vm: this.#side!.handOver(),
        arbitration: this.#arbitration,
        plugs: this.#plugs,
        secondary,
      },
    });
    this.#successor = successor;
    successor.run().then(this.#ended.resolve, this.#ended.reject);
  }

  #tell(message: Message): void {
    // A link that broke says so on its own.
    this.#link?.bulk.send(message).catch(() => {});
  }

  #notice(text: string): void {
    this.#options.report({ event: "notice", atMs: Date.now(), text });
  }

  /** Something went wrong that is no fault of the guest's copy. */
  #fail(error: unknown): void {
    // What is about to run is the only copy.
    if (this.#machine.phase === "taking-over") return this.#notice(messageOf(error));
    this.#giveUp(error);
  }

  #giveUp(error: unknown): void {
    if (this.#over) return;
    // The world sees the VM: nothing but its own end is worth ending it.
    if (this.#machine.phase === "promoted") return this.#notice(messageOf(error));
    this.#failed = true;
    if (error instanceof QmpError) this.#ended.reject(new QemuError(error.message));
    else this.#ended.reject(error);
  }

  async #close(): Promise<void> {
    this.#over = true;
    this.#listener?.close();
    this.#control?.close();
    this.#serving?.stop();
    await this.#offered?.withdraw();
    await this.#arbitration.close();
    const { phase } = this.#machine;
    if (this.#link !== undefined && ["waiting", "seeding", "protecting"].includes(phase)) {
      // So that the primary needs nobody to tell it that this side cannot take over.
      const reason = "the standby was ended";
      await within(
        GOODBYE_MS,
        this.#link.bulk.send({ type: "replicaFailed", reason }).catch(() => {}),
      );
    }
    if (this.#link !== undefined) closeLink(this.#link);
    // Of a guest whose primary may be dead, what is held is all there is.
    const keep = this.#failed || ["orphaned", "starting", "deciding"].includes(phase);
    await this.#side?.stop(keep);
    await Deno.remove(overlayDirectory(this.#options.config), { recursive: true }).catch(() => {});
    for (const complaint of await this.#plugs.remove()) this.#notice(complaint);
  }
}
