import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { OutboundProxy } from "../../engine/proxy/mod.ts";
import { PacketError, StateError } from "../../engine/errors.ts";
import { FRAME_BYTES_MAX, WasmKernels } from "../../wasm/mod.ts";
import {
  arp,
  be32,
  body,
  concat,
  fragments,
  record,
  tcp,
  TCP_FLAG,
  udp,
  udpDatagram,
  vnetRecord,
} from "./packets.ts";
import { readRecords, Rig, SMALL, Stream } from "./rig.ts";

Deno.test("1,100 primary frames before the secondary's: nothing lost, no checkpoint", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const frames = Array.from({ length: 1100 }, (_, i) => stream.at(1000 * i, body(1000)));
  assertEquals(rig.primary(...frames), []);
  assertEquals(rig.reason, undefined);
  assertEquals(rig.secondary(...frames), frames);
  assertEquals(rig.reason, undefined);
});

Deno.test("queue full: a checkpoint is asked for in time, and lets all of it go", () => {
  const rig = Rig.comparing({ primarySegments: 16 });
  const stream = new Stream().open(rig);
  const frames: Uint8Array[] = [];
  while (rig.reason !== "queue-full") {
    const frame = stream.at(1000 * frames.length, body(1000));
    frames.push(frame);
    assertEquals(rig.primary(frame), []);
  }
  assert(frames.length > 2000, `${frames.length}`);
  assertEquals(rig.proxy.statistics.lost, 0);
  assertEquals(rig.checkpoint(), frames);
});

Deno.test("memory is bounded: what does not fit is lost, the chardev is still read, then it goes on", () => {
  for (const mode of ["compare", "continuous"] as const) {
    const rig = new Rig({ primarySegments: 4 });
    rig.proxy.protect(mode, 1);
    const frame = udp({ data: 10_000 });
    for (let i = 0; i < 300; i++) rig.primary(frame);
    const { lost, held } = rig.proxy.statistics;
    assert(lost > 150 && held > 50 && lost + held === 300, `${lost} lost, ${held} held`);
    assertEquals(rig.reason, "queue-full");
    assertEquals(rig.checkpoint().length, held);
    const next = [udp({ data: "next" })];
    assertEquals(rig.primary(...next), []);
    assertEquals(rig.checkpoint(), next);
  }
});

Deno.test("a secondary far ahead costs bounded memory, and no correctness", () => {
  const rig = Rig.comparing({ secondarySegments: 2 });
  const frame = (port: number) => udp({ data: body(10_000), destinationPort: port });
  for (let port = 1; port <= 200; port++) rig.secondary(frame(port));
  assertEquals(rig.reason, "queue-full");
  const frames = Array.from({ length: 200 }, (_, i) => frame(i + 1));
  const released = rig.primary(...frames);
  assert(released.length > 20 && released.length < 200);
  assertEquals(rig.checkpoint(), frames.slice(released.length));
});

Deno.test("one held frame pins its segment alone, however much passes by", () => {
  const rig = Rig.comparing({ primarySegments: 20 });
  const held = udp({ sourcePort: 1, data: "held" });
  rig.primary(held);
  const stream = new Stream().open(rig);
  for (let i = 0; i < 20_000; i++) {
    const frame = stream.at(1000 * i, body(1000));
    rig.primary(frame);
    assertEquals(rig.secondary(frame).length, 1);
  }
  assertEquals(rig.reason, undefined);
  assertEquals(rig.secondary(held), [held]);
});

Deno.test("datagrams put together are out of memory when they are compared or committed", () => {
  const rig = Rig.comparing();
  for (let i = 0; i < 3000; i++) {
    const pieces = fragments(17, udpDatagram({ data: body(2000) }), 1480, { id: i });
    rig.primary(...pieces);
    assertEquals(i % 2 === 0 ? rig.secondary(...pieces) : rig.checkpoint(), pieces);
  }
  assertEquals(rig.reason, undefined);
});

Deno.test("retransmissions of the secondary's are out of memory at once", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const frame = stream.at(0, body(1000));
  rig.primary(frame);
  rig.secondary(frame);
  for (let i = 0; i < 5000; i++) rig.secondary(frame);
  assertEquals(rig.reason, undefined);
});

Deno.test("a held frame, then many new connections: the table is bounded, eviction is a checkpoint", () => {
  const rig = Rig.comparing({ connectionsMax: 64 });
  const waiting = Array.from(
    { length: 64 },
    (_, i) => new Stream({ destinationPort: i + 1 }).at(0, "x"),
  );
  assertEquals(rig.primary(...waiting), []);
  assertEquals(rig.reason, undefined);
  const more = Array.from(
    { length: 164 },
    (_, i) => new Stream({ destinationPort: i + 1000 }).at(0, "y"),
  );
  rig.primary(...more);
  assertEquals(rig.reason, "queue-full");
  assertEquals(rig.proxy.statistics.connections, 64);
  assertEquals(rig.checkpoint(), [...waiting, ...more]);
});

Deno.test("a connection in an evicted one's place does not mind the frames that still wait", () => {
  const rig = Rig.comparing({ connectionsMax: 4 });
  const frame = (port: number) => new Stream({ destinationPort: port }).at(0, "x");
  const [old, young] = [[1, 2, 3, 4].map(frame), [5].map(frame)];
  rig.primary(...old);
  rig.proxy.checkpoint(2);
  rig.primary(...young);
  rig.proxy.loaded(2, rig.now);
  assertEquals(rig.output(), old);
  assertEquals(rig.secondary(...young), young);
});

Deno.test("a SYN flood costs bounded memory and no correctness", () => {
  const rig = Rig.comparing({ connectionsMax: 64 });
  const streams = Array.from({ length: 8 }, (_, i) => new Stream({ sourcePort: i + 1 }).open(rig));
  const first = streams.map((stream) => stream.at(0, "one"));
  rig.primary(...first);
  assertEquals(rig.secondary(...first).length, 8);
  const held = udp({ data: "held" });
  rig.primary(held);
  for (let port = 0; port < 5000; port++) {
    new Stream({ destinationPort: port, source: 9, isn: port } as object).open(rig);
  }
  assertEquals(rig.proxy.statistics.connections, 64);
  assertEquals(rig.reason, undefined);
  // What was acknowledged and said is still known: no new word of the secondary's is needed.
  assertEquals(rig.primary(...first), first);
  assertEquals(rig.secondary(held), [held]);
});

Deno.test("a flood that only the primary answers is held, and leaves with a checkpoint", () => {
  const rig = Rig.comparing({ connectionsMax: 64 });
  const frames = Array.from({ length: 500 }, (_, i) => new Stream({ destinationPort: i }).synAck());
  assertEquals(rig.primary(...frames), []);
  assertEquals(rig.reason, "queue-full");
  assertEquals(rig.checkpoint(), frames);
  assertEquals(rig.proxy.statistics.connections, 64);
});

Deno.test("connections without frames are forgotten in time", () => {
  const rig = Rig.comparing({ connectionIdleMs: 10_000 });
  const [idle, busy] = [new Stream().open(rig), new Stream({ sourcePort: 5 }).open(rig)];
  rig.primary(new Stream({ sourcePort: 6 }).at(0, "waits"));
  rig.wait(8000);
  rig.primary(busy.ack(500));
  rig.wait(4000);
  assertEquals(rig.proxy.statistics.connections, 2);
  const data = idle.at(0, "back again");
  rig.primary(data);
  assertEquals(rig.secondary(data), [data]);
});

Deno.test("a frame that the secondary does not send in time asks for a checkpoint, once", () => {
  const rig = Rig.comparing();
  rig.primary(udp({ data: "x" }));
  assertEquals(rig.wait(150), undefined);
  assertEquals(rig.wait(50), "timeout");
  assertEquals(rig.wait(1000), undefined);
  assertEquals(rig.checkpoint().length, 1);
  assertEquals(rig.wait(1000), undefined);
  rig.primary(udp({ data: "x" }));
  rig.proxy.checkpoint(3);
  assertEquals(rig.wait(1000), undefined);
  rig.primary(udp({ data: "y" }));
  rig.wait(1000);
  rig.proxy.loaded(3, rig.now);
  assertEquals(rig.wait(150), undefined, "the secondary has only just loaded");
  assertEquals(rig.wait(50), "timeout");
});

Deno.test("out connection lost: frames are kept within a bound until it returns", () => {
  const rig = Rig.comparing();
  const frames = Array.from({ length: 30 }, (_, i) => arp(i));
  rig.primaryBytes(concat(frames.map(record)));
  const bytes = concat(frames.map(record));
  const { output } = rig.proxy;
  // Two records and a part of the third were written when the connection broke.
  output.sent(2 * 46 + 20);
  output.restart();
  assertEquals(output.bytes, bytes.length - 2 * 46);
  assertEquals(rig.output(), frames.slice(2));

  for (let i = 0; i < 300; i++) rig.primaryBytes(record(body(20_000)));
  assert(output.bytes < 8 * 262_144);
  output.restart();
  assertEquals(rig.output()[0]?.length, 20_000);
  assert(rig.proxy.statistics.lost > 100);
  assertEquals(rig.primary(arp()), [arp()]);
});

Deno.test("runs from different places are gathered, and any part of them may be written", () => {
  const rig = Rig.comparing();
  const frames = Array.from({ length: 50 }, (_, i) => udp({ destinationPort: i, data: `${i}` }));
  rig.primary(...frames);
  const shuffled = frames.map((_, i) => frames[i * 7 % 50]!);
  rig.secondaryBytes(concat(shuffled.map(record)));
  const pieces: Uint8Array[] = [];
  for (let size = 1;; size = size * 3 % 101) {
    const piece = rig.proxy.output.peek().slice(0, size);
    if (piece.length === 0) break;
    pieces.push(piece);
    rig.proxy.output.sent(piece.length);
  }
  assertEquals(readRecords(concat(pieces)), shuffled);
});

for (const side of ["primary", "secondary"] as const) {
  const send = (rig: Rig, bytes: Uint8Array) =>
    side === "primary" ? rig.primaryBytes(bytes) : rig.secondaryBytes(bytes);

  Deno.test(`5 zero bytes from the ${side}: typed error, and the next connection works`, () => {
    const rig = Rig.comparing();
    const error = assertThrows(() => send(rig, body(5)), PacketError, "a length must be 1 to");
    assertEquals(error.offset, 0);
    assertThrows(() => send(rig, record(arp())), PacketError);
    rig.proxy[side].reset();
    send(rig, record(arp()));
    assertEquals(rig.output(), side === "primary" ? [arp()] : []);
  });

  Deno.test(`a length over the maximum from the ${side}: typed error, next connection works`, () => {
    const rig = Rig.comparing();
    const frame = udp({ data: "before" });
    const bytes = concat([record(frame), be32(FRAME_BYTES_MAX + 1)]);
    const error = assertThrows(() => send(rig, bytes), PacketError, "connect anew");
    assertEquals(error.offset, frame.length + 4);
    rig.proxy[side].reset();
    // What came before the error counts.
    if (side === "primary") assertEquals(rig.secondary(frame), [frame]);
    else assertEquals(rig.primary(frame), [frame]);
  });

  Deno.test(`the ${side}'s link cut mid-frame and reconnected: reset on connect`, () => {
    const rig = Rig.comparing();
    const frame = udp({ data: "whole" });
    send(rig, record(frame).subarray(0, 30));
    assertEquals(rig.proxy[side].partialBytes, 30);
    rig.proxy[side].reset();
    rig.primary(frame);
    assertEquals(rig.secondary(frame), [frame]);
  });
}

Deno.test("a vnet header longer than its frame: typed error", () => {
  const rig = Rig.comparing({ vnetHeader: true });
  assertThrows(() => rig.primaryBytes(be32(10, 11)), PacketError, "vnet header");
});

Deno.test("frames with vnet headers are compared without them, and leave with them", () => {
  const rig = Rig.comparing({ vnetHeader: true });
  const frame = tcp({ data: "x", flags: TCP_FLAG.PSH });
  rig.primaryBytes(vnetRecord(frame, body("header ")));
  rig.secondaryBytes(vnetRecord(frame, body(12)));
  const expected = vnetRecord(frame, body("header "));
  assertEquals(rig.proxy.output.peek().slice(), expected);
  rig.proxy.output.sent(10);
  rig.proxy.output.restart();
  assertEquals(rig.proxy.output.peek().slice(), expected);
});

Deno.test("the space to read into is never empty, and takes no more than it has", () => {
  const proxy = new OutboundProxy(WasmKernels.create(), SMALL);
  const { length } = proxy.primary.space();
  assert(length >= 32 * 1024);
  assertThrows(() => proxy.primaryReceived(length + 1, 0), RangeError);
  assertThrows(() => proxy.primaryReceived(-1, 0), RangeError);
  assertThrows(() => proxy.output.sent(1), RangeError);
});

Deno.test("events that make no sense are refused and change nothing", () => {
  const rig = Rig.comparing();
  rig.primary(udp({ data: "held" }));
  for (const epoch of [1, 0, -1, 1.5, NaN, 2 ** 31]) {
    assertThrows(() => rig.proxy.checkpoint(epoch), StateError);
    assertThrows(() => rig.proxy.protect("continuous", epoch), StateError);
  }
  assertThrows(() => rig.proxy.committed(2), StateError);
  assertThrows(() => rig.proxy.loaded(2, 0), StateError);
  rig.proxy.committed(1);
  assertEquals(rig.output(), []);
  assertEquals([rig.proxy.mode, rig.proxy.epoch], ["compare", 1]);
});
