/**
 * Getting to a monitor: the connection a client talks over, and dialling it while QEMU is still
 * starting.
 *
 * @module
 */

import { QmpClosedError, QmpTimeoutError } from "../errors.ts";
import { startTimer } from "./wait.ts";

/** A two-way stream of bytes. `Deno.Conn` is one; a pair of in-memory pipes can be. */
export interface QmpConnection {
  readonly readable: ReadableStream<Uint8Array>;
  readonly writable: WritableStream<Uint8Array>;
  close(): void;
}

/** Where a monitor is: the path of a unix socket, or what `Deno.connect` takes. */
export type QmpAddress = string | Deno.UnixConnectOptions | Deno.ConnectOptions;

/** How long to try; see {@linkcode dial}. */
export interface DialOptions {
  /** For one attempt, in milliseconds. */
  readonly timeoutMs: number;
  /** For all attempts that find nobody listening, in milliseconds. */
  readonly retryForMs: number;
  readonly signal: AbortSignal | undefined;
}

/** Short beside the time QEMU takes to start (some 30 ms), long beside that of an attempt (0.04 ms). */
const RETRY_INTERVAL_MS = 5;

/**
 * Connect to a monitor, again and again while its socket does not exist or refuses.
 *
 * @param address Where it is
 * @param options How long to try
 * @throws {QmpClosedError} Nobody listens there; nothing is left open
 * @throws {QmpTimeoutError} An attempt took too long; nothing is left open
 */
export async function dial(address: QmpAddress, options: DialOptions): Promise<QmpConnection> {
  const { retryForMs, signal } = options;
  const retryUntilMs = performance.now() + retryForMs;
  for (;;) {
    signal?.throwIfAborted();
    try {
      return await attempt(address, options);
    } catch (cause) {
      if (signal?.aborted || cause instanceof QmpTimeoutError) throw cause;
      const mayCome = cause instanceof Deno.errors.NotFound ||
        cause instanceof Deno.errors.ConnectionRefused;
      if (!mayCome || performance.now() >= retryUntilMs) throw unreachable(address, cause);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_INTERVAL_MS));
  }
}

/** The monitor's address as a message names it. */
export function addressName(address: QmpAddress): string {
  if (typeof address === "string") return address;
  if (address.transport === "unix") return address.path;
  return `${address.hostname ?? "127.0.0.1"}:${address.port}`;
}

async function attempt(address: QmpAddress, options: DialOptions): Promise<Deno.Conn> {
  const { timeoutMs, signal } = options;
  const connecting = open(address);
  const { promise: givenUp, reject } = Promise.withResolvers<never>();
  const onAbort = () => reject(signal?.reason);
  signal?.addEventListener("abort", onAbort);
  const stopTimer = startTimer(timeoutMs, () => reject(timeout(address, timeoutMs)));
  try {
    return await Promise.race([connecting, givenUp]);
  } catch (error) {
    // A connection that comes after all must not stay open.
    connecting.then((connection) => connection.close(), () => {});
    throw error;
  } finally {
    stopTimer();
    signal?.removeEventListener("abort", onAbort);
  }
}

function open(address: QmpAddress): Promise<Deno.Conn> {
  if (typeof address === "string") return Deno.connect({ transport: "unix", path: address });
  if (address.transport === "unix") return Deno.connect(address);
  return Deno.connect(address);
}

function timeout(address: QmpAddress, timeoutMs: number): QmpTimeoutError {
  const message = `Cannot connect to the monitor ${addressName(address)}: ` +
    `no connection within ${timeoutMs} ms`;
  return new QmpTimeoutError("connect", timeoutMs, message);
}

function unreachable(address: QmpAddress, cause: unknown): QmpClosedError {
  const detail = cause instanceof Deno.errors.NotFound
    ? "there is no such socket; is QEMU running with -qmp?"
    : cause instanceof Deno.errors.ConnectionRefused
    ? "nobody listens there; is QEMU still running?"
    : cause instanceof Error
    ? cause.message
    : String(cause);
  return new QmpClosedError(`Cannot connect to the monitor ${addressName(address)}: ${detail}`, {
    cause,
  });
}
