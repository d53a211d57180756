/**
 * A bounded load on the guest's web server, from this host.
 *
 * @module
 */

import { ColoError } from "../../engine/errors.ts";

/** Between two requests: the guest, which is emulated, answers some 50 a second. */
const INTERVAL_MS = 50;

const REQUEST_TIMEOUT_MS = 5000;

/** A page, a count, and now and then a larger file. */
const PATHS = ["/", "/cgi-bin/counter", "/", "/"];

/** Asks for one page after another until it is closed. */
export class HttpLoad {
  answers = 0;
  readonly #asking: Promise<void>;
  #closed = false;

  /** @param port Of this host's loopback */
  constructor(port: number) {
    this.#asking = this.#ask(port);
  }

  /** @throws {ColoError} when the web server has not answered yet: there is no load then */
  requireAnswers(): void {
    if (this.answers === 0) {
      throw new ColoError("Cannot put load on the guest: its web server does not answer");
    }
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#asking;
  }

  async #ask(port: number): Promise<void> {
    for (let request = 0; !this.#closed; request++) {
      try {
        const url = `http://127.0.0.1:${port}${PATHS[request % PATHS.length]}`;
        const answer = await fetch(url, { signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS) });
        await answer.bytes();
        if (answer.ok) this.answers++;
      } catch {
        // A guest that stands still does not answer; what counts is that it is asked.
      }
      await new Promise((resolve) => setTimeout(resolve, INTERVAL_MS));
    }
  }
}
