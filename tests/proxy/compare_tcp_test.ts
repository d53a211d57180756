import { assertEquals } from "@std/assert/mod.js";
import { PACKET_DISTRUSTED_FRAMES } from "../../engine/limits.ts";
import { tcp, TCP_FLAG } from "./packets.ts";
import { Rig, Stream } from "./rig.ts";

Deno.test("identical TCP is released", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const [first, second] = [stream.at(0, "hello "), stream.at(6, "world")];
  assertEquals(rig.primary(first, second), []);
  assertEquals(rig.secondary(first), [first]);
  assertEquals(rig.secondary(second), [second]);
  const third = stream.at(11, "!");
  assertEquals(rig.secondary(third), []);
  assertEquals(rig.primary(third), [third]);
  assertEquals(rig.reason, undefined);
});

Deno.test("TCP payload differs: one request until the checkpoint, all of the connection held", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const other = new Stream({ destinationPort: 9 }).open(rig);
  const frames = [stream.at(0, "right"), stream.at(5, "more"), stream.ack(500, 9)];
  assertEquals(rig.primary(frames[0]!), []);
  assertEquals(rig.secondary(stream.at(0, "wrong")), []);
  assertEquals(rig.proxy.takeRequest(), {
    reason: "mismatch",
    flow: "tcp 10.0.0.1:80 > 10.0.0.2:4000",
  });
  assertEquals(rig.primary(frames[1]!, frames[2]!), []);
  assertEquals(rig.secondary(frames[1]!, stream.at(9, "x")), []);
  assertEquals(rig.reason, undefined);

  const fine = other.at(0, "fine");
  rig.primary(fine);
  assertEquals(rig.secondary(fine), [fine]);

  assertEquals(rig.checkpoint(), frames);
  const next = stream.at(9, "after");
  rig.primary(next);
  assertEquals(rig.secondary(next), [next]);
  assertEquals(rig.proxy.statistics.mismatches, 1);
});

Deno.test("what has differed twice in a row asks at once for a while, and then only if it differs", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const other = new Stream({ destinationPort: 9 }).open(rig);
  let at = 0;
  const say = () => rig.primary(stream.at(at++, "x"));
  const differ = () => {
    say();
    assertEquals(rig.reason, undefined);
    rig.secondary(stream.at(at - 1, "y"));
    assertEquals(rig.reason, "mismatch");
    rig.checkpoint();
  };
  differ();
  differ();
  for (let frame = 0; frame < PACKET_DISTRUSTED_FRAMES; frame++) {
    say();
    assertEquals(rig.reason, "mismatch");
    rig.checkpoint();
  }
  differ();
  say();
  assertEquals(rig.reason, "mismatch");
  rig.checkpoint();
  rig.primary(other.at(0, "fine"));
  assertEquals(rig.reason, undefined);
});

Deno.test("something equal between two differences: no more is expected of a connection", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  for (let at = 0; at < 20; at += 2) {
    rig.primary(stream.at(at, "x"));
    assertEquals(rig.reason, undefined);
    rig.secondary(stream.at(at, "y"));
    assertEquals(rig.reason, "mismatch");
    rig.checkpoint();
    const same = stream.at(at + 1, "z");
    rig.primary(same);
    assertEquals(rig.reason, undefined);
    assertEquals(rig.secondary(same), [same]);
  }
});

Deno.test("a difference within a batch holds what comes behind it, and nothing else", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const other = new Stream({ destinationPort: 9 }).open(rig);
  const a = [stream.at(0, "one"), stream.at(3, "two"), stream.at(6, "three"), stream.ack(500, 11)];
  const b = [other.at(0, "one"), other.at(3, "two")];
  rig.primary(a[0]!, b[0]!, a[1]!, a[2]!, a[3]!, b[1]!);
  assertEquals(rig.secondary(a[0]!, stream.at(3, "TWO"), a[2]!, b[0]!, b[1]!), [a[0], b[0], b[1]]);
  assertEquals(rig.reason, "mismatch");
  assertEquals(rig.checkpoint(), a.slice(1));
  const next = [stream.at(11, "four"), stream.at(15, "five")];
  rig.primary(...next);
  assertEquals(rig.secondary(...next), next);
});

Deno.test("different segmentation, also across sequence wrap", () => {
  for (const isn of [1000, 0xffff_fff0]) {
    const rig = Rig.comparing();
    const stream = new Stream({}, isn).open(rig);
    const frames = [
      stream.at(0, "0123456789"),
      stream.at(10, "abcdefghij"),
      stream.at(20, "KLMNO"),
    ];
    rig.primary(...frames);
    assertEquals(rig.secondary(stream.at(0, "012")), []);
    assertEquals(rig.secondary(stream.at(3, "3456789abcdefg")), [frames[0]]);
    assertEquals(rig.secondary(stream.at(17, "hijKLMNO")), [frames[1], frames[2]]);

    rig.secondary(stream.at(25, "one piece"));
    const pieces = [stream.at(25, "one"), stream.at(28, " pie"), stream.at(32, "ce")];
    assertEquals(rig.primary(...pieces), pieces);
    assertEquals(rig.reason, undefined);
    assertEquals(rig.proxy.statistics.held, 0);
  }
});

Deno.test("recut with a wrong tail: the good part leaves, the rest is held", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const frames = [stream.at(0, "good"), stream.at(4, "also good"), stream.at(13, "tail")];
  rig.primary(...frames);
  assertEquals(rig.secondary(stream.at(0, "goodalso goodTAIL")), [frames[0], frames[1]]);
  assertEquals(rig.reason, "mismatch");
  assertEquals(rig.checkpoint(), [frames[2]]);
});

Deno.test("recut, primary's ACK ahead of the secondary's: wait for the secondary's ACK", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const frame = stream.at(0, "answer", { ack: 700 });
  rig.primary(frame);
  assertEquals(rig.secondary(stream.at(0, "ans", { ack: 600 })), []);
  assertEquals(rig.secondary(stream.at(3, "wer", { ack: 699 })), []);
  assertEquals(rig.reason, undefined);
  assertEquals(rig.secondary(stream.ack(700, 6)), [frame]);
});

Deno.test("retransmission by primary only is released: those bytes were compared already", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const frames = [stream.at(0, "0123456789"), stream.at(10, "abcdef")];
  rig.primary(...frames);
  assertEquals(rig.secondary(...frames), frames);
  assertEquals(rig.primary(frames[0]!), [frames[0]]);
  const recut = stream.at(3, "3456789abc");
  assertEquals(rig.primary(recut), [recut]);
  assertEquals(rig.reason, undefined);
});

Deno.test("retransmission by secondary only is forgotten", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const frames = [stream.at(0, "0123456789"), stream.at(10, "abcdef")];
  rig.primary(frames[0]!);
  rig.secondary(frames[0]!);
  assertEquals(rig.secondary(frames[0]!, stream.at(4, "4567")), []);
  rig.primary(frames[1]!);
  assertEquals(rig.secondary(frames[1]!), [frames[1]]);
  assertEquals(rig.reason, undefined);
});

Deno.test("partly overlapping retransmission: what is new is compared", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const first = stream.at(0, "01234567");
  rig.primary(first);
  rig.secondary(first);
  const overlapping = stream.at(4, "4567new");
  assertEquals(rig.primary(overlapping), []);
  assertEquals(rig.secondary(stream.at(8, "new")), [overlapping]);
  assertEquals(rig.reason, undefined);

  rig.primary(stream.at(6, "67newer"));
  assertEquals(rig.secondary(stream.at(11, "ES")), []);
  assertEquals(rig.reason, "mismatch");
});

Deno.test("primary retransmits other bytes: mismatch", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const first = stream.at(0, "original");
  rig.primary(first);
  rig.secondary(first);
  assertEquals(rig.primary(stream.at(2, "IGIN")), []);
  assertEquals(rig.reason, "mismatch");
});

Deno.test("a hole filled late with wrong bytes: mismatch", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const [first, second] = [stream.at(0, "first"), stream.at(5, "second")];
  rig.primary(second);
  assertEquals(rig.secondary(first, second), [second]);
  assertEquals(rig.primary(stream.at(0, "FIRST")), []);
  assertEquals(rig.reason, "mismatch");
});

Deno.test("a hole filled late with the right bytes is released", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const frames = [stream.at(0, "first"), stream.at(5, "second"), stream.at(11, "third")];
  rig.primary(frames[1]!);
  rig.secondary(frames[0]!, frames[1]!);
  assertEquals(rig.primary(frames[0]!), [frames[0]]);
  rig.primary(frames[2]!);
  assertEquals(rig.secondary(frames[2]!), [frames[2]]);
  assertEquals(rig.reason, undefined);
});

Deno.test("4-tuple reuse with a lower ISN: the new stream is compared from its start", () => {
  const rig = Rig.comparing();
  const old = new Stream({}, 0x7000_0000).open(rig);
  const frame = old.at(0, "old data");
  rig.primary(frame);
  assertEquals(rig.secondary(frame), [frame]);

  const reused = new Stream({}, 5000).open(rig);
  rig.primary(reused.at(0, "right"));
  assertEquals(rig.secondary(reused.at(0, "wrong")), []);
  assertEquals(rig.reason, "mismatch");

  rig.checkpoint();
  const again = new Stream({}, 4000).open(rig);
  const [good, synAck] = [again.at(0, "good"), again.synAck()];
  rig.primary(good);
  assertEquals(rig.secondary(good), [good]);
  assertEquals(rig.primary(synAck), [synAck]);
});

Deno.test("4-tuple reuse without a handshake in sight: compared all the same", () => {
  const rig = Rig.comparing();
  const old = new Stream({}, 0x7000_0000).open(rig);
  const frame = old.at(0, "old data");
  rig.primary(frame);
  rig.secondary(frame);
  const reused = new Stream({}, 5000);
  rig.primary(reused.at(0, "right"));
  assertEquals(rig.secondary(reused.at(0, "wrong")), []);
  assertEquals(rig.reason, "mismatch");
});

Deno.test("wrong bytes after a padded ACK: mismatch", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const ack = stream.ack(500, 0, { padding: 6 });
  assertEquals(rig.primary(ack), [ack]);
  rig.primary(stream.at(0, "right!"));
  assertEquals(rig.secondary(stream.ack(500), stream.at(0, "wrong!")), []);
  assertEquals(rig.reason, "mismatch");
});

Deno.test("primary padded, secondary unpadded ACK: equal", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const ack = stream.ack(900, 0, { padding: 6 });
  assertEquals(rig.primary(ack), []);
  assertEquals(rig.secondary(stream.ack(900)), [ack]);
  const data = stream.at(0, "x", { padding: 5, ack: 900 });
  rig.primary(data);
  assertEquals(rig.secondary(stream.at(0, "x", { ack: 900 })), [data]);
  assertEquals(rig.reason, undefined);
});

Deno.test("out of order on one side is put in order", () => {
  for (const order of [[2, 1, 0], [1, 0, 2], [0, 2, 1], [2, 0, 1], [1, 2, 0]]) {
    const rig = Rig.comparing();
    const stream = new Stream().open(rig);
    const frames = [stream.at(0, "one"), stream.at(3, "two"), stream.at(6, "three")];
    rig.primary(...frames);
    assertEquals(order.flatMap((index) => rig.secondary(frames[index]!)), frames);

    const more = [stream.at(11, "ONE"), stream.at(14, "TWO"), stream.at(17, "THREE")];
    rig.secondary(...more);
    const shuffled = order.map((index) => more[index]!);
    assertEquals(shuffled.flatMap((frame) => rig.primary(frame)), shuffled);
    assertEquals(rig.reason, undefined);
    const last = stream.at(22, "in order again");
    rig.primary(last);
    assertEquals(rig.secondary(last), [last]);
  }
});

Deno.test("the RST of one side against the data of the other: mismatch", () => {
  for (const isPrimaryReset of [true, false]) {
    const rig = Rig.comparing();
    const stream = new Stream().open(rig);
    const [data, reset] = [stream.at(0, "data"), stream.rst(0)];
    rig.primary(isPrimaryReset ? reset : data);
    assertEquals(rig.secondary(isPrimaryReset ? data : reset), []);
    assertEquals(rig.reason, "mismatch");

    const late = Rig.comparing();
    stream.open(late);
    late.secondary(isPrimaryReset ? data : reset);
    assertEquals(late.primary(isPrimaryReset ? reset : data), []);
    assertEquals(late.reason, "mismatch");
  }
});

Deno.test("a RST behind the same data on both sides is released", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const frames = [stream.at(0, "data"), stream.rst(4)];
  rig.primary(...frames);
  assertEquals(rig.secondary(stream.at(0, "da"), stream.at(2, "ta"), stream.rst(4)), frames);
  const refused = [new Stream({ destinationPort: 8 }).rst(0)];
  rig.secondary(...refused);
  assertEquals(rig.primary(...refused), refused);
  assertEquals(rig.reason, undefined);
});

Deno.test("an ACK that the secondary, which sent a RST, will never give: mismatch", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  rig.secondary(stream.rst(0));
  assertEquals(rig.primary(stream.ack(600)), []);
  assertEquals(rig.reason, "mismatch");
});

Deno.test("a FIN at another position: mismatch", () => {
  const cases: readonly [Uint8Array, Uint8Array][] = [];
  const stream = new Stream();
  const pairs = [
    ...cases,
    [stream.fin(0, "abc"), stream.at(0, "abcdef")],
    [stream.at(0, "abcdef"), stream.fin(0, "abc")],
    [stream.fin(0), stream.at(0, "a")],
  ] as const;
  for (const [primary, secondary] of pairs) {
    const rig = Rig.comparing();
    stream.open(rig);
    rig.primary(primary);
    assertEquals(rig.secondary(secondary), []);
    assertEquals(rig.reason, "mismatch");
  }
});

Deno.test("a FIN at the same position is released, however it was cut, and once more", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const frame = stream.fin(0, "end");
  rig.primary(frame);
  assertEquals(rig.secondary(stream.at(0, "end")), []);
  assertEquals(rig.secondary(stream.fin(3)), [frame]);
  assertEquals(rig.primary(stream.fin(3)), [stream.fin(3)]);
  assertEquals(rig.reason, undefined);
});

Deno.test("a pure ACK waits until the secondary has acknowledged as much, wrap included", () => {
  for (const base of [500, 0xffff_fff0]) {
    const rig = Rig.comparing();
    const stream = new Stream();
    const synAck = stream.synAck(stream.isn, { ack: base });
    rig.primary(synAck);
    rig.secondary(synAck);
    const ack = (count: number) => stream.ack(base + count >>> 0);
    assertEquals(rig.primary(ack(0)), [ack(0)]);
    assertEquals(rig.primary(ack(100)), []);
    assertEquals(rig.secondary(ack(99)), []);
    assertEquals(rig.secondary(ack(200)), [ack(100)]);
    assertEquals(rig.primary(ack(150)), [ack(150)]);
    assertEquals(rig.secondary(ack(10)), []);
    assertEquals(rig.primary(ack(200)), [ack(200)]);
    assertEquals(rig.reason, undefined);
  }
});

Deno.test("PSH, URG, windows and TCP options are not compared", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const frame = stream.at(0, "same", { tcpOptions: new Uint8Array(12).fill(1) });
  rig.primary(frame);
  const plain = stream.at(0, "same", { flags: TCP_FLAG.ACK | 0x20, ttl: 3, id: 99 });
  assertEquals(rig.secondary(plain), [frame]);
  assertEquals(rig.reason, undefined);
});

Deno.test("a SYN-ACK is matched by flags only, and never leaves before the secondary's was seen", () => {
  const rig = Rig.comparing();
  const stream = new Stream();
  assertEquals(rig.primary(stream.synAck()), []);
  assertEquals(rig.primary(stream.synAck()), []);
  assertEquals(rig.secondary(stream.synAck(123456)), [stream.synAck(), stream.synAck()]);
  assertEquals(rig.secondary(stream.synAck(123456)), []);
  assertEquals(rig.primary(stream.synAck()), [stream.synAck()]);

  const first = new Stream({ destinationPort: 5 });
  assertEquals(rig.secondary(first.synAck(99), first.synAck(99)), []);
  assertEquals(rig.primary(first.synAck()), [first.synAck()]);
  const data = first.at(0, "hi");
  rig.primary(data);
  assertEquals(rig.secondary(data), [data]);
  assertEquals(rig.reason, undefined);
});

Deno.test("a SYN-ACK of a reused 4-tuple waits for a new one of the secondary's", () => {
  const rig = Rig.comparing();
  new Stream({}, 1000).open(rig);
  assertEquals(rig.primary(new Stream({}, 2000).synAck()), []);
  assertEquals(rig.secondary(new Stream({}, 2000).synAck(4)), [new Stream({}, 2000).synAck()]);
});

Deno.test("a SYN of the guest's asks for a checkpoint and leaves with it", () => {
  const rig = Rig.comparing();
  const syn = (seq: number) => tcp({ seq, flags: TCP_FLAG.SYN });
  assertEquals(rig.primary(syn(100)), []);
  assertEquals(rig.reason, "handshake");
  assertEquals(rig.secondary(syn(900)), []);
  assertEquals(rig.primary(syn(100)), []);
  assertEquals(rig.reason, undefined);
  assertEquals(rig.checkpoint(), [syn(100), syn(100)]);
  const data = new Stream({}, 100).at(0, "GET /");
  rig.primary(data);
  assertEquals(rig.secondary(data), [data]);
});

Deno.test("a SYN-ACK that no filter-rewriter translates asks for a checkpoint", () => {
  for (const options of [{ version: 6 }, { vlan: [5] }, { data: "early" }] as const) {
    const rig = Rig.comparing();
    const stream = new Stream(options);
    rig.secondary(stream.synAck(77));
    assertEquals(rig.primary(stream.synAck()), []);
    assertEquals(rig.reason, "handshake");
    assertEquals(rig.checkpoint(), [stream.synAck()]);
    const data = stream.at("data" in options ? 5 : 0, "hello");
    rig.primary(data);
    assertEquals(rig.secondary(data), [data]);
  }
});

Deno.test("IPv6 and VLAN are compared as IPv4 is", () => {
  for (const options of [{ version: 6 }, { vlan: [5] }, { vlan: [5, 6] }] as const) {
    const rig = Rig.comparing();
    const stream = new Stream(options);
    const frames = [stream.at(0, "0123456789"), stream.at(10, "abcdef")];
    rig.primary(...frames);
    assertEquals(rig.secondary(stream.at(0, "01234")), []);
    assertEquals(rig.secondary(stream.at(5, "56789abcdef")), frames);
    rig.primary(stream.at(16, "right"));
    assertEquals(rig.secondary(stream.at(16, "wrong")), []);
    assertEquals(rig.reason, "mismatch");
  }
});

Deno.test("flows that differ in their VLAN or address alone are not each other's", () => {
  const rig = Rig.comparing();
  const options = [{}, { vlan: [5] }, { vlan: [6] }, { source: 9 }, { version: 6 }] as const;
  const frames = options.map((o, i) => new Stream(o).at(0, `flow ${i}`));
  rig.primary(...frames);
  assertEquals(rig.secondary(...frames.toReversed()), frames.toReversed());
  assertEquals(rig.reason, undefined);
});

Deno.test("a connection met in the middle is compared from there", () => {
  const rig = Rig.comparing();
  const stream = new Stream();
  const frames = [stream.at(5000, "0123456789"), stream.at(5010, "abcdef")];
  rig.primary(frames[0]!);
  assertEquals(rig.secondary(stream.at(5000, "0123")), []);
  assertEquals(rig.secondary(stream.at(5004, "456789abcdef")), [frames[0]]);
  assertEquals(rig.primary(frames[1]!), [frames[1]]);
});

Deno.test("of a connection nothing leaves out of order, another one does not wait for it", () => {
  const rig = Rig.comparing();
  const [first, second] = [new Stream(), new Stream({ destinationPort: 9 })];
  const a = [first.at(0, "abc"), first.ack(500, 3)];
  const b = [second.at(0, "def")];
  rig.secondary(first.ack(500));
  assertEquals(rig.primary(...a, ...b), []);
  assertEquals(rig.secondary(...b), b);
  assertEquals(rig.secondary(a[0]!), a);
});

Deno.test("retransmissions are compared after a checkpoint, too", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const frames = [stream.at(0, "compared"), stream.at(8, "committed")];
  rig.primary(...frames);
  rig.secondary(frames[0]!);
  assertEquals(rig.checkpoint(), [frames[1]]);
  assertEquals(rig.primary(...frames), frames);
  assertEquals(rig.primary(stream.at(10, "XX")), []);
  assertEquals(rig.reason, "mismatch");
});

Deno.test("what the secondary acknowledged before a checkpoint counts no more after it", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  rig.secondary(stream.ack(900));
  assertEquals(rig.primary(stream.ack(600)), [stream.ack(600)]);
  rig.checkpoint();
  assertEquals(rig.primary(stream.ack(600)), [stream.ack(600)]);
  assertEquals(rig.primary(stream.ack(900)), []);
  assertEquals(rig.secondary(stream.ack(900)), [stream.ack(900)]);
});

Deno.test("an acknowledgment of the secondary's alone counts no more after a checkpoint", () => {
  const rig = Rig.comparing();
  const stream = new Stream();
  rig.secondary(stream.ack(0xf000_0100));
  rig.primary(stream.at(0, "x", { flags: 0 }));
  rig.checkpoint();
  const ack = stream.ack(0xf000_0050, 1);
  assertEquals(rig.primary(ack), []);
  assertEquals(rig.secondary(ack), [ack]);
});

Deno.test("what the secondary says in its next stream is no match for the one before", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  assertEquals(rig.primary(stream.at(0, "same")), []);
  assertEquals(rig.secondary(stream.synAck(5), stream.at(0, "same")), []);
  assertEquals(rig.wait(200), "timeout");
});

Deno.test("a hole that a checkpoint went over is no hole any more", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const beyond = stream.at(5, "beyond");
  rig.primary(beyond);
  assertEquals(rig.secondary(beyond), [beyond]);
  rig.checkpoint();
  for (let i = 0; i < 5000; i++) {
    const frame = stream.at(11 + 2 * i, "..");
    rig.primary(frame);
    assertEquals(rig.secondary(stream.at(0, "first"), frame), [frame]);
  }
  assertEquals(rig.reason, undefined);
});

Deno.test("a retransmission of what the history has forgotten waits for the secondary's", () => {
  const rig = Rig.comparing({ primarySegments: 20 });
  const [old, busy] = [new Stream().open(rig), new Stream({ destinationPort: 9 }).open(rig)];
  const first = old.at(0, "long ago");
  rig.primary(first);
  rig.secondary(first);
  for (let i = 0; i < 6000; i++) {
    const frame = busy.at(1000 * i, new Uint8Array(1000));
    rig.primary(frame);
    rig.secondary(frame);
  }
  assertEquals(rig.primary(first), []);
  assertEquals(rig.reason, undefined);
  assertEquals(rig.secondary(first), [first]);
});
