/**
 * Looks after the link to a secondary: whether it is there, whether it answers, and what it says last.
 *
 * @module
 */

import { LinkError, messageOf } from "../errors.ts";
import type { DetectorOptions } from "../failover/detector.ts";
import { closeLink, type Link, type Message } from "../link/mod.ts";
import { Heartbeat } from "./heartbeat.ts";

/** What a {@linkcode LinkWatch} needs to know. */
export interface LinkWatchOptions {
  readonly heartbeat: Required<DetectorOptions>;
  /** The longest that the secondary may owe an answer while nothing moves on the link. */
  readonly answerMs: number;
  /** Whether it owes one. */
  readonly awaitsAnswer: () => boolean;
  readonly notice: (text: string) => void;
}

/** Looks in an answer's time. */
const LOOKS = 10;

/** Watches one link, and closes it when it is of no use. */
export class LinkWatch {
  /** Fulfilled when the secondary has acted on what it was told last, or is gone. */
  readonly lastWord: Promise<void>;
  /** Fulfilled when no more control messages come. */
  readonly ended: Promise<void>;
  readonly #link: Link;
  readonly #options: LinkWatchOptions;
  readonly #heartbeat: Heartbeat;
  readonly #answerTimer: ReturnType<typeof setInterval>;
  readonly #lastWord = Promise.withResolvers<void>();
  #loss: string | undefined;

  constructor(link: Link, options: LinkWatchOptions) {
    this.#link = link;
    this.#options = options;
    this.lastWord = this.#lastWord.promise;
    const { heartbeat } = options;
    const lose = (reason: string) => {
      this.#loss = reason;
      closeLink(link);
    };
    const { timeoutMs } = heartbeat;
    this.#heartbeat = new Heartbeat(link.control, heartbeat, {
      lost: () => lose(`the secondary's engine has been silent for ${timeoutMs} ms`),
      unheard: () =>
        lose(`this engine stood still for more than ${timeoutMs} ms, so the secondary may go on`),
    });
    this.#answerTimer = this.#watchAnswers();
    // Whoever reads the packets closes their connection when they end.
    link.packets.closed.then(() => closeLink(link));
    this.ended = this.#read().then(() => this.#lastWord.resolve());
  }

  /** Why the link was closed, where nobody else can know. */
  get loss(): string | undefined {
    return this.#loss;
  }

  /** When the secondary may go on without us, so that what it has said vouches for nothing. */
  get unheardAtMs(): number {
    return this.#heartbeat.unheardAtMs;
  }

  /** The link is closed. */
  stop(): void {
    clearInterval(this.#answerTimer);
    this.#heartbeat.stop();
  }

  #control(message: Message): void {
    if (message.type === "heartbeat") this.#heartbeat.heard();
    else if (message.type === "takenOver" || message.type === "goodbye") this.#lastWord.resolve();
  }

  async #read(): Promise<void> {
    try {
      for await (const message of this.#link.control.receive()) this.#control(message);
    } catch (error) {
      // Whoever closes the link says why himself.
      if (!(error instanceof LinkError)) this.#options.notice(messageOf(error));
    } finally {
      closeLink(this.#link);
    }
  }

  /** Give up a link on which nothing moves though an answer is owed: it may have lost a byte. */
  #watchAnswers(): ReturnType<typeof setInterval> {
    const { answerMs, awaitsAnswer } = this.#options;
    const { bulk } = this.#link;
    let moved = 0;
    let sinceMs = performance.now();
    return setInterval(() => {
      const bytes = bulk.bytesSent + bulk.bytesReceived;
      if (bytes !== moved || !awaitsAnswer()) {
        moved = bytes;
        sinceMs = performance.now();
      } else if (performance.now() - sinceMs > answerMs) {
        bulk.close(`the secondary has not answered for ${answerMs} ms`);
      }
    }, answerMs / LOOKS);
  }
}
