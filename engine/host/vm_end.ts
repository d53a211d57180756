/**
 * How the end of a QEMU becomes known: before the system has cleared it away, and after its stream broke.
 *
 * @module
 */

import { DeathWatch } from "../vm/mod.ts";
import type { Vm } from "./start_vm.ts";

/** Between two looks at whether QEMU has been killed; each costs some microseconds. */
const DEATH_POLL_MS = 4;

/** A QEMU that dies breaks its stream a little before its exit is known. */
const EXIT_NOTICE_MS = 200;

/** And one whose monitor is gone as well is dying; a large one takes its time. */
const EXIT_MS = 10_000;

/** A takeover takes milliseconds; a machine that is out of memory may need longer. */
const RUNS_LATE_MS = 5000;

/**
 * Look whether a VM has been killed, until it has ended.
 *
 * @param isWanted Whether that would be of use now
 * @param killed Called with the signal, as long as it is wanted
 */
export function watchForDeath(
  vm: Vm,
  isWanted: () => boolean,
  killed: (signal: string) => void,
): void {
  const watch = new DeathWatch(vm.process.pid);
  const timer = setInterval(() => {
    const signal = isWanted() ? watch.look()?.signal : undefined;
    if (signal !== undefined) killed(signal);
  }, DEATH_POLL_MS);
  vm.process.exited.then(() => {
    clearInterval(timer);
    watch[Symbol.dispose]();
  });
}

/** Whether it has been killed, though nobody has been told yet. */
export function isDying({ process }: Vm): boolean {
  using watch = new DeathWatch(process.pid);
  return watch.look() !== undefined;
}

/** Wait for as long as it may take until the exit of a QEMU is known whose stream has broken. */
export async function exitNoticed({ process, qmp }: Vm): Promise<void> {
  if (await within(EXIT_NOTICE_MS, qmp.closed)) await within(EXIT_MS, process.exited);
}

/**
 * Wait until a VM runs that has taken over, however long that takes: it is the only one that the guest
 * has, and one that is slow may run yet.
 *
 * @param running Rejected when its monitor breaks, which is no end of the guest
 * @param late Called when it takes long
 * @throws what `running` is rejected with, once the QEMU has ended
 */
export async function untilItRuns<T>(
  { process }: Pick<Vm, "process">,
  running: Promise<T>,
  late: () => void,
  lateMs = RUNS_LATE_MS,
): Promise<T> {
  const timer = setTimeout(late, lateMs);
  try {
    return await running;
  } catch (error) {
    await process.exited;
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

/** Whether something comes to its end in time; it is never rejected. */
export async function within(ms: number, work: Promise<unknown>): Promise<boolean> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<false>((resolve) => timer = setTimeout(resolve, ms, false));
  return await Promise.race([work.then(() => true), late]).finally(() => clearTimeout(timer));
}
