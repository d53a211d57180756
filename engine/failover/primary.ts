/**
 * The life of a primary: when it takes checkpoints, what becomes of them, and whether its guest is
 * protected. Pure: events and the time in, effects out; the order of the effects is the order of doing.
 *
 * Which event leads where says {@linkcode PRIMARY_TRANSITIONS}, which ARCHITECTURE.md has a drawing of.
 *
 * A secondary that was sent a checkpoint behind its seed may take over, and the primary cannot know
 * whether it does when it is lost. So the primary goes on holding back what the guest says, and asks the
 * arbiter for the right to run alone; if the secondary was faster, this guest's life is over.
 *
 * What the guest says while no secondary can take over leaves at once. From the first checkpoint on that
 * a seeded secondary is sent it is held back, and the guest counts as protected when that checkpoint is
 * loaded: from the seed alone a secondary would know less than the world has seen.
 *
 * The guest is let run again as soon as a checkpoint is whole in this engine (early acknowledgment);
 * the next checkpoint is not begun while as many as are allowed are on their way to the secondary. That
 * is the back-pressure, and the guest runs meanwhile.
 *
 * Once a secondary has been seeded, micro-checkpoints may be taken between the checkpoints that it
 * loads: it only holds them, and the next one that it loads is the smaller for them.
 *
 * @module
 */

import { CheckpointPolicy, type CheckpointPolicyOptions } from "../checkpoint/policy.ts";
import type { PrimaryEvent } from "./primary_events.ts";
import { PRIMARY_TRANSITIONS, type PrimaryPhase } from "./primary_transitions.ts";
import { takes } from "./transitions.ts";

export type { PrimaryEvent } from "./primary_events.ts";
export type { PrimaryPhase } from "./primary_transitions.ts";

/** What to do for a primary. */
export type PrimaryEffect =
  /** Tell QEMU that its secondary is ready. */
  | { readonly type: "ready" }
  /** Let QEMU begin the checkpoint that it asked for. */
  | { readonly type: "reply" }
  /** Let the guest run again. */
  | { readonly type: "acknowledge" }
  /** Take the staged checkpoint into the mirror. */
  | { readonly type: "absorb" }
  /** Send the staged checkpoint to the secondary, which is to load it or only to hold it. */
  | { readonly type: "send"; readonly epoch: number; readonly load: boolean }
  /** Send the mirror to the secondary. */
  | { readonly type: "seed" }
  /** Commit the seed: the secondary holds checkpoint `epoch`. */
  | { readonly type: "commit-seed"; readonly epoch: number }
  /** The secondary holds all that it was sent: checkpoint `epoch`, which is in the mirror. */
  | { readonly type: "clear-missing"; readonly epoch: number }
  /** The guest stands still: what it says after checkpoint `epoch` is held back. */
  | { readonly type: "hold-outputs"; readonly epoch: number }
  /** What the guest said before checkpoint `epoch`, and what was held back, may leave. */
  | { readonly type: "release-outputs"; readonly epoch: number }
  /** Nobody can take over: whatever the guest says may leave. */
  | { readonly type: "run-alone" }
  /** Let nothing out, and ask the arbiter whether the primary may run alone: `granted` or `stale`. */
  | { readonly type: "claim"; readonly reason: string }
  /** End the guest at once, with nothing of what it has said let out. */
  | { readonly type: "kill-guest" }
  /** `x-colo-lost-heartbeat`: the guest goes on without us. */
  | { readonly type: "release-guest" }
  /** Start QEMU again from the mirror. */
  | { readonly type: "revive"; readonly reason: string }
  /** Behind the seed: not before the secondary has been sent the rest of it, or it holds no guest. */
  | { readonly type: "tell-primary-lost"; readonly reason: string; readonly behindSeed: boolean }
  | { readonly type: "tell-goodbye"; readonly reason: string }
  | { readonly type: "report"; readonly phase: PrimaryPhase; readonly reason: string }
  | { readonly type: "wake"; readonly atMs: number };

/** Phases in which checkpoints are begun. */
const CHECKPOINTED: readonly PrimaryPhase[] = ["alone", "seeding", "joining", "protected"];

/** Passes over the mirror that run beside checkpoints; after them the checkpoints wait for the seed. */
export const SEED_PASSES_MAX = 3;

/** So few pages go over in one short pass, for which the checkpoints may wait. */
export const SEED_LAST_PASS_PAGES = 4096;

/**
 * Both hosts have more to do just behind a seed than usual, and a guest that stands still for a checkpoint
 * meanwhile does so for longer.
 */
const SEED_REST_MS = 50;

/** When to take checkpoints, and how many may be on their way. */
export interface PrimaryOptions extends CheckpointPolicyOptions {
  /** Checkpoints that are whole here and not yet committed by the secondary, at most; 1 if absent. */
  readonly inFlightMax?: number | undefined;
}

/** The primary's state machine. */
export class PrimaryMachine {
  #phase: PrimaryPhase = "starting";
  #requested = false;
  /** Whether the checkpoint that was begun last is to be loaded. */
  #load = true;
  /** A checkpoint has been begun, and has not gone into the mirror yet. */
  #underWay = false;
  /** Checkpoints that the secondary has not committed yet. */
  #inFlight: number[] = [];
  #seedPasses = 0;
  #seedHolds = false;
  #seedEpoch = 0;
  /** The secondary has been sent a checkpoint behind its seed: it may take over. */
  #entrusted = false;
  #lossReason = "";
  /** The guest's memory is seen. */
  #attached = false;
  #held = false;
  readonly #policy: CheckpointPolicy;
  readonly #inFlightMax: number;

  constructor(options: PrimaryOptions, nowMs: number) {
    this.#inFlightMax = options.inFlightMax ?? 1;
    this.#policy = new CheckpointPolicy(options, nowMs);
  }

  get phase(): PrimaryPhase {
    return this.#phase;
  }

  /** The secondary has yet to commit something. */
  get awaitsCommit(): boolean {
    return this.#inFlight.length > 0;
  }

  /** No checkpoint is on its way into the mirror; none will be while it is held. */
  get settled(): boolean {
    return !this.#underWay;
  }

  /** @throws {StateError} when the event cannot happen in this phase; nothing was changed */
  step(event: PrimaryEvent, nowMs: number): PrimaryEffect[] {
    if (!takes(PRIMARY_TRANSITIONS, this.#phase, event.type, "primary")) return [];
    return [...this.#on(event, nowMs), ...this.#pace(nowMs)];
  }

  #on(event: PrimaryEvent, nowMs: number): PrimaryEffect[] {
    switch (event.type) {
      case "initial":
        this.#attached = true;
        if (this.#phase === "deciding") return [{ type: "ready" }];
        return [{ type: "ready" }, this.#become("alone", "no secondary is connected")];
      case "request":
        this.#requested = true;
        return [];
      case "whole":
        return this.#whole(event.epoch);
      case "replica-ready":
        this.#seedPasses = 0;
        this.#seedHolds = false;
        return [this.#become("seeding", "a secondary is connected"), { type: "seed" }];
      case "seed-pass":
        this.#seedPasses++;
        this.#seedHolds = this.#seedPasses >= SEED_PASSES_MAX ||
          event.missingPages <= SEED_LAST_PASS_PAGES;
        return [];
      case "seed-sent":
        this.#inFlight = [event.epoch];
        this.#seedEpoch = event.epoch;
        return [
          { type: "commit-seed", epoch: event.epoch },
          this.#become("joining", "the secondary has been sent everything"),
        ];
      case "encoded":
        this.#underWay = false;
        return [];
      case "committed":
        if (!this.#inFlight.includes(event.epoch)) return [];
        this.#inFlight.splice(0, this.#inFlight.indexOf(event.epoch) + 1);
        return [
          { type: "release-outputs", epoch: event.epoch },
          // Pages of a checkpoint that is under way may be marked as missing already.
          ...(this.#inFlight.length > 0 || this.#underWay
            ? []
            : [{ type: "clear-missing", epoch: event.epoch } as const]),
        ];
      case "loaded":
        if (event.epoch === this.#seedEpoch) {
          this.#policy.demand(nowMs + SEED_REST_MS);
          return [];
        }
        // A secondary cannot have loaded what it was not sent.
        if (!this.#entrusted) return [];
        return [this.#become("protected", `the secondary holds checkpoint ${event.epoch}`)];
      case "replica-lost":
        this.#inFlight = [];
        if (this.#entrusted) return this.#decide(event.reason);
        return [{ type: "run-alone" }, this.#become("alone", event.reason)];
      case "granted":
        this.#entrusted = false;
        return [
          { type: "run-alone" },
          this.#become(this.#attached ? "alone" : "unattended", this.#lossReason),
        ];
      case "stale":
        return [{ type: "kill-guest" }, this.#become("ended", event.reason)];
      case "demand":
        this.#policy.demand();
        return [];
      case "hold":
        this.#held = true;
        return [];
      case "release":
        this.#held = false;
        return [];
      case "paused":
        this.#policy.paused(event.pauseMs);
        return [];
      case "tick":
        return [];
      case "capture-lost":
        this.#requested = false;
        this.#underWay = false;
        this.#attached = false;
        this.#inFlight = [];
        if (this.#phase === "deciding") return [{ type: "release-guest" }];
        if (this.#entrusted) return [{ type: "release-guest" }, ...this.#decide(event.reason)];
        return [
          { type: "release-guest" },
          { type: "run-alone" },
          this.#become("unattended", event.reason),
        ];
      case "guest-ended":
        return [
          { type: "tell-goodbye", reason: event.reason },
          this.#become("ended", event.reason),
        ];
      case "qemu-lost":
        if (event.revivable && (this.#phase === "alone" || this.#phase === "seeding")) {
          this.#requested = false;
          this.#underWay = false;
          return [
            this.#become("reviving", `${event.reason}, and is started again`),
            { type: "revive", reason: event.reason },
          ];
        }
        return [
          {
            type: "tell-primary-lost",
            reason: event.reason,
            behindSeed: this.#phase === "joining",
          },
          this.#become("ended", event.reason),
        ];
      case "revived":
        this.#attached = false;
        return [this.#become("starting", "QEMU runs again from the last checkpoint")];
    }
  }

  #decide(reason: string): PrimaryEffect[] {
    this.#lossReason = reason;
    return [this.#become("deciding", reason), { type: "claim", reason }];
  }

  /** A secondary has been sent everything: checkpoints go to it. */
  get #replicated(): boolean {
    return this.#phase === "joining" || this.#phase === "protected";
  }

  #whole(epoch: number): PrimaryEffect[] {
    if (!this.#replicated) {
      this.#underWay = false;
      return [{ type: "acknowledge" }, { type: "absorb" }];
    }
    this.#inFlight.push(epoch);
    this.#entrusted = true;
    return [
      { type: "hold-outputs", epoch },
      { type: "acknowledge" },
      { type: "send", epoch, load: this.#load },
    ];
  }

  /** Begin a checkpoint when it is due and nothing stands in its way. */
  #pace(nowMs: number): PrimaryEffect[] {
    const held = this.#held || this.#underWay || this.#inFlight.length >= this.#inFlightMax ||
      !CHECKPOINTED.includes(this.#phase) || (this.#phase === "seeding" && this.#seedHolds);
    if (!this.#requested || held) return [];
    const dueAtMs = this.#policy.dueAtMs(this.#replicated);
    if (nowMs < dueAtMs) return [{ type: "wake", atMs: dueAtMs }];
    this.#requested = false;
    this.#underWay = true;
    this.#load = this.#policy.begun(nowMs, this.#replicated);
    return [{ type: "reply" }];
  }

  #become(phase: PrimaryPhase, reason: string): PrimaryEffect {
    this.#phase = phase;
    return { type: "report", phase, reason };
  }
}
