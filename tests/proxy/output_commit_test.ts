import { assertEquals } from "@std/assert/mod.js";
import { arp, body, tcp, TCP_FLAG, udp } from "./packets.ts";
import { Rig, Stream } from "./rig.ts";

const datagram = (text: string) => udp({ data: text });

Deno.test("alone: everything passes, the secondary's is dropped", () => {
  const rig = new Rig();
  const frames = [datagram("a"), arp(), tcp({ flags: TCP_FLAG.SYN }), body(5)];
  assertEquals(rig.primary(...frames), frames);
  assertEquals(rig.secondary(...frames), []);
  assertEquals([rig.reason, rig.wait(1000)], [undefined, undefined]);
});

Deno.test("continuous: a commit is the only way out, and lets go in order", () => {
  const rig = new Rig();
  rig.proxy.protect("continuous", 1);
  const frames = [datagram("a"), arp(), datagram("b"), tcp({ flags: TCP_FLAG.SYN })];
  assertEquals(rig.primary(...frames.slice(0, 2)), []);
  assertEquals(rig.secondary(...frames), []);
  rig.proxy.checkpoint(2);
  assertEquals(rig.primary(...frames.slice(2)), []);
  rig.proxy.committed(1);
  assertEquals(rig.output(), []);
  rig.proxy.committed(2);
  assertEquals(rig.output(), frames.slice(0, 2));
  rig.proxy.checkpoint(3);
  rig.proxy.committed(3);
  assertEquals(rig.output(), frames.slice(2));
  assertEquals([rig.reason, rig.wait(1000)], [undefined, undefined]);
});

Deno.test("excluded flows wait like all others where a commit is the only way out", () => {
  const rig = new Rig({ excluded: [{}] });
  rig.proxy.protect("continuous", 1);
  assertEquals(rig.primary(datagram("a")), []);
});

Deno.test("frames sent before protection began have left, those after it wait", () => {
  const rig = new Rig();
  assertEquals(rig.primary(datagram("before")), [datagram("before")]);
  rig.proxy.protect("compare", 5);
  assertEquals(rig.primary(datagram("after")), []);
  // The secondary runs from nothing that is known yet.
  assertEquals(rig.secondary(datagram("after")), []);
  rig.proxy.committed(5);
  assertEquals(rig.output(), []);
  assertEquals(rig.secondary(datagram("after")), []);
  rig.proxy.loaded(5, rig.now);
  assertEquals(rig.secondary(datagram("after")), [datagram("after")]);
});

Deno.test("what the secondary said before it loaded a checkpoint is no match for what comes after", () => {
  const rig = Rig.comparing();
  rig.secondary(datagram("x"));
  rig.proxy.checkpoint(2);
  assertEquals(rig.primary(datagram("x")), []);
  assertEquals(rig.secondary(datagram("x")), []);
  rig.proxy.committed(2);
  assertEquals(rig.secondary(datagram("x")), []);
  rig.proxy.loaded(2, rig.now);
  assertEquals(rig.output(), []);
  assertEquals(rig.secondary(datagram("x")), [datagram("x")]);
});

Deno.test("while a checkpoint travels, frames from before it may still match", () => {
  const rig = Rig.comparing();
  const [a, b] = [datagram("a"), datagram("b")];
  rig.primary(a);
  rig.proxy.checkpoint(2);
  rig.primary(b);
  assertEquals(rig.secondary(a, b), [a]);
  assertEquals(rig.reason, undefined);
  rig.proxy.loaded(2, rig.now);
  assertEquals(rig.secondary(b), [b]);
});

Deno.test("a difference that the checkpoint on its way ends asks for no other", () => {
  const rig = Rig.comparing();
  rig.primary(datagram("right"));
  rig.proxy.checkpoint(2);
  rig.secondary(datagram("wrong"));
  assertEquals(rig.reason, undefined);
  rig.primary(datagram("next"));
  rig.proxy.loaded(2, rig.now);
  assertEquals(rig.output(), [datagram("right")]);
  assertEquals(rig.secondary(datagram("next")), [datagram("next")]);
  assertEquals(rig.proxy.statistics.mismatches, 1);
});

Deno.test("a checkpoint asked for while one travels is another one", () => {
  const rig = Rig.comparing();
  rig.primary(tcp({ flags: TCP_FLAG.SYN }));
  assertEquals(rig.reason, "handshake");
  rig.proxy.checkpoint(2);
  rig.primary(tcp({ flags: TCP_FLAG.SYN, destinationPort: 5 }));
  assertEquals(rig.reason, "handshake");
  rig.proxy.loaded(2, rig.now);
  assertEquals(rig.output().length, 1);
  assertEquals(rig.checkpoint().length, 1);
});

Deno.test("what needs nothing more of the secondary leaves with the commit before", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const data = stream.at(0, "data", { ack: 600 });
  rig.primary(data);
  rig.proxy.checkpoint(2);
  const frames = [stream.ack(600, 4), data, stream.at(4, "new", { ack: 600 }), stream.ack(600, 7)];
  assertEquals(rig.primary(...frames), []);
  rig.proxy.committed(2);
  assertEquals(rig.output(), [data, frames[0], data]);
  rig.proxy.loaded(2, rig.now);
  assertEquals(rig.secondary(frames[2]!), frames.slice(2));
});

Deno.test("loads may skip checkpoints that were merged", () => {
  const rig = Rig.comparing();
  const frames = ["a", "b", "c"].map(datagram);
  rig.primary(frames[0]!);
  rig.proxy.checkpoint(2);
  rig.primary(frames[1]!);
  rig.proxy.committed(2);
  assertEquals(rig.output(), [frames[0]]);
  rig.proxy.checkpoint(3);
  rig.primary(frames[2]!);
  rig.proxy.loaded(2, rig.now);
  assertEquals(rig.secondary(frames[1]!), [frames[1]]);
  rig.proxy.loaded(3, rig.now);
  assertEquals(rig.secondary(frames[2]!), [frames[2]]);
});

Deno.test("secondary lost: nothing leaves until the arbiter says so, then all of it, in order", () => {
  const rig = Rig.comparing();
  const frames = ["a", "b", "c"].map(datagram);
  rig.primary(frames[0]!);
  rig.proxy.checkpoint(2);
  rig.primary(frames[1]!);
  rig.proxy.secondaryLost();
  assertEquals(rig.primary(frames[2]!), []);
  assertEquals(rig.secondary(...frames), []);
  assertEquals(rig.wait(1000), undefined);
  rig.proxy.runAlone();
  assertEquals(rig.output(), frames);
  assertEquals(rig.primary(datagram("d")), [datagram("d")]);
  rig.proxy.committed(2);
  assertEquals(rig.output(), []);
});

Deno.test("secondary lost: what is never compared waits like all else for who goes on", () => {
  const rig = Rig.comparing({ excluded: [{ protocol: "udp" }] });
  assertEquals(rig.primary(arp(), datagram("a")), [arp(), datagram("a")]);
  rig.proxy.secondaryLost();
  const frames = [arp(), datagram("b"), body(5)];
  assertEquals(rig.primary(...frames), []);
  assertEquals(rig.wait(1000), undefined);
  rig.proxy.runAlone();
  assertEquals(rig.output(), frames);
  assertEquals(rig.primary(arp()), [arp()]);
  rig.proxy.protect("compare", 2);
  rig.proxy.loaded(2, rig.now);
  assertEquals(rig.primary(arp()), [arp()]);
});

Deno.test("a secondary that takes another one's place lets go what waited", () => {
  const rig = Rig.comparing();
  rig.primary(datagram("a"));
  rig.proxy.secondaryLost();
  rig.proxy.protect("compare", 2);
  rig.primary(datagram("b"));
  rig.proxy.committed(2);
  assertEquals(rig.output(), [datagram("a")]);
  rig.proxy.loaded(2, rig.now);
  assertEquals(rig.secondary(datagram("b")), [datagram("b")]);
});

Deno.test("recovery: alone, then another secondary joins, and everything is compared anew", () => {
  const rig = Rig.comparing();
  const stream = new Stream().open(rig);
  const first = stream.at(0, "compared");
  rig.primary(first);
  rig.secondary(first);
  rig.proxy.runAlone();
  const meanwhile = stream.at(8, "unprotected");
  assertEquals(rig.primary(meanwhile), [meanwhile]);
  rig.proxy.protect("compare", 2);
  rig.proxy.loaded(2, rig.now);
  // Nobody compared what left unprotected: it waits for the secondary to say it as well.
  assertEquals(rig.primary(meanwhile), []);
  assertEquals(rig.secondary(meanwhile), [meanwhile]);
  const next = stream.at(19, "right");
  rig.primary(next);
  assertEquals(rig.secondary(stream.at(19, "wrong")), []);
  assertEquals(rig.reason, "mismatch");
});
