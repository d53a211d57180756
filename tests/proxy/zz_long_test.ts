import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { InvariantModel, type Said, type Step } from "./invariant_model.ts";
import { concat, record } from "./packets.ts";
import { Rig, Stream } from "./rig.ts";

/** What both VMs would say in one stream; one side may err. */
const TEXT = "abcabdabcabe";

const flow = fc.nat(1);

const datagram: fc.Arbitrary<Said> = fc.record({
  kind: fc.constantFrom("udp", "icmp"),
  flow,
  text: fc.constantFrom("a", "b", "cc"),
});

const segment: fc.Arbitrary<Said> = fc.tuple(
  flow,
  fc.nat(TEXT.length),
  fc.nat(5),
  fc.nat({ max: 12 }),
  fc.integer({ min: 1, max: 4 }),
).map(([flow, at, length, luck, ack]) => {
  const text = TEXT.slice(at, at + length);
  const said = luck === 0 ? text.replace("a", "X") : text;
  return { kind: "tcp", flow, at, text: said, ack, fin: at + length === TEXT.length };
});

const flags: fc.Arbitrary<Said> = fc.record({
  kind: fc.constantFrom("syn", "syn-ack", "syn-ack", "rst"),
  flow,
});

const said = fc.array(
  fc.oneof(
    { weight: 6, arbitrary: segment },
    { weight: 3, arbitrary: datagram },
    { weight: 1, arbitrary: flags },
  ),
  { minLength: 1, maxLength: 4 },
);

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({ type: fc.constantFrom("primary", "secondary"), said }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ type: fc.constantFrom("checkpoint", "commit", "load", "load") }),
  },
  { weight: 1, arbitrary: fc.record({ type: fc.constantFrom("lost", "alone", "time") }) },
  {
    weight: 1,
    arbitrary: fc.record({
      type: fc.constant("protect"),
      mode: fc.constantFrom("compare", "compare", "continuous"),
    }),
  },
);

/** Both VMs run from a checkpoint and say the same things, in another order. */
const together: fc.Arbitrary<Step[]> = said.chain((said) =>
  fc.tuple(fc.constant(said), fc.shuffledSubarray(said), fc.boolean())
).map(([primary, secondary, isFirst]) => {
  const steps: Step[] = [
    { type: "primary", said: primary },
    { type: "secondary", said: secondary },
  ];
  return isFirst ? steps : steps.reverse();
});

const steps = fc.array(
  fc.oneof(
    { weight: 3, arbitrary: step.map((step) => [step]) },
    { weight: 2, arbitrary: together },
  ),
  { maxLength: 25, size: "max" },
).map((steps) => steps.flat());

const BEGIN: readonly Step[] = [{ type: "protect", mode: "compare" }, { type: "load" }];

Deno.test("invariant 1 holds under any interleaving of packets and checkpoint events", () => {
  fc.assert(
    fc.property(steps, fc.boolean(), (steps, isComparing) => {
      new InvariantModel().run([...(isComparing ? BEGIN : []), ...steps]);
    }),
    { numRuns: 300000 },
  );
});

/** Bytes that repeat, so that a wrong position may look right for a while. */
const CONTENT = Uint8Array.from({ length: 3000 }, (_, i) => i * i >> 5);

/** A stream cut into pieces, some of them sent once more, some a little late. */
const cut = fc.array(
  fc.record({ length: fc.integer({ min: 1, max: 700 }), late: fc.nat(2), again: fc.nat(9) }),
  { minLength: 12, maxLength: 40 },
).map((pieces) => {
  const segments: { at: number; end: number; rank: number }[] = [];
  let at = 0;
  for (const [index, { length, late, again }] of pieces.entries()) {
    const end = Math.min(at + length, CONTENT.length);
    if (end > at) segments.push({ at, end, rank: index + (late === 2 ? 2.5 : 0) });
    if (again === 9) segments.push({ at: at >> 1, end, rank: index + 4.5 });
    at = end;
  }
  if (at < CONTENT.length) segments.push({ at, end: CONTENT.length, rank: 99 });
  return segments.toSorted((a, b) => a.rank - b.rank);
});

type Cut = readonly { readonly at: number; readonly end: number }[];

/** Play two cuts of a stream, interleaved; the secondary's content may be another. */
function play(primary: Cut, secondary: Cut, order: readonly boolean[], theirs = CONTENT) {
  const rig = Rig.comparing();
  const stream = new Stream({}, 0xffff_f000).open(rig);
  const send = (content: Uint8Array, { at, end }: Cut[number]) =>
    stream.at(at, content.subarray(at, end));
  const queues = [primary.values(), secondary.values()] as const;
  const released: Uint8Array[] = [];
  for (
    const isPrimary of [...order, ...Array<boolean>(300).fill(true), ...Array(300).fill(false)]
  ) {
    const next = queues[isPrimary ? 0 : 1].next();
    if (next.done) continue;
    if (isPrimary) released.push(...rig.primary(send(CONTENT, next.value)));
    else released.push(...rig.secondary(send(theirs, next.value)));
  }
  return { rig, stream, released };
}

const order = fc.array(fc.boolean(), { minLength: 20, maxLength: 80 });

Deno.test("the same stream, however cut, repeated and reordered on either side, is released", () => {
  fc.assert(
    fc.property(cut, cut, order, (primary, secondary, order) => {
      const { rig, stream, released } = play(primary, secondary, order);
      const sent = primary.map(({ at, end }) => stream.at(at, CONTENT.subarray(at, end)));
      assertEquals(released, sent);
      assertEquals(rig.reason, undefined);
    }),
    { numRuns: 3000 },
  );
});

Deno.test("a byte that differs never leaves, and is found, however the stream is cut", () => {
  fc.assert(
    fc.property(
      cut,
      cut,
      order,
      fc.nat(CONTENT.length - 1),
      (primary, secondary, order, position) => {
        const theirs = CONTENT.slice();
        theirs[position]! ^= 1;
        const { rig, stream, released } = play(primary, secondary, order, theirs);
        assertEquals(rig.reason, "mismatch");
        const sent = primary.map(({ at, end }) => ({
          frame: stream.at(at, CONTENT.subarray(at, end)),
          isWrong: at <= position && position < end,
        }));
        const before = sent.slice(0, sent.findIndex(({ isWrong }) => isWrong));
        assertEquals(released, before.map(({ frame }) => frame));
        assertEquals(rig.checkpoint(), sent.slice(before.length).map(({ frame }) => frame));
      },
    ),
    { numRuns: 3000 },
  );
});

Deno.test("any chunking of the same bytes gives the same frames", () => {
  fc.assert(fc.property(
    cut,
    cut,
    fc.array(fc.integer({ min: 1, max: 5000 }), { minLength: 1 }),
    (primary, secondary, sizes) => {
      const rig = Rig.comparing();
      const stream = new Stream().open(rig);
      const frames = [primary, secondary].map((cut) =>
        cut.map(({ at, end }) => stream.at(at, CONTENT.subarray(at, end)))
      );
      const [ours, theirs] = frames.map((frames) => concat(frames.map(record)));
      for (
        const [bytes, send] of [
          [ours!, (piece: Uint8Array) => rig.primaryBytes(piece)],
          [theirs!, (piece: Uint8Array) => rig.secondaryBytes(piece)],
        ] as const
      ) {
        for (let at = 0, i = 0; at < bytes.length; i++) {
          const size = sizes[i % sizes.length]!;
          send(bytes.subarray(at, at + size));
          at += size;
        }
      }
      assertEquals(rig.output(), frames[0]);
      assert(rig.reason === undefined);
    },
  ));
});
