import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { StreamError } from "../../engine/errors.ts";
import { COLO_MESSAGES } from "../../engine/stream/format.ts";
import {
  pong,
  type ReturnPathEvent,
  ReturnPathReader,
  shut,
} from "../../engine/stream/return_path.ts";
import { coloMessage } from "../../engine/stream/writer.ts";
import { concat } from "./sample.ts";

function bytesOf(event: ReturnPathEvent): Uint8Array {
  switch (event.type) {
    case "pong":
      return pong(event.value);
    case "shut":
      return shut(event.status);
    case "colo":
      return coloMessage(event.message);
  }
}

const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const conversation: fc.Arbitrary<ReturnPathEvent[]> = fc.tuple(
  fc.array(fc.record({ type: fc.constant("pong" as const), value: u32 }), { maxLength: 3 }),
  fc.record({ type: fc.constant("shut" as const), status: u32 }),
  fc.array(
    fc.record({ type: fc.constant("colo" as const), message: fc.constantFrom(...COLO_MESSAGES) }),
  ),
).map(([pongs, end, messages]) => [...pongs, end, ...messages]);

Deno.test("ReturnPathReader writes and reads what QEMU was seen to send", () => {
  const seen = "0002 0004 00000001  0001 0004 00000000  00000000 00000002 00000005 00000006";
  const bytes = Uint8Array.from(
    seen.replaceAll(" ", "").match(/../g)!.map((byte) => parseInt(byte, 16)),
  );
  const events = new ReturnPathReader().push(bytes);
  assertEquals(events, [
    { type: "pong", value: 1 },
    { type: "shut", status: 0 },
    { type: "colo", message: "checkpoint-ready" },
    { type: "colo", message: "checkpoint-reply" },
    { type: "colo", message: "vmstate-received" },
    { type: "colo", message: "vmstate-loaded" },
  ]);
  assertEquals(concat(...events.map(bytesOf)), bytes);
});

Deno.test("ReturnPathReader reads the same from any chunking", () => {
  fc.assert(
    fc.property(conversation, fc.array(fc.nat(1000), { maxLength: 30 }), (events, cuts) => {
      const bytes = concat(...events.map(bytesOf));
      const places = [0, ...cuts.map((cut) => cut % (bytes.length + 1)), bytes.length]
        .sort((a, b) => a - b);
      const reader = new ReturnPathReader();
      const read = places.slice(1).flatMap((end, index) =>
        reader.push(bytes.subarray(places[index], end))
      );
      assertEquals(read, events);
    }),
  );
});

Deno.test("ReturnPathReader names what is wrong and where", () => {
  const cases: [string, Uint8Array, number][] = [
    // Before SHUT a COLO message is none: that is why SHUT must come first.
    ["message type 0 of 0 bytes", concat(pong(1), coloMessage("checkpoint-ready")), 8],
    ["message type 1 of 5 bytes", Uint8Array.of(0, 1, 0, 5, 0, 0, 0, 0, 0), 0],
    ["message type 3 of 4 bytes", Uint8Array.of(0, 3, 0, 4), 0],
    ["COLO message 7 is not known", concat(shut(), Uint8Array.of(0, 0, 0, 7)), 8],
    [
      "COLO message 65540 is not known",
      concat(shut(), coloMessage("checkpoint-ready"), shut().subarray(0, 4)),
      12,
    ],
  ];
  for (const [message, bytes, offset] of cases) {
    for (const chunks of [[bytes], [...bytes].map((byte) => Uint8Array.of(byte))]) {
      const reader = new ReturnPathReader();
      const error = assertThrows(
        () => chunks.forEach((chunk) => reader.push(chunk)),
        StreamError,
        message,
      );
      assertEquals(error.offset, offset, message);
    }
  }
});

Deno.test("ReturnPathReader survives any bytes with nothing but its own errors", () => {
  let refused = 0;
  fc.assert(
    fc.property(
      fc.boolean(),
      fc.uint8Array({ minLength: 8, maxLength: 64 }),
      (afterShut, bytes) => {
        const reader = new ReturnPathReader();
        if (afterShut) reader.push(shut());
        try {
          reader.push(bytes);
        } catch (error) {
          assert(error instanceof StreamError, String(error));
          refused++;
        }
      },
    ),
    { numRuns: 500 },
  );
  assert(refused > 450, `only ${refused} refused`);
});
