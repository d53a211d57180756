import { assert, assertEquals } from "@std/assert/mod.js";
import { formatInspection, StreamInspector } from "../../engine/stream/inspect.ts";
import { checkpointStream, initialStream } from "./sample.ts";

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
