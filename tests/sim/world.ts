/**
 * Two hosts, a network, an arbiter, a client and an operator, all from one seed.
 *
 * @module
 */

import type { PrimaryOptions } from "../../engine/failover/primary.ts";
import type { Ownership } from "../../engine/failover/arbiter.ts";
import type { Introduction } from "../../engine/link/mod.ts";
import { Checkers } from "./checkers.ts";
import { ModelEtcd } from "./etcd.ts";
import { type FaultKind, Faults } from "./faults.ts";
import { type Moment, nextMoment } from "./guest.ts";
import { Host } from "./host.ts";
import { Simulation } from "./kernel.ts";
import { Network } from "./network.ts";
import { type Rules, SOUND } from "./rules.ts";

/** Faults come for so long, and then everything works. */
const FAULTS_MS = [1500, 10_000] as const;

/** By then the VM must be protected again, and stay so for a while. */
const RECOVERY_MS = 40_000;
const WELL_MS = 1500;

/** Between two looks of the operator, who starts a VM that runs nowhere. */
const OPERATOR_MS = 500;
const OPERATOR_LOOKS = 6;

/** What one seed came to. */
export interface Outcome {
  readonly seed: number;
  readonly error: Error | undefined;
  readonly faults: ReadonlyMap<FaultKind, number>;
  readonly takeovers: number;
  readonly grants: number;
  readonly stales: number;
  readonly setbacks: number;
  readonly losses: number;
  readonly outputs: number;
  readonly resumes: number;
  readonly events: number;
  readonly simulatedMs: number;
}

/** Who decides: etcd, or each host by itself, with a command that switches the other one off or without. */
export type ArbiterKind = "etcd" | "manual" | "fence";

/** How to simulate. */
export interface SimulateOptions {
  readonly rules?: Partial<Rules>;
  readonly arbiter?: ArbiterKind;
  readonly trace?: (line: string) => void;
  /** What goes wrong, in place of what the seed says. */
  readonly script?: (world: World) => void;
}

/** One world. */
export class World {
  readonly sim: Simulation;
  readonly network: Network;
  readonly etcd: ModelEtcd;
  readonly hosts: readonly Host[];
  readonly checkers: Checkers;
  readonly faults: Faults;
  readonly rules: Rules;
  readonly mode: "colo" | "continuous";
  readonly arbiterKind: ArbiterKind;
  readonly replication: PrimaryOptions;
  readonly leaseMs: number;
  readonly stepMs: number;
  /** All that any guest has come to, by its hash. */
  readonly moments = new Map<number, Moment>();
  readonly #noise: number;
  readonly #script: ((world: World) => void) | undefined;
  readonly #atEnd: (() => void)[] = [];
  /** Seeds of what had changed. */
  resumes = 0;
  #lineages = 0;
  #lostLooks = 0;
  #wellSinceMs: number | undefined;

  constructor(seed: number, { rules, arbiter, trace, script }: SimulateOptions) {
    const sim = new Simulation(seed, trace);
    const { random } = sim;
    this.sim = sim;
    this.#script = script;
    this.rules = { ...SOUND, ...rules };
    this.mode = random.chance(0.5) ? "colo" : "continuous";
    const periodMs = random.between(60, 400);
    this.replication = {
      periodMs,
      microPeriodMs: random.chance(0.3) ? periodMs / 3 : 0,
      minIntervalMs: 20,
      inFlightMax: 1 + random.below(3),
    };
    this.leaseMs = random.between(2000, 4000);
    this.stepMs = random.between(10, 40);
    this.arbiterKind = arbiter ?? random.pick(["etcd", "etcd", "manual", "fence"]);
    this.#noise = random.chance(0.5) ? 0 : random.between(0, 0.2);
    this.network = new Network(sim);
    this.etcd = new ModelEtcd(sim, this.leaseMs, (holder) => this.checkers.ordered(holder));
    this.checkers = new Checkers(this);
    this.faults = new Faults(this);
    this.hosts = [new Host(this, 0), new Host(this, 1)];
    sim.trace(
      "world",
      () => `${this.mode}, ${this.arbiterKind}, lease ${this.leaseMs.toFixed(0)} ms`,
    );
  }

  /** What the guest comes to next; two that see the same come to the same. */
  step(before: Moment): Moment {
    const { random } = this.sim;
    let noise = random.chance(this.#noise) ? random.next() : 0;
    for (;; noise = random.next()) {
      const moment = this.known(nextMoment(before, noise));
      // Among many millions some have the hash of another.
      if (moment.before === before) return moment;
    }
  }

  /** Of a mirror: no other's. */
  newLineage(): string {
    return String(++this.#lineages);
  }

  /** There is one of each. */
  known(moment: Moment): Moment {
    const known = this.moments.get(moment.hash);
    if (known !== undefined) return known;
    this.moments.set(moment.hash, moment);
    return moment;
  }

  /** What an engine says of itself. */
  introductionOf(
    { generation, holder }: Pick<Introduction, "generation" | "holder">,
  ): Introduction {
    return {
      vmName: "vm",
      memoryMiB: 1,
      mode: this.mode,
      nics: 1,
      disks: [],
      generation,
      holder,
      engineVersion: "model",
    };
  }

  atEnd(work: () => void): void {
    this.#atEnd.push(work);
  }

  /** Nothing goes wrong but what the script says. */
  get isScripted(): boolean {
    return this.#script !== undefined;
  }

  /** Let it all happen. */
  run(): void {
    const { sim, hosts, faults } = this;
    try {
      hosts[0]!.run();
      hosts[1]!.standBy();
      this.checkers.audit();
      this.#operate();
      const endMs = sim.random.between(...FAULTS_MS);
      if (this.#script === undefined) faults.plan(endMs);
      else this.#script(this);
      sim.run(endMs);
      faults.heal();
      sim.trace("world", () => "nothing fails any more");
      sim.run(endMs + RECOVERY_MS, () => this.#isWellForLong());
      this.checkers.checkRecovery(this.#isWellForLong());
    } finally {
      for (const work of this.#atEnd) work();
    }
  }

  #isWellForLong(): boolean {
    if (!this.checkers.isWell) this.#wellSinceMs = undefined;
    else this.#wellSinceMs ??= this.sim.nowMs;
    return this.#wellSinceMs !== undefined && this.sim.nowMs - this.#wellSinceMs > WELL_MS;
  }

  /** Who had the last grant. */
  get owner(): Ownership | undefined {
    return this.arbiterKind === "etcd" ? this.etcd.owner.owner : this.checkers.lastGrant;
  }

  /** Whoever operates it starts a VM that runs nowhere and that nobody is about to take over. */
  #operate(): void {
    this.sim.after(OPERATOR_MS, () => {
      this.#lostLooks = this.#isLost ? this.#lostLooks + 1 : 0;
      const up = this.hosts.filter(({ isUp }) => isUp);
      if (this.#lostLooks >= OPERATOR_LOOKS && up.length > 0) {
        this.#lostLooks = 0;
        this.#startVm(up);
      }
      this.#operate();
    });
  }

  /** From what is held of it, be it old, rather than anew. */
  #startVm(up: readonly Host[]): void {
    const { sim, checkers } = this;
    // Whoever knows that it runs nowhere can say so where nobody else is asked.
    const heir = this.arbiterKind === "etcd"
      ? undefined
      : up.find(({ secondary }) => secondary?.machine.phase === "orphaned");
    const host = heir ?? sim.random.pick(up);
    sim.trace("operator", () => `starts the VM at ${host.holder}`);
    checkers.startedAnew();
    if (heir !== undefined) return heir.secondary!.takeOver();
    host.takeEngineAway();
    host.run(true);
  }

  get #isLost(): boolean {
    // Without anybody to ask, whoever stands still is waited for.
    const isBlind = this.arbiterKind === "manual" &&
      this.hosts.some(({ engine }) => engine?.isStopped);
    return !isBlind &&
      this.hosts.every(({ vm, primary, secondary }) =>
        vm === undefined && primary === undefined &&
        !["deciding", "taking-over", "protecting"].includes(secondary?.machine.phase ?? "")
      );
  }
}

/** Simulate what one seed says. */
export function simulate(seed: number, options: SimulateOptions = {}): Outcome {
  const world = new World(seed, options);
  let error: Error | undefined;
  try {
    world.run();
  } catch (thrown) {
    if (!(thrown instanceof Error)) throw thrown;
    error = thrown;
  }
  const { etcd, checkers, sim } = world;
  return {
    seed,
    error,
    faults: world.faults.counts,
    takeovers: checkers.takeovers,
    grants: etcd.grants + checkers.grants,
    stales: etcd.stales,
    setbacks: checkers.setbacks,
    losses: checkers.losses,
    outputs: checkers.heard,
    resumes: world.resumes,
    events: sim.events,
    simulatedMs: sim.nowMs,
  };
}
