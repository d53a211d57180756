import { assertEquals } from "@std/assert/mod.js";
import type { ColoMessage } from "../../engine/stream/format.ts";
import * as write from "../../engine/stream/writer.ts";
import { concat } from "./sample.ts";

/** What QEMU 11.1 was seen to send or to accept, as hexadecimal digits and "text". */
function bytes(notation: string): Uint8Array {
  const parts = notation.match(/"[^"]*"|[0-9a-f]{2}/g) ?? [];
  return concat(
    ...parts.map((part) =>
      part.startsWith('"')
        ? new TextEncoder().encode(part.slice(1, -1))
        : Uint8Array.of(parseInt(part, 16))
    ),
  );
}

const BLOCKS = [{ name: "pc.ram", sizeBytes: 0x8000000 }, {
  name: "/rom@etc/acpi/tables",
  sizeBytes: 0x20000,
}];

Deno.test("the stream writer writes the seed that a secondary QEMU accepts, byte for byte", () => {
  const seed = concat(
    write.header(),
    write.configuration("pc-i440fx-11.1"),
    write.openReturnPath(),
    write.ping(),
    write.ramStart(2, BLOCKS),
    write.ramPart(2),
    write.ramSectionEnd(2),
    write.ramEnd(2),
    write.ramSectionEnd(2),
    write.endOfFile(),
    write.vmDescription(),
  );
  assertEquals(
    seed,
    bytes(`
      5145564d 00000003
      07 0000000e "pc-i440fx-11.1"
      08 0001 0000
      08 0002 0004 00000001
      01 00000002 03 "ram" 00000000 00000004
        0000000008020004
        06 "pc.ram" 0000000008000000
        14 "/rom@etc/acpi/tables" 0000000000020000
        0000000000000010 7e 00000002
      02 00000002 0000000000000010 7e 00000002
      03 00000002 0000000000000010 7e 00000002
      00
      06 00000002 7b7d`),
  );
});

Deno.test("the stream writer writes a load that a secondary QEMU accepts, byte for byte", () => {
  const load = concat(
    write.coloMessage("checkpoint-request"),
    write.coloMessage("vmstate-send"),
    write.ramEnd(7),
    write.ramSectionEnd(7),
    write.endOfFile(),
    write.vmstateSize(0x1_0000_0002),
  );
  assertEquals(
    load,
    bytes(`
      00000001 00000003
      03 00000007 0000000000000010 7e 00000007 00
      00000004 0000000100000002`),
  );
});

Deno.test("the stream writer writes the capability list, and the addresses that x-ignore-shared adds", () => {
  const capabilities = ["x-ignore-shared"];
  const start = concat(
    write.configuration("pc-i440fx-11.1", capabilities),
    write.ramStart(3, BLOCKS.slice(0, 1), capabilities),
  );
  assertEquals(
    start,
    bytes(`
      07 0000000e "pc-i440fx-11.1"
      05 1a "configuration/capabilities" 00000001 00000001 0f "x-ignore-shared"
      01 00000003 03 "ram" 00000000 00000004
        0000000008000004
        06 "pc.ram" 0000000008000000 0000000000000000
        0000000000000010 7e 00000003`),
  );
});

Deno.test("the stream writer numbers COLO's messages as QEMU does", () => {
  const numbers: Readonly<Record<ColoMessage, number>> = {
    "checkpoint-ready": 0,
    "checkpoint-request": 1,
    "checkpoint-reply": 2,
    "vmstate-send": 3,
    "vmstate-size": 4,
    "vmstate-received": 5,
    "vmstate-loaded": 6,
  };
  for (const [message, number] of Object.entries(numbers)) {
    assertEquals(write.coloMessage(message as ColoMessage), Uint8Array.of(0, 0, 0, number));
  }
});

Deno.test("the stream writer writes sizes beyond 4 GiB", () => {
  const sizeBytes = 6 * 1024 ** 3;
  const start = write.ramStart(1, [{ name: "r", sizeBytes }]);
  assertEquals(
    start.subarray(17),
    bytes(`0000000180000004 01 "r" 0000000180000000 0000000000000010 7e 00000001`),
  );
});
