/**
 * A closed loop: on each of some connections one request after another, each after the answer to the
 * one before.
 *
 * @module
 */

import { ColoError } from "../../engine/errors.ts";
import type { Session } from "./sessions.ts";

/** How long, how many, how often. */
export interface LoopOptions {
  readonly connections: number;
  /** The end, whatever is outstanding then. */
  readonly durationMs: number;
  /** Answers that come before are looked at, and not measured. */
  readonly warmUpMs?: number | undefined;
  /** Between two requests on a connection at the least. */
  readonly intervalMs?: number | undefined;
  /** Requests on each connection at the most. */
  readonly requestsMax?: number | undefined;
  /** A connection that says nothing for so long is an error. */
  readonly answerTimeoutMs?: number | undefined;
}

/** What a client has seen. */
export interface LoadResult {
  /** Answers that were right in every byte, after the warm-up. */
  readonly answers: number;
  readonly perSecond: number;
  /** From request to answer. */
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
  /** The longest that one waited for an answer, over a lost connection and its successor too. */
  readonly longestGapMs: number;
  /** The same of each connection. */
  readonly longestGapsMs: readonly number[];
  /** Connections lost, or refused, and answers that were wrong. */
  readonly errorCount: number;
  /** The first of them. */
  readonly errors: readonly string[];
}

const ANSWER_TIMEOUT_MS = 10_000;
const WATCH_MS = 200;
const RETRY_MS = 100;
const ERRORS_KEPT = 5;

/** The value that a share of all values does not exceed; NaN of none. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? NaN;
}

/** Runs a loop once. */
export class ClosedLoop {
  readonly #options: LoopOptions;
  readonly #open: () => Promise<Session>;
  readonly #latenciesMs: number[] = [];
  readonly #errors: string[] = [];
  #errorCount = 0;
  readonly #longestGapsMs: number[];
  /** Of each connection, since when it has wanted an answer. */
  readonly #waitingSinceMs: (number | undefined)[] = [];
  /** Connections that have had no answer yet. */
  readonly #silent: Set<number>;
  readonly #sessions: (Watched | undefined)[] = [];
  #over = false;
  readonly #end = Promise.withResolvers<void>();
  readonly #connected = Promise.withResolvers<void>();

  /** @param open Opens a connection; called again for one that was lost */
  constructor(options: LoopOptions, open: () => Promise<Session>) {
    this.#options = options;
    this.#open = open;
    this.#longestGapsMs = Array.from({ length: options.connections }, () => 0);
    this.#silent = new Set(Array.from({ length: options.connections }, (_, index) => index));
  }

  /** Fulfilled when every connection has had an answer. */
  get connected(): Promise<void> {
    return this.#connected.promise;
  }

  /** End it before its time. */
  stop(): void {
    this.#end.resolve();
  }

  async run(): Promise<LoadResult> {
    const { durationMs, warmUpMs = 0 } = this.#options;
    const beganMs = performance.now();
    const measuredMs = beganMs + warmUpMs;
    const clients = [...this.#silent].map((index) => this.#client(measuredMs, index));
    const timer = setTimeout(() => this.stop(), durationMs);
    await Promise.race([Promise.all(clients), this.#end.promise]);
    clearTimeout(timer);
    this.#over = true;
    const endMs = performance.now();
    for (const index of clients.keys()) {
      this.#noteGap(index, endMs);
      this.#close(index);
    }
    const seconds = (endMs - measuredMs) / 1000;
    const latencies = this.#latenciesMs;
    return {
      answers: latencies.length,
      perSecond: latencies.length / seconds,
      p50Ms: quantile(latencies, 0.5),
      p99Ms: quantile(latencies, 0.99),
      maxMs: quantile(latencies, 1),
      longestGapMs: Math.max(...this.#longestGapsMs),
      longestGapsMs: this.#longestGapsMs,
      errorCount: this.#errorCount,
      errors: this.#errors,
    };
  }

  async #client(measuredMs: number, index: number): Promise<void> {
    const { connections, intervalMs = 0, requestsMax = Infinity, answerTimeoutMs } = this.#options;
    let answers = 0;
    // Whoever asks at intervals does not ask when all the others do.
    await sleep(intervalMs * index / connections);
    while (!this.#over && answers < requestsMax) {
      try {
        if (answers > 0) this.#waitingSinceMs[index] ??= performance.now();
        const session = this.#sessions[index] ??= new Watched(
          await this.#open(),
          answerTimeoutMs ?? ANSWER_TIMEOUT_MS,
        );
        this.#waitingSinceMs[index] ??= performance.now();
        if (this.#over) break;
        const askedMs = performance.now();
        const answeredMs = await session.next();
        if (this.#over) break;
        this.#answered(index, answeredMs);
        answers++;
        if (answeredMs >= measuredMs) this.#latenciesMs.push(answeredMs - askedMs);
        const restMs = askedMs + intervalMs - performance.now();
        if (restMs > 0) await sleep(restMs);
      } catch (error) {
        this.#close(index);
        if (this.#over) break;
        this.#errorCount++;
        if (this.#errors.length < ERRORS_KEPT) {
          this.#errors.push(error instanceof Error ? error.message : String(error));
        }
        await sleep(RETRY_MS);
      }
    }
    this.#close(index);
  }

  #close(index: number): void {
    this.#sessions[index]?.close();
    this.#sessions[index] = undefined;
  }

  #answered(index: number, nowMs: number): void {
    this.#noteGap(index, nowMs);
    this.#waitingSinceMs[index] = undefined;
    this.#silent.delete(index);
    if (this.#silent.size === 0) this.#connected.resolve();
  }

  #noteGap(index: number, nowMs: number): void {
    const gapMs = nowMs - (this.#waitingSinceMs[index] ?? nowMs);
    this.#longestGapsMs[index] = Math.max(this.#longestGapsMs[index]!, gapMs);
  }
}

/** A session that does not wait for ever. */
class Watched {
  readonly #session: Session;
  readonly #timer: ReturnType<typeof setInterval>;
  #askedMs = Infinity;
  #late = false;

  constructor(session: Session, timeoutMs: number) {
    this.#session = session;
    this.#timer = setInterval(() => {
      if (performance.now() - this.#askedMs < timeoutMs) return;
      this.#late = true;
      session.close();
    }, WATCH_MS);
  }

  async next(): Promise<number> {
    this.#askedMs = performance.now();
    try {
      return await this.#session.next();
    } catch (error) {
      throw this.#late ? new ColoError("the server did not answer in time") : error;
    } finally {
      this.#askedMs = Infinity;
    }
  }

  close(): void {
    clearInterval(this.#timer);
    this.#session.close();
  }
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
