/**
 * An arbiter for two hosts and nobody else: it grants only what is certain, and asks the operator for
 * the rest.
 *
 * Two hosts that cannot hear each other look the same to each other as a dead one, so silence grants
 * nothing. What does: the other engine's word that its QEMU has ended (by which it gives its generation
 * up), the fence command's success, the operator's order.
 *
 * The generation is kept in a file of this host, and goes to the other host with the first word that is
 * said when both can be heard ({@linkcode ManualArbiter.learn}). So one that comes back finds out that
 * it is stale when it hears the other, and must not run before: a primary that starts without a peer
 * has to claim, and is asked about.
 *
 * @module
 */

import { messageOf } from "../errors.ts";
import {
  type Arbiter,
  type Claim,
  type ClaimAnswer,
  judgeClaim,
  judgeRenewal,
  type OwnerAnswer,
  type Ownership,
  type RenewAnswer,
  type Unreachable,
} from "./arbiter.ts";

/** Where the generation is kept. */
export interface GenerationFile {
  /** @returns What was stored last, or nothing where nothing was. Throws what cannot be read. */
  load(): Promise<Ownership | undefined>;
  /** Store it, so that it is there after a loss of power. Throws what cannot be written. */
  store(owner: Ownership): Promise<void>;
}

/** An arbiter without a third party. Pure but for the file, which is injected. */
export class ManualArbiter implements Arbiter {
  readonly #file: GenerationFile;
  /** What the peer said, or was granted since: it counts though it could not be stored. */
  #learned: Ownership | undefined;
  /** What this one was certain of, stored or not. */
  #granted = 0;
  /** Reading and writing the file is one step. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(file: GenerationFile) {
    this.#file = file;
  }

  prepare(): Promise<OwnerAnswer> {
    return this.#inTurn((owner) => ({ type: "owner", owner }));
  }

  claim(claim: Claim): Promise<ClaimAnswer> {
    return this.#inTurn(async (owner) => {
      const { answer, isNew } = judgeManualClaim(owner, this.#granted, claim);
      if (answer.type !== "granted" || !isNew) return answer;
      this.#granted = answer.generation;
      await this.#file.store({ generation: answer.generation, holder: claim.holder });
      this.#learned = undefined;
      return answer;
    });
  }

  renew(own: Ownership): Promise<RenewAnswer> {
    return this.#inTurn((owner) => {
      const judged = judgeRenewal(owner, own);
      return judged.type === "ours" ? { type: "renewed", renewedMs: undefined } : judged;
    });
  }

  release(): Promise<void> {
    return Promise.resolve();
  }

  /**
   * What the peer says of the generation. It is the one that runs the VM, so what this host had of it
   * before, by whatever number, does not count any more.
   */
  async learn(owner: Ownership): Promise<void> {
    this.#learned = owner;
    await this.#inTurn(async () => {
      await this.#file.store(owner);
      this.#learned = undefined;
    });
  }

  async #inTurn<T>(
    act: (owner: Ownership | undefined) => T | Promise<T>,
  ): Promise<T | Unreachable> {
    const turn = this.#last.then(async () => {
      try {
        return await act(this.#learned ?? await this.#file.load());
      } catch (error) {
        const reason = `Cannot use the file with the generation: ${messageOf(error)}`;
        return { type: "unreachable", reason } as const;
      }
    });
    this.#last = turn;
    return await turn;
  }
}

/**
 * What becomes of a claim without a third party. Pure.
 *
 * @param owner What this host knows, by its file or its peer
 * @param granted The generation that this host was certain of last
 * @returns The answer, and whether it is a grant that is yet to be stored
 */
export function judgeManualClaim(
  owner: Ownership | undefined,
  granted: number,
  claim: Claim,
): { readonly answer: ClaimAnswer; readonly isNew: boolean } {
  const judged = judgeClaim(owner, claim);
  if (judged.type === "stale") return { answer: judged, isNew: false };
  const generation = claim.generation + 1;
  // Whoever has the last grant was certain of it then.
  const isNew = judged.type !== "ours" || granted !== generation;
  // A file that is behind knows less than the claimer: it was not there, or is another host's.
  if (isNew && !isCertain(claim)) {
    return { answer: { type: "ask", reason: reasonToAsk(claim) }, isNew: false };
  }
  return { answer: { type: "granted", generation, renewedMs: undefined }, isNew };
}

/** Whether nobody else can be running the VM. */
function isCertain({ generation, standing, evidence }: Claim): boolean {
  // Nobody has ever run it: there is nobody to be lost.
  if (generation === 0) return true;
  if (evidence === "silent") return false;
  // A report is about the pair that both had a share in; whoever was outside is none of it.
  return standing === "pair" || evidence !== "reported";
}

function reasonToAsk({ standing }: Claim): string {
  const why = standing === "outside"
    ? "this host has no share in what ran last"
    : "the other host is silent, which looks the same whether it is down or only cannot be heard";
  return `${why}, and there is no arbiter to ask; see that the VM does not run there, then use ` +
    "`colo take-over`, or configure a fence command or etcd";
}
