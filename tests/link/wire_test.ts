import { assert, assertEquals, assertInstanceOf, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { LocalProtocolError, WireError } from "../../engine/errors.ts";
import { FRAME_PAYLOAD_BYTES_MAX } from "../../engine/limits.ts";
import {
  type Frame,
  FRAME_HEADER_BYTES,
  FrameDecoder,
  FrameEncoder,
  type ReceivedFrame,
} from "../../engine/link/wire.ts";
import { type KernelSet, ReferenceKernels, WasmKernels } from "../../wasm/mod.ts";

const KERNELS: Readonly<Record<string, KernelSet>> = {
  reference: new ReferenceKernels(),
  wasm: WasmKernels.create(),
};
const encoder = new FrameEncoder(WasmKernels.create());
/** A decoder takes memory for good, so each has kernels of its own that are collected with it. */
const newDecoder = () => new FrameDecoder(WasmKernels.create({ maximumBytes: 8 * 1024 * 1024 }));

const payload = fc.oneof(
  fc.uint8Array({ maxLength: 300 }),
  fc.tuple(fc.nat(255), fc.nat(6000)).map(([byte, count]) => new Uint8Array(count).fill(byte)),
);
const frame = fc.record({
  type: fc.nat(255),
  epoch: fc.oneof(fc.nat(), fc.maxSafeNat()),
  payload,
});
const frameAndCompress = fc.tuple(frame, fc.boolean());

function join(pieces: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

function encodeAll(frames: readonly (readonly [Frame, boolean])[]): Uint8Array<ArrayBuffer> {
  return join(frames.map(([frame, compress]) => encoder.encode(frame, compress)));
}

function withoutOffset({ offset: _, ...frame }: ReceivedFrame): Frame {
  return frame;
}

/** Where each of the frames begins when they follow one another. */
function offsets(frames: readonly (readonly [Frame, boolean])[]): number[] {
  return frames.map((_, index) => encodeAll(frames.slice(0, index)).length);
}

/** Every frame, and the error that came behind them. */
function decode(decoder: FrameDecoder, chunks: readonly Uint8Array[]) {
  const frames: ReceivedFrame[] = [];
  try {
    for (const chunk of chunks) frames.push(...decoder.push(chunk));
    decoder.push(new Uint8Array(0));
  } catch (error) {
    assertInstanceOf(error, WireError);
    return { frames, error };
  }
  return { frames, error: undefined };
}

function split(whole: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const positions = cuts.map((cut) => Math.floor(cut * whole.length)).sort((a, b) => a - b);
  return [0, ...positions].map((start, i) => whole.subarray(start, positions[i] ?? whole.length));
}

/** What a wrong header is refused with. */
function refusal(change: (header: DataView) => void, preceding = new Uint8Array(0)): WireError {
  const bytes = encoder.encode({ type: 1, epoch: 5, payload: new Uint8Array(10) });
  change(new DataView(bytes.buffer));
  const { error } = decode(newDecoder(), [join([preceding, bytes])]);
  assert(error !== undefined);
  return error;
}

for (const [name, kernels] of Object.entries(KERNELS)) {
  const over = { encoder: new FrameEncoder(kernels), decoder: new FrameDecoder(kernels) };
  Deno.test(`FrameDecoder gives back what FrameEncoder took, over ${name} kernels`, () => {
    fc.assert(fc.property(frameAndCompress, ([frame, compress]) => {
      const decoded = over.decoder.push(over.encoder.encode(frame, compress));
      assertEquals(decoded.map(withoutOffset), [frame]);
    }));
  });
}

Deno.test("FrameEncoder makes the same bytes over either kind of kernels", () => {
  const reference = new FrameEncoder(new ReferenceKernels());
  fc.assert(fc.property(frame, (frame) => {
    assertEquals(encoder.encode(frame), reference.encode(frame));
  }));
});

Deno.test("FrameEncoder lays a frame out as documented", () => {
  const bytes = encoder.encode({ type: 0x12, epoch: 2 ** 32 + 5, payload: Uint8Array.of(7, 8) });
  assertEquals([...bytes.subarray(0, 24)], [
    ...[0x43, 0x4f, 0x4c, 0x4f, 2, 0x12, 0, 0],
    ...[0, 0, 0, 1, 0, 0, 0, 5],
    ...[0, 0, 0, 2, 0, 0, 0, 2],
  ]);
  assertEquals([...bytes.subarray(32)], [7, 8]);
  const kernels = new ReferenceKernels();
  const at = kernels.alloc(64);
  const out = kernels.alloc(8);
  kernels.bytes.set(join([bytes.subarray(0, 24), bytes.subarray(32)]), at);
  kernels.xxh64(at, 26, out);
  assertEquals([...bytes.subarray(24, 32)], [...kernels.bytes.slice(out, out + 8)].reverse());
});

Deno.test("FrameEncoder compresses only where it saves one byte in 16", () => {
  const noise = crypto.getRandomValues(new Uint8Array(4096));
  const raw = encoder.encode({ type: 1, epoch: 0, payload: noise }, true);
  assertEquals(raw.length, FRAME_HEADER_BYTES + 4096);
  assertEquals(raw[6], 0);
  const zeros = encoder.encode({ type: 1, epoch: 0, payload: new Uint8Array(4096) }, true);
  assert(zeros.length < 100);
  assertEquals(zeros[6], 1);
  // Half noise, half zeros: compressible, just not by much.
  noise.fill(0, 2048);
  const half = encoder.encode({ type: 1, epoch: 0, payload: noise }, true);
  assertEquals(half[6], 1);
  assertEquals(newDecoder().push(half)[0]?.payload, noise);
});

Deno.test("FrameEncoder refuses what no frame can hold", () => {
  const empty = new Uint8Array(0);
  for (
    const frame of [
      { type: 1, epoch: -1, payload: empty },
      { type: 1, epoch: 2 ** 53, payload: empty },
      { type: 256, epoch: 0, payload: empty },
      { type: 1, epoch: 0, payload: new Uint8Array(FRAME_PAYLOAD_BYTES_MAX + 1) },
    ]
  ) assertThrows(() => encoder.encode(frame), LocalProtocolError);
});

Deno.test("FrameDecoder takes a frame of the largest size", () => {
  const largest = crypto.getRandomValues(new Uint8Array(65536));
  const payload = new Uint8Array(FRAME_PAYLOAD_BYTES_MAX);
  for (let at = 0; at < payload.length; at += largest.length) payload.set(largest, at);
  const decoder = newDecoder();
  for (const compress of [false, true, false]) {
    const [frame] = decoder.push(encoder.encode({ type: 2, epoch: 1, payload }, compress));
    assert(frame !== undefined);
    // assertEquals on a megabyte is slow.
    assert(frame.payload.every((byte, i) => byte === payload[i]));
  }
  assertEquals(decoder.bufferedBytes, 0);
});

Deno.test("FrameDecoder gives the same frames and the same error for any chunking", () => {
  const cuts = fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { maxLength: 20 });
  const tail = fc.constantFrom(new Uint8Array(0), new Uint8Array(40).fill(1));
  const frames = fc.array(frameAndCompress, { maxLength: 6 });
  fc.assert(
    fc.property(frames, tail, cuts, (frames, tail, cuts) => {
      const whole = join([encodeAll(frames), tail]);
      const expected = decode(newDecoder(), [whole]);
      assertEquals(expected.frames.map(withoutOffset), frames.map(([frame]) => frame));
      assertEquals(expected.frames.map(({ offset }) => offset), offsets(frames));
      assertEquals(expected.error === undefined, tail.length === 0);
      const found = decode(newDecoder(), split(whole, cuts));
      assertEquals(found.frames, expected.frames);
      assertEquals(found.error?.message, expected.error?.message);
    }),
    { numRuns: 60 },
  );
});

Deno.test("FrameDecoder finds frames in a long connection whose reads end anywhere", () => {
  const frames: [Frame, boolean][] = Array.from({ length: 40 }, (_, i) => [
    { type: 1, epoch: i, payload: new Uint8Array(90_001 + i).fill(i) },
    false,
  ]);
  const whole = encodeAll(frames);
  const decoder = newDecoder();
  const epochs: number[] = [];
  for (let at = 0; at < whole.length; at += 65_537) {
    for (const { epoch, payload } of decoder.push(whole.subarray(at, at + 65_537))) {
      epochs.push(epoch);
      assert(payload.every((byte) => byte === epoch));
    }
  }
  assertEquals(epochs, frames.map(([frame]) => frame.epoch));
});

Deno.test("FrameDecoder refuses every wrong field of a header, and says where it is", () => {
  const cases: readonly [(header: DataView) => void, number, string][] = [
    [(header) => header.setUint32(0, 0x51455646), 0, 'begins with 0x51455646, not with "COLO"'],
    [
      (header) => header.setUint8(4, 3),
      4,
      "its version is 3, not 2: run the same release of colo on both",
    ],
    [(header) => header.setUint8(6, 2), 6, "its flags are 0x2"],
    [(header) => header.setUint8(7, 9), 7, "its reserved byte is 9, not 0"],
    [(header) => header.setUint32(8, 0x200000), 8, "its epoch is 2^53 or more"],
    [(header) => header.setUint32(16, 0xffffffff), 16, "its length is 4294967295"],
    [(header) => header.setUint32(20, 0xffffffff), 20, "its length is 4294967295"],
    [(header) => header.setUint32(20, 11), 20, "its raw length is 11, but 10 bytes follow"],
    [(header) => header.setUint8(30, header.getUint8(30) ^ 1), 24, "its checksum is wrong"],
    [(header) => header.setUint8(40, 1), 24, "its checksum is wrong"],
    [(header) => header.setUint8(5, 77), 24, "its checksum is wrong"],
    [(header) => header.setUint8(15, 77), 24, "its checksum is wrong"],
  ];
  const before = encoder.encode({ type: 1, epoch: 1, payload: new Uint8Array(100) });
  for (const [change, at, detail] of cases) {
    const alone = refusal(change);
    assertEquals(alone.offset, at);
    assert(alone.message.includes(detail), alone.message);
    assertEquals(refusal(change, before).offset, before.length + at);
  }
});

Deno.test("FrameDecoder refuses a compressed payload that is no LZ4 block of its raw length", () => {
  const kernels = new ReferenceKernels();
  const base = kernels.alloc(128);
  for (const rawLength of [0, 99, 101]) {
    const bytes = encoder.encode({ type: 1, epoch: 0, payload: new Uint8Array(100) }, true);
    const header = new DataView(bytes.buffer);
    header.setUint32(20, rawLength);
    kernels.bytes.set(join([bytes.subarray(0, 24), bytes.subarray(32)]), base);
    kernels.xxh64(base, bytes.length - 8, base + 100);
    bytes.set(kernels.bytes.slice(base + 100, base + 108).reverse(), 24);
    const { error } = decode(newDecoder(), [bytes]);
    assert(error?.message.includes(`no LZ4 block of ${rawLength} bytes`), error?.message);
  }
});

Deno.test("FrameDecoder refuses a huge length when it has no more than the header", () => {
  const kernels = WasmKernels.create();
  const decoder = new FrameDecoder(kernels);
  const memoryBytes = kernels.bytes.length;
  const bytes = encoder.encode({ type: 1, epoch: 0, payload: new Uint8Array(10) });
  new DataView(bytes.buffer).setUint32(16, FRAME_PAYLOAD_BYTES_MAX + 1);
  assertEquals(decoder.push(bytes.subarray(0, FRAME_HEADER_BYTES - 1)), []);
  assertThrows(
    () => decoder.push(bytes.subarray(FRAME_HEADER_BYTES - 1, FRAME_HEADER_BYTES)),
    WireError,
    "the limit is 1048576 bytes",
  );
  assertEquals(decoder.bufferedBytes, FRAME_HEADER_BYTES);
  assertEquals(kernels.bytes.length, memoryBytes);
});

Deno.test("FrameDecoder keeps refusing after the first error", () => {
  const decoder = newDecoder();
  const good = encoder.encode({ type: 1, epoch: 0, payload: new Uint8Array(3) });
  const first = assertThrows(() => decoder.push(new Uint8Array(32)), WireError);
  assertEquals(assertThrows(() => decoder.push(good), WireError), first);
});

Deno.test("FrameDecoder gives a WireError, or the frame that was sent, for 20,000 changed frames", () => {
  let decoder = newDecoder();
  const counts = { refused: 0, equal: 0, incomplete: 0 };
  const mutation = fc.oneof(
    fc.record({
      kind: fc.constant("flip" as const),
      at: fc.nat(),
      value: fc.integer({ min: 1, max: 255 }),
    }),
    fc.record({ kind: fc.constant("set" as const), at: fc.nat(31), value: fc.nat(255) }),
    fc.record({ kind: fc.constant("cut" as const), at: fc.nat(), value: fc.constant(0) }),
  );
  fc.assert(
    fc.property(frameAndCompress, mutation, ([frame, compress], { kind, at, value }) => {
      const bytes = encoder.encode(frame, compress);
      const position = at % bytes.length;
      if (kind === "flip") bytes[position]! ^= value;
      if (kind === "set") bytes[position] = value;
      const sent = kind === "cut" ? bytes.subarray(0, position) : bytes;
      const { frames, error } = decode(decoder, [sent]);
      if (error !== undefined || decoder.bufferedBytes > 0) decoder = newDecoder();
      if (error !== undefined) counts.refused++;
      else if (frames.length === 0) counts.incomplete++;
      else counts.equal++;
      assert(error === undefined || frames.length === 0);
      if (frames.length > 0) assertEquals(frames.map(withoutOffset), [frame]);
    }),
    { numRuns: 20_000, seed: 7700 },
  );
  // Every outcome has been seen; a frame comes out equal when a byte was set to what it was.
  assert(Object.values(counts).every((count) => count > 0), JSON.stringify(counts));
});

Deno.test("a frame is the same wherever its payload lies, and whatever is in front of it", () => {
  const memory = Uint8Array.from({ length: 5000 }, (_, at) => at * 7 % 251);
  const decoder = newDecoder();
  for (let from = 0; from < 9; from++) {
    for (const headBytes of [0, 1, 5]) {
      for (const compress of [false, true]) {
        const head = memory.slice(0, headBytes);
        const payload = memory.subarray(from, from + 4000);
        const bytes = encoder.encode({ type: 1, epoch: 2, head, payload }, compress);
        assertEquals(
          bytes,
          encoder.encode({ type: 1, epoch: 2, payload: join([head, payload]) }, compress),
        );
        // Behind one of another length, and so elsewhere in memory.
        decoder.push(encoder.encode({ type: 1, epoch: 2, payload: memory.subarray(0, from) }));
        assertEquals(decoder.push(bytes)[0]!.payload, join([head, payload]));
      }
    }
  }
});
