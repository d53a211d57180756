/**
 * One host: its processes, and what its service manager does when one of them has ended.
 *
 * @module
 */

import { Actor, start, type Task } from "./actor.ts";
import { Arbitration } from "./arbitration.ts";
import { ModelArbiter } from "./etcd.ts";
import { bootMoment } from "./guest.ts";
import { type GenerationFile, ModelManualArbiter } from "./manual.ts";
import { PrimaryEngine } from "./primary_engine.ts";
import { Qemu } from "./qemu.ts";
import { SecondaryEngine } from "./secondary_engine.ts";
import { ImageFiles } from "./standby.ts";
import type { World } from "./world.ts";

/** How long the fence command takes, and the host until it is up again. */
const FENCE_MS = [20, 800] as const;
const REBOOT_MS = [500, 4000] as const;

/** Before a service manager starts again what has ended. */
const RESTART_MS = [100, 1000] as const;

/** One host. */
export class Host {
  readonly holder: string;
  readonly clockRate: number;
  isUp = true;
  /** The engine's process. */
  engine: Actor | undefined;
  primary: PrimaryEngine | undefined;
  secondary: SecondaryEngine | undefined;
  /** All QEMUs that have been started and may live. */
  qemus: Qemu[] = [];
  files = new ImageFiles();
  readonly generationFile: GenerationFile = { owner: undefined };
  #processes = 0;

  constructor(readonly world: World, readonly index: number) {
    this.holder = "AB"[index]!;
    // The lease's margin covers that clocks go at different rates.
    this.clockRate = world.sim.random.between(0.99, 1.01);
  }

  /** The VM that the world sees, if it is here. */
  get vm(): Qemu | undefined {
    return this.qemus.find(({ runsVm, actor }) => runsVm && actor.isAlive);
  }

  /** QEMUs that stand by, or run along. */
  get standbys(): readonly Qemu[] {
    return this.qemus.filter(({ runsVm, actor }) => !runsVm && actor.isAlive);
  }

  #spawn(what: string): Actor {
    const name = `${this.holder}.${what}${++this.#processes}`;
    return new Actor(this.world.sim, name, this.clockRate);
  }

  startQemu(): Qemu {
    this.qemus = this.qemus.filter(({ actor }) => actor.isAlive);
    const qemu = new Qemu(this.world, this.#spawn("qemu"), this.index);
    this.qemus.push(qemu);
    return qemu;
  }

  boot(): Qemu {
    const qemu = this.startQemu();
    const moment = this.world.known(bootMoment(this.world.sim.random.next()));
    this.world.checkers.booted(this.index, moment);
    qemu.boot(moment);
    return qemu;
  }

  /** `colo run`. */
  run(isOrdered = false): void {
    const left = this.vm;
    this.#clear(left);
    const actor = this.#spawn("run");
    this.engine = actor;
    this.primary = new PrimaryEngine(this, actor, this.#arbitration(actor));
    start(actor, this.primary.run(left, isOrdered));
  }

  /** `colo standby`. */
  standBy(): void {
    this.#clear(undefined);
    const actor = this.#spawn("standby");
    this.engine = actor;
    this.secondary = new SecondaryEngine(this, actor, this.#arbitration(actor));
  }

  /** End what an engine has left that has ended. */
  #clear(left: Qemu | undefined): void {
    for (const qemu of this.qemus) if (qemu !== left) qemu.kill();
  }

  #arbitration(actor: Actor): Arbitration {
    const { etcd, leaseMs, rules, arbiterKind, checkers } = this.world;
    const isManual = arbiterKind !== "etcd";
    return new Arbitration({
      actor,
      arbiter: isManual
        ? new ModelManualArbiter(actor, this.generationFile, (owner) => checkers.granted(owner))
        : new ModelArbiter(etcd, actor, this.index),
      holder: this.holder,
      leaseMs,
      hasThirdParty: !isManual,
      fence: arbiterKind === "fence" ? () => this.#fence(actor) : undefined,
      rules,
    });
  }

  /** The fence command: it ends the other host, though it be the last that this one has done. */
  *#fence(actor: Actor): Task<void> {
    const { sim, hosts } = this.world;
    const other = hosts[1 - this.index]!;
    yield (resume) => {
      sim.after(sim.random.between(...FENCE_MS), () => {
        other.loseToFaults();
        sim.after(sim.random.between(...REBOOT_MS), () => other.powerOn());
        actor.run(() => resume(undefined));
      });
    };
  }

  /** The power fails, which may be the end of what the host was protected from. */
  loseToFaults(): void {
    const { checkers } = this.world;
    if (this.vm !== undefined) checkers.losing(this, false);
    checkers.harmed(this);
    this.lose();
  }

  /** The VM has taken over here: the same engine protects it from now on. */
  protectAgain(secondary: SecondaryEngine, qemu: Qemu): void {
    const { actor, arbitration } = secondary;
    this.primary = new PrimaryEngine(this, actor, arbitration, qemu);
    start(actor, this.primary.run(undefined, false));
  }

  /** An engine has ended by itself. */
  engineEnded(actor: Actor): void {
    if (this.engine !== actor) return;
    if (this.primary !== undefined) this.primary.qemu?.kill();
    this.#engineGone(() => this.world.network.ended(actor));
  }

  killEngine(): void {
    const { engine } = this;
    if (engine !== undefined) this.#engineGone(() => this.world.network.ended(engine));
  }

  /** The operator ends the engine, and its service manager leaves it at that. */
  takeEngineAway(): void {
    const { engine } = this;
    if (engine !== undefined) this.#forgetEngine(() => this.world.network.ended(engine));
  }

  #engineGone(sayTo: () => void): void {
    this.#forgetEngine(sayTo);
    this.world.sim.after(this.world.sim.random.between(...RESTART_MS), () => this.manage());
  }

  #forgetEngine(sayTo: () => void): void {
    this.engine?.kill();
    this.engine = undefined;
    this.primary = undefined;
    this.secondary = undefined;
    this.world.network.listen(this.index, undefined);
    sayTo();
  }

  /** What a service manager does: a VM that runs is looked after, or else the host stands by. */
  manage(): void {
    if (!this.isUp || this.engine !== undefined) return;
    if (this.vm !== undefined) this.run();
    else this.standBy();
  }

  /** The power fails: all is gone that is not on another host. */
  lose(): void {
    this.isUp = false;
    for (const qemu of this.qemus) qemu.actor.kill();
    this.qemus = [];
    this.files = new ImageFiles();
    const { engine, world } = this;
    world.network.isDown[this.index] = true;
    if (engine !== undefined) this.#engineGone(() => world.network.lost(engine));
  }

  powerOn(): void {
    if (this.isUp) return;
    this.isUp = true;
    this.world.network.isDown[this.index] = false;
    this.manage();
  }

  /** The whole host stands still, as a VM does that is being moved. */
  stop(): void {
    this.engine?.stop();
    for (const { actor } of this.qemus) actor.stop();
  }

  resume(): void {
    for (const { actor } of this.qemus) actor.resume();
    this.engine?.resume();
  }
}
