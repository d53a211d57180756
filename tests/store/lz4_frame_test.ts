import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { StoreError } from "../../engine/errors.ts";
import { Lz4FrameReader, Lz4FrameWriter } from "../../engine/store/lz4_frame.ts";
import { Xxh32, xxh32 } from "../../engine/store/xxh32.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import { Tool } from "../_tool.ts";
import { contents, noise } from "../wasm/contents.ts";

const KIB = 1024;

function joined(parts: Iterable<Uint8Array>): Uint8Array<ArrayBuffer> {
  return Uint8Array.from([...parts].flatMap((part) => [...part]));
}

/** As above, for more than a few bytes. */
function concat(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

function* pieces(bytes: Uint8Array, sizes: readonly number[]): Generator<Uint8Array, void> {
  for (let at = 0, turn = 0; at < bytes.length; turn++) {
    const size = sizes[turn % sizes.length]!;
    yield bytes.subarray(at, at + size);
    at += size;
  }
}

function written(bytes: Uint8Array, blockBytes = 256 * KIB, sizes = [100_000]) {
  const writer = new Lz4FrameWriter(WasmKernels.create(), { blockBytes });
  const parts: Uint8Array[] = [writer.begin()];
  for (const piece of pieces(bytes, sizes)) {
    for (const block of writer.push(piece)) parts.push(block.slice());
  }
  for (const part of writer.finish()) parts.push(part.slice());
  return concat(parts);
}

function read(frame: Uint8Array, sizes = [70_000]): Uint8Array<ArrayBuffer> {
  const reader = new Lz4FrameReader(WasmKernels.create());
  const parts: Uint8Array[] = [];
  for (const piece of pieces(frame, sizes)) parts.push(...reader.push(piece));
  reader.finish();
  return concat(parts);
}

Deno.test("xxh32 gives known values", () => {
  // As other implementations have them.
  const known: readonly [string, number][] = [
    ["", 0x02cc5d05],
    ["a", 0x550d7456],
    ["abc", 0x32d153ff],
    ["Nobody inspects the spammish repetition", 0xe2293b2f],
  ];
  for (const [text, expected] of known) {
    assertEquals(xxh32(new TextEncoder().encode(text)), expected, text);
  }
});

Deno.test("xxh32 does not depend on the pieces that bytes come in, nor on where they lie", () => {
  fc.assert(fc.property(
    contents(2000),
    fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1 }),
    fc.nat(7),
    (bytes, sizes, shift) => {
      const whole = xxh32(bytes);
      const hash = new Xxh32();
      for (const piece of pieces(bytes, sizes)) hash.update(piece);
      assertEquals(hash.digest(), whole);
      const moved = new Uint8Array(bytes.length + shift).subarray(shift);
      moved.set(bytes);
      assertEquals(xxh32(moved), whole);
    },
  ));
});

Deno.test("a frame gives its content back, in whatever pieces both come", () => {
  const sizes = fc.array(fc.integer({ min: 1, max: 9000 }), { minLength: 1, maxLength: 5 });
  fc.assert(fc.property(contents(20_000), sizes, sizes, (bytes, here, there) => {
    assertEquals(read(written(bytes, 64 * KIB, here), there), bytes);
  }));
});

Deno.test("frames of every block size give their content back", () => {
  const bytes = concat([noise(1, 700_000), new Uint8Array(1_000_000), noise(2, 1000)]);
  for (const blockBytes of [64 * KIB, 256 * KIB, 1024 * KIB]) {
    assertEquals(read(written(bytes, blockBytes)), bytes);
  }
  assertThrows(() => written(bytes, 4096 * KIB), RangeError);
  assertThrows(() => written(bytes, 1000), RangeError);
});

Deno.test("frames follow each other, with skippable ones between them", () => {
  const skippable = Uint8Array.of(0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3);
  const empty = Uint8Array.of(0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0);
  const [a, b] = [noise(1, 1000), noise(2, 100_000)];
  const frames = concat([skippable, written(a), empty, skippable, written(b), skippable]);
  for (const sizes of [[1], [7, 3], [1_000_000]]) {
    assertEquals(read(frames, sizes), concat([a, b]));
  }
});

Deno.test("a byte of a frame that is flipped is refused, or changes nothing", () => {
  const bytes = concat([noise(3, 300), new Uint8Array(3000)]);
  const frame = written(bytes);
  for (let at = 0; at < frame.length; at++) {
    const damaged = frame.slice();
    damaged[at]! ^= 1 << (at % 8);
    try {
      assertEquals(read(damaged), bytes);
    } catch (error) {
      assert(error instanceof StoreError, `${at}: ${error}`);
    }
  }
});

Deno.test("what is no frame is refused with a reason", () => {
  const frame = written(noise(1, 100));
  const changed = (at: number, value: number) => {
    const copy = frame.slice();
    copy[at] = value;
    // The header's own checksum is made right again.
    copy[6] = xxh32(copy.subarray(4, 6)) >>> 8;
    return copy;
  };
  const cases: readonly [Uint8Array, string][] = [
    [Uint8Array.of(2, 0x21, 0x4c, 0x18), "not as a frame does"],
    [changed(4, 0x34), "its version is not 01"],
    [changed(4, 0x76), "a reserved bit is set"],
    [changed(4, 0x75), "it needs a dictionary"],
    [changed(4, 0x54), "its blocks depend on each other"],
    [changed(5, 0x30), "its block size is not known"],
    [changed(5, 0x41), "its block size is not known"],
    [frame.slice(0, -1), "it ends in the middle"],
    [frame.slice(0, 30), "it ends in the middle"],
    [concat([frame.slice(0, 7), Uint8Array.of(1, 0, 4, 0)]), "a block has 262145 bytes"],
    [concat([frame.slice(0, 7), Uint8Array.of(0, 0, 0, 0x80)]), "a block has 0 bytes"],
  ];
  for (const [bytes, reason] of cases) assertThrows(() => read(bytes), StoreError, reason);
});

Deno.test("rubbish behind a frame's header never does worse than being refused", () => {
  fc.assert(fc.property(fc.uint8Array({ maxLength: 300 }), fc.nat(3), (rubbish, kind) => {
    const header = written(new Uint8Array(0)).slice(0, [0, 4, 7, 7][kind]);
    const length = Uint8Array.of(rubbish.length, 0, 0, 0);
    const bytes = concat([header, ...(kind === 3 ? [length] : []), rubbish]);
    try {
      read(bytes);
    } catch (error) {
      assert(error instanceof StoreError, `${error}`);
    }
  }));
});

const lz4 = await Tool.find("lz4");
const lz4Tool = (args: readonly string[], input: Uint8Array) =>
  lz4!.run([...args, "-c", "-q", "-"], input);

const INPUTS = [
  new Uint8Array(0),
  Uint8Array.of(1, 2, 3),
  noise(5, 1_500_000),
  noise(6, 1_500_000).map((byte) => 97 + byte % 5),
  joined([noise(7, 3000), new Uint8Array(70_000), noise(8, 3000)]),
];

Deno.test({
  name: "the lz4 tool reads our frames",
  ignore: lz4 === undefined,
  fn: async () => {
    for (const input of INPUTS) {
      for (const blockBytes of [64 * KIB, 256 * KIB, 1024 * KIB]) {
        assertEquals(await lz4Tool(["-d"], written(input, blockBytes)), input);
      }
    }
  },
});

Deno.test({
  name: "we read the lz4 tool's frames",
  ignore: lz4 === undefined,
  fn: async () => {
    const options = [[], ["-9"], ["-B4"], ["-B5", "--no-frame-crc"], ["-B6", "-BX"], [
      "-B7",
      "-BI",
    ]];
    for (const input of INPUTS) {
      for (const option of options) assertEquals(read(await lz4Tool(option, input)), input);
    }
    const dependent = await lz4Tool(["-BD", "-B4"], INPUTS[3]!);
    assertThrows(() => read(dependent), StoreError, "depend on each other");
  },
});
