/**
 * Where an engine listens or connects: `127.0.0.1:7700`, `[::1]:7700` or `unix:/run/colo.sock`.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";

/** A place to listen at or to connect to. */
export type LinkAddress =
  | { readonly transport: "tcp"; readonly hostname: string; readonly port: number }
  | { readonly transport: "unix"; readonly path: string };

const FORM = "write it as 127.0.0.1:7700, [::1]:7700 or unix:/path";

/**
 * Read an address.
 *
 * The link is not encrypted, so only this machine's own addresses are taken unless the caller asks
 * for others.
 *
 * @param fail Throws what is wrong, where the caller can say it better
 * @param reach `network` takes addresses of other machines too
 * @throws {ConfigError} when it is none, or out of reach
 */
export function parseAddress(
  text: string,
  fail: (detail: string) => never = (detail) => {
    throw new ConfigError(`Cannot use address ${JSON.stringify(text)}: ${detail}`);
  },
  reach: "host" | "network" = "host",
): LinkAddress {
  if (text.startsWith("unix:")) {
    const path = text.slice("unix:".length);
    return path === "" ? fail("the path is missing") : { transport: "unix", path };
  }
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:\s]+)):(\d{1,5})$/.exec(text);
  const hostname = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (hostname === undefined || port < 1 || port > 65535) return fail(FORM);
  if (/^[\d.]+$/.test(hostname) && !isIpv4(hostname)) return fail(FORM);
  if (reach === "host" && !/^127\.[\d.]+$|^::1$|^localhost$/.test(hostname)) {
    return fail(
      "the link is not encrypted, so only loopback addresses (127.0.0.1, [::1]) and unix sockets " +
        'are taken; on a network that you trust, set replication.encryption = "none"',
    );
  }
  return { transport: "tcp", hostname, port };
}

function isIpv4(text: string): boolean {
  const octets = text.split(".");
  // No leading zeros: some systems take them for octal.
  const isOctet = (octet: string) => /^(0|[1-9]\d{0,2})$/.test(octet) && Number(octet) <= 255;
  return octets.length === 4 && octets.every(isOctet);
}

/** The address as {@linkcode parseAddress} reads it. */
export function formatAddress(address: LinkAddress): string {
  if (address.transport === "unix") return `unix:${address.path}`;
  const { hostname, port } = address;
  return hostname.includes(":") ? `[${hostname}]:${port}` : `${hostname}:${port}`;
}
