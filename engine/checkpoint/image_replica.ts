/**
 * The secondary VM that does not run: its memory is kept up to date in an image, and a QEMU stands by.
 *
 * ```text
 *            seedBegin         commit (seed)         applied, standby-ready
 *  empty ------------> seeding ------------> seeded ------------------------> held
 *                        ^  | drop                                           |  ^
 *                        |  v                                 pages*, commit v  | applied
 *                        held, if something was                           applying
 * ```
 *
 * What is held may be brought up to date instead, by one checkpoint: that counts as a seed as well, and
 * waits for a QEMU to stand by.
 *
 * A checkpoint counts as held when it is stored (a crash from there on only delays it), and as loaded
 * when it is in the image. What is done to the image is done in the order of the effects, so the next
 * checkpoint may arrive while this one goes in.
 *
 * Pure: what arrives and answers in, commands for the keeper of the image out.
 *
 * @module
 */

import { StateError, WireError } from "../errors.ts";
import type { ImageCommand } from "../image/keeper.ts";
import type { Replica, ReplicaAnswer, ReplicaEffect, Seed, WholeCheckpoint } from "./replica.ts";

/** The engine's side of one image. */
export class ImageReplica implements Replica {
  readonly lasting = true;
  readonly takesPages = true;
  #seeding = false;
  /** The next checkpoint brings what is held up to date. */
  #resuming = false;
  /** The seed that is whole, until it is applied and a QEMU stands by. */
  #seedEpoch: number | undefined;
  #seedApplied = false;
  #standbyReady = false;
  #heldEpoch: number | undefined;
  #wholeEpoch = 0;
  #committedEpoch = -1;
  /** Checkpoints that are whole, as far as they are not stored, or not in the image yet. */
  #unstored = 0;
  #unapplied = 0;
  /** How many of those belong to what was held before the seed. */
  #staleUnstored = 0;
  #staleUnapplied = 0;
  /** Nothing is taken until the primary begins anew. */
  #refused = false;

  get holds(): boolean {
    return this.#heldEpoch !== undefined || this.#unapplied > 0;
  }

  get epoch(): number {
    return this.#heldEpoch ?? 0;
  }

  get seeding(): boolean {
    return this.#seeding;
  }

  get settled(): boolean {
    return this.#heldEpoch !== undefined && this.#unapplied === 0;
  }

  get wholeEpoch(): number {
    return this.#wholeEpoch;
  }

  get committedEpoch(): number {
    return this.#committedEpoch;
  }

  seedBegin({ lineage, machine, blocks }: Seed): ReplicaEffect[] {
    this.#begin();
    this.#seeding = true;
    this.#standbyReady = false;
    return command({ type: "seed-begin", lineage, machine, blocks });
  }

  resume(): ReplicaEffect[] {
    this.#begin();
    this.#resuming = true;
    return [];
  }

  #begin(): void {
    this.#seedEpoch = undefined;
    this.#seedApplied = false;
    this.#committedEpoch = -1;
    this.#staleUnstored = this.#unstored;
    this.#staleUnapplied = this.#unapplied;
  }

  pages(chunk: Uint8Array): ReplicaEffect[] {
    return command({ type: this.#seeding ? "seed-pages" : "pages", chunk });
  }

  commit({ epoch, deviceState }: WholeCheckpoint): ReplicaEffect[] {
    if (this.#refused) return [];
    this.#unstored++;
    this.#unapplied++;
    this.#wholeEpoch = epoch;
    if (this.#seeding || this.#resuming) this.#seedEpoch = epoch;
    const type = this.#seeding ? "seed-commit" : "commit";
    this.#seeding = this.#resuming = false;
    return command({ type, epoch, deviceState });
  }

  drop(): ReplicaEffect[] {
    this.#refused = false;
    const type = this.#seeding ? "seed-drop" : "drop";
    if (this.#seeding || this.#resuming) this.#staleUnstored = this.#staleUnapplied = 0;
    this.#seeding = this.#resuming = false;
    return command({ type });
  }

  /** Everything that is whole goes into the image by itself. */
  loadHeld(): ReplicaEffect[] {
    return [];
  }

  answer(answer: ReplicaAnswer): ReplicaEffect[] {
    switch (answer.type) {
      case "recovered":
        this.#heldEpoch = answer.held?.epoch;
        this.#wholeEpoch = answer.held?.epoch ?? 0;
        return [];
      case "stored":
        this.#unstored--;
        if (this.#staleUnstored > 0) this.#staleUnstored--;
        else this.#committedEpoch = answer.epoch;
        return [];
      case "applied":
        return this.#applied(answer.epoch);
      case "standby-ready":
        this.#standbyReady = true;
        return this.#seeded();
      case "refused":
        // All that was whole before it has been answered, and nothing behind it will be.
        this.#refused = true;
        this.#unstored = this.#unapplied = 0;
        this.#wholeEpoch = this.#heldEpoch ?? 0;
        throw new WireError(answer.reason, answer.offset);
      default:
        throw new StateError(`Cannot take ${answer.type}`, "image", "live");
    }
  }

  #applied(epoch: number): ReplicaEffect[] {
    this.#unapplied--;
    this.#heldEpoch = epoch;
    if (this.#staleUnapplied > 0) {
      this.#staleUnapplied--;
      return [];
    }
    if (this.#seedEpoch === undefined) return [{ type: "loaded", epoch }];
    // Others may have come in behind the seed before a QEMU stood by.
    this.#seedEpoch = epoch;
    this.#seedApplied = true;
    return this.#seeded();
  }

  /** A seed protects when it is in the image and a QEMU stands by. */
  #seeded(): ReplicaEffect[] {
    const epoch = this.#seedEpoch;
    if (epoch === undefined || !this.#seedApplied || !this.#standbyReady) return [];
    this.#seedEpoch = undefined;
    return [{ type: "loaded", epoch }];
  }
}

function command(command: ImageCommand): ReplicaEffect[] {
  return [{ type: "image", command }];
}
