/**
 * One side's dealings with the arbiter: its share in a generation, its claims and its lease. Pure: events
 * and the time in, effects out; the order of the effects is the order of doing.
 *
 * ```text
 *                +-- begin ---> prepare, ask-peer, [switch-off], claim ----> begun | refused
 *                |
 *  (nothing) ----+-- share ---> learn -------------> shared; prepare in turn, for a claim to come
 *                |                                                   |
 *                +<--------------------------------------------------+
 *                |
 *                +-- claim ---> [switch-off] [prepare] claim, again and again -> decided
 *
 *  granted, with a lease: renew in turn, pause when it is about to end, resume when it is renewed
 * ```
 *
 * The arbiter is asked one thing at a time; each call is answered before the next one is made.
 *
 * @module
 */

import { StateError } from "../errors.ts";
import type {
  Arbiter,
  Claim,
  ClaimAnswer,
  LossEvidence,
  OwnerAnswer,
  Ownership,
  RenewAnswer,
} from "./arbiter.ts";
import { Lease } from "./lease.ts";

/** What becomes of a claim in the end. */
export type Verdict =
  | { readonly type: "granted" }
  | { readonly type: "stale"; readonly reason: string }
  /** Only an operator can say. */
  | { readonly type: "undecided"; readonly reason: string };

/** One call to an {@linkcode Arbiter}. */
export type ArbiterCall =
  | { readonly type: "prepare" }
  | { readonly type: "claim"; readonly claim: Claim }
  | { readonly type: "renew"; readonly own: Ownership }
  | { readonly type: "learn"; readonly owner: Ownership }
  | { readonly type: "release"; readonly own: Ownership };

/** What the arbiter says to the call that was made last. */
export type ArbiterAnswer = OwnerAnswer | ClaimAnswer | RenewAnswer | { readonly type: "done" };

/** What the other host says to one that is about to run the VM. */
export type PeerState =
  /** Nothing: whether the VM runs there is not known. */
  | { readonly type: "silent" }
  /** It does not run the VM, and is not about to. */
  | { readonly type: "idle" }
  /** It has a share in the VM that it has not given up. */
  | { readonly type: "busy"; readonly reason: string }
  | { readonly type: "runs"; readonly reason: string };

/** What happens to one side. */
export type ArbitrationEvent =
  /**
   * It wants to begin to run the VM, as a new generation.
   *
   * @param wasRunning It runs already, left by an engine before: whoever had it since is not waited for
   * @param isOrdered The operator is certain that it runs nowhere else
   */
  | { readonly type: "begin"; readonly wasRunning: boolean; readonly isOrdered?: boolean }
  | { readonly type: "peer"; readonly peer: PeerState }
  /** The other side runs the VM, in this generation: from now on this side has a share in it. */
  | { readonly type: "share"; readonly owner: Ownership }
  /**
   * It wants to run the VM alone.
   *
   * @param yieldsMs How long it lets the other side go first, should that be having this host switched
   *   off: of two that live and cannot hear each other one must live on
   */
  | {
    readonly type: "claim";
    readonly evidence: LossEvidence;
    readonly standing: Claim["standing"];
    readonly yieldsMs?: number;
  }
  /** What was claimed is gone: the claim is not made again, and a grant is given back. */
  | { readonly type: "withdraw" }
  | { readonly type: "answer"; readonly answer: ArbiterAnswer }
  /** The other host is off. */
  | { readonly type: "switched-off" }
  /** The other side is heard again, as one that does not run the VM. */
  | { readonly type: "peer-back" }
  | { readonly type: "tick" }
  /** The VM does not run any more, or nobody looks after it from here. */
  | { readonly type: "close" };

/** What to do for one side. */
export type ArbitrationEffect =
  | { readonly type: "ask"; readonly call: ArbiterCall }
  /** Ask the other host, by the name of the generation there is, whether it has the VM. */
  | { readonly type: "ask-peer" }
  | { readonly type: "begun" }
  /** @param isOthers Another host runs it; or else that could not be found out */
  | { readonly type: "refused"; readonly reason: string; readonly isOthers: boolean }
  | { readonly type: "shared" }
  | { readonly type: "decided"; readonly verdict: Verdict }
  /** Have the fence command end the other host; the claim that waits for it is told `switched-off`. */
  | { readonly type: "switch-off" }
  /** The lease is about to end for others: the VM must stand still if nobody vouches for it. */
  | { readonly type: "pause" }
  | { readonly type: "resume" }
  /** The VM is another's. */
  | { readonly type: "stale"; readonly reason: string }
  | { readonly type: "notice"; readonly text: string }
  /** Whoever had the lease has given it back. */
  | { readonly type: "closed" }
  | { readonly type: "wake"; readonly atMs: number };

/** How one side deals with its arbiter. */
export interface ArbitrationRules {
  /** This engine's name, the same at every start and no other's. */
  readonly holder: string;
  readonly leaseMs: number;
  /** Whether there is a third party, who can tell silence from death. */
  readonly hasThirdParty: boolean;
  /** Whether there is a command that switches the other host off. */
  readonly hasFence: boolean;
}

/** Between two attempts of a claim. */
const RETRY_MS = 200;

/** A claim is prepared for so many times within the length of a lease. */
const PREPARATIONS = 3;

/** How much of a lease must be left when the VM is paused. */
const MARGIN_SHARE = 1 / 5;

/** A generation that is about to be begun. */
interface Beginning {
  readonly wasRunning: boolean;
  readonly isOrdered: boolean;
  /** The one that is there. */
  readonly generation: number;
  /** The other host is to be off first. */
  readonly awaitsFence: boolean;
  /** When the peer is asked again. */
  readonly retryAtMs: number;
  readonly obstacle: string;
}

/** Why a claim comes to nothing that nobody has any use for. */
export const GONE = "what the VM was claimed for is gone";

/** A claim that is not decided yet. */
interface OpenClaim {
  /** The one that it is for: what is learned meanwhile of a later one is none of this side's. */
  readonly claim: Claim;
  /** The other host is to be off first. */
  readonly awaitsFence: boolean;
  /** When the fence command is to be given. */
  readonly fenceAtMs: number;
  /** Nothing of it is under way until then. */
  readonly retryAtMs: number;
  /** What stood in its way last. */
  readonly obstacle: string;
}

/** A call, and what it is made for. */
interface PendingCall {
  readonly purpose: "begin" | "look-up" | "keep-ready" | "claim" | "renew" | "learn" | "release";
  readonly call: ArbiterCall;
}

/** One side, as far as its arbiter is concerned. */
export class ArbitrationMachine {
  readonly #rules: ArbitrationRules;
  #generation = 0;
  #isHolder = false;
  #lease: Lease | undefined;
  #begins: Beginning | undefined;
  #open: OpenClaim | undefined;
  #isWithdrawn = false;
  /** When to prepare again for a claim that may come. */
  #prepareAtMs = Infinity;
  /** A claim was granted that the other side has lost, and its host is being switched off. */
  #endsLoser = false;
  #isOver = false;
  /** Calls that are yet to be answered; the first one has been made. */
  #calls: PendingCall[] = [];

  constructor(rules: ArbitrationRules) {
    this.#rules = rules;
  }

  /** The generation that this side has a share in. */
  get generation(): number {
    return this.#generation;
  }

  /** A claim is being made: nothing else is to be agreed on meanwhile. */
  get isClaiming(): boolean {
    return this.#open !== undefined;
  }

  /** Whether it is still of use that the other host is switched off. */
  get wantsFence(): boolean {
    return this.#endsLoser || this.#open?.awaitsFence === true ||
      this.#begins?.awaitsFence === true;
  }

  /** Whether the VM may say anything, as far as the lease goes. */
  holds(nowMs: number): boolean {
    return nowMs < this.holdsUntilMs;
  }

  /** Until when {@linkcode holds} will be so, unless the lease is renewed before. */
  get holdsUntilMs(): number {
    return this.#lease?.holdsUntilMs ?? Infinity;
  }

  /**
   * A primary that has lost its secondary: without a third party it is the one that goes on, unless
   * each side is to switch the other one off first.
   */
  get evidenceOfPrimary(): LossEvidence {
    const { hasThirdParty, hasFence } = this.#rules;
    return hasThirdParty || hasFence ? "silent" : "ordered";
  }

  /** @throws {StateError} on a claim while another one is open, and an answer to nothing */
  step(event: ArbitrationEvent, nowMs: number): ArbitrationEffect[] {
    const before = this.#calls[0];
    const effects = [...this.#on(event, nowMs), ...this.#pace(nowMs)];
    const next = this.#calls[0];
    if (next !== undefined && next !== before) effects.push({ type: "ask", call: next.call });
    return effects;
  }

  #on(event: ArbitrationEvent, nowMs: number): ArbitrationEffect[] {
    if (this.#isOver && event.type !== "answer") return [];
    switch (event.type) {
      case "begin":
        this.#begins = {
          wasRunning: event.wasRunning,
          isOrdered: event.isOrdered ?? false,
          generation: 0,
          awaitsFence: false,
          retryAtMs: Infinity,
          obstacle: "",
        };
        return this.#ask("begin", { type: "prepare" });
      case "peer":
        return this.#peerSaid(event.peer, nowMs);
      case "share":
        this.#generation = event.owner.generation;
        this.#endsLoser = false;
        return this.#ask("learn", { type: "learn", owner: event.owner });
      case "claim":
        return this.#claim(event.evidence, event.standing, nowMs + (event.yieldsMs ?? 0));
      case "withdraw":
        this.#isWithdrawn = true;
        // One that has been made may have been granted.
        return this.#isAsked("look-up", "claim") ? [] : this.#undecided(GONE);
      case "switched-off":
        return this.#switchedOff();
      case "peer-back":
        this.#endsLoser = false;
        return [];
      case "answer": {
        const pending = this.#calls.shift();
        if (pending === undefined) throw new StateError("Cannot take an answer", "idle", "asking");
        return this.#answered(pending, event.answer, nowMs);
      }
      case "tick":
        return [];
      case "close":
        return this.#close();
    }
  }

  #ask(purpose: PendingCall["purpose"], call: ArbiterCall): ArbitrationEffect[] {
    this.#calls.push({ purpose, call });
    return [];
  }

  #isAsked(...purposes: readonly PendingCall["purpose"][]): boolean {
    return this.#calls.some(({ purpose }) => purposes.includes(purpose));
  }

  #claim(
    evidence: LossEvidence,
    standing: Claim["standing"],
    fenceAtMs: number,
  ): ArbitrationEffect[] {
    const { holder, hasFence, hasThirdParty } = this.#rules;
    const claim = { generation: this.#generation, holder, standing, evidence };
    if (this.#open !== undefined) throw new StateError("Cannot claim", "claiming", "not claiming");
    this.#isWithdrawn = false;
    // Both sides do so, or one would go on while it is being switched off.
    const awaitsFence = evidence === "silent" && hasFence && !hasThirdParty;
    this.#open = {
      claim,
      awaitsFence,
      fenceAtMs: awaitsFence ? fenceAtMs : Infinity,
      retryAtMs: Infinity,
      obstacle: "",
    };
    return awaitsFence ? [] : this.#firstAttempt();
  }

  #firstAttempt(): ArbitrationEffect[] {
    // Of a checkpoint from outside the pair nothing is known but that it is here.
    const isOutside = this.#open!.claim.standing === "outside";
    return isOutside ? this.#ask("look-up", { type: "prepare" }) : this.#attempt();
  }

  #attempt(): ArbitrationEffect[] {
    return this.#ask("claim", { type: "claim", claim: this.#open!.claim });
  }

  #switchedOff(): ArbitrationEffect[] {
    this.#endsLoser = false;
    if (this.#begins?.awaitsFence) return this.#claimToBegin();
    const open = this.#open;
    // For the loser of a claim that was granted nobody waits.
    if (!open?.awaitsFence) return [];
    const claim: Claim = { ...open.claim, evidence: "fenced" };
    this.#open = { ...open, claim, awaitsFence: false };
    return this.#firstAttempt();
  }

  #answered(
    { purpose }: PendingCall,
    answer: ArbiterAnswer,
    nowMs: number,
  ): ArbitrationEffect[] {
    if (this.#isOver) return purpose === "release" ? [{ type: "closed" }] : [];
    switch (purpose) {
      case "begin":
        return this.#beginAnswered(answer, nowMs);
      case "look-up": {
        if (this.#isWithdrawn) return this.#undecided(GONE);
        if (answer.type === "owner") this.#generation = answer.owner?.generation ?? 0;
        const open = this.#open!;
        this.#open = { ...open, claim: { ...open.claim, generation: this.#generation } };
        return this.#attempt();
      }
      case "claim":
        return this.#claimAnswered(answer, nowMs);
      case "renew":
        return this.#renewAnswered(answer);
      case "learn":
        if (!this.#isHolder) this.#prepareAtMs = nowMs;
        return [{ type: "shared" }];
      case "keep-ready":
      case "release":
        return [];
    }
  }

  #beginAnswered(answer: ArbiterAnswer, nowMs: number): ArbitrationEffect[] {
    const { holder } = this.#rules;
    const begins = this.#begins!;
    switch (answer.type) {
      case "owner": {
        const { owner } = answer;
        if (begins.wasRunning && owner !== undefined && owner.holder !== holder) {
          const reason = `generation ${owner.generation} of it is ${owner.holder}'s by now`;
          return this.#refused(reason, true);
        }
        const generation = owner?.generation ?? 0;
        this.#begins = { ...begins, generation };
        if (this.#isContested) this.#generation = generation;
        return [{ type: "ask-peer" }];
      }
      case "granted":
        this.#begins = undefined;
        return [...this.#granted(answer, nowMs), { type: "begun" }];
      case "held":
      case "stale":
        return this.#refused(
          `${answer.holder} runs it; stand by for it with \`colo standby\`, or end it there first`,
          true,
        );
      case "unreachable":
      case "ask":
        return this.#refused(answer.reason, false);
      default:
        return [];
    }
  }

  #refused(reason: string, isOthers: boolean): ArbitrationEffect[] {
    this.#begins = undefined;
    return [{ type: "refused", reason, isOthers }];
  }

  /**
   * The other side may be running the VM or be about to, and nobody but itself can say so. What the VM
   * says here meanwhile would not be known there.
   */
  get #isContested(): boolean {
    return this.#begins!.generation > 0 && !this.#rules.hasThirdParty;
  }

  #peerSaid(peer: PeerState, nowMs: number): ArbitrationEffect[] {
    const begins = this.#begins;
    if (begins === undefined) return [];
    if (peer.type === "runs") return this.#refused(peer.reason, true);
    if (peer.type === "idle" || !this.#isContested) return this.#claimToBegin();
    if (peer.type === "silent") {
      if (this.#rules.hasFence) {
        this.#begins = { ...begins, awaitsFence: true };
        return [{ type: "switch-off" }];
      }
      // Without a fence nobody takes over on silence, so a VM that runs may go on.
      if (begins.wasRunning || begins.isOrdered) return this.#claimToBegin();
      return this.#refused(
        "the other host does not answer, and may be running it; start the standby there first, or " +
          "see that it does not run there and use --alone",
        false,
      );
    }
    const obstacle = peer.reason;
    this.#begins = { ...begins, retryAtMs: nowMs + RETRY_MS, obstacle };
    if (obstacle === begins.obstacle) return [];
    return [{ type: "notice", text: `${obstacle}; the VM waits` }];
  }

  #claimToBegin(): ArbitrationEffect[] {
    const begins = this.#begins!;
    this.#begins = { ...begins, awaitsFence: false };
    const { generation } = begins;
    const { holder } = this.#rules;
    const claim: Claim = { generation, holder, standing: "outside", evidence: "ordered" };
    return this.#ask("begin", { type: "claim", claim });
  }

  #claimAnswered(answer: ArbiterAnswer, nowMs: number): ArbitrationEffect[] {
    const open = this.#open;
    if (open === undefined) return [];
    const { hasFence } = this.#rules;
    switch (answer.type) {
      case "granted": {
        if (this.#isWithdrawn) return this.#giveBack(answer.generation);
        this.#open = undefined;
        const effects = this.#granted(answer, nowMs);
        // It has lost already, and nothing has to wait until it is off as well.
        this.#endsLoser = open.claim.evidence === "silent" && hasFence;
        return [
          ...effects,
          ...(this.#endsLoser ? [{ type: "switch-off" } as const] : []),
          { type: "decided", verdict: { type: "granted" } },
        ];
      }
      case "stale":
        this.#open = undefined;
        return [{ type: "decided", verdict: { type: "stale", reason: staleReason(answer) } }];
      case "ask":
        return this.#undecided(answer.reason);
      case "held":
      case "unreachable": {
        if (this.#isWithdrawn) return this.#undecided(GONE);
        const obstacle = answer.type === "held"
          ? `${answer.holder} may be running the VM: its lease has not ended`
          : answer.reason;
        this.#open = { ...open, retryAtMs: nowMs + RETRY_MS, obstacle };
        if (obstacle === open.obstacle) return [];
        return [{ type: "notice", text: `${obstacle}; trying again` }];
      }
      default:
        return [];
    }
  }

  #undecided(reason: string): ArbitrationEffect[] {
    if (this.#open === undefined) return [];
    this.#open = undefined;
    return [{ type: "decided", verdict: { type: "undecided", reason } }];
  }

  /** Whoever is to run the VM next must not wait for one that has nothing to run. */
  #giveBack(generation: number): ArbitrationEffect[] {
    const own = { generation, holder: this.#rules.holder };
    this.#generation = 0;
    this.#isHolder = false;
    this.#lease = undefined;
    this.#prepareAtMs = Infinity;
    return [...this.#undecided(GONE), ...this.#ask("release", { type: "release", own })];
  }

  #granted(
    { generation, renewedMs }: Extract<ClaimAnswer, { type: "granted" }>,
    nowMs: number,
  ): ArbitrationEffect[] {
    const wasPaused = !this.holds(nowMs);
    this.#generation = generation;
    this.#isHolder = true;
    this.#prepareAtMs = Infinity;
    // Those that wait are of the lease before, and of no more use.
    this.#calls = this.#calls.filter(({ purpose }) => purpose !== "renew");
    if (renewedMs === undefined) return [];
    const { leaseMs } = this.#rules;
    this.#lease = new Lease({ ttlMs: leaseMs, marginMs: leaseMs * MARGIN_SHARE }, renewedMs);
    // The lease that begins now has nothing to resume from.
    return wasPaused ? [{ type: "resume" }] : [];
  }

  #renewAnswered(answer: ArbiterAnswer): ArbitrationEffect[] {
    if (answer.type === "renewed" && answer.renewedMs !== undefined) {
      this.#lease?.renewed(answer.renewedMs);
    } else if (answer.type === "stale") {
      this.#lease = undefined;
      return [{ type: "stale", reason: staleReason(answer) }];
    }
    return [];
  }

  #close(): ArbitrationEffect[] {
    const undecided = [
      ...this.#undecided("this engine ends"),
      ...(this.#begins === undefined ? [] : this.#refused("this engine ends", false)),
    ];
    this.#isOver = true;
    // What has not been asked yet is of no more use.
    this.#calls.splice(1);
    const { holder } = this.#rules;
    const own = { generation: this.#generation, holder };
    if (this.#isAsked("release")) return undecided;
    if (!this.#isHolder) return [...undecided, { type: "closed" }];
    return [...undecided, ...this.#ask("release", { type: "release", own })];
  }

  /** What is due, and when the next is. */
  #pace(nowMs: number): ArbitrationEffect[] {
    if (this.#isOver) return [];
    const effects: ArbitrationEffect[] = [];
    const open = this.#open;
    if (open !== undefined && nowMs >= open.retryAtMs) {
      this.#open = { ...open, retryAtMs: Infinity };
      effects.push(...this.#attempt());
    }
    if (open !== undefined && nowMs >= open.fenceAtMs) {
      this.#open = { ...open, fenceAtMs: Infinity };
      effects.push({ type: "switch-off" });
    }
    const begins = this.#begins;
    if (begins !== undefined && nowMs >= begins.retryAtMs) {
      this.#begins = { ...begins, retryAtMs: Infinity };
      effects.push({ type: "ask-peer" });
    }
    if (nowMs >= this.#prepareAtMs) this.#prepareInTurn(nowMs);
    effects.push(...this.#keepLease(nowMs));
    const wakeAtMs = Math.min(
      this.#open?.retryAtMs ?? Infinity,
      this.#open?.fenceAtMs ?? Infinity,
      this.#begins?.retryAtMs ?? Infinity,
      this.#prepareAtMs,
      this.#lease?.wakeAtMs ?? Infinity,
    );
    if (wakeAtMs < Infinity) effects.push({ type: "wake", atMs: wakeAtMs });
    return effects;
  }

  /** Have a claim take one round trip, should it come to that. */
  #prepareInTurn(nowMs: number): void {
    const { hasThirdParty, leaseMs } = this.#rules;
    this.#prepareAtMs = hasThirdParty ? nowMs + leaseMs / PREPARATIONS : Infinity;
    if (hasThirdParty && !this.isClaiming) this.#ask("keep-ready", { type: "prepare" });
  }

  #keepLease(nowMs: number): ArbitrationEffect[] {
    const lease = this.#lease;
    const own = { generation: this.#generation, holder: this.#rules.holder };
    switch (lease?.step(nowMs)) {
      case "renew":
        // A call that has not been answered yet is as good as another one.
        if (this.#isAsked("renew")) return [];
        return this.#ask("renew", { type: "renew", own });
      case "pause":
        return [{ type: "pause" }];
      case "resume":
        return [{ type: "resume" }];
      default:
        return [];
    }
  }
}

function staleReason({ generation, holder }: Ownership): string {
  return `generation ${generation} of the VM is ${holder}'s`;
}

/** Make one call. */
export async function ask(arbiter: Arbiter, call: ArbiterCall): Promise<ArbiterAnswer> {
  switch (call.type) {
    case "prepare":
      return await arbiter.prepare();
    case "claim":
      return await arbiter.claim(call.claim);
    case "renew":
      return await arbiter.renew(call.own);
    case "learn":
      await arbiter.learn(call.owner);
      return { type: "done" };
    case "release":
      await arbiter.release(call.own);
      return { type: "done" };
  }
}
