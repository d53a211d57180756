/**
 * What every area that runs guests needs: QEMU, the demo guest, and ways to wait.
 *
 * @module
 */

import { ColoError } from "../../engine/errors.ts";
import { type DemoGuest, findQemu, prepareDemoGuest, type Qemu } from "../../engine/vm/mod.ts";
import type { BenchContext } from "../area.ts";

/** What guests are run with. */
export interface Rig extends BenchContext {
  readonly qemu: Qemu;
  readonly demoGuest: DemoGuest;
}

/** Find QEMU, fetch the demo guest. */
export async function openRig(context: BenchContext): Promise<Rig> {
  const { progress } = context;
  const qemu = await findQemu({ role: "primary", progress });
  return { ...context, qemu, demoGuest: await prepareDemoGuest({ progress }) };
}

/** A directory of its own for one start of something: socket paths must stay short and fresh. */
export async function freshDirectory({ directory }: BenchContext): Promise<string> {
  return await Deno.makeTempDir({ dir: directory, prefix: "" });
}

const POLL_MS = 5;

/**
 * Wait until a condition holds.
 *
 * @param condition May throw, which ends the waiting
 * @throws {ColoError} when it does not hold in time, or what the signal was aborted with
 */
export async function until(
  condition: () => boolean | Promise<boolean>,
  what: string,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  while (!await condition()) {
    if (performance.now() > deadline) {
      throw new ColoError(`Cannot go on with the benchmark: ${what}: not within ${timeoutMs} ms`);
    }
    await pause(POLL_MS, signal);
  }
}

/** Sleep, unless everything is to end. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  await new Promise((resolve) => setTimeout(resolve, ms));
  signal.throwIfAborted();
}

/** How often something that broke by no fault of ours is begun anew. */
const ATTEMPTS_MAX = 4;

/** Do something that QEMU may spoil, again if need be. */
export async function attempt<T>(rig: Rig, what: string, work: () => Promise<T>): Promise<T> {
  for (let attempts = 1;; attempts++) {
    try {
      return await work();
    } catch (error) {
      rig.signal.throwIfAborted();
      if (!(error instanceof ColoError) || attempts === ATTEMPTS_MAX) throw error;
      rig.progress(`${what}: ${error.message}; once more`);
    }
  }
}
