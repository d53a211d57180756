/**
 * An etcd and its clients, as `engine/failover/etcd_arbiter.ts` uses one: two keys, leases, and a
 * compare-and-swap on the revision of the owner. What is decided by the record is decided by the real
 * {@linkcode judgeClaim} and {@linkcode judgeRenewal}.
 *
 * @module
 */

import {
  type Claim,
  type ClaimAnswer,
  judgeClaim,
  judgeRenewal,
  type OwnerAnswer,
  type Ownership,
  type RenewAnswer,
} from "../../engine/failover/arbiter.ts";
import type { Actor, Task } from "./actor.ts";
import type { Simulation } from "./kernel.ts";

/** How long a client waits for an answer. */
const REQUEST_MS = 1000;
const CLAIM_ATTEMPTS = 4;
const LEASE_SHARE_MIN = 0.5;

interface Seen {
  readonly owner: Ownership | undefined;
  readonly revision: number;
}

const NEVER: Seen = { owner: undefined, revision: 0 };

/** The store. */
export class ModelEtcd {
  owner: Seen = NEVER;
  isDown = false;
  /** Host by host: its requests get lost. */
  readonly isCutOff: boolean[] = [false, false];
  lagMs = 0;
  /** Chance of a request, and of an answer, to be lost. */
  loss = 0;
  /** How many claims were granted. */
  grants = 0;
  stales = 0;
  #leaseKey: Seen & { readonly leaseId: number } = { ...NEVER, leaseId: 0 };
  #revision = 1;
  #lastLease = 0;
  readonly #endsMs = new Map<number, number>();

  /** @param ordered Called with who has been granted the VM because an operator wants it so */
  constructor(
    readonly sim: Simulation,
    readonly ttlMs: number,
    readonly ordered: (holder: string) => void,
  ) {}

  grantLease(): number {
    this.#endsMs.set(++this.#lastLease, this.sim.nowMs + this.ttlMs);
    return this.#lastLease;
  }

  keepLease(id: number): boolean {
    if (!this.#holds(id)) return false;
    this.#endsMs.set(id, this.sim.nowMs + this.ttlMs);
    return true;
  }

  revokeLease(id: number): void {
    this.#endsMs.delete(id);
  }

  /** Who has a lease that has not ended. */
  get leased(): Seen {
    return this.#holds(this.#leaseKey.leaseId) ? this.#leaseKey : NEVER;
  }

  /** @returns Whether it was done, and the record as it is then; nothing where the lease has ended */
  swap(
    conditions: { readonly owner?: number; readonly leased?: number; readonly own?: Ownership },
    put: { readonly owner?: Ownership; readonly leased: Ownership; readonly leaseId: number },
  ): { readonly done: boolean; readonly seen: Seen } | undefined {
    const { own } = conditions;
    const holds = (conditions.owner ?? this.owner.revision) === this.owner.revision &&
      (conditions.leased ?? this.leased.revision) === this.leased.revision &&
      (own === undefined || isSame(own, this.owner.owner));
    if (!holds) return { done: false, seen: this.owner };
    if (!this.#holds(put.leaseId)) return undefined;
    const revision = ++this.#revision;
    this.#leaseKey = { owner: put.leased, revision, leaseId: put.leaseId };
    if (put.owner !== undefined) {
      this.owner = { owner: put.owner, revision };
      this.grants++;
      if (conditions.leased !== undefined) this.ordered(put.owner.holder);
      this.sim.trace("etcd", () => `generation ${put.owner!.generation} is ${put.owner!.holder}'s`);
    }
    return { done: true, seen: this.owner };
  }

  #holds(id: number): boolean {
    return (this.#endsMs.get(id) ?? 0) > this.sim.nowMs;
  }
}

function isSame(a: Ownership, b: Ownership | undefined): boolean {
  return a.generation === b?.generation && a.holder === b.holder;
}

/** No answer came. */
class NoAnswer extends Error {}

/** An arbiter, as one engine sees it. */
export interface SimArbiter {
  prepare(): Task<OwnerAnswer>;
  claim(claim: Claim): Task<ClaimAnswer>;
  renew(own: Ownership): Task<RenewAnswer>;
  release(): Task<void>;
  learn(owner: Ownership): Task<void>;
}

/** One engine's client. */
export class ModelArbiter implements SimArbiter {
  #seen: Seen | undefined;
  #lease: { readonly id: number; readonly renewedMs: number } | undefined;

  constructor(readonly etcd: ModelEtcd, readonly actor: Actor, readonly host: number) {}

  *prepare(): Task<OwnerAnswer | Unreached> {
    return yield* this.#reached(this.#prepare());
  }

  *claim(claim: Claim): Task<ClaimAnswer> {
    const answer = yield* this.#reached(this.#claim(claim));
    if (answer.type === "stale") this.etcd.stales++;
    return answer;
  }

  *renew(own: Ownership): Task<RenewAnswer> {
    return yield* this.#reached(this.#renew(own));
  }

  *release(): Task<void> {
    const lease = this.#lease;
    if (lease !== undefined) {
      yield* this.#request((etcd) => etcd.revokeLease(lease.id));
    }
  }

  /** Who the peer is, etcd knows better. */
  *learn(): Task<void> {}

  *#prepare(): Task<OwnerAnswer> {
    yield* this.#renewLease();
    const { owner } = yield* this.#look();
    return { type: "owner", owner };
  }

  *#claim(claim: Claim): Task<ClaimAnswer> {
    let seen = this.#seen?.owner?.generation === claim.generation
      ? this.#seen
      : yield* this.#look();
    for (let attempt = 1; attempt <= CLAIM_ATTEMPTS; attempt++) {
      const judged = judgeClaim(seen.owner, claim);
      if (judged.type === "ours") {
        const own = { generation: claim.generation + 1, holder: claim.holder };
        const answer = yield* this.#renew(own);
        if (answer.type !== "renewed") return answer;
        return { ...answer, type: "granted", generation: own.generation };
      }
      if (judged.type !== "free") return judged;
      const answer = yield* this.#tryClaim(claim, seen);
      if ("type" in answer) return answer;
      seen = answer;
    }
    throw new NoAnswer("the record keeps changing");
  }

  *#tryClaim(claim: Claim, seen: Seen): Task<ClaimAnswer | Seen> {
    let leased: number | undefined;
    if (claim.standing === "outside") {
      const there = yield* this.#ask((etcd) => etcd.leased);
      if (there.owner !== undefined && there.owner.holder !== claim.holder) {
        return { type: "held", ...there.owner };
      }
      leased = there.revision;
    }
    const owner = { generation: claim.generation + 1, holder: claim.holder };
    const { id, renewedMs } = yield* this.#freshLease();
    const conditions = { owner: seen.revision, ...(leased === undefined ? {} : { leased }) };
    const outcome = yield* this.#ask((etcd) =>
      etcd.swap(conditions, { owner, leased: owner, leaseId: id })
    );
    if (outcome === undefined) {
      this.#lease = undefined;
      return yield* this.#look();
    }
    this.#seen = outcome.seen;
    if (!outcome.done) return outcome.seen;
    return { type: "granted", generation: owner.generation, renewedMs };
  }

  *#renew(own: Ownership): Task<RenewAnswer> {
    const { id, renewedMs } = yield* this.#renewLease();
    const outcome = yield* this.#ask((etcd) => etcd.swap({ own }, { leased: own, leaseId: id }));
    if (outcome?.done) return { type: "renewed", renewedMs };
    if (outcome === undefined) this.#lease = undefined;
    this.#seen = outcome?.seen ?? (yield* this.#look());
    const judged = judgeRenewal(this.#seen.owner, own);
    if (judged.type !== "ours") return judged;
    throw new NoAnswer("the lease has ended meanwhile");
  }

  *#look(): Task<Seen> {
    return this.#seen = yield* this.#ask((etcd) => etcd.owner);
  }

  *#freshLease(): Task<{ readonly id: number; readonly renewedMs: number }> {
    const lease = this.#lease;
    const isFresh = lease !== undefined &&
      this.actor.nowMs - lease.renewedMs < (1 - LEASE_SHARE_MIN) * this.etcd.ttlMs;
    return isFresh ? lease : yield* this.#renewLease();
  }

  *#renewLease(): Task<{ readonly id: number; readonly renewedMs: number }> {
    const renewedMs = this.actor.nowMs;
    const kept = this.#lease;
    if (kept !== undefined && (yield* this.#ask((etcd) => etcd.keepLease(kept.id)))) {
      return this.#lease = { id: kept.id, renewedMs };
    }
    const id = yield* this.#ask((etcd) => etcd.grantLease());
    return this.#lease = { id, renewedMs };
  }

  *#reached<T>(task: Task<T>): Task<T | Unreached> {
    try {
      return yield* task;
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error;
      return { type: "unreachable", reason: error.message };
    }
  }

  *#ask<T>(work: (etcd: ModelEtcd) => T): Task<T> {
    const answer = yield* this.#request(work);
    if (answer === undefined) throw new NoAnswer("etcd does not answer");
    return answer.value;
  }

  /** A round trip; what is given up may be done all the same, and later. */
  *#request<T>(work: (etcd: ModelEtcd) => T): Task<{ readonly value: T } | undefined> {
    const { etcd, actor, host } = this;
    const { sim } = etcd;
    const answer = yield (resume) => {
      let isOver = false;
      const end = (value: unknown) => {
        if (!isOver) resume(value);
        isOver = true;
      };
      const isLost = () => etcd.isCutOff[host] || etcd.isDown || sim.random.chance(etcd.loss);
      const delayMs = () => sim.random.between(0.2, 3) + etcd.lagMs * sim.random.between(0, 2);
      actor.after(REQUEST_MS, () => end(undefined));
      if (isLost()) return;
      sim.after(delayMs(), () => {
        if (etcd.isDown) return;
        const value = work(etcd);
        if (!isLost()) sim.after(delayMs(), () => actor.run(() => end({ value })));
      });
    };
    return answer as { readonly value: T } | undefined;
  }
}

type Unreached = { readonly type: "unreachable"; readonly reason: string };
