import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import fc from "fast-check";
import { StreamError } from "../../engine/errors.ts";
import { type StreamEvent, StreamReader } from "../../engine/stream/reader.ts";
import * as write from "../../engine/stream/writer.ts";
import { ReferenceKernels, WasmKernels } from "../../wasm/mod.ts";
import {
  BLOCKS,
  checkpointStream,
  concat,
  device,
  initialStream,
  MACHINE,
  pageContent,
  type SamplePage,
  VM_DESCRIPTION,
} from "./sample.ts";

const SMALL_STAGING = { segmentBytes: 32 * 1024, segmentsMax: 4, pagesMax: 16 };

const PAGES: readonly SamplePage[] = [
  { block: 0, page: 0, fill: 1 },
  { block: 0, page: 1, fill: 0 },
  { block: 0, page: 63, fill: 2 },
  { block: 1, page: 7, fill: 3 },
  { block: 1, page: 0, fill: 0 },
  { block: 0, page: 5, fill: 4 },
];

/** A page as a test compares it: its number in the guest and its first bytes. */
interface ReadPage {
  readonly page: number;
  readonly content: string;
}

function fingerprint(content: Uint8Array): string {
  return `${content.slice(0, 8)}…${content.slice(-8)}`;
}

function expected(pages: readonly SamplePage[]): ReadPage[] {
  return pages.map(({ block, page, fill }) => ({
    page: block === 0 ? page : 64 + page,
    content: fingerprint(pageContent(fill)),
  }));
}

/** Everything a stream says, with pages taken out of the staging area when their event comes. */
function readAll(chunks: readonly Uint8Array[], kernels = new ReferenceKernels()) {
  const reader = new StreamReader(kernels, SMALL_STAGING);
  const events: Exclude<StreamEvent, { type: "pages" | "staging-full" }>[] = [];
  const pages: ReadPage[] = [];
  for (const chunk of chunks) {
    for (const event of reader.push(chunk)) {
      if (event.type === "pages") {
        const view = new DataView(kernels.bytes.buffer);
        for (let index = event.from; index < event.from + event.count; index++) {
          const entry = reader.staging.table + index * 8;
          const address = view.getUint32(entry + 4, true);
          const content = address === 0
            ? new Uint8Array(4096)
            : kernels.bytes.slice(address, address + 4096);
          pages.push({ page: view.getUint32(entry, true), content: fingerprint(content) });
        }
      } else if (event.type !== "staging-full") {
        events.push(event);
      }
    }
  }
  return { reader, events, pages };
}

function split(bytes: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const places = [0, ...cuts.map((cut) => cut % (bytes.length + 1)), bytes.length];
  places.sort((a, b) => a - b);
  return places.slice(1).map((end, index) => bytes.subarray(places[index], end));
}

Deno.test("StreamReader reads an initial stream and two checkpoints", () => {
  const { reader, events, pages } = readAll([
    initialStream(PAGES),
    checkpointStream(PAGES.slice(2, 4)),
    checkpointStream([]),
  ]);
  assertEquals(pages, [...expected(PAGES), ...expected(PAGES.slice(2, 4))]);
  assertEquals(events.map((event) => event.type === "colo" ? event.message : event.type), [
    "configuration",
    "command",
    "command",
    "section",
    "blocks",
    "section",
    "section",
    "device-state",
    "vm-description",
    "checkpoint-request",
    "vmstate-send",
    "section",
    "device-state",
    "checkpoint-request",
    "vmstate-send",
    "section",
    "device-state",
  ]);
  const states = events.filter((event) => event.type === "device-state");
  assertEquals(states[0]?.deviceState, concat(device(Uint8Array.of(1, 2, 3)), write.endOfFile()));
  assertEquals(states[1]?.deviceState, concat(device(Uint8Array.of(4, 5)), write.endOfFile()));
  const [configuration] = events;
  assert(configuration?.type === "configuration");
  assertEquals(configuration.machine, MACHINE);
  const description = events.find((event) => event.type === "vm-description");
  assertEquals(description?.json, VM_DESCRIPTION);
  assert(reader.atMessageBoundary);
});

Deno.test("StreamReader reads the same from any chunking", () => {
  const bytes = concat(initialStream(PAGES), checkpointStream(PAGES), checkpointStream([]));
  const whole = readAll([bytes]);
  fc.assert(
    fc.property(fc.array(fc.nat(bytes.length), { maxLength: 40 }), (cuts) => {
      const { events, pages } = readAll(split(bytes, cuts));
      assertEquals(events, whole.events);
      assertEquals(pages, whole.pages);
    }),
    { numRuns: 100 },
  );
  const byteByByte = readAll([...bytes].map((byte) => Uint8Array.of(byte)));
  assertEquals(byteByByte.events, whole.events);
  assertEquals(byteByByte.pages, whole.pages);
});

Deno.test("StreamReader reads the same with either set of kernels", () => {
  const bytes = concat(initialStream(PAGES), checkpointStream(PAGES));
  const reference = readAll([bytes]);
  const wasm = readAll([bytes], WasmKernels.create());
  assertEquals(wasm.events, reference.events);
  assertEquals(wasm.pages, reference.pages);
});

Deno.test("StreamReader finds the end of device state that looks like its end before", () => {
  const decoys = [
    // A footer and the bytes behind it, but the JSON is none.
    [0x7e, 0, 0, 0, 9, 0x00, 0x06, 0, 0, 0, 2, 0x7b, 0x7e],
    // A length that reaches beyond the end of everything.
    [0x7e, 0, 0, 0, 9, 0x00, 0x06, 0, 1, 0, 0, 0x7b, 0x22],
    // Valid JSON, but no footer before it.
    [0x00, 0x06, 0, 0, 0, 2, 0x7b, 0x7d],
  ];
  const state = device(Uint8Array.from(decoys.flat()));
  const bytes = concat(initialStream(PAGES, state), checkpointStream([]));
  for (const chunks of [[bytes], [...bytes].map((byte) => Uint8Array.of(byte))]) {
    const { events } = readAll(chunks);
    const found = events.find((event) => event.type === "device-state");
    assertEquals(found?.deviceState, concat(state, write.endOfFile()));
  }
});

Deno.test("StreamReader reads capabilities, and the addresses that x-ignore-shared adds", () => {
  const capabilities = ["x-ignore-shared"];
  const { events } = readAll([
    write.header(),
    write.configuration(MACHINE, capabilities),
    write.ramStart(7, BLOCKS, capabilities),
    write.ramEnd(7),
    write.ramSectionEnd(7),
    device(Uint8Array.of(1)),
    write.endOfFile(),
    write.vmDescription(),
  ]);
  const blocks = events.find((event) => event.type === "blocks")?.blocks;
  assertEquals(blocks?.map(({ name, firstPage, pages }) => [name, firstPage, pages]), [
    ["pc.ram", 0, 64],
    ["pc.bios", 64, 8],
  ]);
});

Deno.test("StreamReader reports a stream that is cut at any byte as neither wrong nor whole", () => {
  const bytes = initialStream(PAGES.slice(0, 2));
  for (let length = 0; length < bytes.length; length++) {
    const { events, reader } = readAll([bytes.subarray(0, length)]);
    assertEquals(events.some((event) => event.type === "device-state"), false);
    assertEquals(reader.atMessageBoundary, false);
  }
});

Deno.test("StreamReader names what is wrong and where", () => {
  const start = concat(write.header(), write.configuration(MACHINE));
  const blocks = (...list: [string, number][]) =>
    write.ramStart(2, list.map(([name, sizeBytes]) => ({ name, sizeBytes })));
  const inRam = concat(start, write.ramStart(2, BLOCKS), write.ramPart(2));
  const record = (flags: number, name?: string) => {
    const view = new DataView(new ArrayBuffer(8));
    view.setUint32(4, flags);
    const id = name === undefined ? [] : [name.length, ...new TextEncoder().encode(name)];
    return concat(new Uint8Array(view.buffer), Uint8Array.from(id), new Uint8Array(4096));
  };
  const running = initialStream([]);
  const sent = concat(
    running,
    write.coloMessage("checkpoint-request"),
    write.coloMessage("vmstate-send"),
    write.ramEnd(2),
    write.ramSectionEnd(2),
    write.endOfFile(),
  );
  // Where the block list's total, its first entry and its second entry begin.
  const total = start.length + 17;
  const [first, second] = [total + 8, total + 18];
  const cases: [string, Uint8Array, number][] = [
    ["the magic is wrong", Uint8Array.of(0x51, 0x45, 0x56, 0x6e, 0, 0, 0, 3), 0],
    ["version 4 is not known", Uint8Array.of(0x51, 0x45, 0x56, 0x4d, 0, 0, 0, 4), 4],
    ["came in place of the configuration", concat(write.header(), write.openReturnPath()), 8],
    [
      "a machine name of 4294967295 bytes",
      concat(write.header(), Uint8Array.of(7, 255, 255, 255, 255)),
      9,
    ],
    ['RAM block "a" comes twice', concat(start, blocks(["a", 4096], ["a", 4096])), second],
    ["are no whole pages", concat(start, blocks(["a", 4097], ["b", 4095])), first],
    ["guest RAM of 0 bytes", concat(start, blocks()), total],
    [
      "section 9 was never started",
      concat(start, write.ramStart(2, BLOCKS), write.ramPart(9)),
      inRam.length - 4,
    ],
    ['RAM block "nvram", which does not exist', concat(inRam, record(0x08, "nvram")), inRam.length],
    ["a page before any RAM block", concat(inRam, record(0x28)), inRam.length],
    ['outside RAM block "pc.bios"', concat(inRam, record(0x8008, "pc.bios")), inRam.length],
    ["RAM record flags 1 are not known", concat(inRam, record(0x01)), inRam.length],
    [
      "COLO message 6 (vmstate-loaded) is not expected",
      concat(running, write.coloMessage("vmstate-loaded")),
      running.length,
    ],
    [
      "(vmstate-send) is not expected",
      concat(running, write.coloMessage("vmstate-send")),
      running.length,
    ],
    ["COLO message 77 (not known)", concat(running, Uint8Array.of(0, 0, 0, 77)), running.length],
    [
      "a device state of 1152921504606847000 bytes",
      concat(sent, write.vmstateSize(2 ** 60)),
      sent.length + 4,
    ],
    [
      "section type 4 is not expected here",
      concat(sent.subarray(0, -1), Uint8Array.of(4)),
      sent.length - 1,
    ],
  ];
  for (const [message, bytes, offset] of cases) {
    const error = assertThrows(() => readAll([bytes]), StreamError, message);
    assertEquals(error.offset, offset, message);
  }
});

Deno.test("StreamReader survives 100,000 mutated streams with nothing but its own errors", () => {
  const bytes = concat(initialStream(PAGES.slice(1, 4)), checkpointStream(PAGES.slice(1, 3)));
  const kernels = WasmKernels.create();
  const memory = kernels.bytes.slice();
  const seed = Number(Deno.env.get("COLO_FUZZ_SEED") ?? 20260101);
  console.log(`seed ${seed}: replay with COLO_FUZZ_SEED=${seed}`);
  const random = generator(seed);
  let refused = 0;
  for (let round = 0; round < 100_000; round++) {
    const mutated = mutate(bytes, random);
    const reader = new StreamReader(arena(kernels), SMALL_STAGING);
    try {
      for (const chunk of split(mutated, [random(mutated.length), random(mutated.length)])) {
        for (const _ of reader.push(chunk));
      }
    } catch (error) {
      if (!(error instanceof StreamError)) throw error;
      assert(error.offset <= mutated.length);
      refused++;
    }
  }
  assert(refused > 10_000, `only ${refused} were refused: the mutations miss the parser`);
  assert(memory.length <= kernels.bytes.length);
});

/** The same few kilobytes of kernel memory for every reader, which an arena would never give back. */
function arena(kernels: WasmKernels): WasmKernels {
  let at = FUZZ_BASE ??= kernels.alloc(FUZZ_BYTES);
  return new Proxy(kernels, {
    get(target, name) {
      if (name !== "alloc") {
        const value = Reflect.get(target, name, target);
        return typeof value === "function" ? value.bind(target) : value;
      }
      return (sizeBytes: number) => {
        const address = at;
        at += Math.ceil(sizeBytes / 4096) * 4096;
        assert(at <= FUZZ_BASE! + FUZZ_BYTES, "the fuzz arena is too small");
        return address;
      };
    },
  });
}
let FUZZ_BASE: number | undefined;
const FUZZ_BYTES = 1024 * 1024;

/** xorshift32: small, seeded, good enough to hit every branch. */
function generator(seed: number): (below: number) => number {
  let state = seed | 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

function mutate(bytes: Uint8Array, random: (below: number) => number): Uint8Array {
  const mutated = bytes.slice();
  for (let count = 1 + random(4); count > 0; count--) {
    // Most bytes are page content, which may be anything: aim at the framing half of the time.
    const at = random(2) === 0 ? random(200) : random(mutated.length);
    mutated[at] = random(2) === 0 ? random(256) : mutated[at]! ^ (1 << random(8));
  }
  switch (random(8)) {
    case 0:
      return mutated.subarray(0, random(mutated.length));
    case 1: {
      const at = random(mutated.length);
      return concat(mutated.subarray(0, at), mutated.subarray(at + random(16)));
    }
    case 2: {
      const at = random(mutated.length);
      return concat(mutated.subarray(0, at), mutated.subarray(random(mutated.length)));
    }
  }
  return mutated;
}

/** The initial stream of a QEMU that was started with `suppress-vmdesc=on`. */
function undescribed(): Uint8Array {
  const whole = initialStream([{ block: 0, page: 1, fill: 9 }]);
  return whole.subarray(0, whole.length - write.vmDescription(VM_DESCRIPTION).length);
}

Deno.test("StreamReader takes the end of an initial stream that has no mark from whoever knows of it", () => {
  const bytes = undescribed();
  const reader = new StreamReader(new ReferenceKernels());
  const early = [...reader.push(bytes.subarray(0, bytes.length - 1))].map(({ type }) => type);
  assertEquals(early.includes("device-state"), false);
  assertEquals(reader.finishInitial(), [], "it does not look like an end yet");
  assertEquals([...reader.push(bytes.subarray(bytes.length - 1))], []);
  assertEquals(reader.finishInitial().map(({ type }) => type), ["device-state"]);
  assertEquals(reader.atMessageBoundary, true);
  assertEquals(reader.finishInitial(), []);
  const next = [...reader.push(checkpointStream([]))].map(({ type }) => type);
  assertEquals(next.filter((type) => type === "device-state").length, 1);
});

Deno.test("StreamReader finds the end of a recorded stream without a mark, however it is cut", () => {
  const bytes = concat(undescribed(), checkpointStream([{ block: 0, page: 2, fill: 3 }]));
  for (const size of [1, 3, 7, 100, bytes.length]) {
    const reader = new StreamReader(new ReferenceKernels());
    const types: string[] = [];
    for (let at = 0; at < bytes.length; at += size) {
      for (const { type } of reader.push(bytes.subarray(at, at + size))) types.push(type);
    }
    const wanted = types.filter((type) => type === "device-state" || type === "colo");
    assertEquals(wanted, ["device-state", "colo", "colo", "device-state"], `pieces of ${size}`);
  }
});
