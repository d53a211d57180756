/**
 * The primary's engine: does what a real {@linkcode PrimaryMachine} says, as
 * `engine/host/primary_host.ts` does it.
 *
 * @module
 */

import {
  type PrimaryEffect,
  type PrimaryEvent,
  PrimaryMachine,
  type PrimaryPhase,
} from "../../engine/failover/primary.ts";
import { type Actor, sleep, start, type Task } from "./actor.ts";
import { type Arbitration, LeasePause } from "./arbitration.ts";
import { Mirror } from "./feed.ts";
import type { Moment } from "./guest.ts";
import { watchForHang } from "./hang_watch.ts";
import type { Host } from "./host.ts";
import type { Timer } from "./kernel.ts";
import type { SimPackets } from "./packets.ts";
import { PrimaryLink } from "./primary_link.ts";
import type { CaptureUser, Qemu } from "./qemu.ts";
import type { World } from "./world.ts";

const EXIT_NOTICE_MS = 200;
const RECAPTURE_MS = 1000;

/** Phases in which a VM may go on without a lease. */
const EXEMPT: readonly PrimaryPhase[] = ["protected", "deciding", "ended"];

/** One engine that looks after a VM. */
export class PrimaryEngine implements CaptureUser {
  readonly actor: Actor;
  readonly machine: PrimaryMachine;
  readonly arbitration: Arbitration;
  readonly link: PrimaryLink;
  readonly #world: World;
  readonly #host: Host;
  readonly #leasePause: LeasePause;
  qemu: Qemu | undefined;
  mirror: Mirror | undefined;
  /** The network of the VM, once a secondary has come. */
  packets: SimPackets | undefined;
  #wakeTimer: Timer | undefined;
  #isOver = false;

  constructor(host: Host, actor: Actor, arbitration: Arbitration, taken?: Qemu) {
    this.#host = host;
    this.#world = host.world;
    this.actor = actor;
    this.arbitration = arbitration;
    this.qemu = taken;
    this.machine = new PrimaryMachine(host.world.replication, actor.nowMs);
    this.#leasePause = new LeasePause({
      actor,
      rules: host.world.rules,
      hold: (on) => this.step({ type: on ? "hold" : "release" }),
      isSettled: () => this.machine.settled || this.isDone,
      isExempt: () => EXEMPT.includes(this.machine.phase),
      pauseVm: (on) => this.qemu?.pause(on),
    });
    this.link = new PrimaryLink(this, host);
    this.#world.checkers.reported(this, this.machine.phase);
  }

  get host(): Host {
    return this.#host;
  }

  /** Whether the lease lets the VM say anything. */
  get maySpeak(): boolean {
    return this.#world.rules.ignoresLease || this.arbitration.holds ||
      EXEMPT.includes(this.machine.phase);
  }

  readonly #leaseEvents = {
    pause: () => this.#leasePause.pause(),
    resume: () => this.#leasePause.resume(),
    stale: (reason: string) => this.step({ type: "stale", reason }),
  };

  /** Nothing more is to be started. */
  get isDone(): boolean {
    return this.#isOver || this.machine.phase === "ended";
  }

  /**
   * @param left The VM that an engine before has left, which runs
   * @param isOrdered The operator is certain that it runs nowhere else
   */
  *run(left: Qemu | undefined, isOrdered: boolean): Task<void> {
    if (this.qemu === undefined) {
      const refusal = yield* this.arbitration.begin(
        this.#leaseEvents,
        left !== undefined,
        () => this.link.askPeer(),
        isOrdered,
      );
      if (refusal !== undefined) {
        this.actor.trace(() => `must not run the VM: ${refusal.reason}`);
        // What it would say now somebody else says; of one that may be ours nothing is changed.
        if (refusal.isOthers) left?.kill();
        return this.#end();
      }
      if (left?.actor.isAlive === false) return this.#end();
      const qemu = left ?? this.#host.boot();
      left?.releasePrimary();
      // The engine before may have paused it for its lease.
      if (!this.#world.rules.forgetsPause) left?.pause(false);
      qemu.output = (moment) => {
        this.#world.checkers.hear(qemu.host, this.arbitration.generation, moment);
      };
      this.qemu = qemu;
    } else {
      this.arbitration.handOver(this.#leaseEvents);
    }
    const { qemu } = this;
    qemu.exited = () => this.actor.run(() => this.#exited());
    qemu.beginPrimary(this);
    this.link.start();
    watchForHang(this.actor, qemu, () => this.mirror?.isSending ?? false, () => {
      if (this.isDone || this.machine.phase !== "protected") return;
      this.actor.trace(() => "the primary QEMU hangs, and is ended");
      this.#world.checkers.losing(this.#host, true);
      qemu.kill();
    });
  }

  #exited(): void {
    this.packets?.close();
    this.packets = undefined;
    if (this.#isOver) return;
    const wasJoining = this.machine.phase === "joining";
    this.step({ type: "qemu-lost", reason: "the primary QEMU ended" });
    start(this.actor, this.#lastWords(wasJoining));
  }

  *#lastWords(wasJoining: boolean): Task<void> {
    if (wasJoining) yield* this.link.settled();
    yield* this.link.lastWord();
    this.#end();
  }

  #end(): void {
    this.#isOver = true;
    this.link.close();
    start(this.actor, this.arbitration.close(), () => this.#host.engineEnded(this.actor));
  }

  // What QEMU says.

  entered(moment: Moment): void {
    if (this.isDone) return;
    this.mirror = new Mirror(moment, this.#world.newLineage());
    this.step({ type: "initial" });
  }

  requested(): void {
    this.step({ type: "request" });
  }

  stopped(): void {
    this.mirror!.isSending = true;
    this.packets?.stopped();
  }

  whole(moment: Moment): void {
    const mirror = this.mirror!;
    mirror.whole(moment);
    this.step({ type: "whole", epoch: mirror.epoch });
  }

  broken(): void {
    start(this.actor, this.#captureAnew());
  }

  /** No fault of a capture's may end or freeze the guest: it is let run, and captured anew. */
  *#captureAnew(): Task<void> {
    yield* sleep(this.actor, EXIT_NOTICE_MS);
    // One whose monitor is gone as well has ended, which is noticed elsewhere.
    if (this.isDone || !this.qemu?.actor.isAlive) return;
    this.link.close();
    yield* this.link.settled();
    this.step({ type: "capture-lost", reason: "the primary QEMU closed its stream" });
    yield* sleep(this.actor, RECAPTURE_MS);
    if (this.isDone) return;
    this.qemu?.releasePrimary();
    this.qemu?.beginPrimary(this);
  }

  // What is decided.

  step(event: PrimaryEvent): void {
    for (const effect of this.machine.step(event, this.actor.nowMs)) this.#do(effect);
  }

  #do(effect: PrimaryEffect): void {
    const qemu = this.qemu!;
    const { feed } = this.link;
    switch (effect.type) {
      case "ready":
        return qemu.ready(this);
      case "reply":
        return qemu.reply(this);
      case "acknowledge":
        return qemu.acknowledge(this);
      case "absorb":
        this.mirror!.absorb();
        return;
      case "send": {
        const taken = () => this.step({ type: "encoded" });
        if (feed === undefined) return;
        return feed.queue(() => feed.delta(effect.epoch, effect.load, taken));
      }
      case "seed":
        return feed?.queue(() =>
          feed.seed({
            pass: (missingPages) => this.step({ type: "seed-pass", missingPages }),
            sent: (epoch) => this.step({ type: "seed-sent", epoch }),
          })
        );
      case "commit-seed":
        return feed?.queue(() => feed.commit(effect.epoch));
      case "clear-missing":
        return this.mirror!.held(effect.epoch);
      case "hold-outputs":
        return this.packets?.begin(effect.epoch);
      case "release-outputs":
        return this.packets?.committed(effect.epoch);
      case "run-alone":
        return this.packets?.runAlone();
      case "claim":
        this.packets?.secondaryLost();
        return start(this.actor, this.#claim());
      case "kill-guest":
        if (this.#world.rules.ignoresStale) return;
        return qemu.kill();
      case "release-guest":
        return qemu.releasePrimary();
      case "tell-primary-lost":
        if (this.#world.rules.diesUnheard) return;
        if (effect.behindSeed) return feed?.queue(() => feed.say(effect.reason));
        return this.link.tell({ type: "primaryLost", reason: effect.reason });
      case "tell-goodbye":
        return this.link.tell({ type: "goodbye", reason: effect.reason });
      case "report":
        return this.#report(effect.phase, effect.reason);
      case "wake":
        if (this.#wakeTimer !== undefined) this.#wakeTimer.cancelled = true;
        this.#wakeTimer = this.actor.after(
          effect.atMs - this.actor.nowMs,
          () => this.step({ type: "tick" }),
        );
    }
  }

  *#claim(): Task<void> {
    // Whoever claims for a VM that is dead takes it from the one that has a copy.
    const mayClaim = () => this.#world.rules.claimsForDead || this.qemu?.actor.isAlive === true;
    const isWanted = () => this.machine.phase === "deciding" && mayClaim();
    const { arbitration } = this;
    const evidence = this.link.gaveUp ? "reported" : arbitration.evidenceOfPrimary;
    const verdict = yield* arbitration.claim(evidence, "pair", this.#leaseEvents, isWanted);
    if (this.#isOver || verdict.type === "undecided") return;
    if (verdict.type === "stale" && this.#world.rules.ignoresStale) {
      return this.step({ type: "granted" });
    }
    this.step(verdict);
  }

  #report(phase: PrimaryPhase, reason: string): void {
    this.#world.faults.changed();
    this.actor.trace(() => `primary is ${phase}: ${reason}`);
    this.#world.checkers.reported(this, this.#world.rules.reportsProtected ? "protected" : phase);
  }
}
