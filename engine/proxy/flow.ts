/**
 * A frame's flow as an object and as a text, for rules and messages: the slow way.
 *
 * @module
 */

import { FRAME, FRAME_IPV6, FRAME_KIND } from "../../wasm/mod.ts";
import type { Flow } from "./flow_rules.ts";
import type { FrameStore } from "./frame_store.ts";

/** The flow of a frame that has one ({@linkcode FRAME_KIND.TCP} and above). */
export function flowOf({ entries, kernels }: FrameStore, frame: number): Flow {
  const protocol = entries[frame + FRAME.PROTOCOL]!;
  const size = (protocol & FRAME_IPV6) !== 0 ? 16 : 4;
  const at = entries[frame + FRAME.ADDRESSES]!;
  const kind = entries[frame + FRAME.KIND]!;
  const hasPorts = kind === FRAME_KIND.TCP || kind === FRAME_KIND.UDP;
  const ports = hasPorts ? entries[frame + FRAME.PORTS]! : 0;
  return {
    source: kernels.bytes.slice(at, at + size),
    destination: kernels.bytes.slice(at + size, at + 2 * size),
    protocol: protocol & 0xff,
    sourcePort: ports >>> 16,
    destinationPort: ports & 0xffff,
  };
}

const NAMES: Readonly<Record<number, string>> = { 1: "icmp", 6: "tcp", 17: "udp", 58: "icmp" };

/** Such as `tcp 10.0.0.1:80 > 10.0.0.2:4000`, or `not IP`. */
export function describeFrame(store: FrameStore, frame: number): string {
  if (store.entries[frame + FRAME.KIND]! <= FRAME_KIND.MALFORMED) return "not IP";
  const { protocol, source, sourcePort, destination, destinationPort } = flowOf(store, frame);
  const name = NAMES[protocol] ?? `protocol ${protocol}`;
  const [from, to] = [[source, sourcePort], [destination, destinationPort]] as const;
  return `${name} ${describeEnd(...from)} > ${describeEnd(...to)}`;
}

function describeEnd(address: Uint8Array, port: number): string {
  const text = formatAddress(address);
  if (port === 0) return text;
  return address.length === 4 ? `${text}:${port}` : `[${text}]:${port}`;
}

/** An address as text; the first of the longest runs of zero groups is left out (RFC 5952). */
export function formatAddress(address: Uint8Array): string {
  if (address.length === 4) return address.join(".");
  const groups = Array.from(
    { length: 8 },
    (_, i) => (address[2 * i]! << 8 | address[2 * i + 1]!).toString(16),
  );
  const runs = [...groups.join(":").matchAll(/(?<![0-9a-f])0(?::0)+(?![0-9a-f])/g)];
  const [longest] = runs.toSorted((a, b) => b[0].length - a[0].length);
  if (longest === undefined) return groups.join(":");
  const text = longest.input;
  const front = text.slice(0, longest.index).replace(/:$/, "");
  const back = text.slice(longest.index + longest[0].length).replace(/^:/, "");
  return `${front}::${back}`;
}
