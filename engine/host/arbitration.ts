/**
 * One side's dealings with the arbiter. What to do is decided by {@linkcode ArbitrationMachine}.
 *
 * @module
 */

import type { FailoverSection, VmConfig } from "../config/mod.ts";
import { ArbiterError, NotOursError } from "../errors.ts";
import type { Arbiter, Claim, LossEvidence, Ownership } from "../failover/arbiter.ts";
import {
  type ArbitrationEffect,
  type ArbitrationEvent,
  ArbitrationMachine,
  ask,
  GONE,
  type PeerState,
  type Verdict,
} from "../failover/arbitration.ts";
import { EtcdArbiter } from "../failover/etcd_arbiter.ts";
import { EtcdClient } from "../failover/etcd.ts";
import { Fence } from "../failover/fence.ts";
import { runFenceCommand } from "../failover/fence_command.ts";
import { ManualArbiter } from "../failover/manual_arbiter.ts";
import { DiskGenerationFile, generationPath } from "./generation_file.ts";

/** What a side does for its lease. */
export interface LeaseEvents {
  /** The lease is about to end for others: the VM must stand still if nobody vouches for it. */
  pause(): void;
  resume(): void;
  /** The VM is another's. */
  stale(reason: string): void;
}

/** What an {@linkcode Arbitration} works with. */
export interface ArbitrationOptions {
  readonly arbiter: Arbiter;
  /** This engine's name, the same at every start and no other's. */
  readonly holder: string;
  readonly leaseMs: number;
  /** Whether there is a third party, who can tell silence from death. */
  readonly hasThirdParty: boolean;
  readonly fence?: Fence | undefined;
  readonly notice: (text: string) => void;
}

/** Between two attempts of a fence that fails. */
const FENCE_RETRY_MS = 5000;

/** The arbiter that a config names. */
export function createArbiter(config: VmConfig): Arbiter {
  const { arbiter, endpoints, leaseMs } = config.failover;
  if (arbiter === "manual") {
    return new ManualArbiter(new DiskGenerationFile(generationPath(config)));
  }
  const now = () => performance.now();
  return new EtcdArbiter(new EtcdClient({ endpoints }), {
    vm: config.vm.name,
    ttlMs: leaseMs,
    now,
  });
}

/** An arbiter that remembers nothing, for a pair that nobody else is to decide about. */
export function volatileArbiter(): Arbiter {
  let kept: Ownership | undefined;
  return new ManualArbiter({
    load: () => Promise.resolve(kept),
    store: (owner) => {
      kept = owner;
      return Promise.resolve();
    },
  });
}

/** What a side needs to deal with an arbiter, as its config says. */
export function arbitrationOptions(
  config: VmConfig,
  arbiter: Arbiter,
  notice: (text: string) => void,
): ArbitrationOptions {
  const { failover } = config;
  return {
    arbiter,
    holder: `${Deno.hostname()}:${config.path}`,
    leaseMs: failover.leaseMs,
    hasThirdParty: failover.arbiter !== "manual",
    fence: createFence(failover),
    notice,
  };
}

function createFence({ fence }: FailoverSection): Fence | undefined {
  return fence && new Fence(fence, runFenceCommand);
}

/** Does what one side's {@linkcode ArbitrationMachine} says. */
export class Arbitration {
  readonly #options: ArbitrationOptions;
  readonly #machine: ArbitrationMachine;
  #events: LeaseEvents | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** What is waited for. */
  #begun = Promise.withResolvers<void>();
  #shared = Promise.withResolvers<void>();
  #decided = Promise.withResolvers<Verdict>();
  readonly #closed = Promise.withResolvers<void>();
  #isWanted = () => true;
  #askPeer = (): Promise<PeerState> => Promise.resolve({ type: "silent" });
  #over = false;

  constructor(options: ArbitrationOptions) {
    this.#options = options;
    const { fence, ...rules } = options;
    this.#machine = new ArbitrationMachine({ ...rules, hasFence: fence !== undefined });
  }

  /** The generation that this side has a share in. */
  get generation(): number {
    return this.#machine.generation;
  }

  /** This engine's name. */
  get holder(): string {
    return this.#options.holder;
  }

  /** A claim is being made: nothing else is to be agreed on meanwhile. */
  get isClaiming(): boolean {
    return this.#machine.isClaiming;
  }

  /** Whether the VM may say anything, as far as the lease goes. */
  get holds(): boolean {
    return this.#machine.holds(performance.now());
  }

  /** Until when it may, by `performance.now()`, unless the lease is renewed before. */
  get holdsUntilMs(): number {
    return this.#machine.holdsUntilMs;
  }

  /** How a primary that has lost its secondary is to know that. */
  get evidenceOfPrimary(): LossEvidence {
    return this.#machine.evidenceOfPrimary;
  }

  /**
   * Begin to run the VM, as a new generation.
   *
   * @param wasRunning It runs already, left by an engine before: whoever had it since is not waited for
   * @param askPeer Asks the other host; never throws
   * @param isOrdered The operator is certain that it runs nowhere else
   * @throws {NotOursError} when another host runs it
   * @throws {ArbiterError} when that cannot be found out
   */
  async begin(
    events: LeaseEvents,
    wasRunning: boolean,
    askPeer: () => Promise<PeerState>,
    isOrdered = false,
  ): Promise<void> {
    this.#events = events;
    this.#askPeer = askPeer;
    this.#step({ type: "begin", wasRunning, isOrdered });
    await this.#begun.promise;
  }

  /** The other side runs the VM, in this generation: from now on this side has a share in it. */
  async share(generation: number, holder: string): Promise<void> {
    this.#shared = Promise.withResolvers();
    this.#step({ type: "share", owner: { generation, holder } });
    await this.#shared.promise;
  }

  /**
   * Claim the VM for this side alone, until that is decided.
   *
   * @param isWanted Looked at before each attempt: what it was claimed for may be gone meanwhile
   * @param yieldsMs See {@linkcode ArbitrationEvent}
   */
  async claim(
    evidence: LossEvidence,
    standing: Claim["standing"],
    events: LeaseEvents,
    isWanted: () => boolean = () => true,
    yieldsMs = 0,
  ): Promise<Verdict> {
    if (!isWanted()) return { type: "undecided", reason: GONE };
    this.#decided = Promise.withResolvers();
    this.#isWanted = isWanted;
    this.#events = events;
    this.#step({ type: "claim", evidence, standing, yieldsMs });
    return await this.#decided.promise;
  }

  /** The other host does not have to be switched off any more: it is heard again. */
  peerIsBack(): void {
    this.#step({ type: "peer-back" });
  }

  /**
   * The operator has seen to it that the other host is off.
   *
   * @returns Whether that was waited for
   */
  confirmOff(): boolean {
    if (!this.#machine.wantsFence) return false;
    this.#stepIfWanted({ type: "switched-off" });
    return true;
  }

  /** Somebody else looks after the VM from now on. */
  handOver(events: LeaseEvents): void {
    this.#events = events;
    if (!this.holds) events.pause();
  }

  /** The VM does not run any more. */
  async close(): Promise<void> {
    this.#over = true;
    clearTimeout(this.#timer);
    this.#step({ type: "close" });
    await this.#closed.promise;
  }

  /** An attempt or a grant may follow: not of a claim for what is gone. */
  #stepIfWanted(event: ArbitrationEvent): void {
    if (this.isClaiming && !this.#isWanted()) this.#step({ type: "withdraw" });
    this.#step(event);
  }

  #step(event: ArbitrationEvent): void {
    for (const effect of this.#machine.step(event, performance.now())) this.#do(effect);
  }

  #do(effect: ArbitrationEffect): void {
    switch (effect.type) {
      case "ask":
        ask(this.#options.arbiter, effect.call).then((answer) =>
          this.#stepIfWanted({ type: "answer", answer })
        );
        return;
      case "ask-peer":
        this.#askPeer().then((peer) => this.#step({ type: "peer", peer }));
        return;
      case "begun":
        return this.#begun.resolve();
      case "refused": {
        const { reason, isOthers } = effect;
        const message = `Cannot run the VM: ${reason}`;
        return this.#begun.reject(isOthers ? new NotOursError(message) : new ArbiterError(message));
      }
      case "shared":
        return this.#shared.resolve();
      case "decided":
        return this.#decided.resolve(effect.verdict);
      case "switch-off":
        this.#switchOff();
        return;
      case "pause":
        return this.#events?.pause();
      case "resume":
        return this.#events?.resume();
      case "stale":
        return this.#events?.stale(effect.reason);
      case "notice":
        return this.#options.notice(effect.text);
      case "closed":
        return this.#closed.resolve();
      case "wake":
        clearTimeout(this.#timer);
        this.#timer = setTimeout(
          () => this.#stepIfWanted({ type: "tick" }),
          Math.max(1, effect.atMs - performance.now()),
        );
    }
  }

  async #switchOff(): Promise<void> {
    while (!this.#over && this.#machine.wantsFence) {
      const answer = await this.#options.fence!.off();
      if (!this.#machine.wantsFence) return;
      if (answer.type === "off") return this.#stepIfWanted({ type: "switched-off" });
      this.#options.notice(`${answer.reason}; trying again`);
      await new Promise((resolve) => setTimeout(resolve, FENCE_RETRY_MS));
    }
  }
}
