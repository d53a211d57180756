/**
 * What the tests of a real pair share: a demo guest between two commands, and the proof that nothing is
 * left of them.
 *
 * @module
 */

import { assertEquals } from "@std/assert/mod.js";
import { DemoSession, type SessionOptions } from "../../cli/demo/session.ts";
import { prepareDemoGuest } from "../../engine/vm/mod.ts";

/** A seeded generator of numbers from 0 to 1 (mulberry32). */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The seed of this run: `COLO_TEST_SEED`, or a fixed one in CI, or any. */
export function testSeed(): number {
  const given = Deno.env.get("COLO_TEST_SEED");
  const seed = given !== undefined ? Number(given) : Deno.env.get("CI") ? 1 : Date.now() % 2 ** 31;
  console.log(`seed ${seed}: replay with COLO_TEST_SEED=${seed}`);
  return seed;
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Processes whose command line names this directory. */
export function processesOf(directory: string): string[] {
  const found: string[] = [];
  for (const { name } of Deno.readDirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const line = Deno.readTextFileSync(`/proc/${name}/cmdline`).replaceAll("\0", " ");
      if (line.includes(directory)) found.push(`${name} ${line}`);
    } catch {
      // It has ended meanwhile.
    }
  }
  return found;
}

/** Run a pair, and prove afterwards that no process of it is left. */
export async function withPair<T>(
  options: Partial<Omit<SessionOptions, "directory">>,
  work: (session: DemoSession) => Promise<T>,
): Promise<T> {
  const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
  const session = await DemoSession.start({
    guest: await prepareDemoGuest(),
    memoryMiB: 128,
    periodMs: 100,
    ...options,
    directory,
  });
  try {
    return await work(session);
  } finally {
    await session.stop();
    // QEMU's command line names its console, which lies in the directory.
    const left = processesOf(directory);
    await Deno.remove(directory, { recursive: true });
    assertEquals(left, []);
  }
}
