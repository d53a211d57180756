/**
 * Two hosts without a third party, as `engine/failover/manual_arbiter.ts` has them: each with a file. What
 * is decided by the file is decided by the real {@linkcode judgeManualClaim}.
 *
 * @module
 */

import {
  type Claim,
  type ClaimAnswer,
  judgeRenewal,
  type OwnerAnswer,
  type Ownership,
  type RenewAnswer,
} from "../../engine/failover/arbiter.ts";
import { judgeManualClaim } from "../../engine/failover/manual_arbiter.ts";
import { type Actor, sleep, type Task } from "./actor.ts";
import type { SimArbiter } from "./etcd.ts";

/** To read the file, and to have it on the disk, takes so long. */
const LOAD_MS = 0.1;
const STORE_MS = [0.1, 5] as const;

/** What a host knows of the generation, whatever becomes of its engine. */
export interface GenerationFile {
  owner: Ownership | undefined;
}

/** One engine's arbiter. */
export class ModelManualArbiter implements SimArbiter {
  #granted = 0;

  /** @param granted Called with each new grant */
  constructor(
    readonly actor: Actor,
    readonly file: GenerationFile,
    readonly granted: (owner: Ownership) => void,
  ) {}

  *prepare(): Task<OwnerAnswer> {
    return { type: "owner", owner: yield* this.#load() };
  }

  *claim(claim: Claim): Task<ClaimAnswer> {
    const { answer, isNew } = judgeManualClaim(yield* this.#load(), this.#granted, claim);
    if (answer.type !== "granted" || !isNew) return answer;
    this.#granted = answer.generation;
    const owner = { generation: answer.generation, holder: claim.holder };
    yield* this.#store(owner);
    this.granted(owner);
    return answer;
  }

  *renew(own: Ownership): Task<RenewAnswer> {
    const judged = judgeRenewal(yield* this.#load(), own);
    return judged.type === "ours" ? { type: "renewed", renewedMs: undefined } : judged;
  }

  *release(): Task<void> {}

  *learn(owner: Ownership): Task<void> {
    yield* this.#store(owner);
  }

  *#load(): Task<Ownership | undefined> {
    yield* sleep(this.actor, LOAD_MS);
    return this.file.owner;
  }

  *#store(owner: Ownership): Task<void> {
    yield* sleep(this.actor, this.actor.sim.random.between(...STORE_MS));
    this.file.owner = owner;
  }
}
