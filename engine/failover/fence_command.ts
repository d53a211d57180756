/**
 * Running a fence command: the only part of fencing that touches the system.
 *
 * @module
 */

import { FENCE_COMPLAINT_BYTES_MAX } from "../limits.ts";
import type { FenceEnd, FenceRun } from "./fence.ts";

/** For a killed process to be gone, and for the last words of one that has ended. */
const END_MS = 500;

/**
 * Run a fence command to its end, or until its time is up. Then it is killed, with all that it has
 * started in its process group.
 *
 * @throws when it cannot be started
 */
export async function runFenceCommand({ command, stdin, timeoutMs }: FenceRun): Promise<FenceEnd> {
  const [program = "", ...args] = command;
  const child = new Deno.Command(program, {
    args,
    stdin: "piped",
    stdout: "null",
    stderr: "piped",
    detached: true,
  }).spawn();
  tell(child.stdin, stdin);
  const complaint = new Complaint(child.stderr);
  try {
    const status = await within(child.status, timeoutMs);
    if (status !== undefined) {
      // Something that it has left running may keep its standard error open.
      await within(complaint.ended, END_MS);
      return { type: "exited", code: status.code, complaint: complaint.text };
    }
    killGroup(child.pid);
    await within(child.status, END_MS);
    return { type: "timed-out" };
  } finally {
    await complaint.close();
  }
}

/** An agent that ends without reading everything is judged by how it ends. */
function tell(stdin: WritableStream<Uint8Array>, text: string): void {
  const writer = stdin.getWriter();
  writer.write(new TextEncoder().encode(text)).then(() => writer.close()).catch(() => {});
}

/** A process that was started detached leads a group of its own. */
function killGroup(pid: number): void {
  try {
    Deno.kill(-pid, "SIGKILL");
  } catch {
    // It has ended in this very moment.
  }
}

/** What a promise is fulfilled with, or nothing when that takes longer. */
async function within<T>(promise: Promise<T>, timeoutMs: number): Promise<T | undefined> {
  const { promise: timeUp, resolve } = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => resolve(undefined), timeoutMs);
  try {
    return await Promise.race([promise, timeUp]);
  } finally {
    clearTimeout(timer);
  }
}

/** The end of what a program writes to its standard error. */
class Complaint {
  /** Fulfilled when there will be no more of it. */
  readonly ended: Promise<void>;
  readonly #reader: ReadableStreamDefaultReader<Uint8Array<ArrayBuffer>>;
  #bytes = new Uint8Array();

  constructor(stream: ReadableStream<Uint8Array<ArrayBuffer>>) {
    this.#reader = stream.getReader();
    this.ended = this.#read().catch(() => {});
  }

  get text(): string {
    return new TextDecoder().decode(this.#bytes);
  }

  async close(): Promise<void> {
    await this.#reader.cancel().catch(() => {});
    await this.ended;
  }

  async #read(): Promise<void> {
    while (true) {
      const { done, value } = await this.#reader.read();
      if (done) return;
      const joined = new Uint8Array(this.#bytes.length + value.length);
      joined.set(this.#bytes);
      joined.set(value, this.#bytes.length);
      this.#bytes = joined.slice(-FENCE_COMPLAINT_BYTES_MAX);
    }
  }
}
