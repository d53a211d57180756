/**
 * One side's dealings with the arbiter: its share in a generation, its claims and its lease.
 *
 * @module
 */

import type { FailoverSection, VmConfig } from "../config/mod.ts";
import { ArbiterError, NotOursError } from "../errors.ts";
import type { Arbiter, Claim, LossEvidence, Ownership } from "../failover/arbiter.ts";
import { EtcdArbiter } from "../failover/etcd_arbiter.ts";
import { EtcdClient } from "../failover/etcd.ts";
import { Fence } from "../failover/fence.ts";
import { runFenceCommand } from "../failover/fence_command.ts";
import { Lease } from "../failover/lease.ts";
import { ManualArbiter } from "../failover/manual_arbiter.ts";
import { DiskGenerationFile, generationPath } from "./generation_file.ts";

/** What becomes of a claim in the end. */
export type Verdict =
  | { readonly type: "granted" }
  | { readonly type: "stale"; readonly reason: string }
  /** Only an operator can say. */
  | { readonly type: "undecided"; readonly reason: string };

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

/** Between two attempts, of an arbiter that does not answer and of a fence that fails. */
const RETRY_MS = 200;
const FENCE_RETRY_MS = 5000;

/** A lease is renewed, or a claim prepared for, so many times within its length. */
const PREPARATIONS = 3;

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

/** One side's dealings with its arbiter. */
export class Arbitration {
  readonly #options: ArbitrationOptions;
  #generation = 0;
  #isHolder = false;
  #lease: Lease | undefined;
  #events: LeaseEvents | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #claiming = false;
  #over = false;
  /** Calls to the arbiter, one after another. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(options: ArbitrationOptions) {
    this.#options = options;
  }

  /** The generation that this side has a share in. */
  get generation(): number {
    return this.#generation;
  }

  /** This engine's name. */
  get holder(): string {
    return this.#options.holder;
  }

  /** A claim is being made: nothing else is to be agreed on meanwhile. */
  get isClaiming(): boolean {
    return this.#claiming;
  }

  /** Whether the VM may say anything, as far as the lease goes. */
  get holds(): boolean {
    return this.#lease === undefined || this.#lease.holds(performance.now());
  }

  /**
   * Begin to run the VM, as a new generation.
   *
   * @param wasRunning It runs already, left by an engine before: whoever had it since is not waited for
   * @throws {NotOursError} when another host runs it
   * @throws {ArbiterError} when that cannot be found out
   */
  async begin(events: LeaseEvents, wasRunning: boolean): Promise<void> {
    const { arbiter, holder } = this.#options;
    const known = await this.#ask(() => arbiter.prepare());
    if (known.type !== "owner") throw new ArbiterError(`Cannot run the VM: ${known.reason}`);
    const { owner } = known;
    if (wasRunning && owner !== undefined && owner.holder !== holder) {
      throw new NotOursError(
        `Cannot run the VM on: generation ${owner.generation} of it is ${owner.holder}'s by now`,
      );
    }
    const generation = owner?.generation ?? 0;
    const claim: Claim = { generation, holder, standing: "outside", evidence: "ordered" };
    const answer = await this.#ask(() => arbiter.claim(claim));
    if (answer.type === "held" || answer.type === "stale") {
      throw new NotOursError(
        `Cannot run the VM: ${answer.holder} runs it; stand by for it with \`colo standby\`, or end ` +
          "it there first",
      );
    }
    if (answer.type !== "granted") throw new ArbiterError(`Cannot run the VM: ${answer.reason}`);
    this.#granted(answer.generation, answer.renewedMs, events);
  }

  /** The other side runs the VM, in this generation: from now on this side has a share in it. */
  async share(generation: number, holder: string): Promise<void> {
    this.#generation = generation;
    await this.#ask(() => this.#options.arbiter.learn({ generation, holder }));
    this.#prepareInTurn();
  }

  /**
   * Claim the VM for this side alone, until that is decided.
   *
   * @param isWanted Looked at before each attempt: what it was claimed for may be gone meanwhile
   */
  async claim(
    evidence: LossEvidence,
    standing: Claim["standing"],
    events: LeaseEvents,
    isWanted: () => boolean = () => true,
  ): Promise<Verdict> {
    // What is learned meanwhile of a later one is none of this side's.
    const generation = this.#generation;
    const { arbiter, holder, fence, hasThirdParty, notice } = this.#options;
    this.#claiming = true;
    try {
      if (evidence === "silent" && fence !== undefined && !hasThirdParty) {
        await this.#switchOff(fence);
        evidence = "fenced";
      }
      let said = "";
      while (!this.#over && isWanted()) {
        const claim: Claim = { generation, holder, standing, evidence };
        const answer = await this.#ask(() => arbiter.claim(claim));
        switch (answer.type) {
          case "granted":
            this.#granted(answer.generation, answer.renewedMs, events);
            // It has lost already, and nothing has to wait until it is off as well.
            if (evidence === "silent" && fence !== undefined) this.#switchOff(fence);
            return { type: "granted" };
          case "stale":
            return {
              type: "stale",
              reason: `generation ${answer.generation} of the VM is ${answer.holder}'s`,
            };
          case "ask":
            return { type: "undecided", reason: answer.reason };
          case "held":
          case "unreachable": {
            const reason = answer.type === "held"
              ? `${answer.holder} may be running the VM: its lease has not ended`
              : answer.reason;
            if (reason !== said) notice(`${reason}; trying again`);
            said = reason;
          }
        }
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
      return { type: "undecided", reason: "what the VM was claimed for is gone" };
    } finally {
      this.#claiming = false;
    }
  }

  /**
   * A primary that has lost its secondary: without a third party it is the one that goes on, unless
   * each side is to switch the other one off first.
   */
  get evidenceOfPrimary(): LossEvidence {
    const { hasThirdParty, fence } = this.#options;
    return hasThirdParty || fence !== undefined ? "silent" : "ordered";
  }

  /** Before a claim for a checkpoint of which nothing is known but that it is here. */
  async lookUp(): Promise<void> {
    const known = await this.#ask(() => this.#options.arbiter.prepare());
    if (known.type === "owner") this.#generation = known.owner?.generation ?? 0;
  }

  /** Somebody else looks after the VM from now on. */
  handOver(events: LeaseEvents): void {
    this.#events = events;
    if (!this.holds) events.pause();
  }

  /** The VM does not run any more. */
  async close(): Promise<void> {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#timer);
    if (!this.#isHolder) return;
    const { arbiter, holder } = this.#options;
    await this.#ask(() => arbiter.release({ generation: this.#generation, holder }));
  }

  #granted(generation: number, renewedMs: number | undefined, events: LeaseEvents): void {
    const wasPaused = !this.holds;
    this.#generation = generation;
    this.#isHolder = true;
    this.#events = events;
    clearTimeout(this.#timer);
    if (renewedMs === undefined) return;
    // The lease that begins now has nothing to resume from.
    if (wasPaused) events.resume();
    this.#lease = new Lease({ ttlMs: this.#options.leaseMs, marginMs: this.#marginMs }, renewedMs);
    this.#keepLease();
  }

  get #marginMs(): number {
    return this.#options.leaseMs / 5;
  }

  #keepLease(): void {
    const lease = this.#lease;
    if (lease === undefined || this.#over) return;
    switch (lease.step(performance.now())) {
      case "renew":
        this.#renew(lease);
        break;
      case "pause":
        this.#events?.pause();
        break;
      case "resume":
        this.#events?.resume();
        break;
    }
    const waitMs = Math.max(1, lease.wakeAtMs - performance.now());
    this.#timer = setTimeout(() => this.#keepLease(), waitMs);
  }

  #renew(lease: Lease): void {
    const { arbiter, holder } = this.#options;
    this.#ask(() => arbiter.renew({ generation: this.#generation, holder })).then((answer) => {
      if (this.#over || this.#lease !== lease) return;
      if (answer.type === "renewed" && answer.renewedMs !== undefined) {
        lease.renewed(answer.renewedMs);
      } else if (answer.type === "stale") {
        this.#lease = undefined;
        this.#events?.stale(`generation ${answer.generation} of the VM is ${answer.holder}'s`);
      }
    });
  }

  /** Have a claim take one round trip, should it come to that. */
  #prepareInTurn(): void {
    const { arbiter, leaseMs, hasThirdParty } = this.#options;
    clearTimeout(this.#timer);
    if (!hasThirdParty || this.#over || this.#isHolder) return;
    if (!this.#claiming) this.#ask(() => arbiter.prepare());
    this.#timer = setTimeout(() => this.#prepareInTurn(), leaseMs / PREPARATIONS);
  }

  async #switchOff(fence: Fence): Promise<void> {
    while (!this.#over) {
      const answer = await fence.off();
      if (answer.type === "off") return;
      this.#options.notice(`${answer.reason}; trying again`);
      await new Promise((resolve) => setTimeout(resolve, FENCE_RETRY_MS));
    }
  }

  #ask<T>(call: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(call);
    this.#last = turn.catch(() => {});
    return turn;
  }
}
