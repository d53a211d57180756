/**
 * What the tests of a real pair share: a demo guest between two commands, and the proof that nothing is
 * left of them.
 *
 * @module
 */

import { assert, assertEquals, AssertionError } from "@std/assert/mod.js";
import { DemoSession, type SessionOptions } from "../../cli/demo/session.ts";
import type { VmConfig } from "../../engine/config/mod.ts";
import { prepareDemoGuest } from "../../engine/vm/mod.ts";
import { LinkRelay } from "./_link_relay.ts";

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

/** How often to do what is random: `COLO_TEST_KILLS`, or as often as there is time for in every run. */
export function testKills(everyRun: number): number {
  return Number(Deno.env.get("COLO_TEST_KILLS") ?? everyRun);
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Wait until a condition holds; asked again every few milliseconds. */
export async function until(
  condition: () => boolean | Promise<boolean>,
  timeoutMs: number,
  what: string,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!await condition()) {
    assert(performance.now() < deadline, `not within ${timeoutMs} ms: ${what}`);
    await sleep(5);
  }
}

/** What a promise comes to, if it does in time. */
export async function within<T>(promise: Promise<T>, timeoutMs: number, what: string): Promise<T> {
  let timer: ReturnType<typeof setTimeout>;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new AssertionError(`not within ${timeoutMs} ms: ${what}`)),
      timeoutMs,
    );
  });
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** What a process has of the machine's memory, now and at the most so far, in MiB. */
export function memoryOf(pid: number): { readonly rssMiB: number; readonly peakMiB: number } {
  const status = Deno.readTextFileSync(`/proc/${pid}/status`);
  const mib = (key: string) =>
    Number(new RegExp(`^${key}:\\s+(\\d+) kB$`, "m").exec(status)![1]) / 1024;
  return { rssMiB: mib("VmRSS"), peakMiB: mib("VmHWM") };
}

/** Whether a process has not ended, nor been killed. */
export function isAlive(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(Deno.readTextFileSync(`/proc/${pid}/status`));
  } catch {
    return false;
  }
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

/** As {@linkcode withPair}, with a relay between the two engines. */
export async function withRelayedPair<T>(
  options: Partial<Omit<SessionOptions, "directory">>,
  work: (session: DemoSession, relay: LinkRelay) => Promise<T>,
): Promise<T> {
  let relay: LinkRelay | undefined;
  const configure = (given: VmConfig, side: "primary" | "standby"): VmConfig => {
    const config = options.configure?.(given, side) ?? given;
    const { replication } = config;
    if (replication.peer?.transport !== "tcp") return config;
    relay = new LinkRelay({ port: replication.peer.port });
    return {
      ...config,
      replication: { ...replication, peer: { ...replication.peer, port: relay.port } },
    };
  };
  try {
    return await withPair({ ...options, configure }, (session) => work(session, relay!));
  } finally {
    relay?.close();
  }
}
