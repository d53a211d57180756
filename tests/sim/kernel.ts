/**
 * Simulated time: what happens next, and chance, both from one seed.
 *
 * @module
 */

/** Chance that a seed repeats. */
export class Random {
  #state: number;

  constructor(seed: number) {
    // Neighboring seeds must not begin alike.
    this.#state = Math.imul(seed ^ 0x5bd1_e995, 0x9e37_79b1) >>> 0;
    for (let round = 0; round < 4; round++) this.next();
  }

  /** 32 random bits. Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators". */
  next(): number {
    this.#state = this.#state + 0x9e37_79b9 >>> 0;
    let bits = this.#state;
    bits = Math.imul(bits ^ bits >>> 16, 0x21f0_aaad);
    bits = Math.imul(bits ^ bits >>> 15, 0x735a_2d97);
    return (bits ^ bits >>> 15) >>> 0;
  }

  /** At least `min`, and less than `max`. */
  between(min: number, max: number): number {
    return min + (max - min) * this.next() / 2 ** 32;
  }

  /** A whole number below `count`. */
  below(count: number): number {
    return Math.floor(this.between(0, count));
  }

  chance(share: number): boolean {
    return this.next() < share * 2 ** 32;
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!;
  }
}

/** What is to happen, until it is cancelled. */
export interface Timer {
  cancelled: boolean;
}

interface Entry extends Timer {
  readonly atMs: number;
  /** Of two at the same time the one that was asked for first comes first. */
  readonly order: number;
  readonly work: () => void;
}

/** One simulated world's time. */
export class Simulation {
  nowMs = 0;
  readonly random: Random;
  /** Takes what happens, for whoever looks for what went wrong. */
  readonly #trace: ((line: string) => void) | undefined;
  readonly #heap: Entry[] = [];
  #order = 0;
  #events = 0;

  constructor(seed: number, trace?: (line: string) => void) {
    this.random = new Random(seed);
    this.#trace = trace;
  }

  /** How many things have happened. */
  get events(): number {
    return this.#events;
  }

  trace(who: string, what: () => string): void {
    this.#trace?.(`${this.nowMs.toFixed(1).padStart(9)} ${who.padEnd(14)} ${what()}`);
  }

  after(ms: number, work: () => void): Timer {
    const entry: Entry = {
      atMs: this.nowMs + Math.max(0, ms),
      order: this.#order++,
      work,
      cancelled: false,
    };
    this.#push(entry);
    return entry;
  }

  /** Let time pass, until then or until it is over. */
  run(untilMs: number, isOver: () => boolean = () => false): void {
    for (let entry; (entry = this.#heap[0]) !== undefined && entry.atMs <= untilMs && !isOver();) {
      this.#pop();
      this.nowMs = entry.atMs;
      if (entry.cancelled) continue;
      this.#events++;
      entry.work();
    }
    if (!isOver()) this.nowMs = untilMs;
  }

  #push(entry: Entry): void {
    const heap = this.#heap;
    let at = heap.length;
    while (at > 0) {
      const above = at - 1 >> 1;
      if (!isSooner(entry, heap[above]!)) break;
      heap[at] = heap[above]!;
      at = above;
    }
    heap[at] = entry;
  }

  #pop(): void {
    const heap = this.#heap;
    const last = heap.pop()!;
    if (heap.length === 0) return;
    let at = 0;
    for (let below = 1; below < heap.length; below = 2 * at + 1) {
      if (below + 1 < heap.length && isSooner(heap[below + 1]!, heap[below]!)) below++;
      if (!isSooner(heap[below]!, last)) break;
      heap[at] = heap[below]!;
      at = below;
    }
    heap[at] = last;
  }
}

function isSooner(a: Entry, b: Entry): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);
}
