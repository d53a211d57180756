/**
 * A real pair on two hosts of one network, with a client beside them.
 *
 * @module
 */

import type { DemoSession, SessionOptions } from "../../cli/demo/session.ts";
import type { VmConfig } from "../../engine/config/mod.ts";
import { BRIDGE, GUEST, Hosts } from "../../bench/rig/hosts.ts";
import { Load, PORTS } from "../../bench/rig/load.ts";
import type { LoadOptions } from "../../bench/rig/load_client.ts";
import { withPair } from "./_pair.ts";

const LINK_PORT = 7702;

const BOOT_TIMEOUT_MS = 60_000;

/** The primary on host A, the standby on host B, joined over the switch. */
export async function withHostPair<T>(
  options: Partial<Omit<SessionOptions, "directory" | "prefix">>,
  work: (session: DemoSession, hosts: Hosts) => Promise<T>,
): Promise<T> {
  const hosts = await Hosts.create();
  const address = { transport: "tcp", hostname: hosts.b.address, port: LINK_PORT } as const;
  const configure = (given: VmConfig, side: "primary" | "standby"): VmConfig => {
    const { vm, replication, ...rest } = options.configure?.(given, side) ?? given;
    const nic = { mac: GUEST.mac, netdev: GUEST.netdev, bridge: BRIDGE };
    return {
      ...rest,
      vm: { ...vm, nics: [{ ...nic, model: "virtio-net-pci", vnetHdr: false }] },
      replication: {
        ...replication,
        encryption: "none",
        ...(side === "primary" ? { peer: address } : { listen: address }),
      },
    };
  };
  try {
    return await withPair({
      ...options,
      append: [GUEST.parameters, options.append].filter(Boolean).join(" "),
      configure,
      prefix: { primary: hosts.a.prefix, standby: hosts.b.prefix },
    }, (session) => work(session, hosts));
  } finally {
    await hosts.close();
  }
}

/** Start a client of the guest's web server, if nothing else is said. */
export function loadFrom(
  hosts: Hosts,
  options: Pick<LoadOptions, "load"> & Partial<LoadOptions>,
): Load {
  const port = options.load.kind === "count" ? PORTS.counting : PORTS.web;
  return new Load(hosts.client, {
    server: { address: GUEST.address, port },
    connections: 1,
    durationMs: 3000,
    ...options,
  });
}

/** Wait until the guest's servers answer; those of IPv6 are the last to listen. */
export async function guestAnswers(hosts: Hosts): Promise<void> {
  const client = loadFrom(hosts, {
    server: { address: GUEST.address6, port: PORTS.counting },
    load: { kind: "count" },
    durationMs: BOOT_TIMEOUT_MS,
    answerTimeoutMs: 2000,
  });
  await client.connected;
  await client.stop();
}
