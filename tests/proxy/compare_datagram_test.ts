import { assert, assertEquals } from "@std/assert/mod.js";
import { PACKET_LOOKAHEAD_MAX, PACKET_SECONDARY_AHEAD_MAX } from "../../engine/limits.ts";
import {
  arp,
  body,
  concat,
  ethernet,
  extension,
  fragment,
  fragments,
  icmp,
  ip,
  tcpSegment,
  udp,
  udpDatagram,
} from "./packets.ts";
import { Rig, Stream } from "./rig.ts";

Deno.test("identical UDP and ICMP is released", () => {
  for (const version of [4, 6] as const) {
    const rig = Rig.comparing();
    const frames = [udp({ version, data: "answer" }), icmp({ version, data: "pong" })];
    assertEquals(rig.primary(...frames), []);
    assertEquals(rig.secondary(...frames), frames);
    assertEquals(rig.secondary(...frames), []);
    assertEquals(rig.primary(...frames), frames);
    assertEquals(rig.reason, undefined);
  }
});

Deno.test("UDP P1 P2 P3 / S1 S2 S3: in order, no checkpoint", () => {
  const rig = Rig.comparing();
  const frames = ["1", "2", "3"].map((data) => udp({ data }));
  assertEquals(rig.primary(...frames), []);
  assertEquals(rig.secondary(...frames), frames);
  assertEquals(rig.reason, undefined);
});

Deno.test("datagrams in another order are found within the lookahead", () => {
  const rig = Rig.comparing();
  const frames = Array.from({ length: PACKET_LOOKAHEAD_MAX }, (_, i) => udp({ data: `${i}` }));
  rig.primary(...frames);
  assertEquals(rig.secondary(...frames.toReversed()), frames.toReversed());
  rig.secondary(...frames);
  assertEquals(rig.primary(...frames.toReversed()), frames.toReversed());
  assertEquals(rig.reason, undefined);
  assertEquals(rig.proxy.statistics.held, 0);

  const more = [...frames, udp({ data: "too far" })];
  rig.primary(...more);
  assertEquals(rig.secondary(more.at(-1)!), []);
  assertEquals(rig.reason, "mismatch");
});

Deno.test("UDP or ICMP differs: held, and a checkpoint", () => {
  const pairs = [
    [udp({ data: "right" }), udp({ data: "wrong" })],
    [udp({ data: "short" }), udp({ data: "shorter" })],
    [icmp({ data: "right" }), icmp({ data: "wrong" })],
    [udp({ version: 6, data: "right" }), udp({ version: 6, data: "wrong" })],
  ] as const;
  for (const [primary, secondary] of pairs) {
    for (const isPrimaryFirst of [true, false]) {
      const rig = Rig.comparing();
      if (isPrimaryFirst) rig.primary(primary);
      assertEquals(rig.secondary(secondary), []);
      if (!isPrimaryFirst) assertEquals(rig.primary(primary), []);
      assertEquals(rig.reason, "mismatch");
      assertEquals(rig.primary(primary), []);
      assertEquals(rig.reason, undefined);
      assertEquals(rig.checkpoint(), [primary, primary]);
    }
  }
});

Deno.test("a datagram of the secondary alone is forgotten in time", () => {
  const rig = Rig.comparing();
  rig.secondary(udp({ data: "its own" }));
  assertEquals(rig.wait(1000), undefined);
  const frame = udp({ data: "other" });
  rig.primary(frame);
  assertEquals(rig.secondary(frame), [frame]);
  assertEquals(rig.reason, undefined);
});

Deno.test("GRE, SCTP, other IP: payload compared, header fields that may differ ignored", () => {
  for (const [protocol, version] of [[47, 4], [132, 4], [50, 6]] as const) {
    const rig = Rig.comparing();
    const frame = ip(protocol, body("payload"), { version, id: 1, ttl: 64 });
    rig.primary(frame);
    const other = { version, id: 9, ttl: 63, padding: 4 } as const;
    assertEquals(rig.secondary(ip(protocol, body("payload"), other)), [frame]);
    assertEquals(rig.reason, undefined);
    rig.primary(frame);
    assertEquals(rig.secondary(ip(protocol, body("PAYLOAD"), other)), []);
    assertEquals(rig.reason, "mismatch");
  }
});

Deno.test("ARP, neighbor discovery, LLDP and malformed: primary passes, secondary is dropped", () => {
  const rig = Rig.comparing();
  const neighbor = concat([Uint8Array.of(135), body(23)]);
  const malformed = ip(6, body(19));
  const frames = [
    arp(),
    ethernet(0x88cc, body(46)),
    ip(58, neighbor, { version: 6 }),
    malformed,
    body(3),
  ];
  assertEquals(rig.secondary(...frames), []);
  assertEquals(rig.primary(...frames), frames);
  assertEquals(rig.reason, undefined);
  assertEquals(rig.proxy.statistics.malformed, 4);
});

Deno.test("IP fragments: put together and compared, however they were cut", () => {
  const data = Uint8Array.from({ length: 4000 }, (_, i) => i * 7);
  const segment = tcpSegment({ seq: 1, flags: 0, data });
  for (const [protocol, payload] of [[17, udpDatagram({ data })], [6, segment]] as const) {
    for (const version of [4, 6] as const) {
      const options = { version, id: 5, ipOptions: body(8), vlan: version === 4 ? [3] : [] };
      const theirs = { version, id: 6, vlan: options.vlan };
      const frames = fragments(protocol, payload, 1480, options);
      const rig = Rig.comparing();
      assertEquals(rig.primary(...frames), []);
      assertEquals(
        rig.secondary(...fragments(protocol, payload, 520, theirs).toReversed()),
        frames,
      );
      // Of TCP, this is a retransmission.
      const again = rig.primary(...frames.toReversed());
      const rest = rig.secondary(ip(protocol, payload, theirs));
      assertEquals(protocol === 6 ? again : rest, frames);
      assertEquals(rig.reason, undefined);
      assertEquals(rig.proxy.statistics.held, 0);
    }
  }
});

Deno.test("IP fragments that say something else: mismatch, and a checkpoint lets them go", () => {
  const data = Uint8Array.from({ length: 3000 }, (_, i) => i * 7);
  const rig = Rig.comparing();
  const frames = fragments(17, udpDatagram({ data }), 1480);
  rig.primary(...frames);
  data[2900] = 0;
  assertEquals(rig.secondary(...fragments(17, udpDatagram({ data }), 1480)), []);
  assertEquals(rig.reason, "mismatch");
  assertEquals(rig.checkpoint(), frames);
  assertEquals(rig.proxy.statistics.held, 0);
});

Deno.test("a fragment at a wrong offset makes another datagram", () => {
  const payload = udpDatagram({ data: Uint8Array.from({ length: 64 }, (_, i) => i) });
  const [first, second, third] = [0, 24, 48].map((at) => payload.slice(at, at + 24));
  const cut = (middle: number) => [
    fragment(17, first!, 0, true),
    fragment(17, second!, middle, true),
    fragment(17, third!, middle === 24 ? 48 : 24, middle !== 24),
  ];
  const rig = Rig.comparing();
  const frames = cut(24);
  rig.primary(...frames);
  const swapped = [fragment(17, first!, 0, true), fragment(17, third!, 24, true)];
  rig.secondary(...swapped, fragment(17, second!, 48, false));
  assertEquals(rig.reason, "mismatch");
});

Deno.test("fragments that overlap never make a datagram; the primary's wait for a checkpoint", () => {
  const piece = body(24);
  const overlapping = [
    [fragment(17, piece, 0, true), fragment(17, piece, 16, true), fragment(17, piece, 40, false)],
    [
      fragment(17, piece, 24, false),
      fragment(17, piece, 16, true),
      fragment(17, body(16), 0, true),
    ],
    [fragment(17, piece, 24, false), fragment(17, piece, 48, true), fragment(17, piece, 0, true)],
    [fragment(17, piece, 24, false), fragment(17, piece, 48, false), fragment(17, piece, 0, true)],
  ];
  for (const frames of overlapping) {
    const rig = Rig.comparing();
    rig.secondary(...frames);
    assertEquals(rig.primary(...frames), []);
    assertEquals(rig.wait(200), "timeout");
    assertEquals(rig.checkpoint(), frames);
  }
});

Deno.test("fragments on both sides of a checkpoint make no datagram", () => {
  const rig = Rig.comparing();
  const frames = fragments(17, udpDatagram({ data: 3000 }), 1480);
  rig.primary(frames[0]!);
  assertEquals(rig.checkpoint(), [frames[0]]);
  assertEquals(rig.primary(frames[1]!, frames[2]!), []);
  assertEquals(rig.secondary(...frames), []);
  assertEquals(rig.wait(200), "timeout");
  assertEquals(rig.checkpoint(), frames.slice(1));
});

Deno.test("a datagram put together that makes no sense passes; the secondary's is dropped", () => {
  const rig = Rig.comparing();
  const frames = fragments(6, body(16), 8);
  rig.secondary(...frames);
  assertEquals(rig.primary(...frames), frames);
  assertEquals(rig.reason, undefined);
});

Deno.test("reassembly is bounded: fragments that nothing follows cost no memory for ever", () => {
  const rig = Rig.comparing();
  for (let id = 0; id < 20_000; id++) {
    rig.secondary(fragment(17, body(24), 0, true, { id, source: id >>> 16 }));
  }
  assertEquals(rig.reason, undefined);
  for (let i = 0; i < 3000; i++) rig.secondary(fragment(17, body(8), 16 + 8 * i, true, { id: 1 }));
  assertEquals(rig.reason, undefined);
  const frame = udp({ data: "still there" });
  rig.primary(frame);
  assertEquals(rig.secondary(frame), [frame]);
});

Deno.test("atomic fragments and extension headers do not matter", () => {
  const rig = Rig.comparing();
  const plain = udp({ version: 6, data: "same" });
  rig.primary(plain);
  const extensions = [extension(0), extension(44), extension(60)];
  assertEquals(rig.secondary(udp({ version: 6, data: "same", extensions })), [plain]);
});

Deno.test("the secondary may be ahead by a bounded number of frames", () => {
  for (const isTcp of [false, true]) {
    const rig = Rig.comparing();
    const stream = new Stream();
    const frame = (i: number) => isTcp ? stream.at(4 * i, body(4)) : udp({ data: `${i}` });
    const frames = Array.from({ length: PACKET_SECONDARY_AHEAD_MAX }, (_, i) => frame(i));
    rig.secondary(...frames);
    assertEquals(rig.reason, undefined);
    rig.secondary(frame(frames.length));
    assertEquals(rig.reason, "queue-full");
    assertEquals(rig.primary(...frames).length, frames.length);
  }
});

Deno.test("excluded flows: primary passes, secondary is dropped, others are compared", () => {
  const rig = Rig.comparing({
    excluded: [
      { protocol: "udp", destinationPort: 123 },
      { protocol: "tcp", destination: "10.0.0.0/30", sourcePort: 22 },
      { destination: "fd00::/64", protocol: "icmp" },
    ],
  });
  const excluded = [
    udp({ destinationPort: 123, data: "time" }),
    new Stream({ sourcePort: 22 }).at(0, "ssh"),
    new Stream({ sourcePort: 22 }).synAck(),
    icmp({ version: 6 }),
    ...fragments(17, udpDatagram({ destinationPort: 123, data: 3000 }), 1480),
  ];
  assertEquals(rig.secondary(...excluded), []);
  assertEquals(rig.primary(...excluded), excluded);
  assertEquals(rig.reason, undefined);
  const compared = [
    udp({ sourcePort: 123, data: "time" }),
    new Stream({ sourcePort: 22, destination: 4 }).at(0, "ssh"),
    icmp(),
  ];
  assertEquals(rig.primary(...compared), []);
  assertEquals(rig.secondary(...compared), compared);
});

Deno.test("jumbo frames, and the largest a chardev carries", () => {
  const rig = Rig.comparing();
  const frames = [udp({ data: 8900 }), new Stream({ version: 6 }).at(0, body(65_515))];
  rig.primary(...frames);
  assertEquals(rig.secondary(...frames), frames);
  const largest = ethernet(0x88cc, body(69_632 - 14));
  assertEquals(rig.primary(largest), [largest]);
  assert(rig.reason === undefined);
});
