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
import type { RamBlock } from "../stream/format.ts";
import type { Replica, ReplicaAnswer, ReplicaEffect, WholeCheckpoint } from "./replica.ts";

/** The engine's side of one image. */
export class ImageReplica implements Replica {
  readonly lasting = true;
  readonly takesPages = true;
  #seeding = false;
  /** The seed that is whole, until it is applied and a QEMU stands by. */
  #seedEpoch: number | undefined;
  #seedApplied = false;
  #standbyReady = false;
  #heldEpoch: number | undefined;
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

  get committedEpoch(): number {
    return this.#committedEpoch;
  }

  seedBegin(machine: string, blocks: readonly RamBlock[]): ReplicaEffect[] {
    this.#seeding = true;
    this.#seedEpoch = undefined;
    this.#seedApplied = false;
    this.#standbyReady = false;
    this.#committedEpoch = -1;
    this.#staleUnstored = this.#unstored;
    this.#staleUnapplied = this.#unapplied;
    return command({ type: "seed-begin", machine, blocks });
  }

  pages(chunk: Uint8Array): ReplicaEffect[] {
    return command({ type: this.#seeding ? "seed-pages" : "pages", chunk });
  }

  commit({ epoch, deviceState }: WholeCheckpoint): ReplicaEffect[] {
    if (this.#refused) return [];
    this.#unstored++;
    this.#unapplied++;
    if (!this.#seeding) return command({ type: "commit", epoch, deviceState });
    this.#seeding = false;
    this.#seedEpoch = epoch;
    return command({ type: "seed-commit", epoch, deviceState });
  }

  drop(): ReplicaEffect[] {
    this.#refused = false;
    if (!this.#seeding) return command({ type: "drop" });
    this.#seeding = false;
    this.#staleUnstored = this.#staleUnapplied = 0;
    return command({ type: "seed-drop" });
  }

  /** Everything that is whole goes into the image by itself. */
  loadHeld(): ReplicaEffect[] {
    return [];
  }

  answer(answer: ReplicaAnswer): ReplicaEffect[] {
    switch (answer.type) {
      case "recovered":
        this.#heldEpoch = answer.epoch;
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
