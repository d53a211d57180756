/**
 * Two hosts, a third where it is wanted, and a client on one switch, each a network namespace of its own. No traffic leaves them.
 *
 * ```text
 *    host A                 host B               client
 *   tap0   uplink          tap0   uplink         uplink
 *    :     /                :     /                |
 *    br0 -'                 br0 -'                 |
 *          \                      \                |
 *   - - - - host-a - - - - - - - - host-b - - - - client - - -  ports of the bridge `switch`
 * ```
 *
 * A guest runs on `tap0` of a host, which is up, and in no bridge until somebody puts it there: the
 * engine, or {@linkcode Hosts.plug}.
 *
 * @module
 */

import { ColoError } from "../../engine/errors.ts";
import { Namespaces, type NetworkSide, whyNoNamespaces } from "./namespaces.ts";

/** Interfaces of a host: what goes into `netdev` and `bridge` of a `[[vm.nics]]`. */
export const TAP = "tap0";
export const BRIDGE = "br0";

/** The guest on whichever host it runs. */
export const GUEST = {
  address: "10.213.78.100",
  address6: "fd00:c010::100",
  mac: "52:54:00:c0:10:02",
  netdev: `tap,ifname=${TAP},script=no,downscript=no`,
  /** Parameters of the demo guest. */
  parameters: "colo.ip=10.213.78.100/24 colo.ip6=fd00:c010::100/64",
} as const;

/** A host, or the client. */
export interface Host extends NetworkSide {
  readonly role: Role;
  readonly address6: string;
}

type Role = "host-a" | "host-b" | "host-c" | "client" | "switch";

const UPLINK = "uplink";
const SWITCH = "switch";

const READY_TIMEOUT_MS = 5000;
const READY_POLL_MS = 20;

/** Nobody else's bridge: frames go everywhere at once, and nothing is sent of its own accord. */
const PLAIN_BRIDGE = [
  "type",
  "bridge",
  "stp_state",
  "0",
  "forward_delay",
  "0",
  "mcast_snooping",
  "0",
];

/** The namespaces of one test or benchmark. */
export class Hosts {
  readonly a: Host;
  readonly b: Host;
  /** Absent unless it is asked for. */
  readonly c: Host | undefined;
  readonly client: Host;
  /** What joins them; it has an interface for each, named after its role. */
  readonly switch: Pick<Host, "prefix">;
  readonly #namespaces: Namespaces<Role>;

  private constructor(namespaces: Namespaces<Role>, third: boolean) {
    const host = (role: Role, number: number): Host => ({
      role,
      address: `10.213.78.${number}`,
      address6: `fd00:c010::${number}`,
      prefix: namespaces.prefix(role),
    });
    this.a = host("host-a", 1);
    this.b = host("host-b", 2);
    this.client = host("client", 3);
    this.c = third ? host("host-c", 4) : undefined;
    this.switch = { prefix: namespaces.prefix("switch") };
    this.#namespaces = namespaces;
  }

  /** Why there can be none on this machine, or nothing: it is tried. */
  static async whyNot(): Promise<string | undefined> {
    const why = await whyNoNamespaces();
    if (why !== undefined) return why;
    if (!await Deno.stat("/dev/net/tun").then(() => true, () => false)) {
      return "/dev/net/tun is missing: load the module tun";
    }
    try {
      await (await Hosts.create()).close();
      return undefined;
    } catch (error) {
      return error instanceof Error ? error.message : String(error);
    }
  }

  /**
   * @param third Whether there is to be a third host
   * @throws {ColoError} when the kernel refuses; nothing is left behind
   */
  static async create(third = false): Promise<Hosts> {
    const roles: readonly Role[] = ["switch", "host-a", "host-b", "client"];
    const namespaces = await Namespaces.create<Role>(third ? [...roles, "host-c"] : roles);
    const hosts = new Hosts(namespaces, third);
    await namespaces.build(() => hosts.#build());
    return hosts;
  }

  async #build(): Promise<void> {
    const ip = this.#namespaces.ip.bind(this.#namespaces);
    await ip("switch", "link", "add", SWITCH, ...PLAIN_BRIDGE);
    await ip("switch", "link", "set", SWITCH, "up", "addrgenmode", "none");
    const hosts = [this.a, this.b, ...this.c === undefined ? [] : [this.c]];
    for (const { role } of [...hosts, this.client]) await this.#trustAddresses(role);
    for (const { role } of [...hosts, this.client]) {
      const peer = ["peer", "name", UPLINK, "netns", this.#namespaces.name(role)];
      await ip("switch", "link", "add", role, "type", "veth", ...peer);
      await ip("switch", "link", "set", role, "master", SWITCH, "up", "addrgenmode", "none");
    }
    for (const host of hosts) await this.#buildHost(host);
    await this.#address(this.client, UPLINK);
    await this.#ready(this.client, UPLINK);
    for (const host of hosts) await this.#ready(host, BRIDGE);
  }

  /** The kernel believes in a cable that was put in after up to a second; IPv6 waits for that. */
  async #ready({ role }: Host, device: string): Promise<void> {
    const deadline = performance.now() + READY_TIMEOUT_MS;
    while (!/ UP /.test(await this.#namespaces.run(role, "ip", "-br", "link", "show", device))) {
      if (performance.now() > deadline) throw new ColoError(`${device} of ${role} has no carrier`);
      await new Promise((resolve) => setTimeout(resolve, READY_POLL_MS));
    }
  }

  /** Nobody else can have an IPv6 address of theirs: to look for such a one would take a second. */
  async #trustAddresses(role: Role): Promise<void> {
    const setting = "/proc/sys/net/ipv6/conf/default/accept_dad";
    await this.#namespaces.run(role, "sh", "-c", `echo 0 >${setting}`);
  }

  async #buildHost(host: Host): Promise<void> {
    const ip = (...args: readonly string[]) => this.#namespaces.ip(host.role, ...args);
    // A bridge without an address of its own takes one of its ports', another when a tap comes in.
    const mac = `02:c0:10:00:00:0${host.address.at(-1)}`;
    await ip("link", "add", BRIDGE, "address", mac, ...PLAIN_BRIDGE);
    await ip("link", "set", UPLINK, "master", BRIDGE, "up", "addrgenmode", "none");
    await this.#address(host, BRIDGE);
    await ip("tuntap", "add", TAP, "mode", "tap");
    await ip("link", "set", TAP, "up", "addrgenmode", "none");
  }

  async #address({ role, address, address6 }: Host, device: string): Promise<void> {
    const ip = (...args: readonly string[]) => this.#namespaces.ip(role, ...args);
    await ip("address", "add", `${address}/24`, "dev", device);
    await ip("address", "add", `${address6}/64`, "dev", device);
    await ip("link", "set", device, "up");
  }

  /** Run a program on a host to its end; returns what it says. */
  async run({ role }: Host, ...command: readonly string[]): Promise<string> {
    return await this.#namespaces.run(role, ...command);
  }

  /** Pull a host's cable out of the switch. */
  async cut({ role }: Host): Promise<void> {
    await this.#namespaces.ip("switch", "link", "set", role, "down");
  }

  /** Put it back; the kernel may take a second to believe in it. */
  async heal({ role }: Host): Promise<void> {
    await this.#namespaces.ip("switch", "link", "set", role, "up");
  }

  /** Have the two hosts not hear each other any more; the client hears both. */
  async separate(): Promise<void> {
    for (const { role } of [this.a, this.b]) {
      await this.#namespaces.run("switch", "bridge", "link", "set", "dev", role, "isolated", "on");
    }
  }

  /** Put a host's tap into its bridge, where no engine does. */
  async plug({ role }: Host): Promise<void> {
    await this.#namespaces.ip(role, "link", "set", TAP, "master", BRIDGE);
  }

  /** Take it out. */
  async unplug({ role }: Host): Promise<void> {
    await this.#namespaces.ip(role, "link", "set", TAP, "nomaster");
  }

  /** Whether a host's tap is in its bridge. */
  async isPlugged({ role }: Host): Promise<boolean> {
    const text = await this.#namespaces.run(role, "ip", "-json", "link", "show", "dev", TAP);
    const [link] = JSON.parse(text) as readonly { readonly master?: string }[];
    if (link === undefined) throw new ColoError(`Cannot find ${TAP} on ${role}: it is gone`);
    return link.master === BRIDGE;
  }

  /** Remove the namespaces, and all that runs in them. */
  async close(): Promise<void> {
    await this.#namespaces.close();
  }
}
