import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import {
  FRAME,
  FRAME_BYTES_MAX,
  FRAME_ENTRY_BYTES,
  FRAME_IPV6,
  FRAME_KIND,
  FRAME_SCAN,
  WasmKernels,
} from "../../wasm/mod.ts";
import {
  arp,
  be16,
  be32,
  body,
  concat,
  ethernet,
  extension,
  fragment,
  icmp,
  ip,
  record,
  tcp,
  TCP_FLAG,
  udp,
  vnetRecord,
} from "../proxy/packets.ts";
import { anyFrame, mutated } from "../proxy/any_frame.ts";
import { contents, edited, edits } from "./contents.ts";
import { Twin } from "./twin.ts";

const CAPACITY = 16;
const INPUT_BYTES = 80_000;
const SEED = 0x1234_5678;
const twin = new Twin();
const input = twin.alloc(INPUT_BYTES);
const table = twin.alloc(CAPACITY * FRAME_ENTRY_BYTES);
const out = twin.alloc(8);

function scan(bytes: Uint8Array, { capacity = CAPACITY, vnet = 0, at = 0, seed = SEED } = {}) {
  twin.set(input + at, bytes);
  const result = twin.run((kernels) =>
    kernels.scanFrames(input + at, input + at + bytes.length, vnet, seed, table, capacity, out)
  );
  return { result, position: twin.u32(out) - input - at, count: twin.u32(out + 4) };
}

type Word = keyof typeof FRAME;

function word(entry: number, name: Word): number {
  return twin.u32(table + entry * FRAME_ENTRY_BYTES + 4 * FRAME[name]);
}

/** Scan one frame, and look at words of its entry; addresses are relative to the frame. */
function described(frame: Uint8Array, ...names: readonly Word[]): number[] {
  twin.reset();
  assertEquals(scan(record(frame)), {
    result: FRAME_SCAN.MORE,
    position: frame.length + 4,
    count: 1,
  });
  const addresses: readonly Word[] = ["START", "ADDRESSES", "PAYLOAD", "NETWORK"];
  return names.map((name) => word(0, name) - (addresses.includes(name) ? input + 4 : 0));
}

const kindOf = (frame: Uint8Array) => described(frame, "KIND")[0];

Deno.test("scanFrames enters what a TCP segment is", () => {
  const tcpOptions = body(12);
  const frame = tcp({ seq: 5, ack: 0xfffffff0, flags: 0x18, tcpOptions, data: "hello" });
  assertEquals(described(frame, "START", "SIZE", "KIND"), [-4, frame.length + 4, FRAME_KIND.TCP]);
  assertEquals(described(frame, "FLAGS", "SEQUENCE", "ACKNOWLEDGMENT"), [0x18, 5, 0xfffffff0]);
  assertEquals(described(frame, "SOURCE", "DESTINATION"), [0x0a000001, 0x0a000002]);
  assertEquals(described(frame, "PORTS", "PROTOCOL", "VLAN"), [80 << 16 | 4000, 6, 0]);
  assertEquals(described(frame, "NETWORK", "ADDRESSES"), [14, 26]);
  assertEquals(described(frame, "PAYLOAD", "LENGTH"), [14 + 20 + 32, 5]);
});

Deno.test("scanFrames takes the length from the IP header: padding is no payload", () => {
  assertEquals(described(tcp({ padding: 6 }), "LENGTH"), [0]);
  assertEquals(described(udp({ data: "x", padding: 17 }), "LENGTH"), [1]);
  assertEquals(described(tcp({ version: 6, padding: 3, data: "ab" }), "LENGTH"), [2]);
});

Deno.test("scanFrames knows every kind", () => {
  assertEquals(kindOf(arp()), FRAME_KIND.ARP);
  assertEquals(kindOf(ethernet(0x88cc, body(46))), FRAME_KIND.OTHER);
  assertEquals(kindOf(ethernet(46, body(46))), FRAME_KIND.OTHER);
  assertEquals(kindOf(udp({ data: "x" })), FRAME_KIND.UDP);
  assertEquals(kindOf(icmp()), FRAME_KIND.ICMP);
  assertEquals(kindOf(icmp({ version: 6 })), FRAME_KIND.ICMP);
  assertEquals(kindOf(ip(47, body(8))), FRAME_KIND.IP);
  assertEquals(kindOf(ip(132, body(8), { version: 6 })), FRAME_KIND.IP);
  assertEquals(kindOf(ip(58, body(8))), FRAME_KIND.IP);
  assertEquals(kindOf(ip(1, body(8), { version: 6 })), FRAME_KIND.IP);
  assertEquals(kindOf(fragment(17, body(16), 0, true)), FRAME_KIND.FRAGMENT);
  for (const type of [133, 134, 135, 136, 137]) {
    const message = concat([Uint8Array.of(type), body(23)]);
    assertEquals(kindOf(ip(58, message, { version: 6 })), FRAME_KIND.NEIGHBOR);
    assertEquals(kindOf(ip(58, message)), FRAME_KIND.IP);
  }
});

Deno.test("scanFrames finds the same segment behind tags, options and extension headers", () => {
  const data = "payload";
  const plain = tcp({ data, seq: 9 });
  const variants = [
    { frame: tcp({ data, seq: 9, vlan: [5] }), offset: 4, vlan: 1 << 24 | 5 },
    { frame: tcp({ data, seq: 9, vlan: [5, 7] }), offset: 8, vlan: 2 << 24 | 5 << 12 | 7 },
    { frame: tcp({ data, seq: 9, ipOptions: body(12) }), offset: 12, vlan: 0 },
  ];
  const [payload] = described(plain, "PAYLOAD");
  for (const { frame, offset, vlan } of variants) {
    assertEquals(described(frame, "KIND", "SEQUENCE", "LENGTH"), [FRAME_KIND.TCP, 9, 7]);
    assertEquals(described(frame, "PAYLOAD", "VLAN"), [payload! + offset, vlan]);
  }
  const authentication = { type: 51, bytes: concat([Uint8Array.of(0, 4), body(22)]) };
  const atomic = extension(44);
  const extensions = [extension(0), extension(60, 2), extension(43), authentication, atomic];
  const frame = tcp({ version: 6, data, seq: 9, extensions });
  assertEquals(described(frame, "KIND", "SEQUENCE", "LENGTH"), [FRAME_KIND.TCP, 9, 7]);
  assertEquals(described(frame, "PAYLOAD", "PROTOCOL"), [
    14 + 40 + 8 + 24 + 8 + 24 + 8 + 20,
    FRAME_IPV6 | 6,
  ]);
  assertEquals(described(frame, "NETWORK", "ADDRESSES"), [14, 22]);
});

Deno.test("scanFrames enters what a fragment is", () => {
  const names: Word[] = ["KIND", "FLAGS", "SEQUENCE", "ACKNOWLEDGMENT", "LENGTH"];
  const expected = [FRAME_KIND.FRAGMENT, 1, 1480, 77, 24];
  assertEquals(described(fragment(17, body(24), 1480, true, { id: 77 }), ...names), expected);
  const options = { id: 77, version: 6 } as const;
  assertEquals(described(fragment(17, body(24), 1480, true, options), ...names), expected);
  assertEquals(described(fragment(17, body(24), 1480, true, options), "PROTOCOL", "PAYLOAD"), [
    FRAME_IPV6 | 17,
    14 + 40 + 8,
  ]);
});

Deno.test("scanFrames calls malformed what contradicts itself, and says nothing more of it", () => {
  const wrong: Record<string, Uint8Array> = {
    "no Ethernet header": body(13),
    "tag cut off": tcp({ vlan: [1] }).subarray(0, 17),
    "IPv4 header cut off": tcp().subarray(0, 33),
    "IPv4 version": patched(tcp(), 14, [0x55]),
    "IPv4 header length": patched(tcp(), 14, [0x44]),
    "IPv4 total length below the header": patched(tcp(), 16, be16(19)),
    "IPv4 total length above the frame": patched(tcp(), 16, be16(41)),
    "IPv4 options above the total length": patched(tcp(), 14, [0x4f]),
    "IPv6 header cut off": tcp({ version: 6 }).subarray(0, 53),
    "IPv6 version": patched(tcp({ version: 6 }), 14, [0x40]),
    "IPv6 payload length above the frame": patched(tcp({ version: 6 }), 18, be16(21)),
    "IPv6 extension above the payload": patched(
      tcp({ version: 6, extensions: [extension(0)] }),
      55,
      [9],
    ),
    "IPv6 extension cut off": ip(0, body(7), { version: 6 }),
    "nine IPv6 extensions": tcp({
      version: 6,
      extensions: Array.from({ length: 9 }, () => extension(60)),
    }),
    "TCP header cut off": ip(6, body(19)),
    "TCP data offset below 20": patched(tcp(), 46, [0x40]),
    "TCP data offset above the segment": patched(tcp(), 46, [0x60]),
    "UDP header cut off": ip(17, body(7)),
    "UDP length below 8": patched(udp(), 38, be16(7)),
    "UDP length above the datagram": patched(udp(), 38, be16(9)),
    "ICMP header cut off": ip(1, body(7)),
    "empty fragment": fragment(17, body(0), 8, true),
    "fragment of 12 bytes before others": fragment(17, body(12), 8, true),
    "fragment beyond 65535": fragment(17, body(24), 65520, false),
    "IPv6 fragment header cut off": ip(44, body(7), { version: 6 }),
  };
  for (const [what, frame] of Object.entries(wrong)) {
    assertEquals(kindOf(frame), FRAME_KIND.MALFORMED, what);
    for (let index = 3; index < 16; index++) assertEquals(twin.u32(table + 4 * index), 0, what);
  }
});

function patched(frame: Uint8Array, at: number, bytes: ArrayLike<number>): Uint8Array {
  const copy = frame.slice();
  copy.set(bytes, at);
  return copy;
}

Deno.test("scanFrames leaves a record that is not complete", () => {
  const first = record(arp());
  const bytes = concat([first, record(tcp({ data: 100 }))]);
  for (let length = 0; length <= bytes.length; length++) {
    twin.reset();
    const count = length === bytes.length ? 2 : length >= first.length ? 1 : 0;
    const position = [0, first.length, bytes.length][count]!;
    assertEquals(scan(bytes.subarray(0, length)), { result: FRAME_SCAN.MORE, position, count });
  }
});

Deno.test("scanFrames stops when the table is full", () => {
  twin.reset();
  const bytes = concat([record(arp()), record(arp()), record(arp())]);
  assertEquals(scan(bytes, { capacity: 2 }), {
    result: FRAME_SCAN.FULL,
    position: (bytes.length / 3) * 2,
    count: 2,
  });
});

Deno.test("scanFrames refuses a length of zero and one above the maximum as soon as it is there", () => {
  for (const length of [0, FRAME_BYTES_MAX + 1, 0xffff_ffff]) {
    twin.reset();
    const bytes = concat([record(arp()), be32(length)]);
    const position = bytes.length - 4;
    assertEquals(scan(bytes), { result: FRAME_SCAN.BAD_LENGTH, position, count: 1 });
  }
  twin.reset();
  assertEquals(scan(concat([be32(FRAME_BYTES_MAX), body(FRAME_BYTES_MAX)])).count, 1);
});

Deno.test("scanFrames skips a vnet header, and refuses one longer than its record", () => {
  twin.reset();
  const frame = tcp({ data: "abc" });
  for (const vnetHeader of [0, 10, 12, 20]) {
    const bytes = vnetRecord(frame, body(vnetHeader));
    assertEquals(scan(bytes, { vnet: 1 }), {
      result: FRAME_SCAN.MORE,
      position: bytes.length,
      count: 1,
    });
    assertEquals(word(0, "KIND"), FRAME_KIND.TCP);
    assertEquals(word(0, "NETWORK"), input + 8 + vnetHeader + 14);
  }
  assertEquals(scan(be32(10, 11), { vnet: 1 }).result, FRAME_SCAN.BAD_VNET_LENGTH);
  assertEquals(scan(be32(10).subarray(0, 4), { vnet: 1 }).result, FRAME_SCAN.MORE);
  const bare = vnetRecord(new Uint8Array(), body(12));
  assertEquals(scan(bare, { vnet: 1 }).count, 1);
  assertEquals(word(0, "KIND"), FRAME_KIND.MALFORMED);
});

Deno.test("scanFrames hashes the flow, and nothing but the flow, with the seed", () => {
  const [hash] = described(tcp({ data: "a", seq: 1 }), "HASH");
  assertEquals(described(tcp({ data: "b", seq: 2, ack: 5, flags: TCP_FLAG.FIN }), "HASH"), [hash]);
  const others = [
    tcp({ sourcePort: 81 }),
    tcp({ destinationPort: 81 }),
    tcp({ source: 7 }),
    tcp({ destination: 7 }),
    tcp({ vlan: [1] }),
    tcp({ version: 6 }),
    udp({ sourcePort: 80 }),
  ];
  for (const other of others) assert(described(other, "HASH")[0] !== hash);
  twin.reset();
  scan(record(tcp()), { seed: SEED + 1 });
  assert(word(0, "HASH") !== hash);
});

Deno.test("scanFrames agrees with the reference on frames of any kind, whole, mutated and cut", () => {
  fc.assert(
    fc.property(
      fc.array(fc.oneof(anyFrame, mutated(anyFrame), fc.uint8Array({ minLength: 1 })), {
        maxLength: 10,
      }),
      fc.nat(),
      fc.boolean(),
      fc.nat(3),
      fc.nat(CAPACITY),
      fc.nat({ max: 0xffff_ffff }),
      (frames, cut, hasVnet, at, capacity, seed) => {
        twin.reset();
        const records = frames.map((frame) => hasVnet ? vnetRecord(frame) : record(frame));
        const bytes = concat(records).subarray(0, INPUT_BYTES - 8);
        const length = bytes.length - (cut % 3 === 0 ? cut % (bytes.length + 1) : 0);
        scan(bytes.subarray(0, length), { capacity, vnet: Number(hasVnet), at, seed });
      },
    ),
    { numRuns: 500 },
  );
});

Deno.test("scanFrames agrees with the reference on records with wrong lengths", () => {
  fc.assert(fc.property(
    mutated(fc.array(anyFrame, { maxLength: 4 }).map((frames) => concat(frames.map(record)))),
    fc.boolean(),
    (bytes, hasVnet) => {
      twin.reset();
      scan(bytes.subarray(0, INPUT_BYTES), { vnet: Number(hasVnet) });
    },
  ));
});

Deno.test("scanFrames does not read behind the memory's last byte", () => {
  const kernels = WasmKernels.create();
  const [entries, result] = [kernels.alloc(CAPACITY * FRAME_ENTRY_BYTES), kernels.alloc(8)];
  kernels.alloc(2 ** 17);
  const end = kernels.bytes.length;
  fc.assert(fc.property(fc.oneof(anyFrame, mutated(anyFrame)), fc.nat(), (frame, cut) => {
    const bytes = record(frame.subarray(0, Math.max(1, frame.length - cut % 80)));
    kernels.bytes.set(bytes, end - bytes.length);
    kernels.scanFrames(end - bytes.length, end, 0, 1, entries, CAPACITY, result);
  }));
});

const pairs = twin.alloc(8 * 16);
const [first, second] = [twin.alloc(6100), twin.alloc(6100)];

Deno.test("comparePairs says which pairs are equal, and how many are not", () => {
  fc.assert(fc.property(
    contents(6000),
    edits(6000),
    fc.array(fc.tuple(fc.nat(6000), fc.nat(6000), fc.boolean()), { maxLength: 8 }),
    (bytes, changes, ranges) => {
      twin.reset();
      twin.set(first, bytes);
      twin.set(second, edited(bytes, changes.filter(({ at }) => at < bytes.length)));
      for (const [i, [from, length, isShifted]] of ranges.entries()) {
        const size = Math.min(length, 6000 - from);
        twin.setU32(pairs + 16 * i, first + from, second + from + Number(isShifted), size, 7);
      }
      const unequal = twin.run((kernels) => kernels.comparePairs(pairs, ranges.length));
      const results = ranges.map((_, i) => twin.u32(pairs + 16 * i + 12));
      assertEquals(results.filter((result) => result === 0).length, unequal);
    },
  ));
});

Deno.test("comparePairs takes a pair that lies outside the memory for unequal", () => {
  twin.reset();
  const end = twin.get({ address: 0, length: 2 ** 30 }).length;
  twin.setU32(pairs, end, first, 1, 9, first, end - 1, 2, 9, 0xffff_ffff, first, 1, 9);
  assertEquals(twin.run((kernels) => kernels.comparePairs(pairs, 3)), 3);
  twin.setU32(pairs, end, end, 0, 9, end - 4, end - 4, 4, 9);
  assertEquals(twin.run((kernels) => kernels.comparePairs(pairs, 2)), 0);
});
