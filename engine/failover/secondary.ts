/**
 * The life of a secondary: it is seeded, follows the primary's checkpoints, and takes over. Pure:
 * events in, effects out; the order of the effects is the order of doing.
 *
 * ```text
 *              qemu-ready           seed-begin           loaded (seed)
 *  starting -------------> waiting ------------> seeding -------------> protecting
 *      ^                                            |                       | primary-lost
 *      +-------------- restart-qemu ----------------+                       v
 *      |                                            |                  taking-over
 *      |                            link-lost while |                       | promoted
 *      |                                 protecting v                       v
 *      +----- the primary connects again ------ orphaned                promoted
 * ```
 *
 * A checkpoint that came with a load asked for is loaded, together with those that were only held since
 * the last load. A takeover happens from the last checkpoint that was received as a whole, loaded or
 * only held: the primary may have let the world see what came before it. Losing the link alone
 * proves nothing about the primary: a secondary without a link does not take over by itself.
 *
 * @module
 */

import { IncomingCheckpoint } from "../checkpoint/incoming.ts";
import {
  LiveReplica,
  type ReplicaEffect,
  type WholeCheckpoint,
} from "../checkpoint/live_replica.ts";
import { StateError, WireError } from "../errors.ts";
import { IN_FLIGHT_MAX, REPLICA_HELD_BYTES_MAX } from "../limits.ts";
import type { CommitPayload, SeedBeginPayload } from "../link/messages.ts";

/** How far a secondary is. */
export type SecondaryPhase =
  /** Its QEMU is being started. */
  | "starting"
  /** Its QEMU waits to be seeded. */
  | "waiting"
  | "seeding"
  /** It can take over. */
  | "protecting"
  /** It holds a guest, and knows nothing about the primary any more. */
  | "orphaned"
  | "taking-over"
  | "promoted"
  | "ended";

/** What happens to a secondary. */
export type SecondaryEvent =
  | { readonly type: "qemu-ready" }
  /** A primary has connected. */
  | { readonly type: "link-up" }
  | { readonly type: "link-lost"; readonly reason: string }
  | { readonly type: "seed-begin"; readonly seed: SeedBeginPayload }
  | { readonly type: "pages"; readonly chunk: Uint8Array }
  | { readonly type: "device-state"; readonly piece: Uint8Array; readonly delta?: boolean }
  | { readonly type: "commit"; readonly epoch: number; readonly commit: CommitPayload }
  /** QEMU has been prepared for a load. */
  | { readonly type: "prepared" }
  /** Bytes from the secondary QEMU. */
  | { readonly type: "qemu-answer"; readonly bytes: Uint8Array }
  /** The primary QEMU is gone for certain. */
  | { readonly type: "primary-lost"; readonly reason: string }
  /** The VM runs on its own. */
  | { readonly type: "promoted" }
  /** The guest has ended in good order. */
  | { readonly type: "goodbye"; readonly reason: string }
  | { readonly type: "qemu-lost"; readonly reason: string };

/** What to do for a secondary. */
export type SecondaryEffect =
  | Exclude<ReplicaEffect, { type: "loaded" }>
  /** Tell the primary that this checkpoint is held as a whole: it may take the next one. */
  | { readonly type: "tell-committed"; readonly epoch: number }
  /** Tell the primary that the VM runs from this checkpoint; those merged with it are not told of. */
  | { readonly type: "tell-loaded"; readonly epoch: number }
  | { readonly type: "tell-ready" }
  | { readonly type: "tell-failed"; readonly reason: string }
  /** `x-colo-lost-heartbeat`, and what a takeover needs besides. */
  | { readonly type: "take-over"; readonly reason: string }
  /** Throw the VM away and start a fresh one. */
  | { readonly type: "restart-qemu" }
  | { readonly type: "report"; readonly phase: SecondaryPhase; readonly reason: string };

/** The secondary's state machine. */
export class SecondaryMachine {
  #phase: SecondaryPhase = "starting";
  #linked = false;
  #replica: LiveReplica;
  #incoming: IncomingCheckpoint | undefined;
  /** Checkpoints that are held as a whole, of which the primary has not been told. */
  #untold: number[] = [];
  #takeoverReason = "";

  /** @param heldBytesMax Bytes of checkpoints that may wait for QEMU before the primary has to wait */
  constructor(readonly heldBytesMax: number = REPLICA_HELD_BYTES_MAX) {
    this.#replica = new LiveReplica(heldBytesMax);
  }

  get phase(): SecondaryPhase {
    return this.#phase;
  }

  /** The checkpoint that the VM runs from. */
  get epoch(): number {
    return this.#replica.epoch;
  }

  /**
   * @throws {WireError} when the primary engine sends what is not its turn or not whole: drop the link
   * @throws {StreamError} when the secondary QEMU answers what it should not: restart it
   * @throws {StateError} on an event that cannot happen now; nothing was changed
   */
  step(event: SecondaryEvent): SecondaryEffect[] {
    switch (event.type) {
      case "qemu-ready":
        this.#require(event, "starting");
        return [
          this.#become("waiting", "the standby QEMU is up"),
          ...(this.#linked ? [{ type: "tell-ready" } as const] : []),
        ];
      case "link-up":
        this.#linked = true;
        if (this.#phase === "waiting") return [{ type: "tell-ready" }];
        if (this.#phase === "orphaned") return this.#restart("the primary is back");
        return [];
      case "link-lost":
        return this.#linkLost(event.reason);
      case "seed-begin":
      case "pages":
      case "device-state":
      case "commit":
        return this.#data(event);
      case "prepared":
        // The replica it was for may have been thrown away meanwhile.
        if (this.#replica.state !== "preparing") return [];
        return this.#replicaEffects(this.#replica.prepared());
      case "qemu-answer":
        return this.#replicaEffects(this.#replica.received(event.bytes));
      case "primary-lost":
        return this.#primaryLost(event.reason);
      case "promoted":
        this.#require(event, "taking-over");
        return [this.#become("promoted", this.#takeoverReason)];
      case "goodbye":
        if (this.#phase === "taking-over" || this.#phase === "promoted") return [];
        return [this.#become("ended", event.reason)];
      case "qemu-lost":
        return this.#qemuLost(event.reason);
    }
  }

  #data(event: SecondaryEvent): SecondaryEffect[] {
    if (this.#phase === "taking-over" || this.#phase === "promoted" || this.#phase === "ended") {
      // What was under way when the primary was lost comes too late.
      return [];
    }
    if (event.type === "seed-begin") {
      this.#requirePeer(event, "waiting");
      const { machine, blocks, ramSectionId } = event.seed;
      this.#incoming = new IncomingCheckpoint(blocks);
      return [
        this.#become("seeding", "the primary sends its memory"),
        ...this.#replicaEffects(this.#replica.seedBegin(machine, blocks, ramSectionId)),
      ];
    }
    this.#requirePeer(event, "seeding", "protecting");
    const incoming = this.#incoming!;
    const seeding = this.#replica.state === "seeding";
    switch (event.type) {
      case "pages":
        incoming.pages(event.chunk, !seeding);
        return seeding ? this.#replicaEffects(this.#replica.seedPages(event.chunk)) : [];
      case "device-state":
        incoming.deviceState(event.piece, event.delta);
        return [];
      case "commit": {
        if (this.#untold.length >= IN_FLIGHT_MAX) {
          throw new WireError(
            `Cannot take checkpoint ${event.epoch}: ${IN_FLIGHT_MAX} have not been answered yet`,
            0,
          );
        }
        this.#untold.push(event.epoch);
        const whole = incoming.commit({ epoch: event.epoch, ...event.commit });
        return this.#replicaEffects(this.#committed(whole, event.commit.load));
      }
    }
    return [];
  }

  #committed(whole: WholeCheckpoint, load: boolean): ReplicaEffect[] {
    const replica = this.#replica;
    if (replica.state === "seeding") return replica.seedCommit(whole.epoch, whole.deviceState);
    return load ? replica.load(whole) : replica.hold(whole);
  }

  /** Tell of commits as soon as there is room for another: that is the back-pressure. */
  #tellCommitted(): SecondaryEffect[] {
    if (!this.#replica.hasRoom) return [];
    return this.#untold.splice(0).map((epoch) => ({ type: "tell-committed", epoch }));
  }

  #replicaEffects(effects: readonly ReplicaEffect[]): SecondaryEffect[] {
    return [...this.#tellCommitted(), ...effects.flatMap((effect) => this.#onReplica(effect))];
  }

  #onReplica(effect: ReplicaEffect): SecondaryEffect[] {
    if (effect.type !== "loaded") return [effect];
    const told: SecondaryEffect = { type: "tell-loaded", epoch: effect.epoch };
    if (this.#phase === "seeding") {
      return [told, this.#become("protecting", `the VM runs from checkpoint ${effect.epoch}`)];
    }
    if (this.#phase === "taking-over" && this.#replica.settled) return [told, this.#takeOver()];
    return [told];
  }

  #primaryLost(reason: string): SecondaryEffect[] {
    // A seed that is held as a whole is as good as any checkpoint: it is being loaded.
    const held = this.#phase === "seeding" && this.#replica.state !== "seeding";
    if (this.#phase !== "protecting" && this.#phase !== "orphaned" && !held) {
      if (this.#phase === "seeding") {
        return this.#restart(`${reason}, before this secondary was whole: it cannot take over`);
      }
      return [];
    }
    this.#takeoverReason = reason;
    this.#incoming?.drop();
    const report = this.#become("taking-over", reason);
    if (this.#replica.settled) return [report, this.#takeOver()];
    return [report, ...this.#replicaEffects(this.#replica.loadHeld())];
  }

  #takeOver(): SecondaryEffect {
    return { type: "take-over", reason: this.#takeoverReason };
  }

  #linkLost(reason: string): SecondaryEffect[] {
    this.#linked = false;
    this.#incoming?.drop();
    this.#untold = [];
    if (this.#phase === "seeding") return this.#restart(reason);
    if (this.#phase !== "protecting") return [];
    return [
      this.#become("orphaned", `${reason}; it is not certain that the primary is dead`),
      // Should it come to a takeover, that has not to wait for them.
      ...this.#replicaEffects(this.#replica.loadHeld()),
    ];
  }

  #qemuLost(reason: string): SecondaryEffect[] {
    if (this.#phase === "ended") return [];
    if (this.#phase === "promoted" || this.#phase === "taking-over") {
      return [this.#become("ended", reason)];
    }
    return [
      ...(this.#linked ? [{ type: "tell-failed", reason } as const] : []),
      ...this.#restart(reason),
    ];
  }

  #restart(reason: string): SecondaryEffect[] {
    this.#replica = new LiveReplica(this.heldBytesMax);
    this.#incoming = undefined;
    this.#untold = [];
    return [this.#become("starting", reason), { type: "restart-qemu" }];
  }

  #become(phase: SecondaryPhase, reason: string): SecondaryEffect {
    this.#phase = phase;
    return { type: "report", phase, reason };
  }

  #require(event: SecondaryEvent, ...phases: readonly SecondaryPhase[]): void {
    if (phases.includes(this.#phase)) return;
    throw new StateError(
      `Cannot take ${event.type}: the secondary is ${this.#phase}`,
      this.#phase,
      phases.join(" or "),
    );
  }

  #requirePeer(event: SecondaryEvent, ...phases: readonly SecondaryPhase[]): void {
    if (phases.includes(this.#phase)) return;
    throw new WireError(`Cannot take ${event.type}: the secondary is ${this.#phase}`, 0);
  }
}
