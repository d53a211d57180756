/**
 * One side's dealings with the arbiter, as `engine/host/arbitration.ts` has them, and the pause of a VM
 * whose lease ends, as `engine/host/lease_pause.ts` has it. The lease is the real one.
 *
 * @module
 */

import type { Claim, LossEvidence } from "../../engine/failover/arbiter.ts";
import { Lease } from "../../engine/failover/lease.ts";
import { type Actor, sleep, start, type Task, Turns } from "./actor.ts";
import type { ModelArbiter } from "./etcd.ts";
import type { Timer } from "./kernel.ts";
import type { Rules } from "./rules.ts";

export type Verdict =
  | { readonly type: "granted" }
  | { readonly type: "stale"; readonly reason: string }
  | { readonly type: "undecided"; readonly reason: string };

export interface LeaseEvents {
  pause(): void;
  resume(): void;
  stale(reason: string): void;
}

/** Why a VM may not be run here. */
export interface NotAllowed {
  readonly reason: string;
  /** Another host runs it; or else that could not be found out. */
  readonly isOthers: boolean;
}

const RETRY_MS = 200;
const PREPARATIONS = 3;

/** What an {@linkcode Arbitration} works with. */
export interface ArbitrationOptions {
  readonly actor: Actor;
  readonly arbiter: ModelArbiter;
  readonly holder: string;
  readonly leaseMs: number;
  readonly rules: Rules;
}

/** One side's dealings with its arbiter. */
export class Arbitration {
  generation = 0;
  isClaiming = false;
  #isHolder = false;
  #lease: Lease | undefined;
  #events: LeaseEvents | undefined;
  #timer: Timer | undefined;
  #isOver = false;
  readonly #options: ArbitrationOptions;
  readonly #turns = new Turns();

  constructor(options: ArbitrationOptions) {
    this.#options = options;
  }

  get holder(): string {
    return this.#options.holder;
  }

  *begin(events: LeaseEvents, wasRunning: boolean): Task<NotAllowed | undefined> {
    const { arbiter, holder } = this.#options;
    const known = yield* this.#turns.take(() => arbiter.prepare());
    if (known.type !== "owner") return { reason: known.reason, isOthers: false };
    const { owner } = known;
    if (wasRunning && owner !== undefined && owner.holder !== holder) {
      return { reason: `generation ${owner.generation} is ${owner.holder}'s`, isOthers: true };
    }
    const generation = owner?.generation ?? 0;
    const claim: Claim = { generation, holder, standing: "outside", evidence: "ordered" };
    const answer = yield* this.#turns.take(() => arbiter.claim(claim));
    if (answer.type !== "granted") {
      const isOthers = answer.type === "held" || answer.type === "stale";
      return { reason: `the claim is ${answer.type}`, isOthers };
    }
    this.#granted(answer.generation, answer.renewedMs, events);
    return undefined;
  }

  /** The other side runs the VM in this generation. */
  share(generation: number): void {
    this.generation = generation;
    this.#prepareInTurn();
  }

  /** @param isWanted Whether there is still something to claim for */
  *claim(
    evidence: LossEvidence,
    standing: Claim["standing"],
    events: LeaseEvents,
    isWanted: () => boolean,
  ): Task<Verdict> {
    const { actor, arbiter, holder, rules } = this.#options;
    if (rules.skipsClaim) return { type: "granted" };
    const shared = this.generation;
    this.isClaiming = true;
    while (!this.#isOver && (rules.claimsForOthers || isWanted())) {
      const generation = rules.claimsForOthers ? this.generation : shared;
      const claim: Claim = { generation, holder, standing, evidence };
      const answer = yield* this.#turns.take(() => arbiter.claim(claim));
      actor.trace(() => `claim ${claim.generation} (${standing}, ${evidence}): ${answer.type}`);
      if (answer.type === "granted") {
        this.#granted(answer.generation, answer.renewedMs, events);
        this.isClaiming = false;
        return { type: "granted" };
      }
      if (answer.type === "stale" || answer.type === "ask") {
        this.isClaiming = false;
        return answer.type === "ask"
          ? { type: "undecided", reason: answer.reason }
          : { type: "stale", reason: `generation ${answer.generation} is ${answer.holder}'s` };
      }
      yield* sleep(actor, RETRY_MS);
    }
    this.isClaiming = false;
    return { type: "undecided", reason: "there is nothing to claim for any more" };
  }

  *lookUp(): Task<void> {
    const known = yield* this.#turns.take(() => this.#options.arbiter.prepare());
    if (known.type === "owner") this.generation = known.owner?.generation ?? 0;
  }

  handOver(events: LeaseEvents): void {
    this.#events = events;
    // Whoever looked after the VM before may have paused it.
    if (this.#lease?.paused && !this.#options.rules.forgetsPause) events.pause();
  }

  *close(): Task<void> {
    if (this.#isOver) return;
    this.#isOver = true;
    if (this.#timer !== undefined) this.#timer.cancelled = true;
    if (this.#isHolder) yield* this.#turns.take(() => this.#options.arbiter.release());
  }

  #granted(generation: number, renewedMs: number | undefined, events: LeaseEvents): void {
    this.generation = generation;
    this.#isHolder = true;
    this.#events = events;
    if (this.#timer !== undefined) this.#timer.cancelled = true;
    if (renewedMs === undefined) return;
    const { leaseMs, rules } = this.#options;
    const wasPaused = this.#lease?.paused ?? false;
    this.#lease = new Lease({ ttlMs: leaseMs, marginMs: leaseMs / 5 }, renewedMs);
    // The lease that had ended will not say so any more.
    if (wasPaused && !rules.forgetsPause) events.resume();
    this.#keepLease();
  }

  #keepLease(): void {
    const { actor } = this.#options;
    const lease = this.#lease;
    if (lease === undefined || this.#isOver) return;
    switch (lease.step(actor.nowMs)) {
      case "renew":
        this.#renew(lease);
        break;
      case "pause":
        this.#events?.pause();
        break;
      case "resume":
        this.#events?.resume();
        break;
    }
    const waitMs = Math.max(1, lease.wakeAtMs - actor.nowMs);
    this.#timer = actor.after(waitMs, () => this.#keepLease());
  }

  #renew(lease: Lease): void {
    const { actor, arbiter, holder, rules } = this.#options;
    const renew = () => arbiter.renew({ generation: this.generation, holder });
    start(actor, this.#turns.take(renew), (answer) => {
      if (this.#isOver || this.#lease !== lease) return;
      if (answer.type === "renewed" && answer.renewedMs !== undefined) {
        lease.renewed(answer.renewedMs);
      } else if (answer.type === "stale" && !rules.ignoresStale) {
        this.#lease = undefined;
        this.#events?.stale(`generation ${answer.generation} is ${answer.holder}'s`);
      }
    });
  }

  #prepareInTurn(): void {
    const { actor, arbiter, leaseMs } = this.#options;
    if (this.#timer !== undefined) this.#timer.cancelled = true;
    if (this.#isOver || this.#isHolder) return;
    if (!this.isClaiming) start(actor, this.#turns.take(() => arbiter.prepare()));
    this.#timer = actor.after(leaseMs / PREPARATIONS, () => this.#prepareInTurn());
  }
}

/** The VM, as far as the lease concerns it. */
export interface PausableVm {
  readonly actor: Actor;
  hold(on: boolean): void;
  isSettled(): boolean;
  isExempt(): boolean;
  readonly rules: Rules;
  pauseVm(on: boolean): void;
}

const POLL_MS = 1;

/** Pauses one VM, and lets it run on. */
export class LeasePause {
  #isPaused = false;

  constructor(readonly vm: PausableVm) {}

  pause(): void {
    if (this.vm.isExempt() || this.#isPaused || this.vm.rules.ignoresLease) return;
    this.#isPaused = true;
    start(this.vm.actor, this.#stop());
  }

  resume(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    this.vm.pauseVm(false);
    this.vm.hold(false);
  }

  *#stop(): Task<void> {
    this.vm.hold(true);
    while (!this.vm.isSettled()) yield* sleep(this.vm.actor, POLL_MS);
    if (this.#isPaused) this.vm.pauseVm(true);
  }
}
