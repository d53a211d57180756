/**
 * One subscriber's events, for `for await`: a queue that its reader may leave alone.
 *
 * @module
 */

import { QMP_EVENTS_UNREAD_MAX } from "../limits.ts";
import type { QmpEvent } from "./events.ts";

type Result = IteratorResult<QmpEvent, undefined>;

const DONE: Result = { done: true, value: undefined };

/**
 * The events of a monitor from the moment of subscribing, in order of arrival.
 *
 * Nobody has to read them: when `QMP_EVENTS_UNREAD_MAX` are waiting, each further one drops the
 * oldest, and {@linkcode dropped} counts it. When the monitor closes, the iteration ends after what
 * is still waiting. Leaving the loop, or {@linkcode close}, ends the subscription.
 */
export class QmpEventStream implements AsyncIterableIterator<QmpEvent, undefined>, Disposable {
  readonly #unreadMax: number;
  readonly #unsubscribe: (stream: QmpEventStream) => void;
  /** Grows to `#unreadMax` places at most; `#unread` of them hold an event, from `#oldest` on. */
  readonly #ring: (QmpEvent | undefined)[] = [];
  #oldest = 0;
  #unread = 0;
  #dropped = 0;
  #ended = false;
  /** Readers that wait for an event; none while anything is unread. */
  readonly #readers: ((result: Result) => void)[] = [];

  /**
   * @param unsubscribe Called once when the reader ends the subscription
   * @param unreadMax Events that may wait before the oldest are dropped
   */
  constructor(
    unsubscribe: (stream: QmpEventStream) => void,
    unreadMax: number = QMP_EVENTS_UNREAD_MAX,
  ) {
    this.#unsubscribe = unsubscribe;
    this.#unreadMax = unreadMax;
  }

  /** Events that were dropped because nobody read them. */
  get dropped(): number {
    return this.#dropped;
  }

  /** The client's side: one more event. */
  push(event: QmpEvent): void {
    if (this.#ended) return;
    const reader = this.#readers.shift();
    if (reader !== undefined) return reader({ done: false, value: event });
    if (this.#unread === this.#unreadMax) {
      this.#takeOldest();
      this.#dropped++;
    }
    this.#ring[(this.#oldest + this.#unread) % this.#unreadMax] = event;
    this.#unread++;
  }

  /** The client's side: no event will come any more. */
  end(): void {
    this.#ended = true;
    for (const reader of this.#readers.splice(0)) reader(DONE);
  }

  next(): Promise<Result> {
    const event = this.#takeOldest();
    if (event !== undefined) return Promise.resolve({ done: false, value: event });
    if (this.#ended) return Promise.resolve(DONE);
    return new Promise((resolve) => this.#readers.push(resolve));
  }

  /** End the subscription: what waits is forgotten, readers are told that it is over. */
  close(): void {
    this.#unsubscribe(this);
    this.#ring.length = 0;
    this.#unread = 0;
    this.end();
  }

  return(): Promise<Result> {
    this.close();
    return Promise.resolve(DONE);
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #takeOldest(): QmpEvent | undefined {
    if (this.#unread === 0) return undefined;
    const event = this.#ring[this.#oldest];
    this.#ring[this.#oldest] = undefined;
    this.#oldest = (this.#oldest + 1) % this.#unreadMax;
    this.#unread--;
    return event;
  }
}
