/**
 * For how long the holder of a generation may let its VM run without asking again: the arithmetic of
 * a lease.
 *
 * ```text
 *  renewal sent      renew  renew  renew      pause            the lease ends for the others
 *       |--------------|------|------|----------|------ margin ------|
 *       0                                  ttl - margin             ttl
 * ```
 *
 * The lease is counted from when its last renewal was *sent*: the arbiter began to count later, so it
 * ends for the others later too. Clocks of different hosts are not compared, only their rates: the
 * margin covers what these differ by, the time that a pause takes, and an arbiter that has changed its
 * leader (etcd's stays a leader in its own eyes for up to a second).
 *
 * Source: Gray and Cheriton, "Leases: an efficient fault-tolerant mechanism", SOSP 1989.
 *
 * @module
 */

import { ConfigError } from "../errors.ts";

/** Times in milliseconds. */
export interface LeaseOptions {
  /** How long the arbiter keeps a lease that nobody renews; 5000 if absent. */
  readonly ttlMs?: number | undefined;
  /** How long before its end the VM must be paused; 1000 if absent. */
  readonly marginMs?: number | undefined;
}

/** What to do now. */
export type LeaseAdvice =
  | "keep"
  /** Ask the arbiter to renew it, and go on meanwhile. */
  | "renew"
  /** The VM must stand still: somebody else may be let run soon. */
  | "pause"
  /** The lease is ours again: the VM may run on. */
  | "resume";

/** An outage of the arbiter's shorter than this, less the margin, goes unnoticed by the guest. */
export const LEASE_TTL_MS = 5000;

/** See the head of this file for what it covers. */
export const LEASE_MARGIN_MS = 1000;

/** Renewals that may fail, each with its time, before the VM is paused. */
const RENEWALS = 3;

/** Attempts a renewal, one after the other, when the arbiter says no at once. */
const ATTEMPTS = 4;

/**
 * A lease as its holder sees it. Pure: the caller brings the time, in milliseconds of a clock that only
 * goes forward, and goes on counting while the host sleeps where there is one that does.
 *
 * A process that was stopped wakes up in a moment that it did not choose: {@linkcode holds} is to be
 * asked before anything is let out, not only {@linkcode step} at its time.
 *
 * @example
 * ```ts
 * import { Lease } from "./lease.ts";
 *
 * const lease = new Lease({ ttlMs: 5000, marginMs: 1000 }, 0);
 * if (lease.step(1000) !== "renew" || lease.step(4000) !== "pause") throw new Error("not in time");
 * lease.renewed(3900);
 * if (lease.step(4100) !== "resume") throw new Error("not resumed");
 * ```
 */
export class Lease {
  readonly #usableMs: number;
  #renewedMs: number;
  #renewAtMs = 0;
  #paused = false;

  /**
   * @param renewedMs When the request was sent by which it was had
   * @throws {ConfigError} when the margin leaves nothing of it
   */
  constructor(options: LeaseOptions, renewedMs: number) {
    const { ttlMs = LEASE_TTL_MS, marginMs = LEASE_MARGIN_MS } = options;
    if (!(marginMs >= 0 && marginMs < ttlMs)) {
      throw new ConfigError(
        `Cannot keep a lease of ${ttlMs} ms: the VM would be paused ${marginMs} ms before its end; ` +
          "make it longer",
      );
    }
    this.#usableMs = ttlMs - marginMs;
    this.#renewedMs = -Infinity;
    this.renewed(renewedMs);
  }

  /** The VM stands still, by our advice. */
  get paused(): boolean {
    return this.#paused;
  }

  /** When to {@linkcode step} next. */
  get wakeAtMs(): number {
    return this.#paused ? this.#renewAtMs : Math.min(this.#renewAtMs, this.#pauseAtMs);
  }

  /** Whether anything may be let out now. */
  holds(nowMs: number): boolean {
    return nowMs < this.holdsUntilMs;
  }

  /** Until when {@linkcode holds} will be so, unless it is renewed before; in the past when it is not. */
  get holdsUntilMs(): number {
    return this.#paused ? -Infinity : this.#pauseAtMs;
  }

  /**
   * The arbiter has renewed it, and said that the generation is still ours.
   *
   * @param sentMs When the request was sent; answers may come in any order
   */
  renewed(sentMs: number): void {
    if (sentMs <= this.#renewedMs) return;
    this.#renewedMs = sentMs;
    this.#renewAtMs = sentMs + this.#renewEveryMs;
  }

  /** What to do now; `pause` and `resume` are said once, `renew` again after a while. */
  step(nowMs: number): LeaseAdvice {
    const inTime = nowMs < this.#pauseAtMs;
    if (inTime === this.#paused) {
      this.#paused = !inTime;
      return inTime ? "resume" : "pause";
    }
    if (nowMs < this.#renewAtMs) return "keep";
    this.#renewAtMs = nowMs + this.#renewEveryMs / ATTEMPTS;
    return "renew";
  }

  get #pauseAtMs(): number {
    return this.#renewedMs + this.#usableMs;
  }

  get #renewEveryMs(): number {
    return this.#usableMs / (RENEWALS + 1);
  }
}
