/**
 * The client of a QEMU monitor: commands out, answers and events in.
 *
 * ```text
 *   connect ──> greeting ──> qmp_capabilities ──> open ──────────────────────> closed
 *                                                  │ execute, events, waitFor    ▲
 *                                                  └─ end of stream, garbage, close()
 * ```
 *
 * The monitor is always drained, whether anybody listens or not: a QEMU whose monitor is not read
 * may stall. Answers are matched by id, so that they may come in any order and any number of
 * commands may be under way.
 *
 * Source: QEMU `docs/interop/qmp-spec.rst`.
 *
 * @module
 */

import {
  QmpClosedError,
  QmpCommandError,
  QmpError,
  QmpProtocolError,
  QmpTimeoutError,
} from "../errors.ts";
import { QMP_UNSENT_BYTES_MAX } from "../limits.ts";
import { encodeCommand, QmpDecoder, type QmpGreeting, type QmpMessage } from "./codec.ts";
import type { QmpArguments, QmpCommandName, QmpReturns } from "./commands.ts";
import { QmpEventStream } from "./event_stream.ts";
import type { QmpEvent, QmpEventName, QmpEventOf } from "./events.ts";
import { addressName, dial, type QmpAddress, type QmpConnection } from "./transport.ts";
import { Wait } from "./wait.ts";

/** Options of {@linkcode QmpClient.attach}. */
export interface QmpAttachOptions {
  /** For the greeting, and for every command and event that names none, in milliseconds; 10,000. */
  readonly timeoutMs?: number;
  /** Gives up becoming connected; of no effect after that. */
  readonly signal?: AbortSignal;
}

/** Options of {@linkcode QmpClient.connect}. */
export interface QmpConnectOptions extends QmpAttachOptions {
  /** Keep trying while the socket does not exist or refuses, in milliseconds; 0. */
  readonly retryForMs?: number;
}

/** Options of one command or of waiting for one event. */
export interface QmpWaitOptions {
  /** In milliseconds, `Infinity` for ever; the client's by default. */
  readonly timeoutMs?: number;
}

/** Arguments may be left out when the command needs none. */
type ExecuteParameters<Name extends QmpCommandName> = Record<never, never> extends
  QmpArguments<Name> ? [args?: QmpArguments<Name>, options?: QmpWaitOptions]
  : [args: QmpArguments<Name>, options?: QmpWaitOptions];

type EventHandler = (event: QmpEvent) => void;

/** What a {@linkcode Wait} is to the end of the monitor, whatever it waits for. */
type Failable = Pick<Wait<unknown>, "purpose" | "reject">;

/** Why the monitor is closed. */
interface End {
  readonly reason: string;
  readonly cause?: unknown;
}

const TIMEOUT_MS = 10_000;
const QEMU_CLOSED = "QEMU closed the monitor";

/**
 * A connection to a QEMU monitor.
 *
 * @example
 * ```ts ignore
 * import { QmpClient } from "./client.ts";
 *
 * await using client = await QmpClient.connect("/run/vm/qmp.sock", { retryForMs: 2000 });
 * const { status } = await client.execute("query-status");
 * const stopped = client.waitFor("STOP");
 * await client.execute("stop");
 * console.log(status, (await stopped).timestamp);
 * ```
 */
export class QmpClient implements AsyncDisposable {
  /** Resolves, and never rejects, when the monitor is closed and everything pending was told so. */
  readonly closed: Promise<void>;
  readonly #connection: QmpConnection;
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array>;
  readonly #timeoutMs: number;
  readonly #greeted: Wait<QmpGreeting>;
  /** All that callers wait for; those for an answer also in `#commands`, by id. */
  readonly #waits = new Set<Failable>();
  readonly #commands = new Map<number, { readonly name: string; readonly wait: Wait<unknown> }>();
  /** By event name; undefined is every event. */
  readonly #handlers = new Map<string | undefined, Set<EventHandler>>();
  readonly #streams = new Set<QmpEventStream>();
  #greeting: QmpGreeting | undefined;
  #lastId = 0;
  #unsentBytes = 0;
  #end: End | undefined;

  private constructor(connection: QmpConnection, name: string, timeoutMs: number) {
    this.#connection = connection;
    this.#reader = connection.readable.getReader();
    this.#writer = connection.writable.getWriter();
    this.#timeoutMs = timeoutMs;
    const purpose = `connect to the monitor ${name}`;
    const late = `no greeting within ${timeoutMs} ms; is another client connected to it?`;
    this.#greeted = this.#wait(
      purpose,
      timeoutMs,
      () => new QmpTimeoutError("qmp_capabilities", timeoutMs, `Cannot ${purpose}: ${late}`),
    );
    this.closed = this.#drain();
  }

  /**
   * Connect to a monitor and negotiate.
   *
   * @param address Path of its unix socket, or what `Deno.connect` takes
   * @param options Timeouts in milliseconds
   * @throws {QmpClosedError} Nobody listens there, or QEMU went away
   * @throws {QmpTimeoutError} No connection or no greeting in time
   * @throws {QmpProtocolError} What answered does not speak QMP
   * @throws What `signal` was aborted with. Nothing is left open in any of these cases
   */
  static async connect(address: QmpAddress, options: QmpConnectOptions = {}): Promise<QmpClient> {
    const { timeoutMs = TIMEOUT_MS, retryForMs = 0, signal } = options;
    const connection = await dial(address, { timeoutMs, retryForMs, signal });
    return await QmpClient.#start(connection, addressName(address), timeoutMs, signal);
  }

  /**
   * Negotiate over a connection that exists. It belongs to the client from now on.
   *
   * @param connection For example one end of a pair of in-memory pipes
   * @param options Timeout in milliseconds
   * @throws As {@linkcode QmpClient.connect}; the connection is closed then
   */
  static attach(connection: QmpConnection, options: QmpAttachOptions = {}): Promise<QmpClient> {
    const { timeoutMs = TIMEOUT_MS, signal } = options;
    return QmpClient.#start(connection, "of this connection", timeoutMs, signal);
  }

  static async #start(
    connection: QmpConnection,
    name: string,
    timeoutMs: number,
    signal: AbortSignal | undefined,
  ): Promise<QmpClient> {
    const client = new QmpClient(connection, name, timeoutMs);
    const onAbort = () => client.#shutDown({ reason: "given up", cause: signal?.reason });
    signal?.addEventListener("abort", onAbort);
    try {
      if (signal?.aborted) onAbort();
      client.#greeting = await client.#greeted.promise;
      await client.execute("qmp_capabilities");
      return client;
    } catch (error) {
      await client.close();
      signal?.throwIfAborted();
      throw error;
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
  }

  /** What the server said first: its version and its extensions of the protocol. */
  get greeting(): QmpGreeting {
    if (this.#greeting === undefined) throw new QmpError("Cannot read the greeting: none came");
    return this.#greeting;
  }

  /**
   * Give a command and wait for its answer.
   *
   * @param name A command of {@linkcode QmpCommands}
   * @param args Its arguments; may be left out if it needs none
   * @param options Timeout in milliseconds
   * @returns What QEMU returned, not checked against its type
   * @throws {QmpCommandError} QEMU refused; the monitor stays usable
   * @throws {QmpTimeoutError} No answer in time; the command may still take effect, a late answer is
   * ignored, and the monitor stays usable
   * @throws {QmpClosedError} The monitor is closed, or closed before the answer came
   * @throws {QmpProtocolError} Garbage came before the answer; the monitor is closed
   * @throws {QmpError} QEMU does not take commands any more; this one was not sent
   */
  async execute<Name extends QmpCommandName>(
    name: Name,
    ...[args, options]: ExecuteParameters<Name>
  ): Promise<QmpReturns<Name>> {
    return await this.executeRaw(name, args, options) as QmpReturns<Name>;
  }

  /** {@linkcode execute} for a command that has no type here. */
  async executeRaw(
    name: string,
    args?: Readonly<Record<string, unknown>>,
    options: QmpWaitOptions = {},
  ): Promise<unknown> {
    const purpose = `execute ${name}`;
    if (this.#end !== undefined) throw closedError(purpose, this.#end);
    const id = ++this.#lastId;
    const line = encodeCommand(name, args, id);
    if (this.#unsentBytes > 0 && this.#unsentBytes + line.length > QMP_UNSENT_BYTES_MAX) {
      throw new QmpError(
        `Cannot ${purpose}: QEMU has not read the last ${this.#unsentBytes} bytes of commands`,
      );
    }
    const { timeoutMs = this.#timeoutMs } = options;
    const wait = this.#wait<unknown>(
      purpose,
      timeoutMs,
      () => new QmpTimeoutError(name, timeoutMs),
      () => this.#commands.delete(id),
    );
    this.#commands.set(id, { name, wait });
    this.#send(line, wait);
    return await wait.promise;
  }

  /**
   * Have a function called for every event of one name, at once and in order of arrival: before
   * anything that arrived later is looked at.
   *
   * @param name The event
   * @param handler What it throws goes to `reportError`; the other handlers are called all the same
   * @returns What ends the subscription
   */
  on<Name extends QmpEventName>(
    name: Name,
    handler: (event: QmpEventOf<Name>) => void,
  ): () => void {
    return this.#subscribe(name, (event) => handler(event as QmpEventOf<Name>));
  }

  /** Have a function called for every event, known or not; otherwise as {@linkcode on}. */
  onAny(handler: (event: QmpEvent) => void): () => void {
    return this.#subscribe(undefined, (event) => handler(event));
  }

  /**
   * Subscribe to all events from now on, for `for await`. Nobody is forced to read them: see
   * {@linkcode QmpEventStream}.
   */
  events(): QmpEventStream {
    const stream = new QmpEventStream((closed) => this.#streams.delete(closed));
    if (this.#end === undefined) this.#streams.add(stream);
    else stream.end();
    return stream;
  }

  /**
   * Wait for the next event of one name. It counts from the call on: call it before the command that
   * brings the event about.
   *
   * @param name The event
   * @param predicate Passes over the events for which it is false
   * @param options Timeout in milliseconds
   * @throws {QmpTimeoutError} It did not come in time
   * @throws {QmpClosedError} The monitor is closed, or closed before it came
   * @throws {QmpProtocolError} Garbage came before it; the monitor is closed
   * @throws What `predicate` throws
   */
  async waitFor<Name extends QmpEventName>(
    name: Name,
    predicate: (event: QmpEventOf<Name>) => boolean = () => true,
    options: QmpWaitOptions = {},
  ): Promise<QmpEventOf<Name>> {
    const purpose = `wait for ${name}`;
    if (this.#end !== undefined) throw closedError(purpose, this.#end);
    const { timeoutMs = this.#timeoutMs } = options;
    const late = `no such event within ${timeoutMs} ms`;
    const wait = this.#wait<QmpEventOf<Name>>(
      purpose,
      timeoutMs,
      () => new QmpTimeoutError(name, timeoutMs, `Cannot ${purpose}: ${late}`),
      () => unsubscribe(),
    );
    const unsubscribe = this.on(name, (event) => {
      try {
        if (predicate(event)) wait.resolve(event);
      } catch (error) {
        wait.reject(error);
      }
    });
    return await wait.promise;
  }

  /** Close the monitor. QEMU runs on. Everything pending fails; calling it again does nothing. */
  async close(): Promise<void> {
    this.#shutDown({ reason: "the monitor was closed on this side" });
    await this.closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #drain(): Promise<void> {
    const decoder = new QmpDecoder();
    const deliver = (message: QmpMessage) => this.#deliver(message);
    try {
      for (;;) {
        const { done, value } = await this.#reader.read();
        if (done) break;
        decoder.push(value, deliver);
      }
      this.#shutDown({ reason: QEMU_CLOSED });
    } catch (cause) {
      this.#shutDown({ reason: endReason(cause), cause });
    }
  }

  #deliver(message: QmpMessage): void {
    if (this.#end !== undefined) return;
    if (message.kind === "greeting") return this.#greeted.resolve(message.greeting);
    if (message.kind === "event") return this.#dispatch(message.event);
    // An answer nobody waits for is that of a command that timed out.
    const command = typeof message.id === "number" ? this.#commands.get(message.id) : undefined;
    if (command === undefined) return;
    if (message.kind === "return") return command.wait.resolve(message.value);
    const { errorClass, description } = message;
    command.wait.reject(new QmpCommandError(command.name, errorClass, description));
  }

  #dispatch(event: QmpEvent): void {
    const named = this.#handlers.get(event.event) ?? [];
    const any = this.#handlers.get(undefined) ?? [];
    // A copy, because a handler may end subscriptions and begin new ones.
    for (const handler of [...named, ...any]) {
      try {
        handler(event);
      } catch (error) {
        reportError(error);
      }
    }
    for (const stream of this.#streams) stream.push(event);
  }

  #subscribe(name: string | undefined, handler: EventHandler): () => void {
    const handlers = this.#handlers.get(name) ?? new Set();
    this.#handlers.set(name, handlers.add(handler));
    return () => handlers.delete(handler);
  }

  #wait<T>(
    purpose: string,
    timeoutMs: number,
    onTimeout: () => QmpTimeoutError,
    onSettled: () => void = () => {},
  ): Wait<T> {
    const wait = new Wait<T>(purpose, timeoutMs, onTimeout, () => {
      this.#waits.delete(wait);
      onSettled();
    });
    this.#waits.add(wait);
    return wait;
  }

  #send(line: Uint8Array, wait: Wait<unknown>): void {
    this.#unsentBytes += line.length;
    this.#writer.write(line).then(
      () => this.#unsentBytes -= line.length,
      // Only this command: answers to earlier ones may still be there to be read.
      (cause) => wait.reject(closedError(wait.purpose, { reason: QEMU_CLOSED, cause })),
    );
  }

  #shutDown(end: End): void {
    if (this.#end !== undefined) return;
    this.#end = end;
    for (const wait of [...this.#waits]) {
      wait.reject(
        end.cause instanceof QmpProtocolError ? end.cause : closedError(wait.purpose, end),
      );
    }
    for (const stream of this.#streams) stream.end();
    this.#streams.clear();
    this.#handlers.clear();
    // Each of the three may find the connection gone already; that is what is wanted.
    this.#reader.cancel().catch(() => {});
    this.#writer.abort().catch(() => {});
    try {
      this.#connection.close();
    } catch {
      // As above.
    }
  }
}

function closedError(purpose: string, { reason, cause }: End): QmpClosedError {
  return new QmpClosedError(`Cannot ${purpose}: ${reason}`, { cause });
}

function endReason(cause: unknown): string {
  if (cause instanceof QmpProtocolError) return "what came was not QMP";
  // It had not read all commands.
  if (cause instanceof Deno.errors.ConnectionReset) return QEMU_CLOSED;
  return `the connection broke: ${cause instanceof Error ? cause.message : cause}`;
}
