/**
 * `ping` from a host, ten times a second.
 *
 * @module
 */

import { TextLineStream } from "@std/streams/mod.js";
import type { NetworkSide } from "./namespaces.ts";

const INTERVAL_SECONDS = 0.1;

/** What came back. */
export interface PingResult {
  readonly replies: number;
  /** Numbers that never came back, between the first and the last that did. */
  readonly lost: number;
  /** Between two replies, or the last one and the end. */
  readonly longestGapMs: number;
}

/** A `ping` that goes on until it is stopped. */
export class Ping {
  /** Fulfilled by the first reply. */
  readonly answered: Promise<void>;
  readonly #child: Deno.ChildProcess;
  readonly #reading: Promise<void>;
  readonly #replies: { readonly sequence: number; readonly atMs: number }[] = [];

  /** @param busyboxPath See `DemoGuest` */
  constructor(from: NetworkSide, busyboxPath: string, address: string) {
    const ping = [busyboxPath, "ping", "-i", `${INTERVAL_SECONDS}`, address];
    const [program = "", ...args] = [...from.prefix, ...ping];
    this.#child = new Deno.Command(program, {
      args,
      stdin: "null",
      stdout: "piped",
      stderr: "null",
      detached: true,
    }).spawn();
    const { promise, resolve } = Promise.withResolvers<void>();
    this.answered = promise;
    this.#reading = this.#read(resolve);
  }

  async stop(): Promise<PingResult> {
    try {
      this.#child.kill("SIGTERM");
    } catch {
      // It has ended already.
    }
    await this.#reading;
    await this.#child.status;
    const sequences = this.#replies.map(({ sequence }) => sequence);
    const times = [...this.#replies.map(({ atMs }) => atMs), performance.now()];
    const gaps = times.slice(1).map((atMs, index) => atMs - times[index]!);
    return {
      replies: sequences.length,
      lost: sequences.length === 0
        ? 0
        : Math.max(...sequences) - Math.min(...sequences) + 1 - new Set(sequences).size,
      longestGapMs: Math.max(0, ...gaps),
    };
  }

  async #read(answered: () => void): Promise<void> {
    const lines: ReadableStream<string> = this.#child.stdout.pipeThrough(new TextDecoderStream())
      .pipeThrough(new TextLineStream());
    for await (const line of lines) {
      const sequence = /\bseq=(\d+)/.exec(line)?.[1];
      if (sequence === undefined) continue;
      this.#replies.push({ sequence: Number(sequence), atMs: performance.now() });
      answered();
    }
  }
}
