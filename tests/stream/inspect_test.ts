import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { StreamError } from "../../engine/errors.ts";
import { formatInspection, StreamInspector } from "../../engine/stream/inspect.ts";
import * as write from "../../engine/stream/writer.ts";
import {
  checkpointStream,
  concat,
  device,
  initialStream,
  MACHINE,
  RAM_SECTION_ID,
} from "./sample.ts";

const GOLDEN = new URL("../golden/", import.meta.url);

async function goldenStream(): Promise<Uint8Array<ArrayBuffer>> {
  const packed = await Deno.readFile(new URL("primary_11.1.bin.gz", GOLDEN));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

Deno.test("StreamInspector reads what a real primary said", async () => {
  const bytes = await goldenStream();
  const expected = JSON.parse(await Deno.readTextFile(new URL("primary_11.1.json", GOLDEN)));
  for (const chunkBytes of [bytes.length, 70_001]) {
    const inspector = new StreamInspector();
    for (let at = 0; at < bytes.length; at += chunkBytes) {
      inspector.push(bytes.subarray(at, at + chunkBytes));
    }
    const inspection = inspector.finish();
    assertEquals(JSON.parse(JSON.stringify(inspection)), expected);
    assertEquals(inspection.complete, true);
    assertEquals(inspection.checkpoints.map(({ whole }) => whole), [true, true, true]);
  }
});

Deno.test("StreamInspector says of a real stream that is cut anywhere that it is cut", async () => {
  const bytes = await goldenStream();
  const whole: number[] = JSON.parse(
    await Deno.readTextFile(new URL("primary_11.1.json", GOLDEN)),
  ).checkpoints.map(({ offset }: { offset: number }) => offset);
  for (let length = 0; length < bytes.length; length += 1009) {
    const inspector = new StreamInspector();
    inspector.push(bytes.subarray(0, length));
    // Only where a checkpoint begins nothing is missing.
    assertEquals(inspector.finish().complete, whole.includes(length), `cut at ${length}`);
  }
  for (const length of whole) {
    const inspector = new StreamInspector();
    inspector.push(bytes.subarray(0, length));
    assertEquals(inspector.finish().complete, true);
  }
});

Deno.test("StreamInspector counts pages by block, by kind and by checkpoint", () => {
  const inspector = new StreamInspector();
  inspector.push(initialStream([
    { block: 0, page: 1, fill: 1 },
    { block: 0, page: 2, fill: 0 },
    { block: 1, page: 0, fill: 3 },
  ]));
  inspector.push(checkpointStream([{ block: 0, page: 2, fill: 5 }]));
  const inspection = inspector.finish();
  assertEquals(inspection.blocks.map(({ pages }) => pages), [
    { whole: 2, zero: 1, xbzrle: 0 },
    { whole: 1, zero: 0, xbzrle: 0 },
  ]);
  assertEquals(inspection.initialPages, { whole: 2, zero: 1, xbzrle: 0 });
  assertEquals(inspection.checkpoints.map(({ pages }) => pages), [{
    whole: 1,
    zero: 0,
    xbzrle: 0,
  }]);
  const table = formatInspection(inspection);
  assert(table.includes("pc.ram") && table.includes("machine pc-i440fx-11.1"));
});

/** An initial stream with a VM description of its own. */
function described(json: string): Uint8Array {
  const id = RAM_SECTION_ID;
  return concat(
    write.header(),
    write.configuration(MACHINE),
    write.ramStart(id, [{ name: "pc.ram", sizeBytes: 4096 }]),
    write.ramEnd(id),
    write.ramSectionEnd(id),
    device(Uint8Array.of(1)),
    write.endOfFile(),
    write.vmDescription(json),
  );
}

Deno.test("StreamInspector lists the devices of a VM description, as far as it goes", () => {
  const devicesOf = (json: string) => {
    const inspector = new StreamInspector();
    inspector.push(described(json));
    return inspector.finish().devices;
  };
  const json = '{"devices": [{"name": "ps2kbd", "instance_id": 3, "version": 4, "fields": []}]}';
  assertEquals(devicesOf(json), [{ name: "ps2kbd", instanceId: 3, version: 4 }]);
  assertEquals(devicesOf("{}"), []);
  assertEquals(devicesOf('{"devices": 7}'), []);
  assertEquals(devicesOf('{"devices": [null, 5, [], {"name": "rtc"}]}'), [
    { name: "rtc", instanceId: 0, version: 0 },
  ]);
});

Deno.test("StreamInspector refuses what is no migration stream, with the offset", () => {
  const inspector = new StreamInspector();
  const error = assertThrows(
    () => inspector.push(new TextEncoder().encode("#!/bin/sh\n")),
    StreamError,
    "this is no migration stream",
  );
  assertEquals(error.offset, 0);
});

Deno.test("StreamInspector throws nothing but its own error at a real stream that was damaged", async () => {
  const bytes = await goldenStream();
  let refused = 0;
  // Every byte of the first few sections, and then some.
  for (let at = 0; at < bytes.length; at += at < 300 ? 1 : 4999) {
    const damaged = bytes.slice();
    damaged[at] = damaged[at]! ^ 0x11;
    const inspector = new StreamInspector();
    try {
      inspector.push(damaged);
      inspector.finish();
    } catch (error) {
      assert(error instanceof StreamError, String(error));
      refused++;
    }
  }
  assert(refused > 100, `only ${refused} were refused`);
});

Deno.test("formatInspection marks a checkpoint that is cut off", () => {
  const inspector = new StreamInspector();
  const checkpoint = checkpointStream([{ block: 0, page: 2, fill: 5 }]);
  inspector.push(concat(initialStream([]), checkpoint, checkpoint.subarray(0, 50)));
  const rows = formatInspection(inspector.finish()).split("\n");
  assert(rows[0]?.endsWith("cut off"), rows[0]);
  const last = rows.slice(-2).map((row) => row.endsWith("cut off"));
  assertEquals(last, [false, true]);
});
