import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { DiskReplica, type DiskReplicaEffect } from "../../engine/block/disk_replica.ts";
import {
  NBD_COMMAND,
  NBD_COMMAND_FLAG,
  NBD_OPTION,
  NBD_OPTION_REPLY,
  nbdClientFlags,
  type NbdForm,
  nbdOption,
  type NbdRequest,
} from "../../engine/block/nbd.ts";
import { EarlyAnswers } from "../../engine/block/early_answers.ts";
import { NbdClientReader, NbdServerReader } from "../../engine/block/nbd_reader.ts";
import { NbdServer } from "../../engine/block/nbd_server.ts";
import { NbdError } from "../../engine/errors.ts";
import { ByteWriter } from "../../engine/stream/byte_writer.ts";
import { ReferenceKernels } from "../../wasm/mod.ts";
import { MemoryFiles } from "../image/_memory_files.ts";
import { assertContent, concat, cuts, pattern, said, split } from "./_nbd.ts";

const SIZE_BYTES = 16 * 1024;

/** A client with early answers that was let in, and what it was told. */
class Client {
  readonly #early = new EarlyAnswers();
  readonly #reader = new NbdServerReader();
  readonly options: {
    readonly option: number;
    readonly reply: number;
    readonly data: Uint8Array;
  }[] = [];
  readonly answers: { readonly handle: bigint; readonly failed: boolean }[] = [];
  /** What was read last. */
  read: Uint8Array = new Uint8Array(0);
  isClosed = false;
  failure: string | undefined;
  #payloads: Uint8Array[] = [];
  readonly #words = new NbdClientReader();
  #isIn = false;
  #lastHandle = 0n;

  constructor(readonly give: (bytes: Uint8Array) => readonly DiskReplicaEffect[]) {}

  get form(): NbdForm {
    return this.#reader.form ?? "simple";
  }

  take(effects: readonly DiskReplicaEffect[]): void {
    for (const effect of effects) {
      if (effect.type === "close") this.isClosed = true;
      if (effect.type === "failed") this.failure = effect.reason;
      if (effect.type !== "send") continue;
      this.#early.fromServer(effect.bytes);
      this.#hear(effect.bytes);
    }
  }

  #hear(bytes: Uint8Array): void {
    for (const piece of this.#reader.push(bytes)) {
      if (piece.type === "option-reply") this.options.push(piece);
      if (piece.type === "reply" && piece.reply.done) this.answers.push(piece.reply);
      if (piece.type !== "payload") this.#payloads = [];
      else this.#payloads.push(piece.raw.slice());
      if (piece.type === "payload" && piece.last) this.read = concat(...this.#payloads);
    }
  }

  say(bytes: Uint8Array, cuts: readonly number[] = []): void {
    for (const piece of this.#words.push(bytes)) this.#reader.said(piece);
    for (const chunk of split(bytes, cuts)) {
      const answers = this.#early.fromClient(chunk);
      for (const answer of answers) this.#hear(answer);
      this.take(this.give(chunk));
      if (this.#reader.form !== undefined && !this.#isIn) {
        this.#isIn = true;
        this.#words.beginRequests(this.#reader.form);
      }
    }
  }

  request(
    request: Partial<NbdRequest> & { readonly command: number },
    data?: Uint8Array,
    cuts?: readonly number[],
  ): void {
    this.say(said({ handle: ++this.#lastHandle, ...request }, this.form, data), cuts);
  }

  handshake(name: string, structured: boolean): void {
    this.say(nbdClientFlags(3));
    this.say(nbdOption(NBD_OPTION.EXTENDED_HEADERS));
    if (structured) this.say(nbdOption(NBD_OPTION.STRUCTURED_REPLY));
    this.say(nbdOption(NBD_OPTION.GO, asking(name)));
  }
}

/** What GO and INFO ask about. */
function asking(name: string): Uint8Array {
  const encoded = new TextEncoder().encode(name);
  return new ByteWriter().u32(encoded.length).bytes(encoded).u16(1).u16(3).finish();
}

/** A replica with a client, and the files that outlive them. */
class Rig {
  readonly files = new MemoryFiles();
  readonly replica: DiskReplica;
  readonly client: Client;

  constructor(
    options: {
      readonly bytesMax?: number;
      readonly structured?: boolean;
      readonly isDirect?: boolean;
    } = {},
  ) {
    this.files.entries.set("image", { bytes: new Uint8Array(SIZE_BYTES) });
    const view = this.files.open();
    this.replica = new DiskReplica({
      files: view,
      kernels: new ReferenceKernels(),
      name: "disk0",
      target: view.open("image")!,
      ...options,
    });
    this.replica.begin(1, options.isDirect ?? false);
    this.client = new Client((bytes) => this.replica.fromClient(bytes));
    this.client.take(this.replica.connect()!);
    this.client.handshake("disk0", options.structured ?? true);
  }

  get disk(): Uint8Array {
    return this.files.entries.get("image")!.bytes;
  }

  write(seed: number, offset: number, length = 100): void {
    this.client.request({ command: NBD_COMMAND.WRITE, offset }, pattern(seed, length));
  }
}

/** A server with a client that has not said anything yet. */
function serverAlone() {
  const server = new NbdServer({ name: "disk0", sizeBytes: 4096 });
  const client = new Client((bytes) => server.fromClient(bytes) as DiskReplicaEffect[]);
  server.begin();
  client.take(server.connect() as DiskReplicaEffect[]);
  return { server, client };
}

Deno.test("a server lets a client in that asks for its disk, with and without chunks", () => {
  for (const structured of [true, false]) {
    const { client } = new Rig({ structured });
    assertEquals(client.form, structured ? "structured" : "simple");
    const refused = client.options[0]!;
    assertEquals(refused.reply, NBD_OPTION_REPLY.UNSUPPORTED);
    const [about, sizes, ack] = client.options.slice(-3);
    assertEquals([...about!.data.subarray(0, 10)], [0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0]);
    assertEquals(about!.data[11]! & 0x80, structured ? 0x80 : 0);
    assertEquals(sizes!.data.length, 14);
    assertEquals(ack!.reply, NBD_OPTION_REPLY.ACK);
  }
});

Deno.test("a server answers each option, known or not", () => {
  const { client } = serverAlone();
  client.say(nbdClientFlags(3));
  const { ACK, UNSUPPORTED, UNKNOWN, INVALID, SERVER, INFO } = NBD_OPTION_REPLY;
  const turns: readonly [number, Uint8Array, readonly number[]][] = [
    [NBD_OPTION.LIST, new Uint8Array(0), [SERVER, ACK]],
    [NBD_OPTION.STARTTLS, new Uint8Array(0), [UNSUPPORTED]],
    [99, pattern(1, 50), [UNSUPPORTED]],
    [NBD_OPTION.SET_META_CONTEXT, new Uint8Array(0), [INVALID]],
    [NBD_OPTION.STRUCTURED_REPLY, new Uint8Array(0), [ACK]],
    [NBD_OPTION.SET_META_CONTEXT, new Uint8Array(0), [ACK]],
    [NBD_OPTION.INFO, asking("disk0"), [INFO, INFO, ACK]],
    [NBD_OPTION.INFO, asking("disk1"), [UNKNOWN]],
    [NBD_OPTION.INFO, Uint8Array.of(1), [INVALID]],
    [NBD_OPTION.INFO, Uint8Array.of(255, 255, 255, 255, 0, 0, 0, 0), [INVALID]],
    [NBD_OPTION.ABORT, new Uint8Array(0), [ACK]],
  ];
  for (const [option, data, replies] of turns) {
    client.options.length = 0;
    client.say(nbdOption(option, data));
    assertEquals(client.options.map(({ reply }) => reply), replies);
    assertEquals(client.options.map(({ option }) => option), replies.map(() => option));
  }
  assert(client.isClosed);
});

Deno.test("EXPORT_NAME leads in, or out where there is no such disk", () => {
  for (const name of ["disk0", "disk1"]) {
    const { client } = serverAlone();
    client.say(nbdClientFlags(1));
    client.say(nbdOption(NBD_OPTION.EXPORT_NAME, new TextEncoder().encode(name)));
    assertEquals(client.isClosed, name === "disk1");
    if (name === "disk1") continue;
    client.request({ command: NBD_COMMAND.FLUSH });
    assertEquals(client.answers.length, 1);
  }
});

Deno.test("a client with unknown flags is let go", () => {
  for (const flags of [0, 7]) {
    const { server } = serverAlone();
    assertEquals(server.fromClient(nbdClientFlags(flags)), [{ type: "close" }]);
  }
});

Deno.test("writes are answered at once, read back at once, and the disk's with their checkpoint", () => {
  for (const structured of [true, false]) {
    const rig = new Rig({ structured });
    const { client, replica } = rig;
    rig.write(1, 0, 1000);
    client.request({ command: NBD_COMMAND.WRITE_ZEROES, offset: 100, length: 50 });
    client.request({ command: NBD_COMMAND.TRIM, offset: 200, length: 50 });
    client.request({ command: NBD_COMMAND.FLUSH });
    assertEquals(client.answers.map(({ failed }) => failed), [false, false, false, false]);
    assert(rig.disk.every((byte) => byte === 0));
    const expected = pattern(1, 1000);
    expected.fill(0, 100, 150).fill(0, 200, 250);
    client.request({ command: NBD_COMMAND.READ, offset: 50, length: 900 });
    assertEquals(client.read.subarray(structured ? 8 : 0), expected.subarray(50, 950));
    client.take(replica.checkpoint(1));
    rig.write(2, 0, 10);
    assert(rig.disk.every((byte) => byte === 0));
    client.take(replica.commit(1));
    assertEquals(rig.disk.subarray(0, 1000), expected);
    client.take(replica.drop());
    assert(client.isClosed);
    assertEquals(rig.disk.subarray(0, 1000), expected);
    assertEquals(rig.files.open().list(), ["image"]);
  }
});

Deno.test("what cannot be meant is answered with an error, and changes nothing", () => {
  const rig = new Rig();
  const wrong = [
    { command: NBD_COMMAND.READ, offset: Number.MAX_SAFE_INTEGER, length: 1 },
    { command: NBD_COMMAND.BLOCK_STATUS, length: 4096 },
    { command: 77 },
  ];
  for (const request of wrong) rig.client.request(request);
  assertEquals(rig.client.answers.map(({ failed }) => failed), wrong.map(() => true));
  assertEquals(rig.replica.heldBytes, 0);
  rig.client.request({ command: NBD_COMMAND.DISC });
  assert(rig.client.isClosed);
});

Deno.test("a disk is no copy when it cannot do what its client takes for done", () => {
  const wrong: [Partial<NbdRequest> & { command: number }, Uint8Array?][] = [
    [{ command: NBD_COMMAND.WRITE, offset: SIZE_BYTES - 4 }, new Uint8Array(5)],
    [{ command: NBD_COMMAND.WRITE_ZEROES, offset: 0, length: SIZE_BYTES + 1 }],
    [{ command: NBD_COMMAND.WRITE, flags: NBD_COMMAND_FLAG.DF }, new Uint8Array(5)],
  ];
  for (const [request, data] of wrong) {
    const rig = new Rig();
    rig.client.request(request, data);
    assert(rig.client.failure?.startsWith("Cannot do request"), rig.client.failure);
    assert(rig.client.isClosed);
    assert(rig.disk.every((byte) => byte === 0));
  }
});

Deno.test("a replica that holds too much is full until a commit has taken some of it", () => {
  const rig = new Rig({ bytesMax: 10_000 });
  const { client, replica } = rig;
  for (let seed = 0; seed < 5; seed++) rig.write(seed, seed * 100);
  assertEquals(replica.full, false, "there must be a checkpoint first, whose mark comes behind");
  client.take(replica.checkpoint(1));
  assert(replica.full);
  client.take(replica.commit(1));
  assertEquals(replica.full, false);
});

Deno.test("one client is let in a synchronisation, and no other before the next", () => {
  const rig = new Rig();
  assertEquals(rig.replica.connect(), undefined);
  rig.write(1, 0);
  assertEquals(rig.client.answers.length, 1);
  rig.replica.drop();
  assertEquals(rig.replica.connect(), undefined);
  rig.replica.begin(2, false);
  const client = new Client((bytes) => rig.replica.fromClient(bytes));
  client.take(rig.replica.connect()!);
  client.handshake("disk0", true);
  client.request({ command: NBD_COMMAND.FLUSH });
  assertEquals(client.answers.length, 1);
  assertEquals(rig.replica.heldBytes, 0);
});

Deno.test("until the first checkpoint of a disk that nothing is held of, it is written directly", () => {
  const rig = new Rig({ isDirect: true });
  rig.write(1, 0);
  assertEquals(rig.disk.subarray(0, 100), pattern(1, 100));
  rig.replica.checkpoint(1);
  rig.write(2, 0);
  assertEquals(rig.disk.subarray(0, 100), pattern(1, 100));
});

Deno.test("a replica whose files fail says so in one sentence, and the primary goes on without it", () => {
  const rig = new Rig();
  const view = rig.files.open();
  const create = view.create.bind(view);
  view.create = (name) => {
    const file = create(name);
    file.write = () => {
      throw new Error("no space left on device");
    };
    return file;
  };
  const replica = new DiskReplica({
    files: view,
    kernels: new ReferenceKernels(),
    name: "disk0",
    target: view.open("image")!,
  });
  replica.begin(1, false);
  const client = new Client((bytes) => replica.fromClient(bytes));
  client.take(replica.connect()!);
  client.handshake("disk0", true);
  client.request({ command: NBD_COMMAND.WRITE }, pattern(1, 100));
  client.take(replica.checkpoint(1));
  assertEquals(client.failure, "Cannot keep the disk disk0: no space left on device");
  assert(client.isClosed);
  assertEquals(replica.checkpoint(2), []);
});

Deno.test("a client that makes no sense is let go, and the disk stays as it was", () => {
  const rig = new Rig();
  rig.write(1, 0);
  const effects = rig.replica.fromClient(new Uint8Array(28));
  assertEquals(effects.map(({ type }) => type), ["failed", "close"]);
  const { server } = serverAlone();
  assertThrows(() => {
    server.fromClient(nbdClientFlags(3));
    server.fromClient(new Uint8Array(16));
  }, NbdError);
});

/** What happens to a primary and its replica. */
type Step =
  | {
    readonly type: "write";
    readonly offset: number;
    readonly seed: number;
    readonly cuts: number[];
  }
  | { readonly type: "zero"; readonly offset: number }
  | { readonly type: "checkpoint" | "commit" | "flush" | "reconnect" | "restart" };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      type: fc.constant("write" as const),
      offset: fc.nat(SIZE_BYTES - 300),
      seed: fc.nat(255),
      cuts,
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({ type: fc.constant("zero" as const), offset: fc.nat(15_000) }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      type: fc.constantFrom(
        "checkpoint",
        "checkpoint",
        "commit",
        "commit",
        "flush",
        "reconnect",
        "restart",
      ),
    }),
  },
);

Deno.test("whenever somebody takes over, the disk is that of the last checkpoint committed", () => {
  fc.assert(
    fc.property(
      fc.array(step, { maxLength: 40, size: "max" }),
      fc.boolean(),
      (steps, structured) => {
        const rig = new Rig({ structured, bytesMax: 20_000 });
        const running = new Uint8Array(SIZE_BYTES);
        const sealed: Uint8Array<ArrayBuffer>[] = [];
        let committed = 0;
        let contentCommitted = running.slice();
        let requests = 0;
        const recover = () => {
          const view = rig.files.open();
          const next = new DiskReplica({
            files: view,
            kernels: new ReferenceKernels(),
            name: "disk0",
            target: view.open("image")!,
          });
          next.recover({ generation: 1, epoch: committed });
          return next;
        };
        for (const step of steps) {
          switch (step.type) {
            case "write": {
              const data = pattern(step.seed, 300);
              running.set(data, step.offset);
              const request = { command: NBD_COMMAND.WRITE, offset: step.offset };
              rig.client.request(request, data, step.cuts);
              requests++;
              break;
            }
            case "zero":
              running.fill(0, step.offset, step.offset + 1000);
              rig.client.request({
                command: NBD_COMMAND.WRITE_ZEROES,
                offset: step.offset,
                length: 1000,
              });
              requests++;
              break;
            case "flush":
              rig.client.request({ command: NBD_COMMAND.FLUSH });
              requests++;
              break;
            case "checkpoint":
              assertEquals(rig.client.answers.length, requests, "QEMU would wait for ever");
              sealed.push(running.slice());
              rig.client.take(rig.replica.checkpoint(committed + sealed.length));
              break;
            case "commit":
              if (sealed.length === 0) break;
              contentCommitted = sealed.shift()!;
              rig.client.take(rig.replica.commit(++committed));
              assertContent(rig.disk, contentCommitted);
              break;
            case "reconnect":
              assertEquals(rig.replica.connect(), undefined);
              break;
            case "restart":
              // Nothing of this process' may be used any more.
              recover();
              assertContent(rig.disk, contentCommitted);
              return;
          }
          const seen = new Uint8Array(SIZE_BYTES);
          rig.client.request({ command: NBD_COMMAND.READ, length: SIZE_BYTES });
          seen.set(rig.client.read.subarray(structured ? 8 : 0));
          assertContent(seen, running);
          requests++;
          assert(rig.client.answers.every(({ failed }) => !failed));
        }
        rig.client.take(rig.replica.drop());
        assertContent(rig.disk, contentCommitted);
        assertEquals(rig.files.open().list(), ["image"]);
      },
    ),
    { numRuns: 200 },
  );
});
