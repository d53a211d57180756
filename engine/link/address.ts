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

/**
 * Read an address.
 *
 * The link is not encrypted yet, so only this machine's own addresses are taken.
 *
 * @throws {ConfigError} when it is none, or not one of this machine
 */
export function parseAddress(text: string): LinkAddress {
  if (text.startsWith("unix:")) {
    const path = text.slice("unix:".length);
    if (path === "") throw new ConfigError(`Cannot use address "${text}": the path is missing`);
    return { transport: "unix", path };
  }
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:\s]+)):(\d{1,5})$/.exec(text);
  const hostname = match?.[1] ?? match?.[2];
  const port = Number(match?.[3]);
  if (hostname === undefined || port < 1 || port > 65535) {
    throw new ConfigError(
      `Cannot use address "${text}": write it as 127.0.0.1:7700, [::1]:7700 or unix:/path`,
    );
  }
  if (!/^127\.\d+\.\d+\.\d+$|^::1$|^localhost$/.test(hostname)) {
    throw new ConfigError(
      `Cannot use address "${text}": the link is not encrypted yet, so only loopback addresses ` +
        "(127.0.0.1, [::1]) and unix sockets are taken",
    );
  }
  return { transport: "tcp", hostname, port };
}

/** The address as {@linkcode parseAddress} reads it. */
export function formatAddress(address: LinkAddress): string {
  if (address.transport === "unix") return `unix:${address.path}`;
  const { hostname, port } = address;
  return hostname.includes(":") ? `[${hostname}]:${port}` : `${hostname}:${port}`;
}
