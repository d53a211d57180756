/**
 * The cache directory, and making something in it once: by one process at a time, wholly or not
 * at all.
 *
 * A maker works in a directory of its own beside the target, which is renamed when it is complete;
 * so a target that exists is whole, whatever was interrupted. The lock is the kernel's (`flock`) and
 * goes with the process that held it.
 *
 * @module
 */

import { dirname, join } from "@std/path/mod.js";
import { QemuError } from "../errors.ts";

const REMOVE_ATTEMPTS = 20;
const REMOVE_RETRY_MS = 100;

/** Told what is going on, one line at a time. */
export type Progress = (line: string) => void;

/** What {@linkcode makeOnce} is to make. */
export interface OnceOptions {
  /** The directory that is to exist in the end */
  readonly target: string;
  /** What it is called in progress lines, such as `QEMU` */
  readonly what: string;
  /** Fills a directory that exists and is empty */
  readonly make: (directory: string) => Promise<void>;
  readonly progress?: Progress | undefined;
}

/**
 * Where downloads are kept: `$XDG_CACHE_HOME/colo`, else `$HOME/.cache/colo`.
 *
 * @throws {QemuError} when neither variable is set
 */
export function cacheDirectory(): string {
  const cache = Deno.env.get("XDG_CACHE_HOME");
  if (cache) return join(cache, "colo");
  const home = Deno.env.get("HOME");
  if (home) return join(home, ".cache", "colo");
  throw new QemuError("Cannot find the cache directory: set HOME or XDG_CACHE_HOME");
}

/**
 * Make a directory unless it is there, while other processes that want the same wait for it.
 *
 * @throws whatever `make` throws; the target does not exist then, and the next call starts again
 */
export async function makeOnce(options: OnceOptions): Promise<void> {
  const { target, what, make, progress } = options;
  if (await exists(target)) return;
  await Deno.mkdir(dirname(target), { recursive: true });
  using lock = await Deno.open(`${target}.lock`, { create: true, write: true });
  if (!await lock.tryLock(true)) {
    progress?.(`waiting for another process that prepares ${what}`);
    await lock.lock(true);
  }
  if (await exists(target)) return;
  const temporary = `${target}.partial`;
  await removeTree(temporary);
  await Deno.mkdir(temporary);
  await make(temporary);
  await Deno.rename(temporary, target);
}

/** Whether a path exists, whatever it is. */
export async function exists(path: string): Promise<boolean> {
  try {
    await Deno.lstat(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/**
 * Remove a directory and all in it, or nothing.
 *
 * A program whose parent was killed may still be writing into it for a moment; hence the attempts.
 */
export async function removeTree(path: string): Promise<void> {
  for (let attempt = 1; await exists(path); attempt++) {
    try {
      await Deno.remove(path, { recursive: true });
    } catch (error) {
      if (attempt === REMOVE_ATTEMPTS) throw error;
      await new Promise((resolve) => setTimeout(resolve, REMOVE_RETRY_MS));
    }
  }
}
