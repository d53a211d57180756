/**
 * The life of a secondary: it is seeded, follows the primary's checkpoints, and takes over. Pure:
 * events in, effects out; the order of the effects is the order of doing.
 *
 * Which event leads where say {@linkcode LIVE_TRANSITIONS} and {@linkcode IMAGE_TRANSITIONS}, which
 * ARCHITECTURE.md has drawings of. A replica that is lasting (an image) holds its checkpoint until a
 * better one is whole: it becomes orphaned where a live one starts anew, and is seeded from there.
 *
 * A checkpoint that came with a load asked for is loaded, together with those that were only held since
 * the last load. A takeover happens from the last checkpoint that was received as a whole, loaded or
 * only held: the primary may have let the world see what came before it.
 *
 * Nothing is taken over without the arbiter's grant. Losing the link alone proves nothing about the
 * primary, but its guest says nothing that is not held here, once a checkpoint has come behind the seed:
 * from then on a lost link is enough to ask. From the seed alone it is not: the world may have seen more.
 *
 * @module
 */

import { IncomingCheckpoint } from "../checkpoint/incoming.ts";
import type { Replica, ReplicaEffect } from "../checkpoint/replica.ts";
import { WireError } from "../errors.ts";
import { IN_FLIGHT_MAX } from "../limits.ts";
import type { CommitPayload, HeldEpoch, SeedBeginPayload } from "../link/messages.ts";
import type { LossEvidence } from "./arbiter.ts";
import type { SecondaryEvent } from "./secondary_events.ts";
import {
  IMAGE_TRANSITIONS,
  LIVE_TRANSITIONS,
  type SecondaryPhase,
} from "./secondary_transitions.ts";
import { takes } from "./transitions.ts";

export type { SecondaryEvent } from "./secondary_events.ts";
export type { SecondaryPhase } from "./secondary_transitions.ts";

/** What to do for a secondary. */
export type SecondaryEffect =
  | Exclude<ReplicaEffect, { type: "loaded" }>
  /** Tell the primary that this checkpoint is held as a whole: it may take the next one. */
  | { readonly type: "tell-committed"; readonly epoch: number }
  /** Tell the primary that the VM runs from this checkpoint; those merged with it are not told of. */
  | { readonly type: "tell-loaded"; readonly epoch: number }
  /** Tell the primary that it may send a seed; `held`: of what has changed since. */
  | { readonly type: "tell-ready"; readonly held?: HeldEpoch }
  | { readonly type: "tell-failed"; readonly reason: string }
  /** Ask the arbiter whether to take over. */
  | { readonly type: "claim"; readonly evidence: LossEvidence; readonly reason: string }
  /** Let the VM run on its own. */
  | { readonly type: "take-over"; readonly reason: string }
  /** Throw the VM away and start a fresh one. */
  | { readonly type: "restart-qemu" }
  | { readonly type: "report"; readonly phase: SecondaryPhase; readonly reason: string };

/** The secondary's state machine. */
export class SecondaryMachine {
  #phase: SecondaryPhase = "starting";
  #linked = false;
  #replica: Replica;
  #incoming: IncomingCheckpoint | undefined;
  /** Checkpoints that are held as a whole, of which the primary has not been told. */
  #untold: number[] = [];
  #takeoverReason = "";
  /** The seed that is arriving, or is being loaded, is one of what has changed. */
  #resuming = false;
  /** The checkpoint that a seed has come to; from the next one on it is entitled. */
  #seedEpoch: number | undefined;
  #entitled = false;
  /** Of what is held, and of the seed that is arriving; empty where it is not known. */
  #lineage = "";
  #seedLineage = "";
  #takeoverBegun = false;

  /**
   * @param createReplica Makes one that holds nothing; another takes its place when it is spoilt
   * @param seedSuffices Whether the VM could run from a seed alone: its disks have gone on since
   */
  constructor(readonly createReplica: () => Replica, readonly seedSuffices = true) {
    this.#replica = createReplica();
  }

  get phase(): SecondaryPhase {
    return this.#phase;
  }

  /** What is received is passed on as it comes: whoever takes it may have to be waited for. */
  get takesPages(): boolean {
    return this.#replica.takesPages;
  }

  /** The checkpoint that the VM runs from. */
  get epoch(): number {
    return this.#replica.epoch;
  }

  /** It holds all that the world has seen of the guest. */
  get entitled(): boolean {
    return this.#entitled;
  }

  /**
   * @throws {WireError} when the primary engine sends what is not its turn or not whole: drop the link
   * @throws {StreamError} when the secondary QEMU answers what it should not: restart it
   * @throws {StateError} on an event that cannot happen now; nothing was changed
   */
  step(event: SecondaryEvent): SecondaryEffect[] {
    const transitions = this.#replica.lasting ? IMAGE_TRANSITIONS : LIVE_TRANSITIONS;
    return takes(transitions, this.#phase, event.type, "secondary") ? this.#on(event) : [];
  }

  #on(event: SecondaryEvent): SecondaryEffect[] {
    switch (event.type) {
      case "qemu-ready":
        return this.#ready("the standby is up");
      case "link-up":
        return this.#linkUp();
      case "link-lost":
        return this.#linkLost(event.reason);
      case "seed-begin":
        return this.#seedBegin(event.seed);
      case "seed-anew":
        this.#lineage = "";
        return this.#replica.lasting
          ? [{ type: "tell-ready" }]
          : this.#restart("the primary knows nothing of what is held here");
      case "pages":
        this.#incoming!.pages(event.chunk, !this.#replica.takesPages);
        return this.#replicaEffects(this.#replica.pages(event.chunk));
      case "device-state":
        this.#incoming!.deviceState(event.piece, event.delta);
        return [];
      case "commit":
        return this.#commit(event.epoch, event.commit);
      case "primary-lost":
        return this.#primaryLost(event.reason);
      case "load-held":
        return this.#replicaEffects(this.#replica.loadHeld());
      case "take-over":
        return this.#claim("ordered", event.reason);
      case "granted":
        return [this.#become("taking-over", this.#takeoverReason), ...this.#takeOverIfSettled()];
      case "stale":
        this.#entitled = false;
        return [this.#become("orphaned", event.reason)];
      case "undecided":
        return [this.#become("orphaned", event.reason)];
      case "promoted":
        return [this.#become("promoted", this.#takeoverReason)];
      case "goodbye":
        return [this.#become("ended", event.reason)];
      case "qemu-lost":
        return this.#qemuLost(event.reason);
      case "recovered":
        this.#lineage = event.held?.lineage ?? "";
        return this.#replicaEffects(this.#replica.answer(event));
      default:
        return [...this.#replicaEffects(this.#replica.answer(event)), ...this.#takeOverIfSettled()];
    }
  }

  #linkUp(): SecondaryEffect[] {
    this.#linked = true;
    if (this.#phase !== "waiting" && this.#phase !== "orphaned") return [];
    // Its disks are made equal before it is seeded, with no VM on them.
    const isInTheWay = this.#phase === "orphaned" && !this.#replica.lasting && !this.seedSuffices;
    return isInTheWay ? this.#restart("the primary is back") : [this.#tellReady()];
  }

  #tellReady(): SecondaryEffect {
    const { holds, wholeEpoch } = this.#replica;
    if (!holds || this.#lineage === "" || !this.seedSuffices) return { type: "tell-ready" };
    return { type: "tell-ready", held: { lineage: this.#lineage, epoch: wholeEpoch } };
  }

  /** The replica can be seeded; it may hold something already. */
  #ready(reason: string): SecondaryEffect[] {
    const { holds, epoch } = this.#replica;
    const report = holds
      ? this.#become("orphaned", `${reason}, and holds checkpoint ${epoch}`)
      : this.#become("waiting", reason);
    return [report, ...(this.#linked ? [this.#tellReady()] : [])];
  }

  #seedBegin(seed: SeedBeginPayload): SecondaryEffect[] {
    const { lineage, resumes, blocks } = seed;
    const canResume = this.seedSuffices && lineage === this.#lineage;
    if (lineage === "" || (resumes && !canResume)) {
      throw new WireError("Cannot take a seed: what it builds upon is not held here", 0);
    }
    if (!resumes && this.#replica.holds && !this.#replica.lasting) {
      throw new WireError("Cannot take a seed of everything: the VM runs along already", 0);
    }
    this.#incoming = new IncomingCheckpoint(blocks);
    this.#seedEpoch = undefined;
    this.#entitled = false;
    this.#resuming = resumes;
    this.#seedLineage = lineage;
    return [
      this.#become("seeding", `the primary sends ${resumes ? "what has changed" : "its memory"}`),
      ...this.#replicaEffects(resumes ? this.#replica.resume() : this.#replica.seedBegin(seed)),
    ];
  }

  #commit(epoch: number, commit: CommitPayload): SecondaryEffect[] {
    if (this.#untold.length >= IN_FLIGHT_MAX) {
      throw new WireError(
        `Cannot take checkpoint ${epoch}: ${IN_FLIGHT_MAX} have not been answered yet`,
        0,
      );
    }
    const whole = this.#incoming!.commit({ epoch, ...commit });
    this.#untold.push(epoch);
    this.#entitled = this.#seedEpoch !== undefined;
    this.#seedEpoch ??= epoch;
    this.#lineage = this.#seedLineage;
    return this.#replicaEffects(this.#replica.commit(whole, commit.load));
  }

  /** Tell of commits as soon as there is room for another: that is the back-pressure. */
  #tellCommitted(): SecondaryEffect[] {
    const { committedEpoch } = this.#replica;
    const told = this.#untold.filter((epoch) => epoch <= committedEpoch);
    this.#untold = this.#untold.filter((epoch) => epoch > committedEpoch);
    return told.map((epoch) => ({ type: "tell-committed", epoch }));
  }

  #replicaEffects(effects: readonly ReplicaEffect[]): SecondaryEffect[] {
    return [...this.#tellCommitted(), ...effects.flatMap((effect) => this.#onReplica(effect))];
  }

  #onReplica(effect: ReplicaEffect): SecondaryEffect[] {
    if (effect.type !== "loaded") return [effect];
    const told: SecondaryEffect = { type: "tell-loaded", epoch: effect.epoch };
    // Something may be loaded yet that was held before the seed.
    if (this.#phase === "seeding" && effect.epoch >= (this.#seedEpoch ?? Infinity)) {
      const what = this.#replica.lasting
        ? `a QEMU stands by for checkpoint ${effect.epoch}`
        : `the VM runs from checkpoint ${effect.epoch}`;
      return [told, this.#become("protecting", what)];
    }
    return [told];
  }

  #primaryLost(reason: string): SecondaryEffect[] {
    const isWhole = this.seedSuffices ? this.#seedEpoch !== undefined : this.#entitled;
    if ((this.#phase === "seeding" || this.#phase === "protecting") && !isWhole) {
      return this.#beginAnew(`${reason}, before this secondary was whole: it cannot take over`);
    }
    // A seed that is held as a whole is as good as any checkpoint: it is being loaded.
    if (this.#phase !== "orphaned" || !this.#linked) return this.#claim("reported", reason);
    return [
      this.#become(
        "orphaned",
        `${reason}; what is held here is older, and not run without an order`,
      ),
    ];
  }

  #claim(evidence: LossEvidence, reason: string): SecondaryEffect[] {
    this.#takeoverReason = reason;
    this.#incoming?.drop();
    return [
      this.#become("deciding", reason),
      { type: "claim", evidence, reason },
      // Should it come to a takeover, that has not to wait for them.
      ...this.#replicaEffects(this.#replica.drop()),
      ...this.#replicaEffects(this.#replica.loadHeld()),
    ];
  }

  /** A takeover waits for all that is held to be loaded. */
  #takeOverIfSettled(): SecondaryEffect[] {
    if (this.#phase !== "taking-over" || this.#takeoverBegun || !this.#replica.settled) return [];
    this.#takeoverBegun = true;
    return [{ type: "take-over", reason: this.#takeoverReason }];
  }

  #linkLost(reason: string): SecondaryEffect[] {
    this.#linked = false;
    this.#incoming?.drop();
    this.#untold = [];
    if (this.#phase === "seeding") return this.#beginAnew(reason);
    if (this.#phase !== "protecting") return [];
    if (this.#entitled) return this.#claim("silent", reason);
    return [
      this.#become("orphaned", `${reason}; it is not certain that the primary is dead`),
      ...this.#replicaEffects(this.#replica.drop()),
      ...this.#replicaEffects(this.#replica.loadHeld()),
    ];
  }

  #qemuLost(reason: string): SecondaryEffect[] {
    if (this.#phase === "promoted" || this.#phase === "taking-over") {
      return [this.#become("ended", reason)];
    }
    return [
      ...(this.#linked ? [{ type: "tell-failed", reason } as const] : []),
      ...this.#restart(reason),
    ];
  }

  /** The seed will not become whole. */
  #beginAnew(reason: string): SecondaryEffect[] {
    if (!this.#replica.lasting && !this.#resuming) return this.#restart(reason);
    this.#incoming = undefined;
    this.#untold = [];
    const effects = [
      ...this.#replicaEffects(this.#replica.drop()),
      ...this.#replicaEffects(this.#replica.loadHeld()),
    ];
    return [...effects, ...this.#ready(reason)];
  }

  #restart(reason: string): SecondaryEffect[] {
    this.#replica = this.createReplica();
    this.#lineage = "";
    this.#incoming = undefined;
    this.#untold = [];
    this.#entitled = false;
    return [this.#become("starting", reason), { type: "restart-qemu" }];
  }

  #become(phase: SecondaryPhase, reason: string): SecondaryEffect {
    this.#phase = phase;
    return { type: "report", phase, reason };
  }
}
