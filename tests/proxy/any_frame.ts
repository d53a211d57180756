/**
 * fast-check arbitraries for frames: what the wild holds, and what an attacker makes of it.
 *
 * @module
 */

import fc from "fast-check";
import {
  arp,
  ethernet,
  extension,
  fragment,
  icmp,
  ip,
  type IpOptions,
  tcpSegment,
  udpDatagram,
} from "./packets.ts";

type Bytes = Uint8Array<ArrayBuffer>;

const ipOptions: fc.Arbitrary<IpOptions> = fc.record({
  version: fc.constantFrom(4, 6),
  source: fc.integer({ min: 1, max: 3 }),
  destination: fc.integer({ min: 1, max: 3 }),
  id: fc.nat(5),
  ttl: fc.nat(255),
  vlan: fc.array(fc.nat(4095), { maxLength: 3 }),
  padding: fc.nat(20),
  ipOptions: fc.nat(10).map((words) => new Uint8Array(4 * words)),
  extensions: fc.array(
    fc.tuple(fc.constantFrom(0, 43, 44, 60, 135), fc.nat(2)).map(([type, units]) =>
      extension(type, type === 44 ? 0 : units)
    ),
    { maxLength: 9 },
  ),
});

const port = fc.integer({ min: 1, max: 3 });

/** Jumbo frames among them. */
const data = fc.oneof(
  { weight: 8, arbitrary: fc.uint8Array({ maxLength: 100 }) },
  { weight: 1, arbitrary: fc.integer({ min: 1400, max: 9000 }) },
);

const segment = fc.record({
  sourcePort: port,
  destinationPort: port,
  seq: fc.nat({ max: 0xffff_ffff }),
  ack: fc.nat({ max: 0xffff_ffff }),
  flags: fc.nat(63),
  tcpOptions: fc.nat(10).map((words) => new Uint8Array(4 * words)),
  data,
}).map(tcpSegment);

const datagram = fc.record({ sourcePort: port, destinationPort: port, data }).map(udpDatagram);

const piece = fc.tuple(
  fc.constantFrom(6, 17, 1, 58, 47),
  fc.nat(40).map((units) => new Uint8Array(8 * units)),
  fc.nat(8191).map((units) => 8 * units),
  fc.boolean(),
  ipOptions,
).map(([protocol, bytes, offset, more, options]) =>
  fragment(protocol, bytes, offset, more, options)
);

/** A frame of any kind, well-formed in itself. */
export const anyFrame: fc.Arbitrary<Bytes> = fc.oneof(
  { weight: 4, arbitrary: fc.tuple(segment, ipOptions).map(([part, o]) => ip(6, part, o)) },
  { weight: 2, arbitrary: fc.tuple(datagram, ipOptions).map(([part, o]) => ip(17, part, o)) },
  fc.tuple(ipOptions, fc.nat(3)).map(([o, echoId]) => icmp({ ...o, echoId, data: "ping" })),
  fc.tuple(fc.nat(255), ipOptions, fc.uint8Array()).map(([protocol, o, part]) =>
    ip(protocol, part, o)
  ),
  { weight: 2, arbitrary: piece },
  fc.nat(9).map(arp),
  fc.tuple(fc.nat(0xffff), fc.uint8Array()).map(([type, part]) => ethernet(type, part)),
);

/** The same with bytes changed, and perhaps cut off. */
export function mutated(frames: fc.Arbitrary<Bytes>): fc.Arbitrary<Bytes> {
  const change = fc.record({
    // Headers are at the front, and that is where changes hurt.
    at: fc.oneof(fc.nat(90), fc.nat()),
    value: fc.oneof(fc.constantFrom(0, 1, 0x7f, 0x80, 0xff), fc.nat(255)),
  });
  return fc.tuple(
    frames,
    fc.array(change, { minLength: 1, maxLength: 4 }),
    fc.oneof(fc.constant(0), fc.nat(90)),
  ).map(([frame, changes, cut]) => {
    const bytes = frame.slice(0, Math.max(1, frame.length - cut));
    for (const { at, value } of changes) bytes[at % bytes.length] = value;
    return bytes;
  });
}
