/**
 * A QEMU that another process has started, and that has outlived it.
 *
 * @module
 */

import { QemuError } from "../errors.ts";
import { parseThreadStat } from "./death_watch.ts";
import type { QemuExit, QemuProcess } from "./process.ts";

/** A process that is not mistaken for a later one with the same number. */
export interface ProcessIdentity {
  readonly pid: number;
  /** When it started, in clock ticks since the machine did. */
  readonly startTicks: number;
}

/** Between two looks at whether it lives: nobody tells whoever is not the parent. */
const POLL_MS = 10;
const STOP_TIMEOUT_MS = 2000;

/** The process that has this number now; undefined when there is none, or only its remains. */
export function identify(pid: number): ProcessIdentity | undefined {
  try {
    const { startTicks, isZombie } = parseThreadStat(Deno.readTextFileSync(`/proc/${pid}/stat`));
    return isZombie ? undefined : { pid, startTicks };
  } catch {
    return undefined;
  }
}

/** Whether it still runs. */
export function isAlive({ pid, startTicks }: ProcessIdentity): boolean {
  return identify(pid)?.startTicks === startTicks;
}

/** Kill a process unless it has ended, and wait until it has. */
export async function killLeftover(process: ProcessIdentity): Promise<void> {
  if (!isAlive(process)) return;
  Deno.kill(process.pid, "SIGKILL");
  while (isAlive(process)) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
}

/** Take care of a QEMU from now on. How it ended will not be known, only that it has. */
export class AdoptedQemu implements QemuProcess {
  readonly pid: number;
  readonly exited: Promise<QemuExit>;
  readonly #process: ProcessIdentity;

  constructor(process: ProcessIdentity) {
    this.#process = process;
    this.pid = process.pid;
    this.exited = this.#watch();
  }

  kill(signal: Deno.Signal = "SIGKILL"): void {
    if (isAlive(this.#process)) Deno.kill(this.pid, signal);
  }

  async stop(): Promise<void> {
    this.kill("SIGTERM");
    const timer = setTimeout(() => this.kill("SIGKILL"), STOP_TIMEOUT_MS);
    await this.exited;
    clearTimeout(timer);
  }

  async whileAlive<T>(work: Promise<T>): Promise<T> {
    const ended = this.exited.then(() => {
      throw new QemuError(`Cannot take care of QEMU process ${this.pid}: it has ended`);
    });
    return await Promise.race([work, ended]);
  }

  async #watch(): Promise<QemuExit> {
    while (isAlive(this.#process)) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    return { code: 0, signal: null, stderrTail: "" };
  }
}
