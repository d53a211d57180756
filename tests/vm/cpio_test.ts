import { assertEquals } from "@std/assert/mod.js";
import { join } from "@std/path/mod.js";
import fc from "fast-check";
import { type CpioEntry, writeCpio } from "../../engine/vm/cpio.ts";
import { Tool } from "../_tool.ts";
import { inTemporaryDirectory } from "./_support.ts";

interface ReadEntry {
  readonly inode: number;
  readonly mode: number;
  readonly linkCount: number;
  readonly name: string;
  readonly content: Uint8Array;
}

/** A reader of its own, from the format's description. */
function readCpio(archive: Uint8Array): ReadEntry[] {
  const entries: ReadEntry[] = [];
  let offset = 0;
  for (;;) {
    const start = offset;
    const text = (from: number, to: number) =>
      new TextDecoder().decode(archive.subarray(start + from, start + to));
    assertEquals(text(0, 6), "070701");
    const number = (index: number) => parseInt(text(6 + index * 8, 14 + index * 8), 16);
    const nameEnd = 110 + number(11);
    const name = text(110, nameEnd - 1);
    const contentStart = Math.ceil((start + nameEnd) / 4) * 4;
    const content = archive.subarray(contentStart, contentStart + number(6));
    offset = Math.ceil((contentStart + number(6)) / 4) * 4;
    if (name === "TRAILER!!!") break;
    entries.push({ inode: number(0), mode: number(1), linkCount: number(4), name, content });
  }
  assertEquals(offset, archive.length, "nothing follows the trailer");
  return entries;
}

const content = new TextEncoder().encode("#!/bin/sh\n");
const EXAMPLE: readonly CpioEntry[] = [
  { type: "directory", path: "bin", mode: 0o755 },
  { type: "file", path: "init", mode: 0o755, content },
  { type: "symlink", path: "bin/sh", target: "busybox" },
  { type: "file", path: "empty", mode: 0o600, content: new Uint8Array(0) },
];

Deno.test("writeCpio() writes modes, link counts and contents", () => {
  const entries = readCpio(writeCpio(EXAMPLE));
  assertEquals(entries.map(({ name, mode, linkCount }) => [name, mode.toString(8), linkCount]), [
    ["bin", "40755", 2],
    ["init", "100755", 1],
    ["bin/sh", "120777", 1],
    ["empty", "100600", 1],
  ]);
  assertEquals(entries[1]?.content, content);
  assertEquals(new TextDecoder().decode(entries[2]?.content), "busybox");
  assertEquals(new Set(entries.map(({ inode }) => inode)).size, entries.length);
});

Deno.test("writeCpio() is read back for any names and contents", () => {
  const file = fc.record({
    type: fc.constant<"file">("file"),
    path: fc.string({ minLength: 1, unit: "grapheme" }).filter((path) => !path.includes("\0")),
    mode: fc.integer({ min: 0, max: 0o777 }),
    content: fc.uint8Array({ maxLength: 40 }),
  });
  fc.assert(fc.property(fc.array(file), (files) => {
    const archive = writeCpio(files);
    const read = readCpio(archive).map((entry) => ({ ...entry, mode: entry.mode & 0o777 }));
    assertEquals(
      read.map(({ name, mode, content }) => [name, mode, content]),
      files.map(({ path, mode, content }) => [path, mode, content]),
    );
  }));
});

Deno.test("writeCpio() gives the same bytes for the same entries", () => {
  assertEquals(writeCpio(EXAMPLE), writeCpio(EXAMPLE));
});

const cpio = await Tool.find("cpio");

Deno.test({
  name: "writeCpio() writes what other programs read",
  ignore: cpio === undefined,
  async fn() {
    await inTemporaryDirectory(async (directory) => {
      const path = join(directory, "archive");
      await Deno.writeFile(path, writeCpio(EXAMPLE));
      const text = new TextDecoder().decode(await cpio!.run(["-it", "--file", path]));
      const names = text.split("\n").filter((line) => line !== "");
      assertEquals(names, ["bin", "init", "bin/sh", "empty"]);
    });
  },
});
