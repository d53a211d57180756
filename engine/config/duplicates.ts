/**
 * Finds what a TOML file gives twice: the parser takes the last of two values and joins two lists,
 * both without a word. Pure.
 *
 * It looks at the beginnings of lines. Two of the same key within the braces of one inline table, or
 * on one line, are not found.
 *
 * @module
 */

import { parse } from "@std/toml/mod.js";

/** What is given twice. */
export interface Duplicate {
  /** As the file has it: a key without its table, or a table's header. */
  readonly name: string;
  /** Both lines, from 1. */
  readonly lines: readonly [number, number];
}

/**
 * The first key, or table, that is given twice.
 *
 * @example
 * ```ts
 * import { findDuplicate } from "./duplicates.ts";
 *
 * const duplicate = findDuplicate("[vm]\ncpus = 1\nmemory = 512\ncpus = 2\n");
 * if (duplicate?.name !== "cpus" || duplicate.lines[1] !== 4) throw new Error("not found");
 * ```
 */
export function findDuplicate(text: string): Duplicate | undefined {
  const lines = text.split("\n");
  // What looks like a key may stand within a text or a list of several lines: then what comes before
  // it is no whole TOML.
  const isStatement = (index: number) => isToml(lines.slice(0, index).join("\n"));
  const headers = new Map<string, number[]>();
  let keys = new Map<string, number[]>();
  for (const [index, line] of lines.entries()) {
    const header = /^\s*(\[.*\])/.exec(line)?.[1];
    if (header !== undefined) keys = new Map();
    const name = header ?? keyOf(line);
    // [[tables]] are there to be given again and again.
    if (name === undefined || name.startsWith("[[")) continue;
    const seen = header === undefined ? keys : headers;
    const earlier = seen.get(name) ?? [];
    seen.set(name, [...earlier, index]);
    if (earlier.length === 0 || !isStatement(index)) continue;
    const first = earlier.find(isStatement);
    if (first !== undefined) return { name, lines: [first + 1, index + 1] };
  }
  return undefined;
}

/** The key that a line gives, without its quotes. */
function keyOf(line: string): string | undefined {
  const key = line.slice(0, Math.max(0, line.indexOf("="))).replaceAll(/["'\s]/g, "");
  return /^[\w.-]+$/.test(key) ? key : undefined;
}

function isToml(text: string): boolean {
  try {
    parse(text);
    return true;
  } catch {
    return false;
  }
}
