import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { EarlyAnswers } from "../../engine/block/early_answers.ts";
import { DiskGate, type GateEffect } from "../../engine/block/gate.ts";
import {
  isWrite,
  NBD_COMMAND,
  nbdErrorReason,
  type NbdForm,
  type NbdRequest,
} from "../../engine/block/nbd.ts";
import { NbdServerReader } from "../../engine/block/nbd_reader.ts";
import { LocalProtocolError, NbdError } from "../../engine/errors.ts";
import {
  assertContent,
  concat,
  cuts,
  form,
  handshake,
  MemoryServer,
  pattern,
  said,
  split,
} from "./_nbd.ts";

/** A client with early answers and a server, a gate between them, and what the client was told. */
class Rig {
  readonly gate: DiskGate;
  readonly server: MemoryServer;
  readonly #client = new NbdServerReader();
  /** Handles of requests that were answered, in this order, and whether they failed. */
  readonly answers: { readonly handle: bigint; readonly failed: boolean }[] = [];
  readonly toClient: Uint8Array[] = [];
  readonly toServer: Uint8Array[] = [];
  /** What the gate said besides. */
  readonly said: GateEffect[] = [];

  readonly #early = new EarlyAnswers();

  constructor(readonly form: NbdForm, bytesMax?: number) {
    this.gate = new DiskGate(bytesMax);
    this.server = new MemoryServer(form);
    for (const { side, bytes } of handshake(form)) {
      if (side === "C") this.#fromClient(bytes);
      else this.do(this.gate.fromServer(bytes));
    }
    this.toServer.length = this.toClient.length = 0;
  }

  do(effects: readonly GateEffect[]): void {
    for (const effect of effects) {
      if (effect.type === "to-server") {
        this.toServer.push(effect.bytes.slice());
        this.server.received(effect.bytes);
      } else if (effect.type === "to-client") {
        this.#early.fromServer(effect.bytes);
        this.#said(effect.bytes);
      } else this.said.push(effect);
    }
  }

  #fromClient(bytes: Uint8Array): void {
    for (const answer of this.#early.fromClient(bytes)) this.#said(answer);
    this.do(this.gate.fromClient(bytes));
  }

  /** What the client hears. */
  #said(bytes: Uint8Array): void {
    this.toClient.push(bytes.slice());
    for (const piece of this.#client.push(bytes)) {
      if (piece.type === "reply" && piece.reply.done) this.answers.push(piece.reply);
    }
  }

  /** The client asks for something; its handles are used again as soon as they are answered. */
  request(
    request: Partial<NbdRequest> & { readonly command: number },
    data?: Uint8Array,
    cuts: readonly number[] = [],
  ): bigint {
    let handle = 0n;
    while (this.#client.requests.has(handle)) handle++;
    const bytes = said({ ...request, handle }, this.form, data);
    const length = data?.length ?? request.length ?? 0;
    const whole = { flags: 0, offset: 0, ...request, length, handle };
    this.#client.said({ type: "request", raw: bytes, request: whole });
    for (const chunk of split(bytes, cuts)) this.#fromClient(chunk);
    return handle;
  }

  answer(index = 0, error = 0, cuts: readonly number[] = []): void {
    for (const chunk of split(this.server.answer(index, error), cuts)) {
      this.do(this.gate.fromServer(chunk));
    }
  }

  answerAll(): void {
    while (this.server.unanswered.length > 0) this.answer();
  }

  write(seed: number, offset = 0, length = 100): bigint {
    return this.request({ command: NBD_COMMAND.WRITE, offset }, pattern(seed, length));
  }

  /** Seeds of the writes that the server has seen, in this order. */
  get seen(): number[] {
    const writes = this.server.seen.filter(({ request }) => request.command === NBD_COMMAND.WRITE);
    return writes.map(({ data }) => seedOf(data));
  }
}

function seedOf(data: Uint8Array): number {
  const seed = Array.from({ length: 256 }, (_, seed) => seed)
    .find((seed) => pattern(seed, data.length).every((byte, at) => byte === data[at]));
  assert(seed !== undefined, "the data of a write are torn");
  return seed;
}

Deno.test("what is issued after a checkpoint waits until the secondary has loaded it", () => {
  const rig = new Rig("structured");
  rig.write(1);
  rig.gate.checkpoint(7);
  rig.write(2);
  rig.request({ command: NBD_COMMAND.WRITE_ZEROES, length: 10 });
  rig.request({ command: NBD_COMMAND.TRIM, length: 10 });
  rig.request({ command: NBD_COMMAND.FLUSH });
  assertEquals(rig.server.seen.length, 1);
  rig.answerAll();
  assertEquals(rig.gate.isOpen, false);
  rig.do(rig.gate.loaded(6));
  assertEquals(rig.server.seen.length, 1);
  rig.do(rig.gate.loaded(7));
  rig.answerAll();
  assertEquals(rig.server.seen.map(({ request }) => request.command), [1, 1, 6, 4, 3]);
  assertEquals(rig.gate.heldBytes, 0);
  rig.write(3);
  assertEquals(rig.seen, [1, 2, 3]);
});

Deno.test("what changes nothing passes by itself, and behind what waits", () => {
  const rig = new Rig("simple");
  rig.gate.checkpoint(1);
  const others = [NBD_COMMAND.READ, NBD_COMMAND.CACHE, NBD_COMMAND.BLOCK_STATUS];
  const ask = () => others.forEach((command) => rig.request({ command, length: 10 }));
  ask();
  assertEquals(rig.server.seen.map(({ request }) => request.command), others);
  rig.server.unanswered.length = 0;
  rig.write(1, 4096);
  ask();
  rig.request({ command: NBD_COMMAND.DISC });
  assertEquals(rig.server.seen.length, 3);
  rig.do(rig.gate.loaded(1));
  assertEquals(rig.server.seen.slice(3).map(({ request }) => request.command), [1, ...others]);
  rig.answer();
  assertEquals(rig.server.seen.at(-1)?.request.command, NBD_COMMAND.DISC);
});

Deno.test("what is no change is asked and answered as it was said", () => {
  fc.assert(fc.property(form, cuts, cuts, (form, cuts, answerCuts) => {
    const rig = new Rig(form);
    rig.server.disk.set(pattern(3, 700), 512);
    const read = { command: NBD_COMMAND.READ, offset: 512, length: 700 };
    const handle = rig.request(read, undefined, cuts);
    assertEquals(concat(...rig.toServer), said({ ...read, handle, length: 700 }, form));
    const answer = rig.server.answer(0);
    for (const chunk of split(answer, answerCuts)) rig.do(rig.gate.fromServer(chunk));
    assertEquals(concat(...rig.toClient), answer);
  }));
});

Deno.test("several checkpoints are loaded as one when all before it has been written", () => {
  const rig = new Rig("extended");
  rig.gate.checkpoint(1);
  rig.write(1, 1000);
  rig.gate.checkpoint(2);
  rig.write(2, 2000);
  rig.gate.checkpoint(3);
  rig.write(3, 3000);
  rig.do(rig.gate.loading(3));
  assertEquals(rig.seen, [1, 2]);
  assertEquals(rig.said, []);
  assertEquals(rig.gate.isIdle, false);
  rig.answer();
  assertEquals(rig.said, []);
  rig.answer();
  assertEquals(rig.said, [{ type: "settled", epoch: 3 }]);
  assertEquals(rig.seen, [1, 2]);
  rig.do(rig.gate.loaded(3));
  assertEquals(rig.seen, [1, 2, 3]);
  rig.answer();
  assert(rig.gate.isIdle);
});

Deno.test("a load that nothing has to be written for may be begun at once", () => {
  const rig = new Rig("simple");
  rig.write(1);
  rig.answer();
  rig.gate.checkpoint(1);
  rig.do(rig.gate.loading(1));
  assertEquals(rig.said, [{ type: "settled", epoch: 1 }]);
  assertThrows(() => rig.gate.loading(2), LocalProtocolError);
  assertThrows(() => rig.gate.checkpoint(1), LocalProtocolError);
});

Deno.test("a client with early answers is answered when its data have passed, and what it has sent comes in order", () => {
  fc.assert(fc.property(form, cuts, (form, cuts) => {
    const rig = new Rig(form);
    const first = rig.request({ command: NBD_COMMAND.WRITE }, pattern(1, 100), cuts);
    const flush = rig.request({ command: NBD_COMMAND.FLUSH });
    const second = rig.request({ command: NBD_COMMAND.WRITE }, pattern(2, 100), cuts);
    assertEquals(rig.answers.map(({ handle }) => handle), [first, flush, second]);
    assertEquals(rig.seen, [1], "the second may not overtake the first");
    rig.answerAll();
    assertEquals(rig.seen, [1, 2]);
    const read = rig.request({ command: NBD_COMMAND.READ, length: 100 });
    assertEquals(rig.answers.length, 3);
    rig.answerAll();
    assertEquals(rig.answers.at(-1)?.handle, read);
    assert(rig.gate.isIdle);
  }));
});

for (const form of ["simple", "structured", "extended"] as const) {
  Deno.test(`what the server does not do is reported, and not to the client: ${form}`, () => {
    const rig = new Rig(form);
    rig.gate.checkpoint(1);
    rig.write(1, 4096);
    rig.do(rig.gate.loaded(1));
    rig.answer(0, 28);
    const [failed] = rig.said;
    assert(failed?.type === "failed");
    assertEquals([failed.request.offset, failed.request.length], [4096, 100]);
    assertEquals(failed.reason, "ENOSPC");
    assertEquals(rig.answers.map(({ failed }) => failed), [false]);
  });
}

Deno.test("what a server says of an error is read as far as it comes", () => {
  const said = Uint8Array.of(0, 0, 0, 5, 0, 4, 0x66, 0x75, 0x6c, 0x6c);
  assertEquals(nbdErrorReason(said), "EIO, full");
  assertEquals(nbdErrorReason(said.subarray(0, 8)), "EIO, fu");
  assertEquals(nbdErrorReason(said.subarray(0, 5)), "EIO");
  assertEquals(nbdErrorReason(Uint8Array.of(0)), "error 0");
});

Deno.test("a gate that holds too much says so once, and that it does not any more", () => {
  const rig = new Rig("simple", 10_000);
  rig.gate.checkpoint(1);
  for (let seed = 0; seed < 8; seed++) rig.write(seed, seed * 2000, 2000);
  assertEquals(rig.said, [{ type: "full" }]);
  assert(rig.gate.full);
  rig.do(rig.gate.loaded(1));
  rig.answerAll();
  assertEquals(rig.gate.full, false);
  assertEquals(rig.said.length, 1);
});

Deno.test("what has waited goes to the server little by little, and in order", () => {
  const rig = new Rig("structured");
  rig.gate.checkpoint(1);
  for (let seed = 0; seed < 200; seed++) rig.write(seed, seed * 100);
  rig.do(rig.gate.loaded(1));
  assertEquals(rig.seen.length, 64);
  rig.gate.checkpoint(2);
  rig.write(200);
  rig.do(rig.gate.loading(2));
  rig.answerAll();
  assertEquals(rig.seen, Array.from({ length: 200 }, (_, seed) => seed));
  assertEquals(rig.said, [{ type: "settled", epoch: 2 }]);
});

Deno.test("a gate that was cut passes nothing any more, in neither direction", () => {
  const rig = new Rig("simple");
  rig.write(1);
  rig.gate.checkpoint(1);
  rig.write(2);
  rig.gate.cut();
  rig.do(rig.gate.loaded(1));
  rig.write(3);
  rig.request({ command: NBD_COMMAND.READ, length: 1 });
  rig.answer();
  assertEquals(rig.seen, [1]);
  assertEquals(rig.answers.length, 3, "the writes alone");
  assertEquals(rig.gate.heldBytes, 0);
});

Deno.test("a write passes when all of it has come", () => {
  const rig = new Rig("simple");
  const bytes = said({ command: NBD_COMMAND.WRITE, handle: 3n }, "simple", pattern(9, 500));
  rig.do(rig.gate.fromClient(bytes.slice(0, 200)));
  assertEquals(rig.toServer, []);
  rig.do(rig.gate.fromClient(bytes.slice(200)));
  assertEquals(concat(...rig.toServer).slice(28), bytes.slice(28));
});

Deno.test("a server that loads its seed has nothing to do meanwhile", () => {
  const rig = new Rig("extended");
  rig.write(1);
  rig.do(rig.gate.entering(7));
  assertEquals(rig.said, [], "one is under way");
  rig.write(2);
  const flush = rig.request({ command: NBD_COMMAND.FLUSH });
  rig.answerAll();
  assertEquals(rig.said, [{ type: "settled", epoch: 7 }]);
  assertEquals(rig.seen, [1]);
  assertEquals(rig.server.unanswered, []);
  assertEquals(rig.answers.at(-1)?.handle, flush, "the client does not wait for it");
  rig.do(rig.gate.loaded(7));
  rig.answerAll();
  assertEquals(rig.seen, [1, 2]);
  assert(rig.gate.isIdle);
  // From here on it is a gate as any other.
  rig.gate.checkpoint(8);
  rig.write(3);
  assertEquals(rig.seen, [1, 2]);
  rig.do(rig.gate.loading(8));
  assertEquals(rig.said.at(-1), { type: "settled", epoch: 8 });
  rig.do(rig.gate.loaded(8));
  assertEquals(rig.seen, [1, 2, 3]);
});

Deno.test("a gate refuses what is no NBD", () => {
  const rig = new Rig("simple");
  assertThrows(() => rig.gate.fromClient(new Uint8Array(28)), NbdError);
  assertThrows(() => rig.gate.fromServer(new Uint8Array(28)), NbdError);
});

/** What happens to a primary, a secondary and the gate between them. */
type Step =
  | { readonly type: "write"; readonly length: number; readonly cuts: number[] }
  | { readonly type: "other"; readonly command: number }
  | { readonly type: "answer"; readonly index: number; readonly cuts: number[] }
  | { readonly type: "checkpoint" }
  | { readonly type: "load"; readonly newest: boolean };

const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({ type: fc.constant("write" as const), length: fc.nat(300), cuts }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      type: fc.constant("other" as const),
      command: fc.constantFrom(NBD_COMMAND.READ, NBD_COMMAND.FLUSH, NBD_COMMAND.WRITE_ZEROES),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ type: fc.constant("answer" as const), index: fc.nat(), cuts }),
  },
  { weight: 2, arbitrary: fc.record({ type: fc.constant("checkpoint" as const) }) },
  { weight: 2, arbitrary: fc.record({ type: fc.constant("load" as const), newest: fc.boolean() }) },
);

/**
 * Whenever the secondary loads a checkpoint, its disk has answered every write from before it and has
 * seen none from after it; whenever it takes over, it has seen none that it should not have.
 */
function checkInterleaving(
  form: NbdForm,
  steps: readonly Step[],
): void {
  const rig = new Rig(form);
  /** Checkpoint that each write was issued after, by the number of the write. */
  const issued: number[] = [];
  let [taken, loaded] = [-1, -1];
  let loading: number | undefined;
  const tagOf = (request: NbdRequest) => issued[request.offset / 512]!;
  const load = (epoch: number) => {
    const { seen, unanswered } = rig.server;
    const writes = seen.filter(({ request }) => isWrite(request)).map(({ request }) => request);
    const expected = issued.flatMap((tag, number) => tag < epoch ? [number] : []);
    assertEquals(writes.map(({ offset }) => offset / 512), expected, `load of ${epoch}`);
    assert(unanswered.every(({ request }) => !isWrite(request)), "loaded before it was written");
    loaded = epoch;
    loading = undefined;
    rig.do(rig.gate.loaded(epoch));
  };
  const perform = (step: Step) => {
    switch (step.type) {
      case "write":
      case "other": {
        const changes = step.type === "write" || step.command === NBD_COMMAND.WRITE_ZEROES;
        const offset = changes ? issued.length * 512 : 0;
        if (changes) issued.push(taken);
        if (step.type === "write") {
          const data = pattern(issued.length & 0xff, step.length);
          rig.request({ command: NBD_COMMAND.WRITE, offset }, data, step.cuts);
        } else rig.request({ command: step.command, offset, length: 64 });
        break;
      }
      case "answer": {
        const count = rig.server.unanswered.length;
        if (count > 0) rig.answer(step.index % count, 0, step.cuts);
        break;
      }
      case "checkpoint":
        rig.gate.checkpoint(++taken);
        break;
      case "load":
        if (loading === undefined && loaded < taken) {
          loading = step.newest ? taken : loaded + 1;
          rig.do(rig.gate.loading(loading));
        }
        break;
    }
    const settled = rig.said.at(-1);
    if (loading !== undefined && settled?.type === "settled" && settled.epoch === loading) {
      load(loading);
    }
    // Were the secondary to take over now:
    for (const { request } of rig.server.seen.filter(({ request }) => isWrite(request))) {
      const tag = tagOf(request);
      assert(tag <= loaded || (loading !== undefined && tag < loading), `saw a write of ${tag}`);
    }
  };
  for (const step of steps) perform(step);
  // In the end everything gets there, in the order in which it was issued, and everybody is answered.
  for (let turn = 0; turn < 3; turn++) {
    rig.answerAll();
    perform({ type: "load", newest: true });
  }
  rig.answerAll();
  const writes = rig.server.seen.filter(({ request }) => isWrite(request));
  assertEquals(
    writes.map(({ request }) => request.offset / 512),
    issued.map((_, number) => number),
  );
  assert(rig.gate.isIdle);
  assertEquals(rig.gate.heldBytes, 0);
  const others = steps.filter(({ type }) => type === "other").length;
  const written = steps.filter(({ type }) => type === "write").length;
  assertEquals(rig.answers.length, others + written);
}

Deno.test("a takeover finds exactly the writes that its checkpoint and its own epoch have", () => {
  fc.assert(
    fc.property(
      form,
      fc.array(step, { maxLength: 40, size: "max" }),
      checkInterleaving,
    ),
    { numRuns: 500 },
  );
});

/** What a guest does to its disk, which has 16 blocks. */
type Access = { readonly isRead: boolean; readonly block: number; readonly blocks: number };

const turn: fc.Arbitrary<Access | { readonly answer: number } | "checkpoint" | "load"> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      isRead: fc.boolean(),
      block: fc.nat(13),
      blocks: fc.integer({ min: 1, max: 3 }),
    }),
  },
  { weight: 5, arbitrary: fc.record({ answer: fc.nat() }) },
  { weight: 2, arbitrary: fc.constant("checkpoint" as const) },
  { weight: 2, arbitrary: fc.constant("load" as const) },
);

/**
 * A guest that does not touch a block again before it was told that the last access is over finds on it
 * what it has written, in whatever order the server does what it was given.
 */
function checkContent(
  form: NbdForm,
  turns: readonly unknown[],
): void {
  const rig = new Rig(form);
  const expected = new Uint8Array(rig.server.disk.length);
  const underWay = new Map<bigint, Access>();
  let [taken, answered, seed] = [-1, 0, 0];
  const settle = () => {
    for (const { handle, failed } of rig.answers.slice(answered)) {
      assertEquals(failed, false);
      underWay.delete(handle);
    }
    answered = rig.answers.length;
  };
  const checkReads = () => {
    for (const { request } of rig.server.unanswered) {
      if (request.command !== NBD_COMMAND.READ) continue;
      const [from, to] = [request.offset, request.offset + request.length];
      assertContent(rig.server.disk.subarray(from, to), expected.subarray(from, to));
    }
  };
  const answer = (index: number) => {
    checkReads();
    if (rig.server.unanswered.length > 0) rig.answer(index % rig.server.unanswered.length);
    settle();
  };
  for (const turn of turns as readonly (Access | { answer: number } | "checkpoint" | "load")[]) {
    if (turn === "checkpoint") rig.gate.checkpoint(++taken);
    else if (turn === "load") rig.do(rig.gate.loaded(taken));
    else if ("answer" in turn) answer(turn.answer);
    else {
      const { isRead, block, blocks } = turn;
      const touches = (other: Access) =>
        other.block < block + blocks && block < other.block + other.blocks;
      if ([...underWay.values()].some(touches)) continue;
      const [offset, length] = [block * 512, blocks * 512];
      let handle: bigint;
      if (isRead) handle = rig.request({ command: NBD_COMMAND.READ, offset, length });
      else {
        const data = pattern(++seed & 0xff, length);
        expected.set(data, offset);
        handle = rig.request({ command: NBD_COMMAND.WRITE, offset }, data);
      }
      underWay.set(handle, turn);
      settle();
    }
  }
  rig.do(rig.gate.loaded(taken));
  while (rig.server.unanswered.length > 0) answer(++seed);
  assertContent(rig.server.disk, expected);
  assertEquals(underWay.size, 0);
}

Deno.test("a guest finds on its disk what it has written", () => {
  fc.assert(
    fc.property(
      form,
      fc.array(turn, { maxLength: 50, size: "max" }),
      checkContent,
    ),
    { numRuns: 500 },
  );
});
