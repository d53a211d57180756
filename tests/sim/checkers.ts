/**
 * What must hold, whatever happens: each method that can fail is one property, and says which.
 *
 * @module
 */

import type { LossEvidence, Ownership } from "../../engine/failover/arbiter.ts";
import { HEARTBEAT_TIMEOUT_MS } from "../../engine/failover/detector.ts";
import type { PrimaryPhase } from "../../engine/failover/primary.ts";
import type { SecondaryPhase } from "../../engine/failover/secondary.ts";
import type { Actor } from "./actor.ts";
import { areOneHistory, isWithin, type Moment, pagesAt } from "./guest.ts";
import type { Host } from "./host.ts";
import type { PrimaryEngine } from "./primary_engine.ts";
import type { SecondaryEngine } from "./secondary_engine.ts";
import type { World } from "./world.ts";

/** What can be found wrong. */
export type Property =
  /** An output leaves only when a secondary holds it, or has said it, or the arbiter lets the side alone. */
  | "output commit"
  /** What the world has seen is in the history of all that it sees later. */
  | "nothing seen is lost"
  /** A secondary runs from a whole checkpoint, or not at all. */
  | "whole checkpoints"
  /** Who has been overtaken says nothing more that the other one does not know. */
  | "one side speaks"
  /** Who is reported as protected is. */
  | "true protection"
  /** A protected VM outlives the loss of its host. */
  | "survival"
  /** When nothing fails any more, one VM runs and is protected. */
  | "recovery";

/** A property does not hold. */
export class Violation extends Error {
  constructor(readonly property: Property, message: string) {
    super(`${property}: ${message}`);
  }
}

/** How long it may take to notice that a secondary is lost, while the primary's engine runs. */
const NOTICE_MS = 2500;

/** Between two looks at what is reported. */
const AUDIT_MS = 100;

/** A guest that speaks all the time is not silent for so long, be its checkpoints slow. */
const SILENCE_MS = 1000;

/** By so much the clocks of two hosts may differ in the timeout of a heartbeat. */
const CLOCK_ERROR_MS = 10;

/** Phases in which a secondary has something to take over from. */
const ENTITLED: readonly SecondaryPhase[] = ["seeding", "protecting", "deciding", "taking-over"];

/** All checkers of one world. */
export class Checkers {
  takeovers = 0;
  setbacks = 0;
  losses = 0;
  heard = 0;
  /** How often a host has granted itself the VM, and who did so last. */
  grants = 0;
  lastGrant: Ownership | undefined;
  readonly #world: World;
  #heardMs = 0;
  /** The last that the world has seen. */
  #tip: Moment | undefined;
  #speaker:
    | { readonly host: number; readonly generation: number; readonly sinceMs: number }
    | undefined;
  /** Who has taken over last, and from where. */
  #taken: { readonly host: number; readonly moment: Moment } | undefined;
  /** Host by host, whether it is said to know all that has been seen. */
  readonly #decisions = new Map<number, boolean>();
  readonly #phases = new Map<number, PrimaryPhase>();
  /** The host that must take over, because the other one is lost. */
  #heir: Host | undefined;
  /** It learns of that for certain, so it needs no order. */
  #isHeirTold = false;
  #unprotectedSinceMs: number | undefined;

  constructor(world: World) {
    this.#world = world;
  }

  /** A host has granted itself the VM. */
  granted(owner: Ownership): void {
    this.grants++;
    this.lastGrant = owner;
  }

  /** The operator knows that the VM runs nowhere: what is said from now on is the first that is said. */
  startedAnew(): void {
    if (this.#heir !== undefined && this.#isHeirTold) {
      this.#fail("survival", `${this.#heir.holder} was to take over, and had to be ordered to`);
    }
    if (this.#world.arbiterKind !== "etcd") this.#speaker = undefined;
  }

  /** Look again and again whether what is reported is true. */
  audit(): void {
    this.#world.sim.after(AUDIT_MS, () => {
      this.#checkProtection();
      this.audit();
    });
  }

  /**
   * An engine lets something out. What QEMU has been given already nobody can take back, and that the
   * link has broken an engine learns when it does; but one that stood still for long has to ask itself.
   */
  letOut(host: number, { stood }: Actor, generation: number, moment: Moment): void {
    const speaker = this.#speaker;
    if (speaker === undefined || host === speaker.host || generation > speaker.generation) return;
    const isLong = stood.toMs - stood.fromMs > HEARTBEAT_TIMEOUT_MS + CLOCK_ERROR_MS;
    if (!isLong || stood.toMs < speaker.sinceMs) return;
    this.#fail(
      "one side speaks",
      `${this.#name(host)} lets step ${moment.step} out in generation ${generation}, and ` +
        `${this.#name(speaker.host)} has spoken in ${speaker.generation}`,
    );
  }

  /** Something has left a host. */
  hear(host: number, generation: number, moment: Moment): void {
    this.heard++;
    this.#heardMs = this.#world.sim.nowMs;
    this.#checkSpeaker(host, generation, moment);
    if (this.#tip !== undefined && !areOneHistory(moment, this.#tip)) {
      const unknown = `which knows nothing of step ${this.#tip.step}`;
      this.#fail("nothing seen is lost", `${this.#name(host)} says ${moment.step}, ${unknown}`);
    }
    this.#checkCommit(host, moment);
    if (this.#tip === undefined || moment.step > this.#tip.step) this.#tip = moment;
    this.#checkSurvivor();
  }

  #checkCommit(host: number, moment: Moment): void {
    if (moment.isHeld || moment.isSaid) return;
    const { owner, hosts } = this.#world;
    const other = hosts[1 - host]!.secondary;
    const isEntrusted = other?.actor.isAlive && other.machine.entitled &&
      ENTITLED.includes(other.machine.phase) &&
      other.arbitration.generation === owner?.generation;
    if (owner?.holder === this.#name(host) && !isEntrusted) return;
    const why = isEntrusted ? "its secondary may take over" : `the VM is ${owner?.holder}'s`;
    this.#fail("output commit", `${this.#name(host)} says step ${moment.step}, and ${why}`);
  }

  #checkSpeaker(host: number, generation: number, moment: Moment): void {
    const speaker = this.#speaker;
    if (speaker === undefined || generation > speaker.generation) {
      this.#speaker = { host, generation, sinceMs: this.#heardMs };
    } else if (host !== speaker.host) {
      const start = this.#taken?.host === speaker.host ? this.#taken.moment : this.#tip;
      if (start !== undefined && isWithin(moment, start)) return;
      this.#fail(
        "one side speaks",
        `${this.#name(host)} says step ${moment.step} in generation ${generation}, and ` +
          `${this.#name(speaker.host)} has spoken in ${speaker.generation}`,
      );
    }
  }

  /** A QEMU has loaded something. @returns The moment that it goes on from */
  loaded(host: number, hash: number, pages: readonly number[]): Moment {
    const moment = this.#world.moments.get(hash);
    if (moment === undefined) this.#fail("whole checkpoints", "device state of no moment");
    this.#checkWhole(host, moment, pages);
    return moment;
  }

  #checkWhole(host: number, moment: Moment, pages: readonly number[]): void {
    if (pagesAt(moment).every((content, page) => content === pages[page])) return;
    this.#fail(
      "whole checkpoints",
      `${this.#name(host)} runs from step ${moment.step} with pages of another`,
    );
  }

  /** A secondary VM has said something. */
  said(moment: Moment): void {
    moment.isSaid = true;
  }

  /** A secondary holds a checkpoint as a whole. */
  held(secondary: SecondaryEngine, moment: Moment): void {
    secondary.lastHeld = moment;
    for (let at: Moment | undefined = moment; at !== undefined && !at.isHeld; at = at.before) {
      at.isHeld = true;
    }
  }

  /** A secondary has been told whether it may take over. */
  decided(secondary: SecondaryEngine, evidence: LossEvidence, entitled: boolean): void {
    // Of a guest that is dead for certain, what is held is all there is, be it older; and an operator
    // takes what there is.
    const knowsAll = evidence !== "ordered" && (entitled || evidence !== "reported");
    this.#decisions.set(secondary.host.index, knowsAll);
  }

  /** A VM goes on that has been taken over. */
  tookOver(host: number, moment: Moment, pages: readonly number[]): void {
    this.takeovers++;
    this.#world.sim.trace(this.#name(host), () => `runs from step ${moment.step}`);
    this.#checkWhole(host, moment, pages);
    const wasProtected = this.#heir?.index === host;
    if (wasProtected) this.#heir = undefined;
    const tip = this.#tip;
    if (tip !== undefined && !isWithin(tip, moment)) {
      if (wasProtected || this.#decisions.get(host) !== false) {
        this.#fail(
          "nothing seen is lost",
          `${this.#name(host)} runs from step ${moment.step}, and step ${tip.step} has been seen`,
        );
      }
      this.setbacks++;
      this.#tip = moment;
    }
    this.#taken = { host, moment };
  }

  /** Nobody pauses a VM that no engine looks after: whoever orders it elsewhere has to see to its end. */
  ordered(holder: string): void {
    const other = this.#world.hosts.find((host) => host.holder !== holder)!;
    if (!isLookedAfter(other)) other.vm?.kill();
  }

  /** The operator starts the VM anew, since it runs nowhere. */
  booted(host: number, moment: Moment): void {
    if (this.#heir !== undefined) {
      this.#fail("survival", `${this.#heir.holder} was to take over, and the VM is lost`);
    }
    const isGone = this.#world.hosts.every(({ vm }) => vm === undefined);
    if (isGone && this.#tip !== undefined) this.losses++;
    this.#tip = undefined;
    this.#taken = { host, moment };
  }

  /**
   * The host of the VM, or its QEMU, is about to be lost.
   *
   * @param isSaid Its engine lives, and says so
   */
  losing(host: Host, isSaid: boolean): void {
    const other = this.#world.hosts[1 - host.index]!;
    if (this.#heir === host) this.#heir = undefined;
    if (!this.#isReported(host) || !this.#canTakeOver(host)) return;
    // In mode `continuous` another QEMU takes the place of one that is of no use.
    if (this.#world.mode === "colo" && !other.secondary?.qemu?.actor.isAwake) return;
    this.#heir = other;
    this.#isHeirTold = true;
    const { isCut } = this.#world.network;
    if (!isSaid || !host.engine?.isAwake || !other.engine?.isAwake || isCut) this.hushed();
    this.#world.sim.trace("checkers", () => `${other.holder} has to take over`);
  }

  /** What one host says may not come to the other one, who can have nobody else to ask. */
  hushed(): void {
    if (this.#world.arbiterKind === "manual") this.#isHeirTold = false;
  }

  /** Something happens to a host that it may not survive. */
  harmed(host: Host): void {
    if (this.#heir === host) this.#heir = undefined;
  }

  /** What an operator is told. */
  reported(engine: PrimaryEngine, phase: PrimaryPhase): void {
    this.#phases.set(engine.host.index, phase);
    this.#unprotectedSinceMs = undefined;
  }

  /** One VM runs, the world hears it, and it is protected. */
  get isWell(): boolean {
    const { hosts, sim } = this.#world;
    const running = hosts.filter(({ vm }) => vm !== undefined);
    const [host] = running;
    return running.length === 1 && this.#isReported(host!) && this.#canTakeOver(host!) &&
      sim.nowMs - this.#heardMs < SILENCE_MS;
  }

  checkRecovery(isWell: boolean): void {
    const { hosts } = this.#world;
    if (this.#heir !== undefined) {
      this.#fail("survival", `${this.#heir.holder} was to take over, and did not`);
    }
    if (isWell) return;
    const what = hosts.map((host) => {
      const side = host.primary?.machine.phase ?? host.secondary?.machine.phase ?? "nothing";
      return `${host.holder}: ${side}${host.vm === undefined ? "" : ", with the VM"}`;
    });
    this.#fail("recovery", `long after the last fault ${what.join("; ")}`);
  }

  #isReported({ index, primary, vm }: Host): boolean {
    return primary?.actor.isAlive === true && vm !== undefined &&
      this.#phases.get(index) === "protected";
  }

  /** Were the host lost now, whether the other one would go on, knowing all that has been seen. */
  #canTakeOver(host: Host): boolean {
    const { owner, hosts } = this.#world;
    const secondary = hosts[1 - host.index]!.secondary;
    if (secondary === undefined || !secondary.actor.isAlive) return false;
    const { machine, arbitration } = secondary;
    return machine.entitled && machine.phase === "protecting" && secondary.link !== undefined &&
      owner?.holder === host.holder && arbitration.generation === owner.generation;
  }

  #checkProtection(): void {
    const host = this.#world.hosts.find((host) => this.#isReported(host));
    const isAwake = host?.primary?.actor.isAwake && host.vm?.actor.isAwake;
    if (host === undefined || !isAwake || this.#canTakeOver(host)) {
      this.#unprotectedSinceMs = undefined;
      return;
    }
    const { nowMs } = this.#world.sim;
    this.#unprotectedSinceMs ??= nowMs;
    if (nowMs - this.#unprotectedSinceMs < NOTICE_MS) return;
    this.#fail("true protection", `${host.holder} says that it is protected, and is not`);
  }

  /** What a secondary would run from, as long as it is said to protect. */
  #checkSurvivor(): void {
    const host = this.#world.hosts.find((host) => this.#isReported(host));
    if (host === undefined || this.#tip === undefined || !this.#canTakeOver(host)) return;
    const survivor = this.#world.hosts[1 - host.index]!.secondary!.survivor;
    if (survivor !== undefined && isWithin(this.#tip, survivor)) return;
    this.#fail(
      "true protection",
      `step ${this.#tip.step} has been seen, and the secondary would go on from ${survivor?.step}`,
    );
  }

  #name(host: number): string {
    return this.#world.hosts[host]!.holder;
  }

  #fail(property: Property, message: string): never {
    this.#world.sim.trace("checkers", () => `VIOLATION of ${property}: ${message}`);
    throw new Violation(property, message);
  }
}

/** Whether there is an engine that would pause the VM when its lease ends. */
function isLookedAfter({ vm, primary }: Host): boolean {
  return vm?.actor.isAwake === true && primary?.qemu === vm && primary.actor.isAwake;
}
