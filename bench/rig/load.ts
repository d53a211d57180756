/**
 * A client of the demo guest on a host of its own, as a process.
 *
 * @module
 */

import { TextLineStream } from "@std/streams/mod.js";
import { ColoError } from "../../engine/errors.ts";
import type { LoadResult } from "./closed_loop.ts";
import type { LoadEvent, LoadOptions } from "./load_client.ts";
import type { NetworkSide } from "./namespaces.ts";

/** Ports of the demo guest. */
export const PORTS = { web: 8080, counting: 9000 } as const;

/** Where a client listens that the guest is to connect to. */
export const CLIENT_PORT = 7711;

/** For a process to start and to end, beside what it was told to take. */
const GRACE_MS = 15_000;

/** Load that is being put on a guest. */
export class Load {
  /** What the client has seen; rejected when it breaks. */
  readonly result: Promise<LoadResult>;
  /** Fulfilled when every connection has had an answer. */
  readonly connected: Promise<void>;
  readonly #child: Deno.ChildProcess;
  #result: LoadResult | undefined;

  /** Start a client. */
  constructor(from: NetworkSide, options: LoadOptions) {
    const main = new URL("./load_client.ts", import.meta.url).pathname;
    const command = [...from.prefix, Deno.execPath(), "run", "-A", main, JSON.stringify(options)];
    const [program = "", ...args] = command;
    this.#child = new Deno.Command(program, {
      args,
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
      // A terminal's Ctrl-C reaches the one who started it alone.
      detached: true,
    }).spawn();
    const timer = setTimeout(() => this.#kill("SIGKILL"), options.durationMs + GRACE_MS);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.connected = promise;
    this.result = this.#read(resolve).finally(() => clearTimeout(timer));
    this.result.catch(() => {});
    promise.catch(() => {});
    this.result.then(
      () => reject(new ColoError("Cannot put load on the guest: no answer")),
      reject,
    );
  }

  /** End it before its time; returns what it has seen. */
  async stop(): Promise<LoadResult> {
    this.#kill("SIGTERM");
    return await this.result;
  }

  async #read(connected: () => void): Promise<LoadResult> {
    const complaint = new Response(this.#child.stderr).text();
    const lines: ReadableStream<string> = this.#child.stdout.pipeThrough(new TextDecoderStream())
      .pipeThrough(new TextLineStream());
    for await (const line of lines) {
      const event = JSON.parse(line) as LoadEvent;
      if (event.event === "connected") connected();
      else this.#result = event.result;
    }
    const { code } = await this.#child.status;
    if (this.#result !== undefined) return this.#result;
    const words = (await complaint).trim().split("\n").at(0) || `exit code ${code}`;
    throw new ColoError(`Cannot put load on the guest: ${words}`);
  }

  #kill(signal: Deno.Signal): void {
    try {
      this.#child.kill(signal);
    } catch {
      // It has ended already.
    }
  }
}
