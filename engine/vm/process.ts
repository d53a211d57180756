/**
 * QEMU as a child process: started, watched, stopped.
 *
 * @module
 */

import { QemuError } from "../errors.ts";
import type { Qemu } from "./find.ts";

/** What {@linkcode startQemu} is to start. */
export interface StartQemuOptions {
  readonly qemu: Pick<Qemu, "command" | "env">;
  /** Arguments after the program and its fixed leading ones; see `command_line.ts` */
  readonly args: readonly string[];
  /** What it is called in error messages, such as `primary` */
  readonly name: string;
  /** File that its standard error is copied to, from its beginning */
  readonly logPath?: string;
  /** Path that QEMU makes when it is up, such as its QMP socket; removed first, then waited for */
  readonly readyPath?: string;
  /** In a process group of its own, out of reach of the terminal's Ctrl-C (default: false) */
  readonly detached?: boolean;
}

/** How a QEMU ended. */
export interface QemuExit {
  readonly code: number;
  /** The signal that ended it, if one did */
  readonly signal: string | null;
  /** The last of what it wrote to standard error */
  readonly stderrTail: string;
}

/** A QEMU that was started. */
export interface QemuProcess {
  /** QEMU's own process id */
  readonly pid: number;
  /** Fulfilled when it has ended; never rejected */
  readonly exited: Promise<QemuExit>;
  /** Send a signal (default: SIGKILL); nothing happens when it has ended */
  kill(signal?: Deno.Signal): void;
  /** End it: SIGTERM, then SIGKILL after 2 s. Fulfilled when it has ended; may be called again. */
  stop(): Promise<void>;
  /**
   * Await something that QEMU is to do, such as a QMP greeting, for as long as it lives.
   *
   * @throws {QemuError} with QEMU's own last words, when it ends before
   */
  whileAlive<T>(work: Promise<T>): Promise<T>;
}

const STOP_TIMEOUT_MS = 2000;
const READY_POLL_MS = 2;

/** A connection to a dying QEMU breaks a little before its exit is known. */
const EXIT_NOTICE_MS = 200;

/** Enough for QEMU's complaint, too little to matter. */
const STDERR_TAIL_CHARS = 4096;

/**
 * Start a QEMU.
 *
 * @throws {QemuError} when it cannot be started, or ends before `readyPath` exists; nothing is left
 */
export async function startQemu(options: StartQemuOptions): Promise<QemuProcess> {
  const { name, logPath, readyPath } = options;
  if (readyPath !== undefined) await Deno.remove(readyPath).catch(() => {});
  const log = logPath === undefined ? undefined : await Deno.create(logPath);
  let child: Deno.ChildProcess;
  try {
    child = spawn(options);
  } catch (cause) {
    log?.close();
    const detail = cause instanceof Error ? cause.message : String(cause);
    throw new QemuError(`Cannot start QEMU ${name}: ${detail}`, { cause });
  }
  const qemu = new Process(name, child, log);
  if (readyPath !== undefined) await qemu.whileAlive(appears(readyPath, qemu.exited));
  return qemu;
}

function spawn({ qemu, args, detached }: StartQemuOptions): Deno.ChildProcess {
  const [program = "", ...leading] = qemu.command;
  return new Deno.Command(program, {
    args: [...leading, ...args],
    env: { ...qemu.env },
    stdin: "null",
    stdout: "null",
    stderr: "piped",
    detached: detached ?? false,
  }).spawn();
}

class Process implements QemuProcess {
  readonly pid: number;
  readonly exited: Promise<QemuExit>;
  readonly #name: string;
  readonly #child: Deno.ChildProcess;
  #ended = false;

  constructor(name: string, child: Deno.ChildProcess, log: Deno.FsFile | undefined) {
    this.pid = child.pid;
    this.#name = name;
    this.#child = child;
    this.exited = this.#watch(log);
  }

  kill(signal: Deno.Signal = "SIGKILL"): void {
    if (this.#ended) return;
    try {
      this.#child.kill(signal);
    } catch (error) {
      // It ended a moment ago, and its exit is about to be noticed.
      if (!(error instanceof TypeError) && !(error instanceof Deno.errors.NotFound)) throw error;
    }
  }

  async stop(): Promise<void> {
    this.kill("SIGTERM");
    const timer = setTimeout(() => this.kill("SIGKILL"), STOP_TIMEOUT_MS);
    await this.exited;
    clearTimeout(timer);
  }

  async whileAlive<T>(work: Promise<T>): Promise<T> {
    const ended = this.exited.then((exit) => {
      throw new QemuError(`Cannot start QEMU ${this.#name}: ${lastWords(exit)}`);
    });
    try {
      return await Promise.race([work, ended]);
    } catch (error) {
      let timer: ReturnType<typeof setTimeout> | undefined;
      const notice = new Promise((resolve) => timer = setTimeout(resolve, EXIT_NOTICE_MS));
      await Promise.race([ended, notice]).finally(() => clearTimeout(timer));
      throw error;
    }
  }

  async #watch(log: Deno.FsFile | undefined): Promise<QemuExit> {
    const reading = readTail(this.#child.stderr, log);
    const { code, signal } = await this.#child.status;
    this.#ended = true;
    return { code, signal, stderrTail: await reading };
  }
}

/** Read a stream to its end, copying it to a log, and keep the last of it. */
async function readTail(
  stream: ReadableStream<Uint8Array<ArrayBuffer>>,
  log: Deno.FsFile | undefined,
): Promise<string> {
  const decoder = new TextDecoder();
  let tail = "";
  try {
    for await (const bytes of stream) {
      tail = (tail + decoder.decode(bytes, { stream: true })).slice(-STDERR_TAIL_CHARS);
      // A full disk must not stop QEMU's standard error from being read.
      await log?.write(bytes).catch(() => {});
    }
  } catch {
    // What was read so far is all there is.
  } finally {
    log?.close();
  }
  return tail;
}

async function appears(path: string, exited: Promise<QemuExit>): Promise<void> {
  let alive = true;
  exited.then(() => alive = false);
  while (alive && !await Deno.lstat(path).then(() => true, () => false)) {
    await new Promise((resolve) => setTimeout(resolve, READY_POLL_MS));
  }
}

function lastWords({ code, signal, stderrTail }: QemuExit): string {
  const line = stderrTail.trimEnd().split("\n").at(-1)?.trim();
  // Its own name says nothing, all the more when that is the name of a dynamic loader.
  if (line) return line.replace(/^\S*(qemu-system-\w+|ld-linux\S*): /, "");
  return signal === null ? `it ended with exit code ${code}` : `it was ended by ${signal}`;
}
