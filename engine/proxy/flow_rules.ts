/**
 * Rules that exclude flows from comparison: the primary's frames of such a flow leave at once, the
 * secondary's are dropped. For what may differ or must not wait, and survives without a takeover.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";

/** A flow that the guest sends; what is absent may be anything. */
export interface FlowRule {
  readonly protocol?: "tcp" | "udp" | "icmp" | number;
  /** The guest's address, or a prefix such as `10.0.0.0/8` or `fd00::/8`. */
  readonly source?: string;
  readonly sourcePort?: number;
  /** The other one's. */
  readonly destination?: string;
  readonly destinationPort?: number;
}

/** A flow as a frame shows it. */
export interface Flow {
  /** 4 or 16 bytes. */
  readonly source: Uint8Array;
  readonly destination: Uint8Array;
  /** IP protocol number. */
  readonly protocol: number;
  /** 0 for protocols without ports. */
  readonly sourcePort: number;
  readonly destinationPort: number;
}

const [TCP, UDP, ICMP, ICMPV6] = [6, 17, 1, 58];
const PROTOCOLS = { tcp: [TCP], udp: [UDP], icmp: [ICMP, ICMPV6] } as const;

/**
 * Make a function of rules.
 *
 * @returns Whether any of the rules is for a flow
 * @throws {ConfigError} when a rule makes no sense
 *
 * @example
 * ```ts
 * import { compileFlowRules, parseAddress } from "./flow_rules.ts";
 *
 * const isExcluded = compileFlowRules([{ protocol: "udp", destinationPort: 123 }]);
 * const [source, destination] = [parseAddress("10.0.0.1"), parseAddress("10.0.0.2")];
 * const flow = { source, destination, protocol: 17, sourcePort: 4000, destinationPort: 123 };
 * if (!isExcluded(flow) || isExcluded({ ...flow, protocol: 6 })) throw new Error("not as expected");
 * ```
 */
export function compileFlowRules(rules: readonly FlowRule[]): (flow: Flow) => boolean {
  const compiled = rules.map(compile);
  return (flow) => compiled.some((matches) => matches(flow));
}

function compile(rule: FlowRule): (flow: Flow) => boolean {
  const protocols = protocolsOf(rule.protocol);
  const source = prefixOf(rule.source);
  const destination = prefixOf(rule.destination);
  const [sourcePort, destinationPort] = [rule.sourcePort, rule.destinationPort].map(checkedPort);
  return (flow) =>
    (protocols === undefined || protocols.includes(flow.protocol)) &&
    (source === undefined || contains(source, flow.source)) &&
    (destination === undefined || contains(destination, flow.destination)) &&
    (sourcePort === undefined || sourcePort === flow.sourcePort) &&
    (destinationPort === undefined || destinationPort === flow.destinationPort);
}

function protocolsOf(protocol: FlowRule["protocol"]): readonly number[] | undefined {
  if (protocol === undefined) return undefined;
  if (typeof protocol !== "number") return PROTOCOLS[protocol];
  if (Number.isInteger(protocol) && protocol >= 0 && protocol <= 255) return [protocol];
  throw new ConfigError(`Cannot use protocol ${protocol} in a rule: it must be 0 to 255`);
}

function checkedPort(port: number | undefined): number | undefined {
  if (port === undefined || Number.isInteger(port) && port >= 0 && port <= 65535) return port;
  throw new ConfigError(`Cannot use port ${port} in a rule: it must be 0 to 65535`);
}

interface Prefix {
  readonly address: Uint8Array;
  readonly bits: number;
}

function prefixOf(text: string | undefined): Prefix | undefined {
  if (text === undefined) return undefined;
  const [addressText = "", bitsText, ...more] = text.split("/");
  const address = parseAddress(addressText);
  const bits = bitsText === undefined ? address.length * 8 : Number(bitsText);
  const isRight = more.length === 0 && (bitsText === undefined || /^\d+$/.test(bitsText)) &&
    bits <= address.length * 8;
  if (isRight) return { address, bits };
  throw new ConfigError(
    `Cannot use prefix "${text}": its length must be 0 to ${address.length * 8}`,
  );
}

function contains({ address, bits }: Prefix, other: Uint8Array): boolean {
  if (address.length !== other.length) return false;
  return address.every((byte, index) => {
    const left = Math.max(0, Math.min(8, bits - 8 * index));
    return (byte ^ other[index]!) >>> (8 - left) === 0;
  });
}

/**
 * The bytes of an IP address in text form (RFC 4291, section 2.2).
 *
 * @throws {ConfigError} when it is none
 */
export function parseAddress(text: string): Uint8Array {
  const bytes = text.includes(":") ? parseIpv6(text) : parseIpv4(text);
  if (bytes !== undefined) return Uint8Array.from(bytes);
  throw new ConfigError(`Cannot use address "${text}": it is neither IPv4 nor IPv6`);
}

function parseIpv4(text: string): readonly number[] | undefined {
  const parts = text.split(".");
  const bytes = parts.map(Number);
  const isRight = parts.length === 4 && parts.every((part) => /^\d{1,3}$/.test(part)) &&
    bytes.every((byte) => byte <= 255);
  return isRight ? bytes : undefined;
}

function parseIpv6(text: string): readonly number[] | undefined {
  const halves = text.split("::");
  if (halves.length > 2) return undefined;
  const [front, back] = halves.map(parseGroups);
  if (front === undefined || halves.length === 2 && back === undefined) return undefined;
  const zeros = 16 - front.length - (back?.length ?? 0);
  if (halves.length === 1 ? zeros !== 0 : zeros < 2) return undefined;
  return [...front, ...new Uint8Array(zeros), ...(back ?? [])];
}

/** Groups of 16 bits, the last two perhaps as an IPv4 address. */
function parseGroups(text: string): readonly number[] | undefined {
  if (text === "") return [];
  const groups = text.split(":");
  const bytes: number[] = [];
  for (const [index, group] of groups.entries()) {
    const part = index === groups.length - 1 && group.includes(".")
      ? parseIpv4(group)
      : parseGroup(group);
    if (part === undefined) return undefined;
    bytes.push(...part);
  }
  return bytes;
}

function parseGroup(group: string): readonly number[] | undefined {
  if (!/^[0-9a-f]{1,4}$/i.test(group)) return undefined;
  const value = parseInt(group, 16);
  return [value >>> 8, value & 0xff];
}
