/**
 * Sees that a process has been killed before the system has taken its memory apart. That takes from
 * milliseconds to most of a second, the longer the more memory there is, and only then its connections
 * are closed and its parent is told.
 *
 * ```text
 *  SIGKILL -> every thread leaves user mode for good (PF_EXITING) -> memory -> connections -> parent
 *                                                                 ^ here              here ^
 * ```
 *
 * Sources: Linux `kernel/exit.c` (`do_exit`), proc_pid_stat(5).
 *
 * @module
 */

import { constants } from "node:os";

/** How a process is dying. */
export interface Death {
  /** The signal that ended it; undefined when it ended by itself, or the system does not say. */
  readonly signal: string | undefined;
}

/** What a thread's `stat` says of its end. */
export interface ThreadStat {
  readonly exiting: boolean;
  /** It has ended, and nobody has been told yet. */
  readonly isZombie: boolean;
  /** When its process started, in clock ticks since the machine did. */
  readonly startTicks: number;
  /** As for waitpid(2). */
  readonly exitCode: number;
}

/** Enough for the 52 fields of `stat`. */
const STAT_BYTES_MAX = 4096;

/** Fields of `stat` behind the name in parentheses, which may contain anything. */
const STATE = 0;
const FLAGS = 6;
const START_TIME = 19;
const EXIT_CODE = 49;

/** `PF_EXITING` of Linux' `include/linux/sched.h`: the thread runs no instruction of its program again. */
const PF_EXITING = 0x4;

/** Bits of an exit code that say which signal it was. */
const SIGNAL_MASK = 0x7f;

const SIGNAL_NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(constants.signals).map(([name, number]) => [number, name]),
);

/** Read the text of `/proc/PID/stat`. Pure. */
export function parseThreadStat(text: string): ThreadStat {
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return {
    exiting: (Number(fields[FLAGS]) & PF_EXITING) !== 0,
    isZombie: fields[STATE] === "Z" || fields[STATE] === "X",
    startTicks: Number(fields[START_TIME]),
    exitCode: Number(fields[EXIT_CODE] ?? 0),
  };
}

/** Watches one process, which must be a child that nobody has waited for. */
export class DeathWatch implements Disposable {
  readonly #pid: number;
  readonly #file: Deno.FsFile | undefined;
  readonly #buffer = new Uint8Array(STAT_BYTES_MAX);
  readonly #decoder = new TextDecoder();

  constructor(pid: number) {
    this.#pid = pid;
    try {
      // Kept open: it is read again and again.
      this.#file = Deno.openSync(`/proc/${pid}/stat`);
    } catch {
      // Without it nothing is seen early.
    }
  }

  /** How the process is dying, when all of it is; nothing while any thread of it may run. */
  look(): Death | undefined {
    const leader = this.#stat();
    if (leader === undefined || !leader.exiting || !this.#allExiting()) return undefined;
    return { signal: SIGNAL_NAMES.get(leader.exitCode & SIGNAL_MASK) };
  }

  [Symbol.dispose](): void {
    this.#file?.close();
  }

  #stat(): ThreadStat | undefined {
    try {
      this.#file?.seekSync(0, Deno.SeekMode.Start);
      const count = this.#file?.readSync(this.#buffer) ?? 0;
      if (count === 0) return undefined;
      return parseThreadStat(this.#decoder.decode(this.#buffer.subarray(0, count)));
    } catch {
      // It is gone, and that is told elsewhere.
      return undefined;
    }
  }

  #allExiting(): boolean {
    const directory = `/proc/${this.#pid}/task`;
    try {
      return [...Deno.readDirSync(directory)].every(({ name }) =>
        isExiting(`${directory}/${name}`)
      );
    } catch {
      return false;
    }
  }
}

function isExiting(task: string): boolean {
  try {
    return parseThreadStat(Deno.readTextFileSync(`${task}/stat`)).exiting;
  } catch {
    // This thread is gone.
    return true;
  }
}
