/**
 * Two network namespaces with a cable between them, whose speed can be set.
 *
 * @module
 */

import { run, which } from "../../engine/vm/run.ts";
import { Namespaces, type NetworkPair, type NetworkSide, whyNoNamespaces } from "./namespaces.ts";

/** Speeds of the cable, as `tc` knows them, with a bucket that holds about 1 ms or one large packet. */
const BURSTS = { "1gbit": "256kb", "100mbit": "128kb" } as const;

/** Speed of the cable; unshaped when left out. */
export type LinkRate = keyof typeof BURSTS;

/** What may wait before the bucket; more would be dropped. */
const QUEUE = "50ms";

const INTERFACE = "veth0";

const ROLES = ["primary", "secondary"] as const;

/** The namespaces of one benchmark. */
export class ShapedNetwork implements NetworkPair {
  readonly primary: NetworkSide;
  readonly secondary: NetworkSide;
  readonly #namespaces: Namespaces<typeof ROLES[number]>;

  private constructor(namespaces: Namespaces<typeof ROLES[number]>) {
    this.#namespaces = namespaces;
    this.primary = { address: "10.213.77.1", prefix: namespaces.prefix("primary") };
    this.secondary = { address: "10.213.77.2", prefix: namespaces.prefix("secondary") };
  }

  /** Why there can be none on this machine, or nothing. */
  static async whyNot(): Promise<string | undefined> {
    const why = await whyNoNamespaces();
    if (why !== undefined) return why;
    return await which("tc") === undefined ? "`tc` is missing: install iproute2" : undefined;
  }

  /** @throws {ColoError} when the kernel refuses; nothing is left behind */
  static async create(): Promise<ShapedNetwork> {
    const namespaces = await Namespaces.create(ROLES);
    const network = new ShapedNetwork(namespaces);
    await namespaces.build(async () => {
      const peer = ["peer", "name", INTERFACE, "netns", namespaces.name("secondary")];
      await namespaces.ip("primary", "link", "add", INTERFACE, "type", "veth", ...peer);
      for (const role of ROLES) {
        const address = `${network[role].address}/30`;
        await namespaces.ip(role, "address", "add", address, "dev", INTERFACE);
        await namespaces.ip(role, "link", "set", INTERFACE, "up");
      }
    });
    return network;
  }

  /** Set the speed in both directions. */
  async shape(rate: LinkRate): Promise<void> {
    const bucket = ["rate", rate, "burst", BURSTS[rate], "latency", QUEUE];
    for (const role of ROLES) await this.#tc(role, "replace", "root", "tbf", ...bucket);
  }

  /** Take the limits away. */
  async unshape(): Promise<void> {
    // There is nothing to delete on a cable that has not been shaped.
    for (const role of ROLES) await this.#tc(role, "delete", "root").catch(() => {});
  }

  /** Remove the namespaces, and the cable with them. */
  async close(): Promise<void> {
    await this.#namespaces.close();
  }

  async #tc(
    role: typeof ROLES[number],
    verb: "replace" | "delete",
    ...args: readonly string[]
  ): Promise<void> {
    const name = this.#namespaces.name(role);
    await run("tc", ["-n", name, "qdisc", verb, "dev", INTERFACE, ...args]);
  }
}
