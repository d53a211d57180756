/**
 * A writer of cpio archives in the "newc" format, which is what Linux takes as an initial RAM
 * filesystem. Pure.
 *
 * ```text
 *   "070701", then 13 numbers of 8 hexadecimal digits each:
 *     inode  mode  uid  gid  nlink  mtime  file size  device major, minor
 *     rdevice major, minor  name size (with its NUL)  checksum (0)
 *   name, NUL, zeros up to a multiple of 4 bytes
 *   content, zeros up to a multiple of 4 bytes
 * ```
 *
 * The last entry is called `TRAILER!!!`. Everything belongs to root and dates from 1970, so that the
 * same entries give the same bytes.
 *
 * Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
 *
 * @module
 */

/** One file of an archive; its directories come before it. */
export type CpioEntry =
  | { readonly type: "directory"; readonly path: string; readonly mode: number }
  | {
    readonly type: "file";
    readonly path: string;
    readonly mode: number;
    readonly content: Uint8Array;
  }
  | { readonly type: "symlink"; readonly path: string; readonly target: string };

const MAGIC = "070701";
const HEADER_BYTES = MAGIC.length + 13 * 8;

/** The file type bits of a mode. */
const TYPE_BITS = {
  directory: 0o040000,
  file: 0o100000,
  symlink: 0o120000,
} as const;

interface RawEntry {
  readonly name: string;
  readonly mode: number;
  readonly linkCount: number;
  readonly content: Uint8Array;
}

const NOTHING = new Uint8Array(0);
const TRAILER: RawEntry = { name: "TRAILER!!!", mode: 0, linkCount: 1, content: NOTHING };

/**
 * Write a cpio archive.
 *
 * @param entries Paths are relative, without a leading slash
 *
 * @example
 * ```ts
 * import { writeCpio } from "./cpio.ts";
 *
 * const content = new TextEncoder().encode("#!/bin/sh\n");
 * const archive = writeCpio([{ type: "file", path: "init", mode: 0o755, content }]);
 * if (archive.length % 4 !== 0) throw new Error("not aligned");
 * ```
 */
export function writeCpio(entries: readonly CpioEntry[]): Uint8Array<ArrayBuffer> {
  const parts = [...entries.map(toRaw), TRAILER].flatMap(encodeEntry);
  const sizeBytes = parts.reduce((sum, part) => sum + part.length, 0);
  const archive = new Uint8Array(sizeBytes);
  let offset = 0;
  for (const part of parts) {
    archive.set(part, offset);
    offset += part.length;
  }
  return archive;
}

function toRaw(entry: CpioEntry): RawEntry {
  return {
    name: entry.path,
    mode: TYPE_BITS[entry.type] | (entry.type === "symlink" ? 0o777 : entry.mode),
    linkCount: entry.type === "directory" ? 2 : 1,
    content: contentOf(entry),
  };
}

function contentOf(entry: CpioEntry): Uint8Array {
  if (entry.type === "file") return entry.content;
  return entry.type === "symlink" ? new TextEncoder().encode(entry.target) : NOTHING;
}

function encodeEntry(entry: RawEntry, index: number): Uint8Array[] {
  const name = new TextEncoder().encode(`${entry.name}\0`);
  const { content } = entry;
  const numbers = [
    ...[index + 1, entry.mode, 0, 0, entry.linkCount, 0, content.length],
    ...[0, 0, 0, 0, name.length, 0],
  ];
  const digits = numbers.map((value) => value.toString(16).padStart(8, "0")).join("");
  const header = new TextEncoder().encode(MAGIC + digits);
  return [
    ...[header, name, zeros(HEADER_BYTES + name.length)],
    ...[content, zeros(content.length)],
  ];
}

/** The zeros that fill a length up to a multiple of 4. */
function zeros(sizeBytes: number): Uint8Array {
  return new Uint8Array(-sizeBytes & 3);
}
