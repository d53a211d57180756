/**
 * Two network namespaces with a cable between them, whose speed can be set.
 *
 * @module
 */

import { ColoError } from "../../engine/errors.ts";
import { run, which } from "../../engine/vm/run.ts";

/** One end. */
export interface NetworkSide {
  readonly address: string;
  /** Put before a command, runs it there. */
  readonly prefix: readonly string[];
}

/** Speeds of the cable, as `tc` knows them, with a bucket that holds about 1 ms or one large packet. */
const BURSTS = { "1gbit": "256kb", "100mbit": "128kb" } as const;

/** Speed of the cable; unshaped when left out. */
export type LinkRate = keyof typeof BURSTS;

/** What may wait before the bucket; more would be dropped. */
const QUEUE = "50ms";

const INTERFACE = "veth0";

/** The namespaces of one benchmark. */
export class ShapedNetwork {
  private constructor(
    readonly primary: NetworkSide,
    readonly secondary: NetworkSide,
    readonly names: readonly [primary: string, secondary: string],
  ) {}

  /** Why there can be none on this machine, or nothing. */
  static async whyNot(): Promise<string | undefined> {
    if (Deno.uid() !== 0) return "network namespaces need root";
    for (const program of ["ip", "tc"]) {
      if (await which(program) === undefined) return `\`${program}\` is missing: install iproute2`;
    }
    return undefined;
  }

  /** @throws {ColoError} when the kernel refuses; nothing is left behind */
  static async create(): Promise<ShapedNetwork> {
    const names = [`colo-bench-${Deno.pid}-p`, `colo-bench-${Deno.pid}-s`] as const;
    const [primary, secondary] = names.map((name, index): NetworkSide => ({
      address: `10.213.77.${index + 1}`,
      prefix: ["ip", "netns", "exec", name],
    }));
    const network = new ShapedNetwork(primary!, secondary!, names);
    try {
      for (const name of names) await run("ip", ["netns", "add", name]);
      const peer = ["peer", "name", INTERFACE, "netns", names[1]];
      await run("ip", ["-n", names[0], "link", "add", INTERFACE, "type", "veth", ...peer]);
      for (const [index, name] of names.entries()) {
        const { address } = index === 0 ? network.primary : network.secondary;
        await run("ip", ["-n", name, "address", "add", `${address}/30`, "dev", INTERFACE]);
        for (const device of ["lo", INTERFACE]) {
          await run("ip", ["-n", name, "link", "set", device, "up"]);
        }
      }
      return network;
    } catch (error) {
      await network.close();
      const detail = error instanceof Error ? error.message : String(error);
      throw new ColoError(`Cannot make network namespaces: ${detail}`, { cause: error });
    }
  }

  /** Set the speed in both directions. */
  async shape(rate: LinkRate): Promise<void> {
    const bucket = ["rate", rate, "burst", BURSTS[rate], "latency", QUEUE];
    for (const name of this.names) {
      await run("tc", ["-n", name, "qdisc", "replace", "dev", INTERFACE, "root", "tbf", ...bucket]);
    }
  }

  /** Take the limits away. */
  async unshape(): Promise<void> {
    for (const name of this.names) {
      // There is nothing to delete on a cable that has not been shaped.
      await run("tc", ["-n", name, "qdisc", "delete", "dev", INTERFACE, "root"]).catch(() => {});
    }
  }

  /** Remove the namespaces, and the cable with them. */
  async close(): Promise<void> {
    for (const name of this.names) await run("ip", ["netns", "delete", name]).catch(() => {});
  }
}
