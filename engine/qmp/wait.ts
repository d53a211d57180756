/**
 * Something a caller of the client waits for (an answer, an event, the greeting) with its timer.
 *
 * @module
 */

/** From here on `setTimeout` would fire at once: no timer, which is what such a caller means. */
const TIMER_MS_LIMIT = 2 ** 31;

/**
 * Run `onTimeout` after `timeoutMs`, which may be `Infinity`.
 *
 * @returns What stops the timer
 */
export function startTimer(timeoutMs: number, onTimeout: () => void): () => void {
  if (timeoutMs >= TIMER_MS_LIMIT) return () => {};
  const timer = setTimeout(onTimeout, timeoutMs);
  return () => clearTimeout(timer);
}

/** A promise that is settled once, from outside or by its timer, and then cleans up after itself. */
export class Wait<T> {
  readonly promise: Promise<T>;
  readonly #settled: PromiseWithResolvers<T> = Promise.withResolvers<T>();
  readonly #stopTimer: () => void;
  readonly #onSettled: () => void;

  /**
   * @param purpose What the caller wants, for messages: "execute stop"
   * @param timeoutMs Milliseconds until it is rejected with what `onTimeout` makes
   * @param onTimeout Makes the error of a timeout
   * @param onSettled Called when it is settled, however that came
   */
  constructor(
    readonly purpose: string,
    timeoutMs: number,
    onTimeout: () => Error,
    onSettled: () => void,
  ) {
    this.promise = this.#settled.promise;
    this.#onSettled = onSettled;
    this.#stopTimer = startTimer(timeoutMs, () => this.reject(onTimeout()));
  }

  resolve(value: T): void {
    this.#cleanUp();
    this.#settled.resolve(value);
  }

  reject(error: unknown): void {
    this.#cleanUp();
    this.#settled.reject(error);
  }

  #cleanUp(): void {
    this.#stopTimer();
    this.#onSettled();
  }
}
