/**
 * Reference kernels of the packet proxy. Sources: QEMU `net/filter-mirror.c` (records), IEEE 802.1Q
 * (tags), RFC 791 (IPv4), RFC 8200 (IPv6 and its extension headers), RFC 6946 (atomic fragments),
 * RFC 9293 (TCP), RFC 768 (UDP), RFC 792 and 4443 (ICMP), RFC 4861 (neighbor discovery).
 *
 * @module
 */

import {
  FRAME,
  FRAME_BYTES_MAX,
  FRAME_ENTRY_BYTES,
  FRAME_IPV6,
  FRAME_KIND,
  FRAME_SCAN,
  PAIR_ENTRY_BYTES,
} from "../kernel_set.ts";
import { byteAt, readU32, writeU32 } from "./memory.ts";
import { isEqual } from "./page.ts";

const VLAN_TAGS: readonly number[] = [0x8100, 0x88a8, 0x9100];
const VLAN_TAGS_MAX = 2;
const EXTENSIONS: readonly number[] = [0, 43, 44, 51, 60, 135];
const EXTENSIONS_MAX = 8;
const [FRAGMENT_HEADER, AUTHENTICATION_HEADER] = [44, 51];
const IP_DATAGRAM_BYTES_MAX = 65535;

type Kind = typeof FRAME_KIND[keyof typeof FRAME_KIND];

/** What an entry says about a frame; words that are absent are 0. */
type Description = Partial<Record<Exclude<keyof typeof FRAME, "KIND">, number>> & {
  readonly KIND: Kind;
};

const MALFORMED: Description = { KIND: FRAME_KIND.MALFORMED };

export function scanFrames(
  bytes: Uint8Array,
  at: number,
  end: number,
  vnetHeader: number,
  seed: number,
  table: number,
  capacity: number,
  out: number,
): number {
  let result: number;
  let position = at;
  let entries = 0;
  while (true) {
    const record = readRecord(bytes, position, end, vnetHeader === 1);
    if (typeof record === "number") {
      result = record;
      break;
    }
    if (entries >= capacity) {
      result = FRAME_SCAN.FULL;
      break;
    }
    const described = describe(bytes, record.frame, record.end);
    const HASH = described.KIND > FRAME_KIND.MALFORMED ? hash(described, seed) : 0;
    writeEntry(bytes, table + entries++ * FRAME_ENTRY_BYTES, {
      ...described,
      HASH,
      START: position,
      SIZE: record.end - position,
    });
    position = record.end;
  }
  writeU32(bytes, out, position);
  writeU32(bytes, out + 4, entries);
  return result;
}

interface FrameRecord {
  /** Address of the Ethernet header. */
  readonly frame: number;
  readonly end: number;
}

/** One complete record, or why there is none at this position. */
function readRecord(
  bytes: Uint8Array,
  at: number,
  end: number,
  hasVnetHeader: boolean,
): FrameRecord | number {
  const prefix = hasVnetHeader ? 8 : 4;
  if (end - at < 4) return FRAME_SCAN.MORE;
  const length = be32(bytes, at);
  if (length === 0 || length > FRAME_BYTES_MAX) return FRAME_SCAN.BAD_LENGTH;
  if (end - at < prefix) return FRAME_SCAN.MORE;
  const vnetLength = hasVnetHeader ? be32(bytes, at + 4) : 0;
  if (vnetLength > length) return FRAME_SCAN.BAD_VNET_LENGTH;
  if (end - at < prefix + length) return FRAME_SCAN.MORE;
  return { frame: at + prefix + vnetLength, end: at + prefix + length };
}

function writeEntry(bytes: Uint8Array, entry: number, described: Description): void {
  bytes.fill(0, entry, entry + FRAME_ENTRY_BYTES);
  for (const [name, value] of Object.entries(described)) {
    writeU32(bytes, entry + FRAME[name as keyof typeof FRAME] * 4, value);
  }
}

/** Ethernet II. */
function describe(bytes: Uint8Array, frame: number, end: number): Description {
  if (end - frame < 14) return MALFORMED;
  let type = be16(bytes, frame + 12);
  let at = frame + 14;
  const ids: number[] = [];
  while (ids.length < VLAN_TAGS_MAX && VLAN_TAGS.includes(type)) {
    if (end - at < 4) return MALFORMED;
    ids.push(be16(bytes, at) & 0xfff);
    type = be16(bytes, at + 2);
    at += 4;
  }
  const VLAN = ids.reduce((vlan, id) => vlan << 12 | id, 0) | ids.length << 24;
  if (type === 0x0800) return withVlan(describeIpv4(bytes, at, end), VLAN);
  if (type === 0x86dd) return withVlan(describeIpv6(bytes, at, end), VLAN);
  return { KIND: type === 0x0806 ? FRAME_KIND.ARP : FRAME_KIND.OTHER };
}

function withVlan(described: Description, VLAN: number): Description {
  return described.KIND > FRAME_KIND.MALFORMED ? { ...described, VLAN } : described;
}

function describeIpv4(bytes: Uint8Array, at: number, end: number): Description {
  if (end - at < 20) return MALFORMED;
  const version = byteAt(bytes, at) >>> 4;
  const headerBytes = (byteAt(bytes, at) & 15) * 4;
  const totalBytes = be16(bytes, at + 2);
  if (version !== 4 || headerBytes < 20 || totalBytes < headerBytes || totalBytes > end - at) {
    return MALFORMED;
  }
  const protocol = byteAt(bytes, at + 9);
  const network = {
    SOURCE: be32(bytes, at + 12),
    DESTINATION: be32(bytes, at + 16),
    PROTOCOL: protocol,
    ADDRESSES: at + 12,
    NETWORK: at,
  };
  const payload = { at: at + headerBytes, end: at + totalBytes };
  const fragment = be16(bytes, at + 6);
  const [offset, more] = [(fragment & 0x1fff) * 8, fragment >>> 13 & 1];
  const transport = offset !== 0 || more !== 0
    ? describeFragment(payload, offset, more, be16(bytes, at + 4))
    : describeTransport(bytes, payload, protocol, 4);
  return transport.KIND > FRAME_KIND.MALFORMED ? { ...network, ...transport } : transport;
}

function describeIpv6(bytes: Uint8Array, at: number, end: number): Description {
  if (end - at < 40) return MALFORMED;
  const version = byteAt(bytes, at) >>> 4;
  const payloadBytes = be16(bytes, at + 4);
  if (version !== 6 || payloadBytes > end - at - 40) return MALFORMED;
  const network = {
    SOURCE: fold(bytes, at + 8),
    DESTINATION: fold(bytes, at + 24),
    ADDRESSES: at + 8,
    NETWORK: at,
  };
  const transport = describeIpv6Payload(
    bytes,
    { at: at + 40, end: at + 40 + payloadBytes },
    byteAt(bytes, at + 6),
  );
  return transport.KIND > FRAME_KIND.MALFORMED ? { ...network, ...transport } : transport;
}

/** Walks the extension headers. */
function describeIpv6Payload(bytes: Uint8Array, range: Payload, first: number): Description {
  let { at } = range;
  let next = first;
  for (let extensions = 0; EXTENSIONS.includes(next); extensions++) {
    if (extensions === EXTENSIONS_MAX || range.end - at < 8) return MALFORMED;
    const type = next;
    next = byteAt(bytes, at);
    const size = extensionBytes(type, byteAt(bytes, at + 1));
    if (range.end - at < size) return MALFORMED;
    if (type === FRAGMENT_HEADER) {
      const fragment = be16(bytes, at + 2);
      const [offset, more] = [fragment & 0xfff8, fragment & 1];
      if (offset !== 0 || more !== 0) {
        const payload = { at: at + size, end: range.end };
        const described = describeFragment(payload, offset, more, be32(bytes, at + 4));
        return withProtocol(described, next);
      }
    }
    at += size;
  }
  return withProtocol(describeTransport(bytes, { at, end: range.end }, next, 6), next);
}

function extensionBytes(type: number, units: number): number {
  if (type === FRAGMENT_HEADER) return 8;
  return type === AUTHENTICATION_HEADER ? (units + 2) * 4 : (units + 1) * 8;
}

function withProtocol(described: Description, protocol: number): Description {
  if (described.KIND <= FRAME_KIND.MALFORMED) return described;
  return { ...described, PROTOCOL: protocol | FRAME_IPV6 };
}

/** What an IP header and its extensions are followed by. */
interface Payload {
  readonly at: number;
  readonly end: number;
}

function describeFragment(
  { at, end }: Payload,
  offset: number,
  more: number,
  id: number,
): Description {
  const length = end - at;
  const isCut = more === 1 && length % 8 !== 0;
  if (length === 0 || isCut || offset + length > IP_DATAGRAM_BYTES_MAX) return MALFORMED;
  return {
    KIND: FRAME_KIND.FRAGMENT,
    FLAGS: more,
    SEQUENCE: offset,
    ACKNOWLEDGMENT: id,
    PAYLOAD: at,
    LENGTH: length,
  };
}

function describeTransport(
  bytes: Uint8Array,
  payload: Payload,
  protocol: number,
  version: 4 | 6,
): Description {
  if (protocol === 6) return describeTcp(bytes, payload);
  if (protocol === 17) return describeUdp(bytes, payload);
  if (protocol === (version === 4 ? 1 : 58)) return describeIcmp(bytes, payload, version);
  return { KIND: FRAME_KIND.IP, PAYLOAD: payload.at, LENGTH: payload.end - payload.at };
}

function describeTcp(bytes: Uint8Array, { at, end }: Payload): Description {
  if (end - at < 20) return MALFORMED;
  const headerBytes = (byteAt(bytes, at + 12) >>> 4) * 4;
  if (headerBytes < 20 || headerBytes > end - at) return MALFORMED;
  return {
    KIND: FRAME_KIND.TCP,
    FLAGS: byteAt(bytes, at + 13),
    PORTS: be32(bytes, at),
    SEQUENCE: be32(bytes, at + 4),
    ACKNOWLEDGMENT: be32(bytes, at + 8),
    PAYLOAD: at + headerBytes,
    LENGTH: end - at - headerBytes,
  };
}

function describeUdp(bytes: Uint8Array, { at, end }: Payload): Description {
  if (end - at < 8) return MALFORMED;
  const datagramBytes = be16(bytes, at + 4);
  if (datagramBytes < 8 || datagramBytes > end - at) return MALFORMED;
  return {
    KIND: FRAME_KIND.UDP,
    PORTS: be32(bytes, at),
    PAYLOAD: at + 8,
    LENGTH: datagramBytes - 8,
  };
}

function describeIcmp(bytes: Uint8Array, { at, end }: Payload, version: 4 | 6): Description {
  if (end - at < 8) return MALFORMED;
  const type = byteAt(bytes, at);
  if (version === 6 && type >= 133 && type <= 137) return { KIND: FRAME_KIND.NEIGHBOR };
  const echo = version === 4 ? [0, 8] : [128, 129];
  return {
    KIND: FRAME_KIND.ICMP,
    PORTS: echo.includes(type) ? be16(bytes, at + 4) : 0,
    PAYLOAD: at,
    LENGTH: end - at,
  };
}

function hash(described: Description, seed: number): number {
  const { SOURCE = 0, DESTINATION = 0, PORTS = 0, PROTOCOL = 0, VLAN = 0 } = described;
  const mixed = [SOURCE, DESTINATION, PORTS, PROTOCOL, VLAN].reduce(mix, seed);
  const last = Math.imul(mixed ^ mixed >>> 16, 0x85ebca6b);
  return (last ^ last >>> 13) >>> 0;
}

function mix(hash: number, word: number): number {
  const mixed = Math.imul(hash ^ word, 0x9e3779b1);
  return mixed ^ mixed >>> 15;
}

/** 128 bits of an address as 32. */
function fold(bytes: Uint8Array, at: number): number {
  return [0, 4, 8, 12].map((offset) => be32(bytes, at + offset)).reduce(mix, 0) >>> 0;
}

function be16(bytes: Uint8Array, at: number): number {
  return byteAt(bytes, at) << 8 | byteAt(bytes, at + 1);
}

function be32(bytes: Uint8Array, at: number): number {
  return (be16(bytes, at) << 16 | be16(bytes, at + 2)) >>> 0;
}

export function comparePairs(bytes: Uint8Array, pairs: number, count: number): number {
  let unequal = 0;
  for (let pair = pairs; pair < pairs + count * PAIR_ENTRY_BYTES; pair += PAIR_ENTRY_BYTES) {
    const [a, b, length] = [pair, pair + 4, pair + 8].map((at) => readU32(bytes, at)) as [
      number,
      number,
      number,
    ];
    const exist = a + length <= bytes.length && b + length <= bytes.length;
    const equal = exist && isEqual(bytes, a, b, length);
    writeU32(bytes, pair + 12, Number(equal));
    if (!equal) unequal++;
  }
  return unequal;
}
