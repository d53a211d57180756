import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import {
  isChange,
  NBD_CHUNK,
  NBD_COMMAND,
  NBD_COMMAND_FLAG,
  NBD_MAGIC,
  NBD_OPTION,
  NBD_OPTION_REPLY,
  nbdChunk,
  nbdClientFlags,
  nbdExport,
  type NbdForm,
  nbdGreeting,
  nbdOption,
  nbdOptionReply,
  type NbdRequest,
  nbdRequest,
  nbdResult,
  nbdSimpleReply,
} from "../../engine/block/nbd.ts";
import {
  type NbdClientPiece,
  NbdClientReader,
  NbdConversation,
  type NbdServerPiece,
  NbdServerReader,
} from "../../engine/block/nbd_reader.ts";
import { LocalProtocolError, NbdError } from "../../engine/errors.ts";
import { NBD_OPTION_BYTES_MAX, NBD_PAYLOAD_BYTES_MAX } from "../../engine/limits.ts";
import { concat, cuts, form, handshake, MemoryServer, pattern, said, split } from "./_nbd.ts";

type Piece = NbdClientPiece | NbdServerPiece;

/** A reader of either side. */
interface Reader {
  push(chunk: Uint8Array): readonly Piece[];
}

/** Every piece, payloads joined, and the error that came behind them. */
function read(reader: Reader, chunks: readonly Uint8Array[]) {
  const pieces: Piece[] = [];
  let error: NbdError | undefined;
  try {
    for (const chunk of [...chunks, new Uint8Array(0)]) {
      for (const piece of reader.push(chunk)) {
        const before = pieces.at(-1);
        if (piece.type === "payload" && before?.type === "payload" && !before.last) {
          pieces[pieces.length - 1] = { ...piece, raw: concat(before.raw, piece.raw) };
        } else pieces.push({ ...piece, raw: piece.raw.slice() });
      }
    }
  } catch (thrown) {
    if (!(thrown instanceof NbdError)) throw thrown;
    error = thrown;
  }
  return { pieces, error };
}

const request: fc.Arbitrary<{ request: NbdRequest; data: Uint8Array<ArrayBuffer> }> = fc.record({
  command: fc.constantFrom(...Object.values(NBD_COMMAND).filter((it) => it !== NBD_COMMAND.DISC)),
  handle: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
  offset: fc.oneof(fc.nat(), fc.maxSafeNat()),
  length: fc.nat(3000),
}).map(({ command, handle, offset, length }) => ({
  request: { command, flags: 0, handle, offset, length },
  data: pattern(length, command === NBD_COMMAND.WRITE ? length : 0),
}));

/** Requests with handles of their own. */
const requests = fc.uniqueArray(request, { maxLength: 8, selector: (it) => it.request.handle });

function clientSays(form: NbdForm, requests: readonly { request: NbdRequest; data: Uint8Array }[]) {
  return concat(...requests.map(({ request, data }) => said(request, form, data)));
}

function readerOfRequests(form: NbdForm): NbdClientReader {
  const reader = new NbdClientReader();
  reader.push(nbdClientFlags(3));
  reader.beginRequests(form);
  return reader;
}

/** A server's reader that is past the handshake and knows of these requests. */
function readerOfReplies(form: NbdForm, requests: readonly NbdRequest[]): NbdServerReader {
  const reader = new NbdServerReader();
  for (const { side, bytes } of handshake(form)) if (side === "S") reader.push(bytes);
  const raw = new Uint8Array(0);
  for (const request of requests) reader.said({ type: "request", raw, request });
  return reader;
}

Deno.test("NbdClientReader gives back what a client said, in any chunking", () => {
  fc.assert(fc.property(form, requests, cuts, (form, requests, cuts) => {
    const whole = clientSays(form, requests);
    const { pieces, error } = read(readerOfRequests(form), split(whole, cuts));
    assertEquals(error, undefined);
    assertEquals(concat(...pieces.map(({ raw }) => raw)), whole);
    const found = pieces.flatMap((piece) => piece.type === "request" ? [piece.request] : []);
    const withFlags = requests.map(({ request }) => {
      const isWrite = request.command === NBD_COMMAND.WRITE;
      const flags = form === "extended" && isWrite ? NBD_COMMAND_FLAG.PAYLOAD_LEN : 0;
      return { ...request, flags };
    });
    assertEquals(found, withFlags);
    const data = pieces.flatMap((piece) => piece.type === "payload" ? [piece.raw] : []);
    assertEquals(data, requests.map(({ data }) => data).filter(({ length }) => length > 0));
  }));
});

Deno.test("NbdServerReader reads what a server answers, in any order and chunking", () => {
  const reads = fc.array(
    fc.record({
      offset: fc.nat(30_000),
      length: fc.integer({ min: 2, max: 5000 }),
      fails: fc.boolean(),
    }),
    { maxLength: 6 },
  );
  fc.assert(fc.property(form, reads, fc.array(fc.nat()), cuts, (form, reads, order, cuts) => {
    const server = new MemoryServer(form);
    server.disk.set(pattern(5, server.disk.length));
    server.received(
      concat(...handshake(form).flatMap(({ side, bytes }) => side === "C" ? [bytes] : [])),
    );
    const requests = reads.map(({ offset, length }, index) => ({
      command: index % 3 === 2 ? NBD_COMMAND.FLUSH : NBD_COMMAND.READ,
      flags: 0,
      handle: BigInt(index),
      offset,
      length,
    }));
    server.received(concat(...requests.map((request) => said(request, form))));
    const answers = requests.map((_, turn) => {
      const index = (order[turn] ?? 0) % server.unanswered.length;
      const { handle } = server.unanswered[index]!.request;
      return server.answer(index, reads[Number(handle)]!.fails && form !== "structured" ? 5 : 0);
    });
    const whole = concat(...answers);
    const reader = readerOfReplies(form, requests);
    const { pieces, error } = read(reader, split(whole, cuts));
    assertEquals(error, undefined);
    assertEquals(concat(...pieces.map(({ raw }) => raw)), whole);
    const done = pieces.flatMap((piece) =>
      piece.type === "reply" && piece.reply.done ? [piece] : []
    );
    assertEquals(done.length, requests.length);
    for (const { reply: { handle, failed } } of done) {
      assertEquals(failed, reads[Number(handle)]!.fails && form !== "structured");
    }
    assertEquals(reader.requests.size, 0);
  }));
});

Deno.test("NbdConversation follows a handshake of each form, in any chunking", () => {
  fc.assert(fc.property(form, cuts, requests, (form, cuts, requests) => {
    const conversation = new NbdConversation();
    for (const { side, bytes } of handshake(form)) {
      assertEquals(conversation.form, undefined);
      const take = (chunk: Uint8Array) =>
        side === "C" ? conversation.fromClient(chunk) : conversation.fromServer(chunk);
      const raw: Uint8Array[] = [];
      for (const chunk of split(bytes, cuts)) raw.push(...take(chunk).map(({ raw }) => raw));
      assertEquals(concat(...raw), bytes);
    }
    assertEquals(conversation.form, form);
    conversation.fromClient(clientSays(form, requests));
    const answered = requests.filter(({ request }) => !isChange(request));
    assertEquals(conversation.requests.size, answered.length);
  }));
});

Deno.test("NbdConversation follows EXPORT_NAME, with and without the zeros behind it", () => {
  for (const flags of [1, 3]) {
    const conversation = new NbdConversation();
    conversation.fromServer(nbdGreeting());
    conversation.fromClient(nbdClientFlags(flags));
    conversation.fromClient(nbdOption(NBD_OPTION.EXPORT_NAME, Uint8Array.of(0x64)));
    const bytes = nbdExport(2 ** 40, 0xed, flags === 1);
    assertEquals(bytes.length, flags === 1 ? 134 : 10);
    assertEquals(conversation.fromServer(bytes.subarray(0, 9)), []);
    const [piece] = conversation.fromServer(bytes.subarray(9));
    assert(piece?.type === "export");
    assertEquals([piece.sizeBytes, piece.flags], [2 ** 40, 0xed]);
    assertEquals(conversation.form, "simple");
  }
});

Deno.test("options and their answers come with what belongs to them", () => {
  const client = new NbdClientReader();
  const data = pattern(1, 300);
  const pieces = client.push(concat(nbdClientFlags(3), nbdOption(NBD_OPTION.INFO, data)));
  assert(pieces[1]?.type === "option");
  assertEquals([pieces[1].option, pieces[1].data], [NBD_OPTION.INFO, data]);
  const server = new NbdServerReader();
  server.push(nbdGreeting());
  const [reply] = server.push(nbdOptionReply(NBD_OPTION.INFO, NBD_OPTION_REPLY.INFO, data));
  assert(reply?.type === "option-reply");
  assertEquals([reply.option, reply.reply, reply.data], [6, 3, data]);
});

Deno.test("requests and replies are laid out as documented", () => {
  const request = { command: 1, flags: 1, handle: 0x0102030405060708n, offset: 2 ** 33, length: 5 };
  const head = [0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 2, 0, 0, 0, 0];
  assertEquals([...nbdRequest(request, "simple")], [0x25, 0x60, 0x95, 0x13, ...head, 0, 0, 0, 5]);
  assertEquals(
    [...nbdRequest(request, "extended")],
    [0x21, 0xe4, 0x1c, 0x71, ...head, 0, 0, 0, 0, 0, 0, 0, 5],
  );
  assertEquals(
    [...nbdSimpleReply(1n, 5)],
    [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1],
  );
  assertEquals(
    [...nbdResult({ handle: 1n, offset: 3 }, "extended", 5)],
    [
      ...[0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 1],
      ...[0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 5, 0, 0],
    ],
  );
  assertThrows(() => nbdRequest({ ...request, length: 2 ** 32 }, "simple"), LocalProtocolError);
});

/** Change a copy of bytes. */
function changed(bytes: Uint8Array, change: (view: DataView) => void): Uint8Array {
  const copy = bytes.slice();
  change(new DataView(copy.buffer));
  return copy;
}

Deno.test("a client that makes no sense is refused, with the place, in any chunking", () => {
  const good = said({ command: NBD_COMMAND.FLUSH }, "simple");
  const extended = said({ command: NBD_COMMAND.TRIM }, "extended");
  const option = nbdOption(NBD_OPTION.LIST);
  const cases: readonly [NbdForm | "options", Uint8Array, number, string][] = [
    ["options", changed(option, (view) => view.setUint8(3, 1)), 0, "another magic"],
    [
      "options",
      changed(option, (view) => view.setUint32(12, NBD_OPTION_BYTES_MAX + 1)),
      12,
      `an option of ${NBD_OPTION_BYTES_MAX + 1} bytes`,
    ],
    ["simple", changed(good, (view) => view.setUint32(0, NBD_MAGIC.EXTENDED_REQUEST)), 0, "magic"],
    ["simple", changed(good, (view) => view.setBigUint64(16, 2n ** 63n)), 16, "at byte"],
    [
      "simple",
      changed(good, (view) => {
        view.setUint16(6, NBD_COMMAND.WRITE);
        view.setUint32(24, NBD_PAYLOAD_BYTES_MAX + 1);
      }),
      24,
      "the limit is",
    ],
    [
      "simple",
      changed(good, (view) => {
        view.setUint16(6, NBD_COMMAND.READ);
        view.setUint32(24, 0xffffffff);
      }),
      24,
      "the limit is",
    ],
    ["extended", changed(extended, (view) => view.setBigUint64(24, 2n ** 62n)), 24, "at byte"],
  ];
  for (const [form, bytes, at, detail] of cases) {
    for (
      const preceding of form === "options" ? [[], [option]] : [[], [said({ command: 3 }, form)]]
    ) {
      const before = concat(...preceding);
      fc.assert(
        fc.property(cuts, (cuts) => {
          const reader = form === "options" ? new NbdClientReader() : readerOfRequests(form);
          if (form === "options") reader.push(nbdClientFlags(3));
          const { pieces, error } = read(reader, split(concat(before, bytes), cuts));
          assertEquals(pieces.length, preceding.length);
          assertEquals(error?.offset, 4 + before.length + at);
          assert(error?.message.includes(detail), error?.message);
          assertEquals(assertThrows(() => reader.push(bytes), NbdError), error);
        }),
        { numRuns: 5 },
      );
    }
  }
});

Deno.test("a server that makes no sense is refused, with the place", () => {
  const read = { command: NBD_COMMAND.READ, flags: 0, handle: 7n, offset: 0, length: 100 };
  const chunk = { handle: 7n, type: NBD_CHUNK.OFFSET_DATA, flags: 0, payloadBytes: 8 };
  const cases: readonly [NbdForm, Uint8Array, string][] = [
    ["simple", nbdSimpleReply(8n), "nobody made"],
    ["simple", nbdChunk(chunk, "simple"), "not agreed upon"],
    ["structured", nbdSimpleReply(7n), "as a simple reply"],
    ["structured", nbdChunk({ ...chunk, payloadBytes: 2 ** 31 }, "structured"), "a chunk of"],
    ["structured", nbdChunk({ ...chunk, type: NBD_CHUNK.NONE }, "structured"), "not the last"],
    ["extended", nbdChunk({ ...chunk, payloadBytes: 2 ** 40 }, "extended"), "a chunk of"],
    ["extended", concat(nbdSimpleReply(7n), new Uint8Array(16)), "another magic"],
    ["simple", new Uint8Array(32), "nobody made"],
  ];
  for (const [form, bytes, detail] of cases) {
    const reader = readerOfReplies(form, [read]);
    const error = assertThrows(() => reader.push(bytes), NbdError);
    assert(error.message.includes(detail), error.message);
  }
  const fresh = new NbdServerReader();
  const error = assertThrows(
    () => fresh.push(new TextEncoder().encode("HTTP/1.1 400 Bad Request")),
    NbdError,
  );
  assert(error.message.includes("no server of the newstyle protocol"), error.message);
});

Deno.test("a client that does not wait for the answer to its option is refused", () => {
  const conversation = new NbdConversation();
  conversation.fromServer(nbdGreeting());
  conversation.fromClient(concat(nbdClientFlags(3), nbdOption(NBD_OPTION.GO), Uint8Array.of(0x49)));
  const ack = nbdOptionReply(NBD_OPTION.GO, NBD_OPTION_REPLY.ACK);
  assertThrows(() => conversation.fromServer(ack), NbdError, "before its option was answered");
});

Deno.test("more requests than anybody has under way are refused", () => {
  const conversation = new NbdConversation();
  for (const { side, bytes } of handshake("simple")) {
    if (side === "C") conversation.fromClient(bytes);
    else conversation.fromServer(bytes);
  }
  const all = Array.from(
    { length: 1025 },
    (_, index) => said({ command: 0, handle: BigInt(index), length: 1 }, "simple"),
  );
  assertThrows(() => conversation.fromClient(concat(...all)), NbdError, "more than 1024 requests");
});

Deno.test("no bytes make the readers do anything but refuse: 20,000 changed conversations", () => {
  const counts = { refused: 0, taken: 0 };
  const mutation = fc.array(fc.tuple(fc.nat(), fc.nat(255)), { minLength: 1, maxLength: 4 });
  fc.assert(
    fc.property(form, requests, mutation, fc.boolean(), (form, requests, mutations, isClient) => {
      const bytes = isClient ? clientSays(form, requests) : concat(
        ...requests.map(({ request: { handle, offset } }) => nbdResult({ handle, offset }, form)),
      );
      for (const [at, value] of mutations) if (bytes.length > 0) bytes[at % bytes.length] = value;
      const reader: Reader = isClient
        ? readerOfRequests(form)
        : readerOfReplies(form, requests.map(({ request }) => request));
      const { error } = read(reader, [bytes]);
      if (error === undefined) counts.taken++;
      else counts.refused++;
    }),
    { numRuns: 20_000, seed: 809 },
  );
  assert(counts.refused > 1000 && counts.taken > 1000, JSON.stringify(counts));
});
