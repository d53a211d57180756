/**
 * One side's dealings with the arbiter: does what a real {@linkcode ArbitrationMachine} says, as
 * `engine/host/arbitration.ts` does it. And the pause of a VM whose lease ends, as
 * `engine/host/lease_pause.ts` has it.
 *
 * @module
 */

import type { Claim, LossEvidence } from "../../engine/failover/arbiter.ts";
import {
  type ArbiterAnswer,
  type ArbiterCall,
  type ArbitrationEffect,
  type ArbitrationEvent,
  ArbitrationMachine,
  GONE,
  type PeerState,
  type Verdict,
} from "../../engine/failover/arbitration.ts";
import { type Actor, sleep, start, type Task } from "./actor.ts";
import type { SimArbiter } from "./etcd.ts";
import type { Timer } from "./kernel.ts";
import type { Rules } from "./rules.ts";

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

/** What an {@linkcode Arbitration} works with. */
export interface ArbitrationOptions {
  readonly actor: Actor;
  readonly arbiter: SimArbiter;
  readonly holder: string;
  readonly leaseMs: number;
  readonly hasThirdParty: boolean;
  /** Switches the other host off, and says when it is. */
  readonly fence: (() => Task<void>) | undefined;
  readonly rules: Rules;
}

/** Whoever waits for an outcome. */
type Resume = (value: unknown) => void;

/** One side's dealings with its arbiter. */
export class Arbitration {
  readonly #options: ArbitrationOptions;
  readonly #machine: ArbitrationMachine;
  #events: LeaseEvents | undefined;
  #timer: Timer | undefined;
  #begun: Resume = () => {};
  #decided: Resume = () => {};
  #closed: Resume = () => {};
  #isWanted = () => true;
  #askPeer: (() => Task<PeerState>) | undefined;
  /** What the arbiter said last, which is being acted upon. */
  #answer: ArbiterAnswer | undefined;

  constructor(options: ArbitrationOptions) {
    this.#options = options;
    const { fence, ...rules } = options;
    this.#machine = new ArbitrationMachine({ ...rules, hasFence: fence !== undefined });
  }

  get holder(): string {
    return this.#options.holder;
  }

  get generation(): number {
    return this.#machine.generation;
  }

  get hasThirdParty(): boolean {
    return this.#options.hasThirdParty;
  }

  get evidenceOfPrimary(): LossEvidence {
    return this.#machine.evidenceOfPrimary;
  }

  get isClaiming(): boolean {
    return this.#machine.isClaiming;
  }

  *begin(
    events: LeaseEvents,
    wasRunning: boolean,
    askPeer: () => Task<PeerState>,
    isOrdered: boolean,
  ): Task<NotAllowed | undefined> {
    this.#events = events;
    this.#askPeer = askPeer;
    const refusal = yield (resume) => {
      this.#begun = resume;
      this.#step({ type: "begin", wasRunning, isOrdered });
    };
    return refusal as NotAllowed | undefined;
  }

  /** The other side runs the VM in this generation. */
  share(generation: number, holder: string): void {
    this.#step({ type: "share", owner: { generation, holder } });
  }

  /** @param isWanted Whether there is still something to claim for */
  *claim(
    evidence: LossEvidence,
    standing: Claim["standing"],
    events: LeaseEvents,
    isWanted: () => boolean,
    yieldsMs = 0,
  ): Task<Verdict> {
    const { rules } = this.#options;
    if (rules.skipsClaim) return { type: "granted" };
    this.#isWanted = rules.claimsForOthers ? () => true : isWanted;
    if (!this.#isWanted()) return { type: "undecided", reason: GONE };
    this.#events = events;
    const verdict = yield (resume) => {
      const others = this.#decided;
      if (rules.claimsForOthers && this.isClaiming) {
        this.#decided = (verdict) => {
          others(verdict);
          resume(verdict);
        };
        return;
      }
      this.#decided = resume;
      this.#step({ type: "claim", evidence, standing, yieldsMs });
    };
    return verdict as Verdict;
  }

  /** Whether the VM may say anything, as far as the lease goes. */
  get holds(): boolean {
    return this.#machine.holds(this.#options.actor.nowMs);
  }

  handOver(events: LeaseEvents): void {
    this.#events = events;
    const { rules } = this.#options;
    // Whoever looked after the VM before may have paused it.
    if (!this.holds && !rules.forgetsPause) events.pause();
  }

  *close(): Task<void> {
    if (this.#timer !== undefined) this.#timer.cancelled = true;
    yield (resume) => {
      this.#closed = resume;
      this.#step({ type: "close" });
    };
  }

  #step(event: ArbitrationEvent): void {
    for (const effect of this.#machine.step(event, this.#options.actor.nowMs)) this.#do(effect);
  }

  #do(effect: ArbitrationEffect): void {
    const { actor, rules } = this.#options;
    switch (effect.type) {
      case "ask":
        return start(actor, this.#ask(effect.call), (answer) => this.#answered(answer));
      case "ask-peer":
        if (rules.adoptsUnasked) return this.#step({ type: "peer", peer: { type: "idle" } });
        return start(actor, this.#askPeer!(), (peer) => this.#step({ type: "peer", peer }));
      case "begun":
        return this.#begun(undefined);
      case "refused":
        return this.#begun(effect);
      case "decided":
        return this.#decided(effect.verdict);
      case "switch-off":
        return start(actor, this.#options.fence!(), () => {
          this.#stepIfWanted({ type: "switched-off" });
        });
      case "pause":
        return this.#events?.pause();
      case "resume":
        // The lease that had ended will not say so any more.
        if (this.#answer?.type === "granted" && rules.forgetsPause) return;
        return this.#events?.resume();
      case "stale":
        return this.#events?.stale(effect.reason);
      case "closed":
        return this.#closed(undefined);
      case "wake":
        if (this.#timer !== undefined) this.#timer.cancelled = true;
        this.#timer = actor.after(Math.max(1, effect.atMs - actor.nowMs), () => {
          this.#stepIfWanted({ type: "tick" });
        });
    }
  }

  /** An attempt or a grant may follow: not of a claim for what is gone. */
  #stepIfWanted(event: ArbitrationEvent): void {
    if (this.isClaiming && !this.#isWanted()) this.#step({ type: "withdraw" });
    this.#step(event);
  }

  *#ask(call: ArbiterCall): Task<ArbiterAnswer> {
    const { actor, arbiter, rules } = this.#options;
    switch (call.type) {
      case "prepare":
        return yield* arbiter.prepare();
      case "claim": {
        const claim = {
          ...call.claim,
          ...(rules.claimsForOthers && { generation: this.generation }),
          ...(rules.trustsSilence && { evidence: "ordered" as const }),
        };
        const answer = yield* arbiter.claim(claim);
        const { generation, standing, evidence } = claim;
        actor.trace(() => `claim ${generation} (${standing}, ${evidence}): ${answer.type}`);
        return answer;
      }
      case "renew": {
        const answer = yield* arbiter.renew(call.own);
        const isIgnored = answer.type === "stale" && rules.ignoresStale;
        return isIgnored ? { type: "unreachable", reason: "ignored" } : answer;
      }
      case "release":
        yield* arbiter.release();
        return { type: "done" };
      case "learn":
        yield* arbiter.learn(call.owner);
        return { type: "done" };
    }
  }

  #answered(answer: ArbiterAnswer): void {
    this.#answer = answer;
    this.#stepIfWanted({ type: "answer", answer });
    this.#answer = undefined;
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
    this.vm.hold(true);
    // A QEMU that lets it run at the end of a checkpoint is told to stop it at once.
    this.vm.pauseVm(true);
  }

  resume(): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    start(this.vm.actor, this.#run());
  }

  *#run(): Task<void> {
    while (!this.#isPaused && !this.vm.isSettled()) yield* sleep(this.vm.actor, POLL_MS);
    if (this.#isPaused) return;
    this.vm.pauseVm(false);
    this.vm.hold(false);
  }
}
