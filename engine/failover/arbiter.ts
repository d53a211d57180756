/**
 * Who may run a VM: what an arbiter is asked, and what it answers.
 *
 * Every VM has a *generation*, a number that only grows. A protected pair shares generation g. Whoever
 * wants to run the VM without the other (a secondary that is to be promoted, a primary that has lost
 * its secondary) claims g: the arbiter puts g+1 and the claimer's id in its place, if g is still there.
 * So one side wins. The other one finds its generation stale and fences itself: no packet leaves, no
 * disk is written.
 *
 * ```text
 *  primary                        arbiter: 7, held by A                         secondary
 *    |  protected in 7                   |                    protects in 7         |
 *    X  host A dies                      |                                          |
 *                                        |<------- claim 7, for B ------------------|  heartbeat lost
 *                                        |-------- granted: 8 --------------------->|  promoted, alone
 *    |  comes back                       |                                          |
 *    |-------- claim 7, for A ---------->|                                          |
 *    |<------- stale: 8, held by B ------|                                          |
 *    |  fences itself                    |<------- renew 8, for B ------------------|  every second
 * ```
 *
 * A grant waits for no lease to end: a protected primary lets nothing out that its secondary does not
 * hold, so it is harmless from the moment on that the secondary is gone. What that asks of both sides:
 *
 * 1. A primary shares its generation with a secondary (which from then on can be promoted) only after
 *    it has begun to hold its packets back, and holds them back until the secondary is known to be
 *    lost *and* its own claim is granted.
 * 2. Whoever has claimed goes on claiming until it is granted or stale. A claim whose answer was lost
 *    may have been granted, so there is no way back to sharing the old generation.
 * 3. Whoever is stale, even for a moment, never runs again with what it holds.
 *
 * The lease is for those outside the pair, who hold an older state of the VM (a restored checkpoint,
 * say) and cannot know whether it runs: their claims wait until the holder's lease has ended. The
 * holder renews it all the time. While it runs alone it pauses its VM when it cannot (`lease.ts`);
 * while it is protected it goes on, since its secondary vouches for it.
 *
 * @module
 */

import { HOLDER_BYTES_MAX } from "../limits.ts";

/** Who had the last grant. */
export interface Ownership {
  /** 1 for the first one that ran the VM */
  readonly generation: number;
  /** Id of the engine that holds it: never the same for two engines */
  readonly holder: string;
}

/** How the claimer knows that the other side does not run. */
export type LossEvidence =
  /** It does not: there were no heartbeats. */
  | "silent"
  /** The other engine said that its QEMU has ended, and by that has given the generation up. */
  | "reported"
  /** The fence command has switched it off. */
  | "fenced"
  /** The operator says so. */
  | "ordered";

/** The wish to run the VM without the other side. */
export interface Claim {
  /** The generation that the claimer had a share in; 0 for a VM that nobody has run before */
  readonly generation: number;
  /** Id of the claimer */
  readonly holder: string;
  /**
   * `pair`: it holds all that the world has seen of that generation. `outside`: it does not, so the
   * holder's lease is waited for.
   */
  readonly standing: "pair" | "outside";
  readonly evidence: LossEvidence;
}

/** The generation is not the caller's any more: it must fence itself. */
export interface Stale {
  readonly type: "stale";
  /** The one that is there, and who holds it */
  readonly generation: number;
  readonly holder: string;
}

/** The arbiter gave no answer. Of a claim or a renewal this says nothing: it may have taken effect. */
export interface Unreachable {
  readonly type: "unreachable";
  readonly reason: string;
}

/** The arbiter cannot decide that; the operator must. */
export interface Ask {
  readonly type: "ask";
  readonly reason: string;
}

/** A lease that has just been made or renewed. */
export interface Leased {
  /**
   * When the request was sent that did so, by the arbiter's clock (see {@linkcode EtcdOptions}). It is
   * what {@linkcode Lease} counts from. Undefined where nothing needs to be renewed.
   */
  readonly renewedMs: number | undefined;
}

/** What becomes of a claim. */
export type ClaimAnswer =
  | { readonly type: "granted"; readonly generation: number } & Leased
  /** By one that may be running: its lease has not ended. Claim again in a second. */
  | { readonly type: "held" } & Ownership
  | Stale
  | Unreachable
  | Ask;

/** What becomes of a renewal. */
export type RenewAnswer = { readonly type: "renewed" } & Leased | Stale | Unreachable | Ask;

/** What an arbiter knows of a VM. */
export type OwnerAnswer =
  /** @param owner Nobody has run the VM where it is undefined */
  | { readonly type: "owner"; readonly owner: Ownership | undefined }
  | Unreachable;

/** Decides who may run one VM. None of the calls throws; each is made when the last one has answered. */
export interface Arbiter {
  /**
   * Look up who has the VM, and make ready so that a claim takes one round trip. To be called every so
   * often (a third of the lease) by whoever may have to claim: it also says whether that would work.
   */
  prepare(): Promise<OwnerAnswer>;
  /** Ask to run the VM without the other side. Claiming once more what was granted is granted again. */
  claim(claim: Claim): Promise<ClaimAnswer>;
  /** Renew the lease of a generation that was granted. One that had ended begins anew. */
  renew(own: Ownership): Promise<RenewAnswer>;
  /** The VM does not run any more, and does not have to be waited for. */
  release(own: Ownership): Promise<void>;
  /** Take note of what the peer says; of use where there is nobody else to ask. */
  learn(owner: Ownership): Promise<void>;
}

/**
 * What the record of an arbiter makes of a claim: `free` where its generation is the one that is there.
 * Pure.
 */
export function judgeClaim(
  owner: Ownership | undefined,
  claim: Pick<Claim, "generation" | "holder">,
): { readonly type: "free" } | { readonly type: "ours" } | Stale | Ask {
  const generation = owner?.generation ?? 0;
  if (generation === claim.generation) return { type: "free" };
  // A claim whose answer was lost.
  if (owner !== undefined && isOurs(owner, claim)) return { type: "ours" };
  if (owner !== undefined && generation > claim.generation) return { type: "stale", ...owner };
  return forgotten(generation, claim.generation);
}

/** What the record of an arbiter makes of a renewal. Pure. */
export function judgeRenewal(
  owner: Ownership | undefined,
  own: Ownership,
): { readonly type: "ours" } | Stale | Ask {
  const generation = owner?.generation ?? 0;
  if (owner === undefined || generation < own.generation) {
    return forgotten(generation, own.generation);
  }
  const isOurs = generation === own.generation && owner.holder === own.holder;
  return isOurs ? { type: "ours" } : { type: "stale", ...owner };
}

function isOurs(owner: Ownership, claim: Pick<Claim, "generation" | "holder">): boolean {
  return owner.generation === claim.generation + 1 && owner.holder === claim.holder;
}

/** Generations never shrink: whoever says so has lost its memory, and with it the right to decide. */
function forgotten(generation: number, known: number): Ask {
  const record = generation === 0 ? "has no record of this VM" : `knows generation ${generation}`;
  return {
    type: "ask",
    reason: `the arbiter ${record}, but generation ${known} has run: was it restored from a ` +
      "backup, or is it another one; see which host runs the VM and decide",
  };
}

/** The text of a record: {@linkcode decodeOwner} reads it. */
export function encodeOwner({ generation, holder }: Ownership): string {
  return JSON.stringify({ generation, holder });
}

/** What a record says, or nothing when it is none. Pure. */
export function decodeOwner(text: string): Ownership | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof value !== "object" || value === null) return undefined;
  const { generation, holder } = value as Record<string, unknown>;
  if (typeof generation !== "number" || typeof holder !== "string") return undefined;
  const isGeneration = Number.isSafeInteger(generation) && generation > 0;
  const isHolder = holder !== "" && new TextEncoder().encode(holder).length <= HOLDER_BYTES_MAX;
  return isGeneration && isHolder ? { generation, holder } : undefined;
}
