/**
 * Hosts that offer to take a VM's secondary: each has a key in etcd for as long as it keeps its lease.
 *
 * ```text
 *  colo/VM/standby/ID   {"address":"10.0.0.2:7700"}
 * ```
 *
 * @module
 */

import { ArbiterError } from "../errors.ts";
import { STANDBYS_MAX } from "../limits.ts";
import { formatAddress, type LinkAddress, parseAddress } from "../link/address.ts";
import type { Unreachable } from "./arbiter.ts";
import type { EtcdClient } from "./etcd.ts";
import { NOT_FOUND } from "./etcd_wire.ts";
import { LEASE_TTL_MS } from "./lease.ts";

/** A host that offers itself. */
export interface Standby {
  /** Id of its engine, as for claims */
  readonly id: string;
  readonly address: LinkAddress;
}

/** Whose standbys these are. */
export interface StandbysOptions {
  /** Name of the VM */
  readonly vm: string;
  /** How long one that says nothing is offered; 5000 if absent. */
  readonly ttlMs?: number | undefined;
  /** `host`: only this machine's addresses are taken, as by {@linkcode parseAddress} */
  readonly reach: "host" | "network";
}

/** The standbys of one VM. Each call throws {@linkcode ArbiterError} when etcd cannot be asked. */
export class EtcdStandbys {
  readonly #client: EtcdClient;
  readonly #prefix: string;
  readonly #ttlMs: number;
  readonly #reach: "host" | "network";
  /** Lease of the standby that this engine offers. */
  #lease: string | undefined;

  constructor(client: EtcdClient, { vm, ttlMs, reach }: StandbysOptions) {
    this.#client = client;
    this.#prefix = `colo/${vm}/standby/`;
    this.#ttlMs = ttlMs ?? LEASE_TTL_MS;
    this.#reach = reach;
  }

  /** Offer a standby, and go on offering it: to be called every third of the lease. */
  async offer(standby: Standby): Promise<void> {
    if (this.#lease !== undefined && await this.#client.keepLease(this.#lease)) return;
    const { id } = await this.#client.grantLease(Math.ceil(this.#ttlMs / 1000));
    const value = encodeStandby(standby);
    await this.#client.put({ key: `${this.#prefix}${standby.id}`, value, lease: id });
    this.#lease = id;
  }

  /** Offer it no more. */
  async withdraw(): Promise<void> {
    const lease = this.#lease;
    this.#lease = undefined;
    if (lease === undefined) return;
    try {
      await this.#client.revokeLease(lease);
    } catch (error) {
      // It has ended by itself.
      if (!(error instanceof ArbiterError && error.code === NOT_FOUND)) throw error;
    }
  }

  /** Those that are offered now, in the order of their ids. What is no address is passed over. */
  async list(): Promise<readonly Standby[]> {
    const entries = await this.#client.list(this.#prefix, STANDBYS_MAX);
    return entries.flatMap(({ key, value }) => {
      const address = decodeAddress(value, this.#reach);
      return address === undefined ? [] : [{ id: key.slice(this.#prefix.length), address }];
    });
  }
}

/** What has become of the standbys between two looks. */
export interface StandbyChanges {
  readonly added: readonly Standby[];
  readonly removed: readonly Standby[];
}

/** Compare two looks. One that has moved is removed and added. Pure. */
export function standbyChanges(
  before: readonly Standby[],
  after: readonly Standby[],
): StandbyChanges {
  const missing = (from: readonly Standby[], of: readonly Standby[]) => {
    const known = new Set(of.map((standby) => `${standby.id} ${encodeStandby(standby)}`));
    return from.filter((standby) => !known.has(`${standby.id} ${encodeStandby(standby)}`));
  };
  return { added: missing(after, before), removed: missing(before, after) };
}

/** What a watcher is told. */
export type StandbyNews =
  /** The first look, or another one than before. */
  | { readonly type: "standbys"; readonly standbys: readonly Standby[] } & StandbyChanges
  /** Said once; what was offered before still counts. */
  | Unreachable;

/**
 * Look again and again, and tell what has changed.
 *
 * @param look {@linkcode EtcdStandbys.list}
 * @param wait Waits for the next look; `false` ends it
 */
export async function* watchStandbys(
  look: () => Promise<readonly Standby[]>,
  wait: () => Promise<boolean>,
): AsyncGenerator<StandbyNews> {
  let known: readonly Standby[] | undefined;
  let isReached = true;
  do {
    const seen = await look().catch((error) => {
      if (error instanceof ArbiterError) return error;
      throw error;
    });
    if (seen instanceof ArbiterError) {
      if (isReached) yield { type: "unreachable", reason: seen.message };
      isReached = false;
      continue;
    }
    const changes = standbyChanges(known ?? [], seen);
    const isNews = known === undefined || !isReached ||
      changes.added.length + changes.removed.length > 0;
    known = seen;
    isReached = true;
    if (isNews) yield { type: "standbys", standbys: seen, ...changes };
  } while (await wait());
}

function encodeStandby({ address }: Standby): string {
  return JSON.stringify({ address: formatAddress(address) });
}

/** @returns Nothing where it is no address, or one that this engine may not connect to */
function decodeAddress(text: string, reach: "host" | "network"): LinkAddress | undefined {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value !== "object" || value === null || !("address" in value)) return undefined;
    return typeof value.address === "string"
      ? parseAddress(value.address, undefined, reach)
      : undefined;
  } catch {
    return undefined;
  }
}
