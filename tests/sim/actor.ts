/**
 * Processes: each has a clock, can be stopped and go on, and dies. What an engine's promises wait for,
 * its tasks wait for here: generators, so that nothing but the simulation says what comes next.
 *
 * @module
 */

import type { Simulation, Timer } from "./kernel.ts";

/** What is to be done by a process that is stopped. */
interface Waiting {
  readonly isTimer: boolean;
  readonly work: () => void;
}

/** One process. */
export class Actor {
  isAlive = true;
  isStopped = false;
  /** When it stood still last. */
  stood = { fromMs: 0, toMs: 0 };
  readonly #waiting: Waiting[] = [];

  /** @param clockRate How fast its host's clock goes: 1 is as fast as the simulation's */
  constructor(readonly sim: Simulation, readonly name: string, readonly clockRate = 1) {}

  /** By the clock of its host. */
  get nowMs(): number {
    return this.sim.nowMs * this.clockRate;
  }

  /** It runs, and does what it is told at once. */
  get isAwake(): boolean {
    return this.isAlive && !this.isStopped;
  }

  /** Do something in this process: now, or when it goes on. */
  run(work: () => void, isTimer = false): void {
    if (!this.isAlive) return;
    if (this.isStopped) this.#waiting.push({ isTimer, work });
    else work();
  }

  /** Do something later, by its own clock. */
  after(ms: number, work: () => void): Timer {
    const timer = this.sim.after(ms / this.clockRate, () => {
      this.run(() => timer.cancelled || work(), true);
    });
    return timer;
  }

  stop(): void {
    if (!this.isStopped) this.stood = { fromMs: this.sim.nowMs, toMs: Infinity };
    this.isStopped = true;
  }

  /** What has come meanwhile is done; whether the timers or the sockets come first, nobody knows. */
  resume(): void {
    if (!this.isStopped) return;
    this.isStopped = false;
    this.stood = { fromMs: this.stood.fromMs, toMs: this.sim.nowMs };
    const waiting = this.#waiting.splice(0);
    const first = this.sim.random.chance(0.5);
    const ordered = [
      ...waiting.filter(({ isTimer }) => isTimer === first),
      ...waiting.filter(({ isTimer }) => isTimer !== first),
    ];
    for (const { work } of ordered) this.run(work);
  }

  kill(): void {
    this.isAlive = false;
    this.#waiting.length = 0;
  }

  trace(what: () => string): void {
    this.sim.trace(this.name, what);
  }
}

/** Begins to wait, and says what for: `resume` is called once with the result. */
export type Wait = (resume: (value: unknown) => void) => void;

/** Work that waits now and then. */
export type Task<T> = Generator<Wait, T, unknown>;

/** Let a task begin; it ends with the process. */
export function start<T>(actor: Actor, task: Task<T>, ended: (value: T) => void = () => {}): void {
  const step = (value: unknown) => {
    // What it waits for may be there already, and a generator cannot be resumed from within.
    for (let isThere = true; isThere;) {
      isThere = false;
      let isWaiting = false;
      const next = task.next(value);
      if (next.done) return ended(next.value);
      next.value((result) => {
        if (isWaiting) return actor.run(() => step(result));
        isThere = true;
        value = result;
      });
      isWaiting = true;
    }
  };
  step(undefined);
}

export function* sleep(actor: Actor, ms: number): Task<void> {
  yield (resume) => actor.after(ms, () => resume(undefined));
}

/** One after another. */
export class Turns {
  #isTaken = false;
  readonly #waiting: (() => void)[] = [];

  *take<T>(task: () => Task<T>): Task<T> {
    if (this.#isTaken) yield (resume) => this.#waiting.push(() => resume(undefined));
    this.#isTaken = true;
    const result = yield* task();
    const next = this.#waiting.shift();
    this.#isTaken = next !== undefined;
    next?.();
    return result;
  }
}
