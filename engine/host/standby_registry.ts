/**
 * One engine's dealings with the registry of standby hosts: it offers itself, or looks who does.
 *
 * @module
 */

import type { VmConfig } from "../config/mod.ts";
import { messageOf } from "../errors.ts";
import { EtcdClient } from "../failover/etcd.ts";
import { EtcdStandbys, type Standby } from "../failover/etcd_standbys.ts";
import type { LinkAddress } from "../link/mod.ts";

/** The part of {@linkcode EtcdStandbys} that is used. */
export type Standbys = Pick<EtcdStandbys, "offer" | "withdraw" | "list">;

/** An offer is renewed so many times within its length. */
const OFFERS = 3;

/** Addresses at which nobody else reaches this host. */
const WILDCARDS: readonly string[] = ["0.0.0.0", "::"];

/** The registry that a config names, or none. */
export function createStandbys(config: VmConfig): Standbys | undefined {
  const { vm, failover, replication: { encryption } } = config;
  if (failover.arbiter !== "etcd") return undefined;
  return new EtcdStandbys(new EtcdClient({ endpoints: failover.endpoints }), {
    vm: vm.name,
    ttlMs: failover.leaseMs,
    reach: encryption === "none" ? "network" : "host",
  });
}

/** Offers one standby, from the first call on until it is withdrawn. */
export class StandbyOffer {
  readonly #standbys: Standbys;
  readonly #standby: Standby;
  readonly #intervalMs: number;
  readonly #notice: (text: string) => void;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #offering: Promise<void> = Promise.resolve();
  #said = "";
  #isOver = false;

  /** @param leaseMs How long it is offered when this engine says nothing more */
  constructor(
    standbys: Standbys,
    standby: Standby,
    leaseMs: number,
    notice: (text: string) => void,
  ) {
    this.#standbys = standbys;
    this.#standby = standby;
    this.#intervalMs = leaseMs / OFFERS;
    this.#notice = notice;
    const { address } = standby;
    if (address.transport === "tcp" && WILDCARDS.includes(address.hostname)) {
      this.#isOver = true;
      notice(
        "this standby is offered to nobody: it listens at every address, and which of them others " +
          "reach is not said; name one in replication.listen",
      );
    }
    this.#offer();
  }

  /** Offer it no more. Never throws: what cannot be withdrawn ends by itself. */
  async withdraw(): Promise<void> {
    if (this.#isOver) return;
    this.#isOver = true;
    clearTimeout(this.#timer);
    await this.#offering;
    await this.#standbys.withdraw().catch(() => {});
  }

  #offer(): void {
    if (this.#isOver) return;
    this.#offering = this.#standbys.offer(this.#standby).then(
      () => this.#said = "",
      (error) => {
        const reason = messageOf(error);
        if (reason !== this.#said) this.#notice(`Cannot offer this standby: ${reason}`);
        this.#said = reason;
      },
    ).then(() => {
      if (!this.#isOver) this.#timer = setTimeout(() => this.#offer(), this.#intervalMs);
    });
  }
}

/** Between two looks into the registry. */
const LOOK_MS = 1000;

/** Where a primary finds its secondary: at the address that was ordered, else its peer's, else registered. */
export class SecondaryFinder {
  readonly #peer: LinkAddress | undefined;
  readonly #standbys: Standbys | undefined;
  readonly #ownId: string;
  #ordered: LinkAddress | undefined;
  #registered: readonly LinkAddress[] = [];
  #lookedMs = -Infinity;

  /** @param ownId What this engine may have been registered as itself */
  constructor(peer: LinkAddress | undefined, standbys: Standbys | undefined, ownId: string) {
    this.#peer = peer;
    this.#standbys = standbys;
    this.#ownId = ownId;
  }

  /** Take this one and no other from now on. */
  order(address: LinkAddress): void {
    this.#ordered = address;
  }

  /**
   * To be tried in this order. Where a peer is known the registry is not waited for: what it says counts
   * the next time.
   *
   * @param nowMs Of a clock that only goes forward
   */
  async candidates(nowMs: number): Promise<readonly LinkAddress[]> {
    if (this.#ordered !== undefined) return [this.#ordered];
    const looking = this.#look(nowMs);
    if (this.#peer === undefined) await looking;
    return [...(this.#peer === undefined ? [] : [this.#peer]), ...this.#registered];
  }

  async #look(nowMs: number): Promise<void> {
    if (this.#standbys === undefined || nowMs - this.#lookedMs < LOOK_MS) return;
    this.#lookedMs = nowMs;
    try {
      const standbys = await this.#standbys.list();
      this.#registered = standbys.filter(({ id }) => id !== this.#ownId)
        .map(({ address }) => address);
    } catch {
      // Who was there is there for all we know; that etcd is away is said where it matters.
    }
  }
}
