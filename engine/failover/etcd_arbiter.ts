/**
 * The arbiter on etcd 3.
 *
 * ```text
 *  colo/VM/owner   {"generation":8,"holder":"B"}   stays for ever
 *  colo/VM/lease   {"generation":8,"holder":"B"}   goes with the holder's lease
 * ```
 *
 * A claim is one transaction: if `owner` was last changed by the revision that was read, both keys are
 * written. That decides a race, and makes a claim that is sent twice harmless: the second time `owner`
 * has been changed. An answer that was lost is found again by reading: generation and holder are ours.
 *
 * The lease of a claimer is made beforehand ({@linkcode EtcdArbiter.prepare}), so that a takeover costs
 * one round trip.
 *
 * @module
 */

import { ArbiterError } from "../errors.ts";
import {
  type Arbiter,
  type Claim,
  type ClaimAnswer,
  decodeOwner,
  encodeOwner,
  judgeClaim,
  judgeRenewal,
  type OwnerAnswer,
  type Ownership,
  type RenewAnswer,
  type Unreachable,
} from "./arbiter.ts";
import type { EtcdClient } from "./etcd.ts";
import {
  type EtcdCondition,
  type EtcdEntry,
  type EtcdOutcome,
  type EtcdTransaction,
  NEVER,
  NOT_FOUND,
} from "./etcd_wire.ts";
import { LEASE_TTL_MS } from "./lease.ts";

/** Which VM is decided about, and how. */
export interface EtcdOptions {
  /** Name of the VM: letters, digits, `_`, `.` and `-` */
  readonly vm: string;
  /** The same as the {@linkcode Lease}'s of who holds it; 5000 if absent. */
  readonly ttlMs?: number | undefined;
  /** A clock in milliseconds that only goes forward, the same as that of the {@linkcode Lease}. */
  readonly now: () => number;
}

/** A record, and what a transaction needs to know of it. */
interface Seen {
  readonly owner: Ownership | undefined;
  readonly modRevision: string;
}

/** A lease of ours, of which a key may hang. */
interface OwnLease {
  readonly id: string;
  readonly renewedMs: number;
}

/** Times that a claim is tried while others change the record, or etcd has forgotten our lease. */
const CLAIM_ATTEMPTS = 4;

/** A lease of which less than this share is left is renewed before it is used. */
const LEASE_SHARE_MIN = 0.5;

/** Decides by compare-and-swap in etcd. */
export class EtcdArbiter implements Arbiter {
  readonly #client: EtcdClient;
  readonly #ownerKey: string;
  readonly #leaseKey: string;
  readonly #ttlMs: number;
  readonly #now: () => number;
  #seen: Seen | undefined;
  #lease: OwnLease | undefined;

  constructor(client: EtcdClient, { vm, ttlMs, now }: EtcdOptions) {
    this.#client = client;
    this.#ownerKey = `colo/${vm}/owner`;
    this.#leaseKey = `colo/${vm}/lease`;
    this.#ttlMs = ttlMs ?? LEASE_TTL_MS;
    this.#now = now;
  }

  prepare(): Promise<OwnerAnswer> {
    return this.#reached(async () => {
      await this.#renewLease();
      const { owner } = await this.#look();
      return { type: "owner", owner };
    });
  }

  claim(claim: Claim): Promise<ClaimAnswer> {
    return this.#reached(async () => {
      // What was read before is good enough to try with, and for nothing else.
      let seen = this.#seen?.owner?.generation === claim.generation
        ? this.#seen
        : await this.#look();
      for (let attempt = 1; attempt <= CLAIM_ATTEMPTS; attempt++) {
        const judged = judgeClaim(seen.owner, claim);
        if (judged.type === "ours") return await this.#takeUp(claim);
        if (judged.type !== "free") return judged;
        const answer = await this.#tryClaim(claim, seen);
        if ("type" in answer) return answer;
        seen = answer;
      }
      throw new ArbiterError("Cannot claim the VM: its record keeps changing; try again");
    });
  }

  renew(own: Ownership): Promise<RenewAnswer> {
    return this.#reached(async () => {
      const { id, renewedMs } = await this.#renewLease();
      const value = encodeOwner(own);
      const outcome = await this.#transact({
        conditions: [{ key: this.#ownerKey, value }],
        puts: [{ key: this.#leaseKey, value, lease: id }],
        otherwiseRead: [this.#ownerKey],
      });
      if (outcome?.succeeded) return { type: "renewed", renewedMs };
      const { owner } = outcome === undefined ? await this.#look() : this.#note(outcome.entries);
      const judged = judgeRenewal(owner, own);
      if (judged.type !== "ours") return judged;
      throw new ArbiterError("Cannot renew the lease: it has ended meanwhile; try again");
    });
  }

  async release(): Promise<void> {
    const lease = this.#lease;
    this.#lease = undefined;
    // Whoever cannot be told now sees the lease end a little later.
    if (lease !== undefined) await this.#client.revokeLease(lease.id).catch(() => {});
  }

  /** The peer knows nothing that etcd does not. */
  learn(): Promise<void> {
    return Promise.resolve();
  }

  /** @returns What became of it, or the record where that is another one than was thought */
  async #tryClaim(claim: Claim, seen: Seen): Promise<ClaimAnswer | Seen> {
    const conditions: EtcdCondition[] = [{ key: this.#ownerKey, modRevision: seen.modRevision }];
    if (claim.standing === "outside") {
      const lease = readRecord(await this.#client.get(this.#leaseKey));
      if (lease.owner !== undefined && lease.owner.holder !== claim.holder) {
        return { type: "held", ...lease.owner };
      }
      conditions.push({ key: this.#leaseKey, modRevision: lease.modRevision });
    }
    const owner = { generation: claim.generation + 1, holder: claim.holder };
    const { id, renewedMs } = await this.#freshLease();
    const value = encodeOwner(owner);
    const outcome = await this.#transact({
      conditions,
      puts: [{ key: this.#ownerKey, value }, { key: this.#leaseKey, value, lease: id }],
      otherwiseRead: [this.#ownerKey],
    });
    if (outcome === undefined) return await this.#look();
    if (!outcome.succeeded) return this.#note(outcome.entries);
    this.#seen = { owner, modRevision: outcome.revision };
    return { type: "granted", generation: owner.generation, renewedMs };
  }

  /** It was granted before, and the answer was lost: only the lease is in question. */
  async #takeUp({ generation, holder }: Claim): Promise<ClaimAnswer> {
    const own = { generation: generation + 1, holder };
    const answer = await this.renew(own);
    if (answer.type !== "renewed") return answer;
    return { type: "granted", generation: own.generation, renewedMs: answer.renewedMs };
  }

  async #look(): Promise<Seen> {
    const entry = await this.#client.get(this.#ownerKey);
    return this.#note(entry === undefined ? [] : [entry]);
  }

  #note([entry]: readonly EtcdEntry[]): Seen {
    this.#seen = readRecord(entry);
    return this.#seen;
  }

  async #freshLease(): Promise<OwnLease> {
    const lease = this.#lease;
    const isFresh = lease !== undefined &&
      this.#now() - lease.renewedMs < (1 - LEASE_SHARE_MIN) * this.#ttlMs;
    return isFresh ? lease : await this.#renewLease();
  }

  /** Keep our lease alive, or make one where it has ended. */
  async #renewLease(): Promise<OwnLease> {
    const renewedMs = this.#now();
    const kept = this.#lease;
    if (kept !== undefined && await this.#client.keepLease(kept.id)) {
      return this.#lease = { id: kept.id, renewedMs };
    }
    const { id } = await this.#client.grantLease(Math.ceil(this.#ttlMs / 1000));
    return this.#lease = { id, renewedMs };
  }

  /** @returns Nothing where our lease had ended: the next one is a new one */
  async #transact(transaction: EtcdTransaction): Promise<EtcdOutcome | undefined> {
    try {
      return await this.#client.transact(transaction);
    } catch (error) {
      if (!(error instanceof ArbiterError && error.code === NOT_FOUND)) throw error;
      this.#lease = undefined;
      return undefined;
    }
  }

  async #reached<T>(ask: () => Promise<T>): Promise<T | Unreachable> {
    try {
      return await ask();
    } catch (error) {
      if (!(error instanceof ArbiterError)) throw error;
      return { type: "unreachable", reason: error.message };
    }
  }
}

/** @throws {ArbiterError} when it holds what no engine has written: that must not pass for no record */
function readRecord(entry: EtcdEntry | undefined): Seen {
  if (entry === undefined) return { owner: undefined, modRevision: NEVER };
  const owner = decodeOwner(entry.value);
  if (owner !== undefined) return { owner, modRevision: entry.modRevision };
  throw new ArbiterError(
    `Cannot use key ${entry.key} of etcd: it holds no generation; find out who has written it`,
  );
}
