/**
 * Kernels of the packet proxy: they cut a chardev's bytes into frames, and compare payloads.
 *
 *   record        | be32 length | [be32 vnet header length] | [vnet header] | Ethernet frame |
 *   frame entry   16 words of u32 LE, see FRAME in wasm/kernel_set.ts
 *   pair          | a | b | length | equal |                u32 LE each
 *
 * A frame is a stranger's: every field is looked at only when it lies inside its record.
 */

import { SCAN_FULL, SCAN_MORE } from "./format";
import { isEqual } from "./page";

// @ts-ignore: decorator
@inline
const RECORD_BYTES_MAX: u32 = 69632;
// @ts-ignore: decorator
@inline
const BAD_LENGTH: i32 = -1;
// @ts-ignore: decorator
@inline
const BAD_VNET_LENGTH: i32 = -2;

// @ts-ignore: decorator
@inline
const ENTRY_BYTES: usize = 64;
// @ts-ignore: decorator
@inline
const START: usize = 0;
// @ts-ignore: decorator
@inline
const SIZE: usize = 4;
// @ts-ignore: decorator
@inline
const KIND: usize = 8;
// @ts-ignore: decorator
@inline
const FLAGS: usize = 12;
// @ts-ignore: decorator
@inline
const HASH: usize = 16;
// @ts-ignore: decorator
@inline
const SOURCE: usize = 20;
// @ts-ignore: decorator
@inline
const DESTINATION: usize = 24;
// @ts-ignore: decorator
@inline
const PORTS: usize = 28;
// @ts-ignore: decorator
@inline
const PROTOCOL: usize = 32;
// @ts-ignore: decorator
@inline
const VLAN: usize = 36;
// @ts-ignore: decorator
@inline
const ADDRESSES: usize = 40;
// @ts-ignore: decorator
@inline
const PAYLOAD: usize = 44;
// @ts-ignore: decorator
@inline
const LENGTH: usize = 48;
// @ts-ignore: decorator
@inline
const SEQUENCE: usize = 52;
// @ts-ignore: decorator
@inline
const ACKNOWLEDGMENT: usize = 56;
// @ts-ignore: decorator
@inline
const NETWORK: usize = 60;

// @ts-ignore: decorator
@inline
const KIND_OTHER: u32 = 0;
// @ts-ignore: decorator
@inline
const KIND_ARP: u32 = 1;
// @ts-ignore: decorator
@inline
const KIND_NEIGHBOR: u32 = 2;
// @ts-ignore: decorator
@inline
const KIND_MALFORMED: u32 = 3;
// @ts-ignore: decorator
@inline
const KIND_TCP: u32 = 4;
// @ts-ignore: decorator
@inline
const KIND_UDP: u32 = 5;
// @ts-ignore: decorator
@inline
const KIND_ICMP: u32 = 6;
// @ts-ignore: decorator
@inline
const KIND_IP: u32 = 7;
// @ts-ignore: decorator
@inline
const KIND_FRAGMENT: u32 = 8;

// @ts-ignore: decorator
@inline
const VERSION_6: u32 = 0x100;
// @ts-ignore: decorator
@inline
const TAGS_MAX: u32 = 2;
// @ts-ignore: decorator
@inline
const EXTENSIONS_MAX: u32 = 8;

// @ts-ignore: decorator
@inline
function be16(at: usize): u32 {
  return u32(bswap(load<u16>(at)));
}

// @ts-ignore: decorator
@inline
function be32(at: usize): u32 {
  return bswap(load<u32>(at));
}

// @ts-ignore: decorator
@inline
function mix(hash: u32, word: u32): u32 {
  const mixed = (hash ^ word) * 0x9e3779b1;
  return mixed ^ (mixed >>> 15);
}

/** 128 bits of an address as 32; it takes the place of an IPv4 address. */
// @ts-ignore: decorator
@inline
function fold(at: usize): u32 {
  return mix(mix(mix(mix(0, be32(at)), be32(at + 4)), be32(at + 8)), be32(at + 12));
}

export function scanFrames(
  at: usize,
  end: usize,
  vnetHeader: u32,
  seed: u32,
  table: usize,
  capacity: u32,
  out: usize,
): i32 {
  const prefix: usize = vnetHeader ? 8 : 4;
  let entries: u32 = 0;
  let result = SCAN_MORE;
  for (;;) {
    if (end - at < 4) break;
    const length = be32(at);
    if (length == 0 || length > RECORD_BYTES_MAX) {
      result = BAD_LENGTH;
      break;
    }
    if (end - at < prefix) break;
    const vnetLength: u32 = vnetHeader ? be32(at + 4) : 0;
    if (vnetLength > length) {
      result = BAD_VNET_LENGTH;
      break;
    }
    const size = prefix + length;
    if (end - at < size) break;
    if (entries >= capacity) {
      result = SCAN_FULL;
      break;
    }
    const entry = table + usize(entries) * ENTRY_BYTES;
    const frame = at + prefix + vnetLength;
    const frameEnd = at + size;
    clear(entry);
    const kind = readLink(entry, frame, frameEnd);
    if (kind <= KIND_MALFORMED) clear(entry);
    else store<u32>(entry, hashOf(entry, seed), HASH);
    store<u32>(entry, at, START);
    store<u32>(entry, size, SIZE);
    store<u32>(entry, kind, KIND);
    entries++;
    at = frameEnd;
  }
  store<u32>(out, at);
  store<u32>(out, entries, 4);
  return result;
}

// @ts-ignore: decorator
@inline
function clear(entry: usize): void {
  const zero = i64x2.splat(0);
  v128.store(entry, zero);
  v128.store(entry, zero, 16);
  v128.store(entry, zero, 32);
  v128.store(entry, zero, 48);
}

// @ts-ignore: decorator
@inline
function hashOf(entry: usize, seed: u32): u32 {
  let hash = mix(seed, load<u32>(entry, SOURCE));
  hash = mix(hash, load<u32>(entry, DESTINATION));
  hash = mix(hash, load<u32>(entry, PORTS));
  hash = mix(hash, load<u32>(entry, PROTOCOL));
  hash = mix(hash, load<u32>(entry, VLAN));
  hash = (hash ^ (hash >>> 16)) * 0x85ebca6b;
  return hash ^ (hash >>> 13);
}

/** Ethernet II with up to two VLAN tags. What follows a third one, or an 802.3 length, is "other". */
function readLink(entry: usize, frame: usize, end: usize): u32 {
  if (end - frame < 14) return KIND_MALFORMED;
  let type = be16(frame + 12);
  let at = frame + 14;
  let tags: u32 = 0;
  let vlan: u32 = 0;
  while (tags < TAGS_MAX && (type == 0x8100 || type == 0x88a8 || type == 0x9100)) {
    if (end - at < 4) return KIND_MALFORMED;
    vlan = (vlan << 12) | (be16(at) & 0xfff);
    type = be16(at + 2);
    tags++;
    at += 4;
  }
  if (type == 0x0800) {
    store<u32>(entry, (tags << 24) | vlan, VLAN);
    return readIpv4(entry, at, end);
  }
  if (type == 0x86dd) {
    store<u32>(entry, (tags << 24) | vlan, VLAN);
    return readIpv6(entry, at, end);
  }
  return type == 0x0806 ? KIND_ARP : KIND_OTHER;
}

function readIpv4(entry: usize, at: usize, end: usize): u32 {
  if (end - at < 20) return KIND_MALFORMED;
  const first: u32 = load<u8>(at);
  const headerBytes = (first & 15) << 2;
  const totalBytes = be16(at + 2);
  if (first >>> 4 != 4 || headerBytes < 20 || totalBytes < headerBytes || totalBytes > end - at) {
    return KIND_MALFORMED;
  }
  const protocol: u32 = load<u8>(at, 9);
  store<u32>(entry, be32(at + 12), SOURCE);
  store<u32>(entry, be32(at + 16), DESTINATION);
  store<u32>(entry, protocol, PROTOCOL);
  store<u32>(entry, at + 12, ADDRESSES);
  store<u32>(entry, at, NETWORK);
  const payload = at + headerBytes;
  const payloadEnd = at + totalBytes;
  const fragment = be16(at + 6);
  if ((fragment & 0x3fff) != 0) {
    const offset = (fragment & 0x1fff) << 3;
    return readFragment(entry, payload, payloadEnd, offset, (fragment >>> 13) & 1, be16(at + 4));
  }
  return readTransport(entry, payload, payloadEnd, protocol, false);
}

function readIpv6(entry: usize, at: usize, end: usize): u32 {
  if (end - at < 40) return KIND_MALFORMED;
  const payloadBytes = be16(at + 4);
  if (load<u8>(at) >>> 4 != 6 || payloadBytes > end - at - 40) return KIND_MALFORMED;
  store<u32>(entry, fold(at + 8), SOURCE);
  store<u32>(entry, fold(at + 24), DESTINATION);
  store<u32>(entry, at + 8, ADDRESSES);
  store<u32>(entry, at, NETWORK);
  const payloadEnd = at + 40 + payloadBytes;
  let next: u32 = load<u8>(at, 6);
  let header = at + 40;
  for (let extensions: u32 = 0; isExtension(next); extensions++) {
    if (extensions == EXTENSIONS_MAX || payloadEnd - header < 8) return KIND_MALFORMED;
    const type = next;
    next = load<u8>(header);
    if (type == 44) {
      const fragment = be16(header + 2);
      const id = be32(header + 4);
      header += 8;
      // An atomic fragment (RFC 6946) is the whole datagram.
      if ((fragment & 0xfff9) == 0) continue;
      store<u32>(entry, next | VERSION_6, PROTOCOL);
      return readFragment(entry, header, payloadEnd, fragment & 0xfff8, fragment & 1, id);
    }
    const units: usize = load<u8>(header, 1);
    const size = type == 51 ? (units + 2) << 2 : (units + 1) << 3;
    if (payloadEnd - header < size) return KIND_MALFORMED;
    header += size;
  }
  store<u32>(entry, next | VERSION_6, PROTOCOL);
  return readTransport(entry, header, payloadEnd, next, true);
}

/** Hop-by-hop, routing, fragment, authentication, destination options, mobility. */
// @ts-ignore: decorator
@inline
function isExtension(header: u32): bool {
  return header == 0 || header == 43 || header == 44 || header == 51 || header == 60 ||
    header == 135;
}

function readFragment(
  entry: usize,
  payload: usize,
  end: usize,
  offset: u32,
  more: u32,
  id: u32,
): u32 {
  const length = u32(end - payload);
  if (length == 0 || (more && (length & 7) != 0) || offset + length > 65535) {
    return KIND_MALFORMED;
  }
  store<u32>(entry, more, FLAGS);
  store<u32>(entry, offset, SEQUENCE);
  store<u32>(entry, id, ACKNOWLEDGMENT);
  store<u32>(entry, payload, PAYLOAD);
  store<u32>(entry, length, LENGTH);
  return KIND_FRAGMENT;
}

function readTransport(
  entry: usize,
  at: usize,
  end: usize,
  protocol: u32,
  version6: bool,
): u32 {
  const length = u32(end - at);
  let header: u32 = 0;
  let payloadBytes = length;
  let kind = KIND_IP;
  if (protocol == 6) {
    if (length < 20) return KIND_MALFORMED;
    header = (load<u8>(at, 12) >>> 4) << 2;
    if (header < 20 || header > length) return KIND_MALFORMED;
    payloadBytes = length - header;
    store<u32>(entry, be32(at), PORTS);
    store<u32>(entry, be32(at + 4), SEQUENCE);
    store<u32>(entry, be32(at + 8), ACKNOWLEDGMENT);
    store<u32>(entry, load<u8>(at, 13), FLAGS);
    kind = KIND_TCP;
  } else if (protocol == 17) {
    if (length < 8) return KIND_MALFORMED;
    const datagramBytes = be16(at + 4);
    if (datagramBytes < 8 || datagramBytes > length) return KIND_MALFORMED;
    header = 8;
    payloadBytes = datagramBytes - 8;
    store<u32>(entry, be32(at), PORTS);
    kind = KIND_UDP;
  } else if (protocol == (version6 ? 58 : 1)) {
    if (length < 8) return KIND_MALFORMED;
    const type: u32 = load<u8>(at);
    if (version6 && type >= 133 && type <= 137) return KIND_NEIGHBOR;
    const isEcho = version6 ? type == 128 || type == 129 : type == 0 || type == 8;
    if (isEcho) store<u32>(entry, be16(at + 4), PORTS);
    kind = KIND_ICMP;
  }
  store<u32>(entry, at + header, PAYLOAD);
  store<u32>(entry, payloadBytes, LENGTH);
  return kind;
}

/** A pair's addresses come from a table, which is memory like any other: wrong ones must not trap. */
// @ts-ignore: decorator
@inline
function exists(at: usize, length: usize): bool {
  const size = u64(memory.size()) << 16;
  return u64(at) + u64(length) <= size;
}

export function comparePairs(pairs: usize, count: u32): u32 {
  let unequal: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    const pair = pairs + (usize(i) << 4);
    const a: usize = load<u32>(pair);
    const b: usize = load<u32>(pair, 4);
    const length: usize = load<u32>(pair, 8);
    const equal = exists(a, length) && exists(b, length) && isEqual(a, b, length) != 0;
    store<u32>(pair, u32(equal), 12);
    if (!equal) unequal++;
  }
  return unequal;
}
