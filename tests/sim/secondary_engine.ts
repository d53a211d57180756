/**
 * The secondary's engine: does what a real {@linkcode SecondaryMachine} says, as
 * `engine/host/secondary_host.ts` does it. The replica is a real one as well.
 *
 * @module
 */

import { ImageReplica } from "../../engine/checkpoint/image_replica.ts";
import { LiveReplica } from "../../engine/checkpoint/live_replica.ts";
import { StreamError, WireError } from "../../engine/errors.ts";
import type { LossEvidence } from "../../engine/failover/arbiter.ts";
import {
  type SecondaryEffect,
  type SecondaryEvent,
  SecondaryMachine,
} from "../../engine/failover/secondary.ts";
import { secondaryEvent, secondaryMessage } from "../../engine/failover/secondary_words.ts";
import { refusalOf } from "../../engine/failover/refusal.ts";
import type { Introduction, Message, Refusal } from "../../engine/link/mod.ts";
import { type Actor, start, type Task } from "./actor.ts";
import type { Arbitration } from "./arbitration.ts";
import { Beats } from "./beats.ts";
import { type Moment, readHash } from "./guest.ts";
import type { Host } from "./host.ts";
import type { LinkEnd, LinkUser, Listener, Role } from "./network.ts";
import type { Qemu } from "./qemu.ts";
import { ImageSide, LiveSide, type Side } from "./standby.ts";

/** Longer than it takes to switch a host off. */
const YIELDS_MS = 1000;

/** One engine that stands by. */
export class SecondaryEngine implements Listener, LinkUser {
  readonly actor: Actor;
  readonly machine: SecondaryMachine;
  readonly arbitration: Arbitration;
  readonly #host: Host;
  readonly side: Side;
  link: LinkEnd | undefined;
  #beats: Beats | undefined;
  #isOver = false;
  /** Of what arrives, the device state. */
  #arriving: Uint8Array = new Uint8Array(4);
  lastHeld: Moment | undefined;
  #heldEpoch = -1;

  constructor(host: Host, actor: Actor, arbitration: Arbitration) {
    this.#host = host;
    this.actor = actor;
    this.arbitration = arbitration;
    const isLive = host.world.mode === "colo";
    this.machine = new SecondaryMachine(() => isLive ? new LiveReplica() : new ImageReplica());
    const events = {
      ready: () => this.#step({ type: "qemu-ready" }),
      answered: (answer: SecondaryEvent) => this.#guard(() => this.#step(answer)),
      lost: (reason: string) => this.#lost(reason),
      held: (epoch: number, deviceState: Uint8Array) => this.held(epoch, deviceState),
    };
    this.side = isLive ? new LiveSide(host, actor, events) : new ImageSide(host, actor, events);
    this.side.start();
    host.world.network.listen(host.index, this);
  }

  get qemu(): Qemu | undefined {
    return this.side.qemu;
  }

  get host(): Host {
    return this.#host;
  }

  /** A checkpoint is held as a whole, and outlives what the primary may do next. */
  held(epoch: number, deviceState: Uint8Array): void {
    const { moments, checkers } = this.#host.world;
    this.#heldEpoch = epoch;
    checkers.held(this, moments.get(readHash(deviceState))!);
  }

  /** What the VM would go on from. */
  get survivor(): Moment | undefined {
    // A VM that runs along goes on from where it is, unless it has something to load.
    const isLoaded = this.#host.world.mode === "colo" && this.machine.epoch === this.#heldEpoch;
    return isLoaded ? this.qemu?.moment : this.lastHeld;
  }

  /** An operator knows that the VM runs nowhere, and has it go on from what is held here. */
  takeOver(): void {
    this.#step({ type: "take-over", reason: "the operator ordered it" });
  }

  #lost(reason: string): void {
    if (this.#isOver) return;
    this.#step({ type: "qemu-lost", reason });
    if (this.machine.phase === "ended") this.#end();
  }

  #end(): void {
    this.#isOver = true;
    this.link?.close();
    start(this.actor, this.arbitration.close(), () => this.#host.engineEnded(this.actor));
  }

  refusal(introduction: Introduction): Refusal | undefined {
    const { world } = this.#host;
    const { arbitration } = this;
    return refusalOf(introduction, {
      own: world.introductionOf(arbitration),
      phase: this.machine.phase,
      hasThirdParty: arbitration.hasThirdParty,
      isClaiming: arbitration.isClaiming && !world.rules.claimsForOthers,
      isLinked: this.link !== undefined,
    });
  }

  accepted(link: LinkEnd, { generation, holder }: Introduction): LinkUser {
    this.link = link;
    this.arbitration.share(generation, holder);
    this.#beats = new Beats(this.actor, link, () => link.close());
    this.side.connect(link);
    this.#step({ type: "link-up" });
    return this;
  }

  closed(): void {
    this.#beats?.stop();
    this.link = undefined;
    this.side.connect(undefined);
    if (this.#isOver) return;
    this.#step({ type: "link-lost", reason: "the link to the primary broke" });
  }

  received(_role: Role, message: Message): void {
    this.#guard(() => this.#message(message));
  }

  #message(message: Message): void {
    if (message.type === "heartbeat") return this.#beats?.heard();
    const { world } = this.#host;
    const { phase } = this.machine;
    if (message.type === "pages" && world.rules.loadsPartial && phase === "protecting") {
      this.side.poke(message.records);
    }
    if (message.type === "deviceState") this.#arriving = message.bytes;
    const event = secondaryEvent(message);
    if (event === undefined) return;
    this.#step(event);
    if (event.type === "commit") {
      const isLate = phase !== "seeding" && phase !== "protecting";
      if (!isLate && world.mode === "colo") this.held(event.epoch, this.#arriving);
    }
    if (event.type === "goodbye" && this.machine.phase === "ended") this.#end();
  }

  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      if (error instanceof StreamError) this.qemu?.kill();
      else if (error instanceof WireError) this.link?.close();
      else throw error;
      this.actor.trace(() => (error as Error).message);
    }
  }

  #step(event: SecondaryEvent): void {
    if (this.#isOver) return;
    const { trustsSeed } = this.#host.world.rules;
    const { phase } = this.machine;
    if (event.type === "link-lost" && trustsSeed && phase === "protecting") {
      return this.#step({ type: "take-over", reason: "the seed is there" });
    }
    for (const effect of this.machine.step(event)) this.#do(effect);
  }

  #do(effect: SecondaryEffect): void {
    switch (effect.type) {
      case "write":
      case "prepare":
      case "settle":
      case "image":
      case "stopped":
        return this.side.do(effect);
      case "tell-ready":
      case "tell-committed":
      case "tell-loaded":
      case "tell-failed":
        return this.link?.send("bulk", secondaryMessage(effect));
      case "claim":
        return start(this.actor, this.#claim(effect.evidence));
      case "take-over":
        return this.#takeOver();
      case "restart-qemu":
        return this.side.restart();
      case "report":
        this.#host.world.faults.changed();
        return this.actor.trace(() => `secondary is ${effect.phase}: ${effect.reason}`);
    }
  }

  *#claim(evidence: LossEvidence): Task<void> {
    const { rules, checkers } = this.#host.world;
    const { entitled } = this.machine;
    const knowsAll = entitled || evidence === "reported" || rules.trustsSeed;
    const verdict = yield* this.arbitration.claim(
      evidence,
      knowsAll ? "pair" : "outside",
      {
        pause: () => this.qemu?.pause(true),
        resume: () => this.qemu?.pause(false),
        stale: () => this.qemu?.kill(),
      },
      () => this.machine.phase === "deciding",
      YIELDS_MS,
    );
    if (this.#isOver) return;
    checkers.decided(this, evidence, entitled);
    if (verdict.type === "stale" && rules.ignoresStale) this.#step({ type: "granted" });
    else this.#step(verdict);
  }

  #takeOver(): void {
    if (this.#host.world.rules.neverTakesOver) return;
    this.side.takeOver(() => {
      const qemu = this.qemu;
      if (qemu === undefined || !qemu.actor.isAlive) return;
      const { world } = this.#host;
      this.actor.after(world.sim.random.between(0.5, 3), () => {
        qemu.output = (moment) => {
          world.checkers.hear(qemu.host, this.arbitration.generation, moment);
        };
      });
      this.#step({ type: "promoted" });
      this.link?.send("control", { type: "takenOver", epoch: this.machine.epoch, runningAtMs: 0 });
      this.#host.protectAgain(this, qemu);
    });
  }
}
