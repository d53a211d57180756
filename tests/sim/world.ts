/**
 * Two hosts, a network, an arbiter, a client and an operator, all from one seed.
 *
 * @module
 */

import type { PrimaryOptions } from "../../engine/failover/primary.ts";
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
  readonly events: number;
  readonly simulatedMs: number;
}

/** How to simulate. */
export interface SimulateOptions {
  readonly rules?: Partial<Rules>;
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
  readonly replication: PrimaryOptions;
  readonly leaseMs: number;
  readonly stepMs: number;
  /** All that any guest has come to, by its hash. */
  readonly moments = new Map<number, Moment>();
  readonly #noise: number;
  readonly #script: ((world: World) => void) | undefined;
  readonly #atEnd: (() => void)[] = [];
  #lostLooks = 0;
  #wellSinceMs: number | undefined;

  constructor(seed: number, { rules, trace, script }: SimulateOptions) {
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
    this.#noise = random.chance(0.5) ? 0 : random.between(0, 0.2);
    this.network = new Network(sim);
    this.etcd = new ModelEtcd(sim, this.leaseMs, (holder) => this.checkers.ordered(holder));
    this.checkers = new Checkers(this);
    this.faults = new Faults(this);
    this.hosts = [new Host(this, 0), new Host(this, 1)];
    sim.trace("world", () => `${this.mode}, lease ${this.leaseMs.toFixed(0)} ms`);
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
      generation,
      holder,
      engineVersion: "model",
    };
  }

  atEnd(work: () => void): void {
    this.#atEnd.push(work);
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

  /** Whoever operates it starts a VM that runs nowhere and that nobody is about to take over. */
  #operate(): void {
    this.sim.after(OPERATOR_MS, () => {
      this.#lostLooks = this.#isLost ? this.#lostLooks + 1 : 0;
      const up = this.hosts.filter(({ isUp }) => isUp);
      if (this.#lostLooks >= OPERATOR_LOOKS && up.length > 0) {
        this.#lostLooks = 0;
        const host = this.sim.random.pick(up);
        this.sim.trace("operator", () => `starts the VM at ${host.holder}`);
        host.takeEngineAway();
        host.run();
      }
      this.#operate();
    });
  }

  get #isLost(): boolean {
    return this.hosts.every(({ vm, primary, secondary }) =>
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
    grants: etcd.grants,
    stales: etcd.stales,
    setbacks: checkers.setbacks,
    losses: checkers.losses,
    outputs: checkers.heard,
    events: sim.events,
    simulatedMs: sim.nowMs,
  };
}
