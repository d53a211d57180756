import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { QmpProtocolError } from "../../engine/errors.ts";
import { encodeCommand, QmpDecoder, type QmpMessage } from "../../engine/qmp/codec.ts";

const version = { qemu: { major: 11, minor: 1, micro: 3 }, package: "Debian 1:11.1.3" };
const timestamp = { seconds: 1_700_000_000, microseconds: 999_999 };

function bytes(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

/** What the decoder makes of the chunks: the messages, then the error if one came. */
function decode(
  chunks: readonly Uint8Array[],
  lineBytesMax?: number,
): { messages: QmpMessage[]; error: unknown } {
  const decoder = new QmpDecoder(lineBytesMax);
  const messages: QmpMessage[] = [];
  try {
    for (const chunk of chunks) decoder.push(chunk, (message) => messages.push(message));
  } catch (error) {
    return { messages, error };
  }
  return { messages, error: undefined };
}

function decodeText(text: string): QmpMessage[] {
  const { messages, error } = decode([bytes(text)]);
  if (error !== undefined) throw error;
  return messages;
}

function asProtocolError(error: unknown): QmpProtocolError {
  if (error instanceof QmpProtocolError) return error;
  throw new Error(`not a QmpProtocolError: ${error}`);
}

/** Cuts `whole` at positions given as fractions of its length. */
function split(whole: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const positions = cuts.map((cut) => Math.floor(cut * whole.length)).sort((a, b) => a - b);
  return [0, ...positions].map((start, i) => whole.subarray(start, positions[i] ?? whole.length));
}

const arbitraryEvent = fc.record({
  event: fc.string({ unit: "grapheme" }),
  data: fc.dictionary(fc.string({ unit: "grapheme" }), fc.jsonValue()),
  timestamp: fc.record({ seconds: fc.nat(), microseconds: fc.nat(999_999) }),
}, { requiredKeys: ["event", "timestamp"] });

/** A server's message as it may stand on a line, with text outside ASCII left as it is. */
const arbitraryLine = fc.oneof(
  fc.record({ return: fc.jsonValue(), id: fc.nat() }),
  fc.record({ return: fc.string({ unit: "grapheme", minLength: 200 }), id: fc.nat() }),
  fc.record({ error: fc.record({ class: fc.string(), desc: fc.string() }), id: fc.nat() }),
  arbitraryEvent,
  fc.constant({ QMP: { version, capabilities: ["oob"] } }),
).map((value) => JSON.stringify(value));

const arbitraryStream = fc.array(
  fc.tuple(arbitraryLine, fc.constantFrom("\r\n", "\n")),
  { minLength: 1, maxLength: 12 },
).map((lines) => lines.flat().join(""));

const arbitraryCuts = fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 30 });

Deno.test("QmpDecoder tells greeting, return, error and event apart", () => {
  const messages = decodeText([
    JSON.stringify({ QMP: { version, capabilities: ["oob"] } }),
    JSON.stringify({ return: { running: true }, id: 1 }),
    JSON.stringify({ error: { class: "CommandNotFound", desc: "no such command" }, id: 2 }),
    JSON.stringify({ event: "MIGRATION", data: { status: "colo" }, timestamp }),
    JSON.stringify({ timestamp, event: "STOP" }),
    "",
  ].join("\r\n"));
  assertEquals(messages, [
    { kind: "greeting", greeting: { version, capabilities: ["oob"] } },
    { kind: "return", id: 1, value: { running: true } },
    { kind: "error", id: 2, errorClass: "CommandNotFound", description: "no such command" },
    { kind: "event", event: { event: "MIGRATION", data: { status: "colo" }, timestamp } },
    { kind: "event", event: { event: "STOP", data: {}, timestamp } },
  ]);
});

Deno.test("QmpDecoder gives the same messages for any chunking", () => {
  fc.assert(fc.property(arbitraryStream, arbitraryCuts, (stream, cuts) => {
    const whole = decode([bytes(stream)]);
    assertEquals(whole.error, undefined);
    assertEquals(whole.messages.length, stream.split("\n").length - 1);
    assertEquals(decode(split(bytes(stream), cuts)), whole);
  }));
});

Deno.test("QmpDecoder gives the same messages byte by byte", () => {
  const stream = '{"return": "grüße 🦕 \\ud83e\\udd95", "id": 1}\r\n{"return": [], "id": 2}\r\n';
  const one = Array.from(bytes(stream), (byte) => Uint8Array.of(byte));
  assertEquals(decode(one).messages, [
    { kind: "return", id: 1, value: "grüße 🦕 🦕" },
    { kind: "return", id: 2, value: [] },
  ]);
});

Deno.test("QmpDecoder reads the chunk before it returns: the caller may reuse its buffer", () => {
  const decoder = new QmpDecoder();
  const messages: QmpMessage[] = [];
  const buffer = new Uint8Array(8);
  const stream = bytes('{"return": "0123456789", "id": 1}\n');
  for (let at = 0; at < stream.length; at += buffer.length) {
    const piece = stream.subarray(at, at + buffer.length);
    buffer.set(piece);
    decoder.push(buffer.subarray(0, piece.length), (message) => messages.push(message));
    buffer.fill(0x78);
  }
  assertEquals(messages, [{ kind: "return", id: 1, value: "0123456789" }]);
});

Deno.test("QmpDecoder answers mutated bytes with messages or a QmpProtocolError only", () => {
  const mutations = fc.array(
    fc.tuple(fc.double({ min: 0, max: 1, noNaN: true }), fc.nat(255)),
    { minLength: 1, maxLength: 5 },
  );
  let failures = 0;
  fc.assert(
    fc.property(arbitraryStream, mutations, arbitraryCuts, (stream, changes, cuts) => {
      const mutated = bytes(stream);
      for (const [at, value] of changes) {
        mutated[Math.min(mutated.length - 1, Math.floor(at * mutated.length))] = value;
      }
      const result = decode(split(mutated, cuts));
      const whole = decode([mutated]);
      assertEquals(result.messages, whole.messages);
      assertEquals(String(result.error), String(whole.error));
      if (result.error === undefined) return;
      failures++;
      const { message } = asProtocolError(result.error);
      assert(message.length < 500, message);
    }),
    { numRuns: 500 },
  );
  assert(failures > 50, `only ${failures} mutations were noticed: the test proves little`);
});

Deno.test("QmpDecoder answers random bytes with a QmpProtocolError only", () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), arbitraryCuts, (noise, cuts) => {
    const { error } = decode(split(noise, cuts));
    if (error !== undefined) asProtocolError(error);
  }));
});

for (
  const [what, line] of [
    ["text", "QEMU 11.1.3 monitor - type 'help' for more information"],
    ["an array", "[]"],
    ["null", "null"],
    ["an object of another kind", '{"execute": "quit"}'],
    ["an event without a timestamp", '{"event": "STOP"}'],
    ["an event with data that is no object", '{"event": "STOP", "data": 1, "timestamp": {}}'],
    ["an error without a class", '{"error": {"desc": "no"}, "id": 1}'],
    ["a greeting without a version", '{"QMP": {"capabilities": []}}'],
    ["half an object, as with pretty=on", "{"],
  ] as const
) {
  Deno.test(`QmpDecoder refuses ${what} and quotes it`, () => {
    const error = assertThrows(() => decodeText(line + "\r\n"), QmpProtocolError);
    assertStringIncludes(error.message, JSON.stringify(line.slice(0, 20)).slice(0, -1));
  });
}

Deno.test("QmpDecoder refuses bytes that are not UTF-8", () => {
  const { error } = decode([Uint8Array.of(0x22, 0xff, 0x22, 0x0a)]);
  assertStringIncludes(asProtocolError(error).message, "not UTF-8");
});

Deno.test("QmpDecoder quotes only the beginning of long garbage", () => {
  const error = assertThrows(() => decodeText("x".repeat(100_000) + "\n"), QmpProtocolError);
  assert(error.message.length < 200, error.message);
});

Deno.test("QmpDecoder delivers what came before garbage, and nothing after it", () => {
  const decoder = new QmpDecoder();
  const messages: QmpMessage[] = [];
  const push = (text: string) => decoder.push(bytes(text), (message) => messages.push(message));
  const first = assertThrows(
    () => push('{"return": 1, "id": 1}\ngarbage\n{"return": 2, "id": 2}\n'),
    QmpProtocolError,
  );
  const second = assertThrows(() => push('{"return": 3, "id": 3}\n'), QmpProtocolError);
  assertEquals(messages, [{ kind: "return", id: 1, value: 1 }]);
  assert(first === second);
});

Deno.test("QmpDecoder accepts a line of exactly the bound and refuses one byte more", () => {
  const fits = '{"return": 12345, "id": 1}';
  const tooLong = '{"return": 123456, "id": 1}';
  fc.assert(fc.property(arbitraryCuts, (cuts) => {
    const good = decode(split(bytes(fits + "\n" + fits + "\n"), cuts), fits.length);
    assertEquals(good.error, undefined);
    assertEquals(good.messages.length, 2);
    const bad = decode(split(bytes(tooLong + "\n"), cuts), fits.length);
    asProtocolError(bad.error);
  }));
});

Deno.test("QmpDecoder refuses a line over the bound before its end has come", () => {
  const endless = Array.from({ length: 11 }, () => bytes("x".repeat(100)));
  const { error } = decode(endless, 1000);
  assertStringIncludes(asProtocolError(error).message, "longer than 1000 bytes");
});

Deno.test("QmpDecoder reads a reply of many MB in small chunks in linear time", () => {
  const value = "x".repeat(16 * 1024 * 1024);
  const line = bytes(JSON.stringify({ return: value, id: 1 }) + "\r\n");
  const chunks: Uint8Array[] = [];
  for (let at = 0; at < line.length; at += 1024) chunks.push(line.subarray(at, at + 1024));
  const startMs = performance.now();
  const { messages } = decode(chunks);
  const tookMs = performance.now() - startMs;
  assert(messages[0]?.kind === "return" && messages[0].value === value);
  // Copying what is there again for each chunk would move 130 GB.
  assert(tookMs < 5000, `${tookMs} ms`);
});

Deno.test("encodeCommand writes one line and leaves absent arguments out", () => {
  const text = (line: Uint8Array) => new TextDecoder().decode(line);
  assertEquals(text(encodeCommand("stop", undefined, 7)), '{"execute":"stop","id":7}\n');
  const args = { path: "/a\nb", value: "grüße" };
  const line = text(encodeCommand("qom-set", args, 8));
  assertEquals(line.indexOf("\n"), line.length - 1);
  assertEquals(JSON.parse(line), { execute: "qom-set", arguments: args, id: 8 });
});
