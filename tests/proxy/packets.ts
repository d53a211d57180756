/**
 * Writes packets the slow way, for tests: Ethernet, VLAN, IPv4, IPv6, TCP, UDP, ICMP, fragments, and
 * the records in which a chardev carries them. Checksums are left 0: nobody here looks at them.
 *
 * @module
 */

import { concat } from "../wasm/ram_records.ts";

export { concat };

type Bytes = Uint8Array<ArrayBuffer>;

/** TCP's flags. */
export const TCP_FLAG = { FIN: 1, SYN: 2, RST: 4, PSH: 8, ACK: 16 } as const;

export function be16(...values: readonly number[]): Bytes {
  return Uint8Array.from(values.flatMap((value) => [value >>> 8, value]));
}

export function be32(...values: readonly number[]): Bytes {
  return Uint8Array.from(
    values.flatMap((value) => [value >>> 24, value >>> 16, value >>> 8, value]),
  );
}

/** Bytes of a text, or as many zero bytes as a number says. */
export function body(content: string | number | Uint8Array): Bytes {
  if (typeof content === "number") return new Uint8Array(content);
  return new Uint8Array(typeof content === "string" ? new TextEncoder().encode(content) : content);
}

/** A record of a chardev. */
export function record(frame: Uint8Array): Bytes {
  return concat([be32(frame.length), frame]);
}

/** A record with a vnet header. */
export function vnetRecord(frame: Uint8Array, vnetHeader: Uint8Array = new Uint8Array(12)): Bytes {
  return concat([be32(frame.length + vnetHeader.length, vnetHeader.length), vnetHeader, frame]);
}

export interface LinkOptions {
  /** VLAN ids, the outer one first. */
  readonly vlan?: readonly number[];
  /** Zero bytes behind the packet. */
  readonly padding?: number;
}

export function ethernet(type: number, payload: Uint8Array, options: LinkOptions = {}): Bytes {
  const tags = (options.vlan ?? []).flatMap((id) => [...be16(0x8100, id)]);
  const macs = [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1];
  return Uint8Array.from([
    ...macs,
    ...tags,
    ...be16(type),
    ...payload,
    ...new Uint8Array(options.padding ?? 0),
  ]);
}

export interface IpOptions extends LinkOptions {
  readonly version?: 4 | 6;
  /** Last byte of the addresses. */
  readonly source?: number;
  readonly destination?: number;
  /** IPv4 identification. */
  readonly id?: number;
  readonly ttl?: number;
  /** IPv4 options; a multiple of four bytes. */
  readonly ipOptions?: Uint8Array;
  /** IPv6 extension headers. */
  readonly extensions?: readonly { readonly type: number; readonly bytes: Uint8Array }[];
  /** IPv4: of the fragment field, offset in units of eight bytes and flags. */
  readonly fragment?: number;
}

/** A whole frame with an IP datagram. */
export function ip(protocol: number, payload: Uint8Array, options: IpOptions = {}): Bytes {
  const { source = 1, destination = 2 } = options;
  if (options.version === 6) return ipv6(protocol, payload, options);
  const extra = options.ipOptions ?? new Uint8Array();
  const header = [
    0x45 + extra.length / 4,
    0,
    ...be16(20 + extra.length + payload.length, options.id ?? 0, options.fragment ?? 0),
    options.ttl ?? 64,
    protocol,
    ...[0, 0],
    ...[10, 0, 0, source],
    ...[10, 0, 0, destination],
    ...extra,
  ];
  return ethernet(0x0800, Uint8Array.from([...header, ...payload]), options);
}

function ipv6(protocol: number, payload: Uint8Array, options: IpOptions): Bytes {
  const { source = 1, destination = 2, extensions = [] } = options;
  const types = [...extensions.map(({ type }) => type), protocol];
  const headers = extensions.map(({ bytes }, index) => {
    const header = new Uint8Array(bytes);
    header[0] = types[index + 1]!;
    return header;
  });
  const body = concat([...headers, payload]);
  const address = (last: number) => [0xfd, ...new Uint8Array(14), last];
  const header = [
    ...[0x60, 0, 0, 0],
    ...be16(body.length),
    types[0]!,
    options.ttl ?? 64,
    ...address(source),
    ...address(destination),
  ];
  return ethernet(0x86dd, Uint8Array.from([...header, ...body]), options);
}

export interface TcpOptions extends IpOptions {
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  readonly seq?: number;
  readonly ack?: number;
  readonly flags?: number;
  /** TCP options; a multiple of four bytes. */
  readonly tcpOptions?: Uint8Array;
  readonly data?: string | number | Uint8Array;
}

/** The TCP segment alone. */
export function tcpSegment(options: TcpOptions): Bytes {
  const { sourcePort = 80, destinationPort = 4000, seq = 0, ack = 0 } = options;
  const extra = options.tcpOptions ?? new Uint8Array();
  return concat([
    be16(sourcePort, destinationPort),
    be32(seq, ack),
    Uint8Array.of((20 + extra.length) << 2, options.flags ?? TCP_FLAG.ACK),
    be16(1000, 0, 0),
    extra,
    body(options.data ?? 0),
  ]);
}

/** A whole frame. */
export function tcp(options: TcpOptions = {}): Bytes {
  return ip(6, tcpSegment(options), options);
}

export interface UdpOptions extends IpOptions {
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  readonly data?: string | number | Uint8Array;
}

export function udpDatagram(options: UdpOptions): Bytes {
  const { sourcePort = 53, destinationPort = 4000 } = options;
  const data = body(options.data ?? 0);
  return concat([be16(sourcePort, destinationPort, 8 + data.length, 0), data]);
}

/** A whole frame. */
export function udp(options: UdpOptions = {}): Bytes {
  return ip(17, udpDatagram(options), options);
}

/** An echo reply. */
export function icmp(
  options: IpOptions & { readonly echoId?: number; readonly data?: string } = {},
): Bytes {
  const isVersion6 = options.version === 6;
  const message = concat([
    Uint8Array.of(isVersion6 ? 129 : 0, 0),
    be16(0, options.echoId ?? 7, 1),
    body(options.data ?? 0),
  ]);
  return ip(isVersion6 ? 58 : 1, message, options);
}

export function arp(last = 1): Bytes {
  return ethernet(0x0806, Uint8Array.from({ length: 28 }, (_, i) => i + last));
}

/** Cut an IP payload into fragments of at most `pieceBytes` (a multiple of eight). */
export function fragments(
  protocol: number,
  payload: Uint8Array,
  pieceBytes: number,
  options: IpOptions = {},
): Bytes[] {
  const frames: Bytes[] = [];
  for (let at = 0; at < payload.length; at += pieceBytes) {
    const piece = payload.subarray(at, at + pieceBytes);
    const more = at + pieceBytes < payload.length;
    frames.push(fragment(protocol, piece, at, more, options));
  }
  return frames;
}

/** One fragment. */
export function fragment(
  protocol: number,
  piece: Uint8Array,
  offset: number,
  more: boolean,
  options: IpOptions = {},
): Bytes {
  if (options.version !== 6) {
    return ip(protocol, piece, { ...options, fragment: offset / 8 | (more ? 0x2000 : 0) });
  }
  const bytes = concat([
    Uint8Array.of(0, 0),
    be16(offset | Number(more)),
    be32(options.id ?? 0),
  ]);
  return ip(protocol, piece, { ...options, extensions: [{ type: 44, bytes }] });
}

/** An IPv6 extension header of `units` + 1 times eight bytes. */
export function extension(type: number, units = 0): { type: number; bytes: Bytes } {
  const bytes = new Uint8Array(8 + 8 * units);
  bytes[1] = units;
  return { type, bytes };
}
