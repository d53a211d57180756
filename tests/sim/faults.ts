/**
 * What goes wrong: chosen by the seed, several things at a time, and in the end nothing any more.
 *
 * @module
 */

import type { Host } from "./host.ts";
import type { World } from "./world.ts";

/** All that can go wrong. */
export const FAULT_KINDS = [
  "VM killed",
  "standby QEMU killed",
  "engine killed",
  "host lost",
  "engine stopped",
  "VM stopped",
  "standby QEMU stopped",
  "capture broken",
  "host stopped",
  "network cut",
  "links reset",
  "network slow",
  "arbiter down",
  "arbiter slow",
  "arbiter lossy",
  "arbiter cut off",
  "ordered elsewhere",
] as const;

export type FaultKind = (typeof FAULT_KINDS)[number];

/** Those in which the last word of an engine may be lost. */
const HUSHING: readonly FaultKind[] = [
  "engine killed",
  "engine stopped",
  "host lost",
  "host stopped",
  "network cut",
  "links reset",
];

/** How long something is out of order. */
const SHORT_MS = [20, 900] as const;
const LONG_MS = [900, 7000] as const;

/** How often something goes wrong just when a phase has changed, and how soon. */
const ON_CHANGE = 0.05;
const ON_CHANGE_MS = [0, 60] as const;

/** Phases of a standby that is not about to take over. */
const IDLE: readonly string[] = ["starting", "waiting", "orphaned"];

/** In which a VM may be let run alone before its host is lost from sight. */
const BEFORE_ORDER_MS = [50, 1500] as const;

/** How often such an operator tries, and between two attempts. */
const ORDERS = 12;
const ORDER_MS = 500;

/** Makes things go wrong. */
export class Faults {
  readonly counts = new Map<FaultKind, number>();
  #isOver = false;

  constructor(readonly world: World) {}

  /** Choose what goes wrong until then. */
  plan(untilMs: number): void {
    const { sim } = this.world;
    const { random } = sim;
    let atMs = random.between(0, 2500);
    for (let left = 1 + random.below(8); left > 0 && atMs < untilMs; left--) {
      const kind = random.pick(FAULT_KINDS);
      sim.after(atMs, () => this.#inject(kind));
      // What comes soon after something else finds it in the middle of things.
      atMs += random.chance(0.5) ? random.between(0, 400) : random.between(400, 3000);
    }
  }

  /** An engine has come to another phase: what goes wrong now finds it there. */
  changed(): void {
    const { sim } = this.world;
    if (this.#isOver || this.world.isScripted || !sim.random.chance(ON_CHANGE)) return;
    const kind = sim.random.pick(FAULT_KINDS);
    sim.after(sim.random.between(...ON_CHANGE_MS), () => this.#inject(kind));
  }

  /** Everything works from now on. */
  heal(): void {
    this.#isOver = true;
    const { network, etcd, hosts } = this.world;
    network.lagMs = 0;
    network.heal();
    etcd.isDown = false;
    etcd.isCutOff.fill(false);
    etcd.lagMs = 0;
    etcd.loss = 0;
    for (const host of hosts) {
      host.resume();
      host.powerOn();
    }
  }

  #inject(kind: FaultKind): void {
    const { sim, network, etcd, hosts, checkers } = this.world;
    const { random } = sim;
    if (this.#isOver) return;
    const host = random.pick(hosts);
    if (HUSHING.includes(kind)) checkers.hushed();
    this.counts.set(kind, (this.counts.get(kind) ?? 0) + 1);
    sim.trace("FAULT", () => `${kind} (${host.holder})`);
    switch (kind) {
      case "VM killed":
        return hosts.forEach((host) => this.#killVm(host));
      case "standby QEMU killed":
        for (const host of hosts) checkers.harmed(host);
        return hosts.forEach(({ standbys }) => standbys.forEach((qemu) => qemu.kill()));
      case "engine killed":
        checkers.harmed(host);
        return host.killEngine();
      case "host lost":
        host.loseToFaults();
        return this.#later(() => host.powerOn());
      case "engine stopped": {
        const { engine } = host;
        engine?.stop();
        return this.#later(() => engine?.resume());
      }
      case "VM stopped": {
        const vm = hosts.find(({ vm }) => vm !== undefined)?.vm;
        vm?.actor.stop();
        return this.#later(() => vm?.actor.resume());
      }
      case "standby QEMU stopped": {
        const standbys = hosts.flatMap(({ standbys }) => standbys);
        for (const host of hosts) checkers.harmed(host);
        for (const { actor } of standbys) actor.stop();
        return this.#later(() => standbys.forEach(({ actor }) => actor.resume()));
      }
      case "capture broken":
        return hosts.forEach(({ vm }) => vm?.breakCapture());
      case "host stopped":
        host.stop();
        return this.#later(() => host.resume());
      case "network cut":
        network.cut();
        return this.#later(() => network.heal());
      case "links reset":
        return network.reset();
      case "network slow":
        network.lagMs = random.between(5, 100);
        return this.#later(() => network.lagMs = 0);
      case "arbiter down":
        etcd.isDown = true;
        return this.#later(() => etcd.isDown = false);
      case "arbiter slow":
        etcd.lagMs = random.between(20, 700);
        return this.#later(() => etcd.lagMs = 0);
      case "arbiter lossy":
        etcd.loss = random.between(0.1, 0.6);
        return this.#later(() => etcd.loss = 0);
      case "arbiter cut off":
        etcd.isCutOff[host.index] = true;
        return this.#later(() => etcd.isCutOff[host.index] = false);
      case "ordered elsewhere":
        return this.#orderElsewhere();
    }
  }

  /** The VM's host is seen neither by the other one nor by the arbiter, so that only its lease is left. */
  #orderElsewhere(): void {
    const { sim, network, etcd, hosts, checkers } = this.world;
    // Without a lease it is the operator who has to see to the end of the other VM first.
    if (this.world.arbiterKind !== "etcd") return;
    const vmHost = hosts.find(({ vm }) => vm !== undefined);
    if (vmHost === undefined) return;
    const other = hosts[1 - vmHost.index]!;
    checkers.harmed(other);
    network.cut();
    other.killEngine();
    sim.after(sim.random.between(...BEFORE_ORDER_MS), () => {
      if (this.#isOver) return;
      etcd.isCutOff[vmHost.index] = true;
      this.#order(other, ORDERS);
      sim.after(ORDERS * ORDER_MS, () => {
        network.heal();
        etcd.isCutOff[vmHost.index] = false;
      });
    });
  }

  /** An operator who does not see the VM orders it to be run on a host that has no share in it. */
  #order(host: Host, attempts: number): void {
    const { sim, checkers } = this.world;
    if (this.#isOver || attempts === 0 || !host.isUp || host.vm !== undefined) return;
    const { secondary } = host;
    const isIdle = IDLE.includes(secondary?.machine.phase ?? "");
    if (isIdle && !secondary?.arbitration.isClaiming) {
      checkers.harmed(host);
      host.takeEngineAway();
      host.run();
    }
    sim.after(ORDER_MS, () => this.#order(host, attempts - 1));
  }

  #killVm(host: Host): void {
    const { vm } = host;
    if (vm === undefined) return;
    this.world.checkers.losing(host, true);
    vm.kill();
  }

  #later(work: () => void): void {
    const { sim } = this.world;
    const [minMs, maxMs] = sim.random.chance(0.5) ? SHORT_MS : LONG_MS;
    sim.after(sim.random.between(minMs, maxMs), () => {
      if (!this.#isOver) sim.trace("FAULT", () => "is over");
      work();
    });
  }
}
