import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { PacketError } from "../../engine/errors.ts";
import { InboundGate } from "../../engine/proxy/inbound_gate.ts";
import { RecordBuffer } from "../../engine/proxy/record_buffer.ts";
import { FRAME, FRAME_ENTRY_BYTES, FRAME_KIND, FRAME_SCAN, WasmKernels } from "../../wasm/mod.ts";
import { Twin } from "../wasm/twin.ts";
import { concat, record, vnetRecord } from "./packets.ts";
import { readPcap } from "./pcap.ts";
import { readRecords, Rig } from "./rig.ts";

type Bytes = Uint8Array<ArrayBuffer>;

const DIRECTORY = new URL("../golden/captures/", import.meta.url);

/** All headers that are looked at end before this, but for those behind many options or extensions. */
const HEADER_BYTES = 128;

const CAPTURES: ReadonlyMap<string, readonly Bytes[]> = new Map(
  await Promise.all(
    [...Deno.readDirSync(DIRECTORY)]
      .filter(({ name }) => name.endsWith(".pcap.gz"))
      .map(async ({ name }) =>
        [name, readPcap(await gunzipped(new URL(name, DIRECTORY)))] as const
      ),
  ),
);

async function gunzipped(url: URL): Promise<Bytes> {
  const { readable } = await Deno.open(url);
  const stream = readable.pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const ALL = [...CAPTURES.values()].flat();

/** Small memory, and the same for all captures: what one of them leaks the next one lacks. */
const LITTLE = { primarySegments: 12, secondarySegments: 12, connectionsMax: 256 };

const twin = new Twin();
const [input, table, out] = [
  twin.alloc(80_000),
  twin.alloc((HEADER_BYTES + 1) * FRAME_ENTRY_BYTES),
  twin.alloc(8),
];

/** What the kernel says that frames are; it and its specification say the same of every word. */
function kindsOf(frames: readonly Uint8Array[]): number[] {
  const bytes = concat(frames.map(record));
  twin.set(input, bytes);
  const result = twin.run((kernels) =>
    kernels.scanFrames(input, input + bytes.length, 0, 1, table, HEADER_BYTES + 1, out)
  );
  assertEquals([result, twin.u32(out + 4)], [FRAME_SCAN.MORE, frames.length]);
  return frames.map((_, index) => twin.u32(table + index * FRAME_ENTRY_BYTES + 4 * FRAME.KIND));
}

const kindOf = (frame: Uint8Array) => kindsOf([frame])[0]!;

/** How often each frame is among them. */
function counted(frames: readonly Bytes[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const frame of frames) {
    const key = frame.join();
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  return counts;
}

/** A frame again and again, each time with less of it. */
function cuts(frame: Bytes): Bytes[] {
  return Array.from(
    { length: Math.min(frame.length, HEADER_BYTES) },
    (_, cut) => frame.slice(0, cut + 1),
  );
}

Deno.test("the captures hold what is worth to be looked at", () => {
  const kinds = new Set(ALL.map(kindOf));
  for (const [name, kind] of Object.entries(FRAME_KIND)) assert(kinds.has(kind), name);
  assert(ALL.some(({ length }) => length > 1518), "a jumbo frame");
});

Deno.test("captured frames, cut off anywhere: kernel and specification agree", () => {
  for (const frame of ALL) kindsOf([...cuts(frame), frame]);
});

for (const vnetHeader of [false, true]) {
  const framed = vnetHeader ? vnetRecord : record;
  const left = (bytes: Bytes) => readRecords(bytes, vnetHeader);
  const options = { ...LITTLE, vnetHeader };

  Deno.test(`captured frames, vnet header ${vnetHeader}: what both sides say leaves once, what one says with the checkpoint`, () => {
    const rig = new Rig(options);
    rig.proxy.protect("compare", 1);
    rig.proxy.loaded(1, rig.now);
    for (const [name, frames] of CAPTURES) {
      // One side first: later it would be a retransmission.
      for (const both of [false, true]) {
        const before = rig.proxy.statistics;
        const sent: Bytes[] = [];
        // By the memory there is, a few at a time.
        for (let at = 0; at < frames.length; at += 50) {
          const some = frames.slice(at, at + 50);
          const bytes = concat(some.map((frame) => framed(frame)));
          rig.primaryBytes(bytes);
          if (both) rig.secondaryBytes(bytes);
          if (at % 200 === 150) rig.checkpointed();
          sent.push(...left(rig.outputBytes()));
        }
        const uncompared = frames.filter((frame) => kindOf(frame) <= FRAME_KIND.MALFORMED).length;
        const malformed = frames.filter((frame) => kindOf(frame) === FRAME_KIND.MALFORMED).length;
        if (!both && frames.length < 150) assertEquals(sent.length, uncompared, name);
        rig.checkpointed();
        sent.push(...left(rig.outputBytes()));
        const { statistics } = rig.proxy;
        assertEquals(counted(sent), counted(frames), name);
        assertEquals(
          {
            primary: statistics.primaryFrames - before.primaryFrames,
            secondary: statistics.secondaryFrames - before.secondaryFrames,
            released: statistics.released - before.released,
            malformed: statistics.malformed - before.malformed,
            lost: statistics.lost,
            held: statistics.held,
          },
          {
            primary: frames.length,
            secondary: both ? frames.length : 0,
            released: frames.length - uncompared,
            malformed: both ? 2 * malformed : malformed,
            lost: 0,
            held: 0,
          },
          name,
        );
        assert(statistics.connections <= LITTLE.connectionsMax);
      }
    }
  });

  Deno.test(`captured frames, vnet header ${vnetHeader}: mutated, cut and mixed, nothing but own errors, and nothing leaks`, () => {
    const rig = new Rig(options, WasmKernels.create());
    rig.proxy.protect("compare", 1);
    rig.proxy.loaded(1, rig.now);
    const size = rig.proxy.primary.space().buffer.byteLength;
    const change = fc.tuple(fc.oneof(fc.nat(HEADER_BYTES), fc.nat(9000)), fc.nat(255));
    const frame = fc.tuple(fc.nat(ALL.length - 1), fc.nat(200), fc.array(change, { maxLength: 3 }))
      .map(([index, cut, changes]) => {
        const bytes = ALL[index]!.slice(
          0,
          Math.max(1, ALL[index]!.length - Math.max(0, cut - 100)),
        );
        for (const [at, value] of changes) bytes[at % bytes.length] = value;
        return bytes;
      });
    fc.assert(
      fc.property(
        fc.array(fc.tuple(frame, fc.constantFrom("primary", "secondary", "both")), {
          maxLength: 30,
        }),
        (frames) => {
          const of = (side: string) =>
            frames.filter(([, who]) => who === side || who === "both").map(([frame]) => frame);
          rig.primaryBytes(concat(of("primary").map((frame) => framed(frame))));
          rig.secondaryBytes(concat(of("secondary").map((frame) => framed(frame))));
          rig.wait(rig.now % 300);
          rig.checkpointed();
          assertEquals(counted(left(rig.outputBytes())), counted(of("primary")));
          assertEquals(rig.proxy.statistics.held, 0);
        },
      ),
      { numRuns: 1000 },
    );
    assertEquals(rig.proxy.statistics.lost, 0);
    assertEquals(rig.proxy.primary.space().buffer.byteLength, size);
  });
}

Deno.test("captured frames leave in their order where a commit is the only way out", () => {
  const rig = new Rig(LITTLE);
  rig.proxy.protect("continuous", 1);
  for (const [name, frames] of CAPTURES) {
    const sent: Bytes[] = [];
    for (let at = 0; at < frames.length; at += 100) {
      rig.primary(...frames.slice(at, at + 100));
      sent.push(...rig.checkpoint());
    }
    assertEquals(sent, frames, name);
  }
  assertEquals(rig.proxy.statistics.lost, 0);
});

Deno.test("captured frames go to a secondary as they are, however they are cut on the way", () => {
  const gate = new InboundGate(4);
  gate.loaded(1);
  const bytes = concat(ALL.map(record));
  const buffer = new RecordBuffer("a capture", 4);
  const received: Bytes[] = [];
  for (let at = 0, size = 1; at < bytes.length; at += size, size = size * 7919 % 65_521) {
    const piece = bytes.subarray(at, at + size);
    buffer.space().set(piece);
    buffer.filled(piece.length);
    gate.received(1, buffer.take());
    while (gate.peek().length > 0) {
      const taken = gate.peek().slice(0, 1000) as Bytes;
      received.push(taken);
      gate.sent(taken.length);
    }
  }
  assertEquals(readRecords(concat(received)), ALL);
  assertEquals([gate.lostBytes, gate.waitingBytes], [0, 0]);
});

Deno.test("a capture taken for a chardev's bytes costs its connection, and no more", () => {
  const rig = Rig.comparing();
  for (const [name, frames] of CAPTURES) {
    const raw = concat(frames.slice(0, 20));
    for (const side of ["primary", "secondary"] as const) {
      try {
        if (side === "primary") rig.primaryBytes(raw);
        else rig.secondaryBytes(raw);
      } catch (error) {
        assert(error instanceof PacketError, name);
      }
      rig.proxy[side].reset();
    }
    rig.checkpoint();
    assertEquals(rig.proxy.statistics.held, 0, name);
  }
});
