import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { StreamError } from "../../engine/errors.ts";
import { formatInspection, type Inspection, StreamInspector } from "../../engine/stream/inspect.ts";
import * as write from "../../engine/stream/writer.ts";
import {
  checkpointStream,
  concat,
  device,
  initialStream,
  MACHINE,
  RAM_SECTION_ID,
} from "./sample.ts";

const INITIAL = initialStream([
  { block: 0, page: 0, fill: 1 },
  { block: 0, page: 1, fill: 0 },
  { block: 1, page: 7, fill: 3 },
]);
const CHECKPOINT = checkpointStream([
  { block: 0, page: 5, fill: 4 },
  { block: 1, page: 2, fill: 0 },
  { block: 1, page: 3, fill: 0 },
]);

function inspect(bytes: Uint8Array, pieceBytes = bytes.length): Inspection {
  const inspector = new StreamInspector();
  for (let at = 0; at < bytes.length; at += pieceBytes) {
    inspector.push(bytes.subarray(at, at + pieceBytes));
  }
  return inspector.finish();
}

/** An initial stream whose VM description is another one. */
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

Deno.test("StreamInspector counts all that is in a stream, however it is cut into pieces", () => {
  const bytes = concat(INITIAL, CHECKPOINT, checkpointStream([]));
  const expected: Inspection = {
    bytes: bytes.length,
    machine: MACHINE,
    capabilities: [],
    commands: ["open-return-path", "ping"],
    blocks: [
      { name: "pc.ram", sizeBytes: 262144, pages: { whole: 2, zero: 1, xbzrle: 0 } },
      { name: "pc.bios", sizeBytes: 32768, pages: { whole: 1, zero: 2, xbzrle: 0 } },
    ],
    ramSections: { start: 1, part: 1, end: 3 },
    initialPages: { whole: 2, zero: 1, xbzrle: 0 },
    deviceStateBytes: 28,
    devices: [],
    checkpoints: [
      {
        offset: INITIAL.length,
        pages: { whole: 1, zero: 2, xbzrle: 0 },
        deviceStateBytes: 27,
        whole: true,
      },
      {
        offset: INITIAL.length + CHECKPOINT.length,
        pages: { whole: 0, zero: 0, xbzrle: 0 },
        deviceStateBytes: 27,
        whole: true,
      },
    ],
    complete: true,
  };
  for (const pieceBytes of [bytes.length, 1000, 7]) {
    assertEquals(inspect(bytes, pieceBytes), expected);
  }
});

Deno.test("StreamInspector says of a stream that was cut off what there is of it", () => {
  const bytes = concat(INITIAL, CHECKPOINT);
  const cut = inspect(bytes.subarray(0, -1));
  assertEquals(cut.complete, false);
  assertEquals(cut.checkpoints.map(({ whole }) => whole), [false]);
  assertEquals(inspect(INITIAL.subarray(0, 40)).complete, false);
  assertEquals(inspect(INITIAL).complete, true);
});

Deno.test("StreamInspector lists the devices of the VM description, as far as it goes", () => {
  const devicesOf = (json: string) => inspect(described(json)).devices;
  const json =
    '{"page_size": 4096, "devices": [{"name": "timer", "instance_id": 0, "version": 2}, ' +
    '{"name": "ps2kbd", "instance_id": 3, "version": 3, "fields": []}]}';
  assertEquals(devicesOf(json), [
    { name: "timer", instanceId: 0, version: 2 },
    { name: "ps2kbd", instanceId: 3, version: 3 },
  ]);
  assertEquals(devicesOf("{}"), []);
  assertEquals(devicesOf('{"devices": 7}'), []);
  assertEquals(devicesOf('{"devices": [null, 5, {"name": "rtc"}]}'), [
    { name: "rtc", instanceId: 0, version: 0 },
  ]);
});

Deno.test("StreamInspector refuses what is no migration stream, with the offset", () => {
  const error = assertThrows(
    () => inspect(new TextEncoder().encode("#!/bin/sh\n")),
    StreamError,
    "this is no migration stream",
  );
  assertEquals(error.offset, 0);
});

Deno.test("formatInspection shows a row for each block and each checkpoint", () => {
  const text = formatInspection(inspect(concat(INITIAL, CHECKPOINT, CHECKPOINT.subarray(0, 4))));
  const rows = text.split("\n");
  assertEquals(rows[0], `${INITIAL.length + CHECKPOINT.length + 4} bytes, machine ${MACHINE}`);
  const columns = (start: string) =>
    rows.find((row) => row.trim().startsWith(start))?.trim().split(/ +/);
  assertEquals(columns("pc.ram"), ["pc.ram", "262144", "2", "1", "0"]);
  assertEquals(columns("1 "), ["1", `${INITIAL.length}`, "27", "1", "2", "0"]);
  assertEquals(columns("2 ")?.slice(-2), ["cut", "off"]);
  assert(formatInspection(inspect(INITIAL.subarray(0, -1))).includes("cut off"));
});
