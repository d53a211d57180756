import { assert, assertEquals, assertInstanceOf, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { WireError } from "../../engine/errors.ts";
import { BLOCK_COUNT_MAX } from "../../engine/limits.ts";
import {
  decodeMessage,
  encodeMessage,
  LINK_ROLES,
  type Message,
} from "../../engine/link/messages.ts";
import { FRAME_HEADER_BYTES, FrameDecoder, FrameEncoder } from "../../engine/link/wire.ts";
import { WasmKernels } from "../../wasm/mod.ts";

const encoder = new FrameEncoder(WasmKernels.create());
const decoder = new FrameDecoder(WasmKernels.create());

/** Compresses, so that its place in the connection is not its place in what was said. */
const MANY = new Uint8Array(5000);

const epoch = fc.maxSafeNat();
const count = fc.maxSafeNat();
const text = fc.string({ unit: "grapheme", maxLength: 60 });
const bytes = fc.uint8Array({ maxLength: 500 });
const blocks = fc.uniqueArray(
  fc.record({
    name: fc.string({ unit: "grapheme", minLength: 1, maxLength: 20 }),
    sizeBytes: fc.integer({ min: 1, max: 2 ** 18 }).map((pages) => pages * 4096),
  }),
  { minLength: 1, maxLength: 8, selector: ({ name }) => name },
);

/** One arbitrary for every type of message: a type that is forgotten here does not compile. */
const MESSAGES: { readonly [T in Message["type"]]: fc.Arbitrary<Extract<Message, { type: T }>> } = {
  hello: fc.record({
    type: fc.constant("hello"),
    role: fc.constantFrom(...LINK_ROLES),
    session: text,
    vmName: text,
    memoryMiB: count,
    mode: fc.constantFrom("colo" as const, "continuous" as const),
    nics: count,
    disks: fc.array(fc.maxSafeNat(), { maxLength: 28 }),
    generation: count,
    holder: text,
    engineVersion: text,
  }),
  welcome: fc.record({ type: fc.constant("welcome"), engineVersion: text }),
  refuse: fc.record({ type: fc.constant("refuse"), reason: text, generation: count }),
  seedBegin: fc.record({
    type: fc.constant("seedBegin"),
    epoch,
    lineage: text,
    resumes: fc.boolean(),
    machine: text,
    blocks,
    ramSectionId: count,
  }),
  pages: fc.record({ type: fc.constant("pages"), epoch, records: bytes }),
  deviceState: fc.record({ type: fc.constant("deviceState"), epoch, bytes }),
  deviceStateDelta: fc.record({ type: fc.constant("deviceStateDelta"), epoch, bytes }),
  commit: fc.record({
    type: fc.constant("commit"),
    epoch,
    pagesFrames: count,
    pageBytes: count,
    deviceStateBytes: count,
    load: fc.boolean(),
  }),
  frames: fc.record({
    type: fc.constant("frames"),
    epoch,
    nic: fc.nat({ max: 255 }),
    records: bytes,
  }),
  heartbeat: fc.record({ type: fc.constant("heartbeat") }),
  nbd: fc.record({
    type: fc.constant("nbd" as const),
    epoch: fc.maxSafeNat(),
    disk: fc.nat(255),
    bytes: fc.uint8Array({ maxLength: 100 }),
  }),
  diskCopy: fc.record({ type: fc.constant("diskCopy"), copy: text }),
  checkpointWanted: fc.record({ type: fc.constant("checkpointWanted") }),
  replicaReady: fc.oneof(
    fc.record({ type: fc.constant("replicaReady" as const) }),
    fc.record({
      type: fc.constant("replicaReady" as const),
      held: fc.record({ lineage: text, epoch }),
    }),
  ),
  seedAnew: fc.record({ type: fc.constant("seedAnew") }),
  replicaFailed: fc.record({ type: fc.constant("replicaFailed"), reason: text }),
  committed: fc.record({ type: fc.constant("committed"), epoch }),
  loaded: fc.record({ type: fc.constant("loaded"), epoch }),
  primaryLost: fc.record({ type: fc.constant("primaryLost"), reason: text }),
  takenOver: fc.record({
    type: fc.constant("takenOver"),
    epoch,
    runningAtMs: fc.double({ min: 0, max: 1e15, noNaN: true }).map((ms) => ms + 0),
  }),
  goodbye: fc.record({ type: fc.constant("goodbye"), reason: text }),
};

function typeNumber(type: Message["type"]): number {
  const [message] = fc.sample(MESSAGES[type] as fc.Arbitrary<Message>, { numRuns: 1, seed: 1 });
  assert(message !== undefined);
  return encodeMessage(message).type;
}

/** Read a JSON payload as a message of a type. */
function decodeJson(type: Message["type"], value: unknown): Message {
  const payload = new TextEncoder().encode(
    typeof value === "string" ? value : JSON.stringify(value),
  );
  return decodeMessage({ type: typeNumber(type), epoch: 1, payload, offset: 0 });
}

for (const [type, arbitrary] of Object.entries(MESSAGES)) {
  Deno.test(`decodeMessage reads the ${type} that encodeMessage wrote`, () => {
    fc.assert(fc.property<[Message]>(arbitrary as fc.Arbitrary<Message>, (message) => {
      const [frame] = decoder.push(encoder.encode(encodeMessage(message), true));
      assert(frame !== undefined);
      assertEquals(decodeMessage(frame), message);
    }));
  });
}

Deno.test("encodeMessage cuts texts that decodeMessage would refuse", () => {
  const long = fc.string({ unit: "binary", minLength: 4090, maxLength: 9000 });
  fc.assert(
    fc.property(long, (reason) => {
      for (const type of ["primaryLost", "refuse", "replicaFailed", "goodbye"] as const) {
        const said = type === "refuse" ? { type, reason, generation: 0 } : { type, reason };
        const [frame] = decoder.push(encoder.encode(encodeMessage(said)));
        assert(frame !== undefined);
        const message = decodeMessage(frame);
        assert(message.type === type);
        if (reason.length <= 4096) assertEquals(message.reason, reason);
        else assertEquals(message.reason, reason.slice(0, 4095) + "\u2026");
      }
    }),
    { numRuns: 50 },
  );
});

Deno.test("decodeMessage says where in the connection the wrong message is", () => {
  const decoder = new FrameDecoder(WasmKernels.create());
  const before = encoder.encode(encodeMessage({ type: "pages", epoch: 1, records: MANY }), true);
  assertEquals(decoder.push(before).length, 1);
  const unknown = encoder.encode({ type: 200, epoch: 0, payload: new Uint8Array(0) });
  const wrong = encoder.encode({ type: typeNumber("refuse"), epoch: 0, payload: MANY }, true);
  for (const [bytes, at] of [[unknown, 5], [wrong, FRAME_HEADER_BYTES]] as const) {
    const start = before.length + (bytes === wrong ? unknown.length : 0);
    const [frame] = decoder.push(bytes);
    assert(frame !== undefined);
    assertEquals(assertThrows(() => decodeMessage(frame), WireError).offset, start + at);
  }
});

Deno.test("encodeMessage gives every type of message a number of its own", () => {
  const numbers = Object.keys(MESSAGES).map((type) => typeNumber(type as Message["type"]));
  assertEquals(new Set(numbers).size, numbers.length);
});

Deno.test("decodeMessage ignores members that it does not know", () => {
  assertEquals(decodeJson("refuse", { reason: "busy", retryMs: 5 }), {
    type: "refuse",
    reason: "busy",
    generation: 0,
  });
});

Deno.test("decodeMessage refuses a type that it does not know", () => {
  for (const type of [0, 4, 23, 255]) {
    const frame = { type, epoch: 0, payload: new Uint8Array(0), offset: 0 };
    assertThrows(() => decodeMessage(frame), WireError, `message type ${type} is not known`);
  }
});

const HELLO = {
  role: "bulk",
  session: "a",
  vmName: "v",
  memoryMiB: 64,
  mode: "colo",
  nics: 0,
  disks: [1],
  generation: 1,
  holder: "h",
  engineVersion: "1",
};
const block = (name: unknown, sizeBytes: unknown) => ({ name, sizeBytes });
const seed = (...blocks: unknown[]) => ({
  lineage: "l",
  resumes: false,
  machine: "pc",
  ramSectionId: 2,
  blocks,
});
const REFUSED: readonly (readonly [Message["type"], unknown])[] = [
  ["hello", "{"],
  ["hello", "[]"],
  ["hello", "null"],
  ["hello", {}],
  ["hello", { ...HELLO, role: "heart" }],
  ["hello", { ...HELLO, session: 5 }],
  ["hello", { ...HELLO, vmName: "v".repeat(4097) }],
  ["hello", { ...HELLO, memoryMiB: -1 }],
  ["hello", { ...HELLO, mode: "remus" }],
  ["hello", { ...HELLO, memoryMiB: 0.5 }],
  ["hello", { ...HELLO, memoryMiB: 2 ** 53 }],
  ["refuse", { reason: null }],
  ["commit", { pagesFrames: 1, pageBytes: 1 }],
  ["takenOver", { runningAtMs: "1" }],
  ["takenOver", '{ "runningAtMs": 1e999 }'],
  ["replicaReady", {}],
  ["replicaReady", { lineage: 1 }],
  ["seedBegin", { ...seed(block("a", 4096)), lineage: undefined }],
  ["seedBegin", { ...seed(block("a", 4096)), resumes: 1 }],
  ["seedBegin", seed()],
  ["seedBegin", seed(null)],
  ["seedBegin", seed(block("", 4096))],
  ["seedBegin", seed(block("a", 4095))],
  ["seedBegin", seed(block("a", 0))],
  ["seedBegin", seed(block("a", -4096))],
  ["seedBegin", seed(block("a", "4096"))],
  ["seedBegin", seed(block("a", 4096), block("a", 4096))],
  ["seedBegin", seed(block("\u00fc".repeat(128), 4096))],
  ["seedBegin", seed(block("a", 2 ** 40), block("b", 4096))],
  [
    "seedBegin",
    seed(...Array.from({ length: BLOCK_COUNT_MAX + 1 }, (_, i) => block(`${i}`, 4096))),
  ],
];

Deno.test("decodeMessage refuses payloads that lack what they must have", () => {
  for (const [type, value] of REFUSED) {
    assertThrows(
      () => decodeJson(type, value),
      WireError,
      type,
      JSON.stringify(value).slice(0, 80),
    );
  }
});

Deno.test("decodeMessage refuses a payload that is no UTF-8", () => {
  const payload = Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x3a, 0x31, 0x7d);
  const frame = { type: typeNumber("refuse"), epoch: 0, payload, offset: 0 };
  assertThrows(() => decodeMessage(frame), WireError);
});

Deno.test("decodeMessage refuses frames of no network card", () => {
  const frame = { type: typeNumber("frames"), epoch: 0, payload: new Uint8Array(0), offset: 0 };
  assertThrows(() => decodeMessage(frame), WireError, "no network card");
});

Deno.test("decodeMessage gives a message or a WireError for any payload", () => {
  const type = fc.constantFrom(...Object.keys(MESSAGES) as Message["type"][]);
  const member = fc.oneof(fc.jsonValue(), fc.constantFrom("bulk", 4096, [block("a", 4096)]));
  const names = ["role", "session", "blocks", "machine", "ramSectionId", "reason", "__proto__"];
  const value = fc.oneof(
    fc.json(),
    fc.string({ unit: "binary", maxLength: 40 }),
    fc.dictionary(fc.constantFrom(...names), member),
    fc.constant("[".repeat(100_000)),
  );
  fc.assert(
    fc.property(type, value, (type, value) => {
      try {
        assertEquals(decodeJson(type, value).type, type);
      } catch (error) {
        assertInstanceOf(error, WireError);
      }
    }),
    { numRuns: 2000 },
  );
});
