/**
 * The two connections of a link, and how they find each other: the primary opens both, introduces
 * itself on each with the same random session, and the secondary welcomes or refuses the pair.
 *
 * Bulk data has a connection of its own, so that a large checkpoint never holds up a word about life
 * and death.
 *
 * @module
 */

import { LinkError, WireError } from "../errors.ts";
import { LINK_HALF_OPEN_MAX } from "../limits.ts";
import type { LinkAddress } from "./address.ts";
import type { HelloPayload, LinkRole } from "./messages.ts";
import { connectLink, LinkConnection } from "./transport.ts";

/** Both connections. */
export interface LinkPair {
  readonly control: LinkConnection;
  readonly bulk: LinkConnection;
}

/** Close both. */
export function closePair(pair: LinkPair): void {
  pair.control.close();
  pair.bulk.close();
}

/** What a primary says of itself and its guest. */
export type Introduction = Omit<HelloPayload, "role" | "session">;

/** The longest a peer may take to introduce itself with both connections, or to answer. */
const HANDSHAKE_MS = 5000;

/**
 * Connect to a standby.
 *
 * @param timeoutMs The longest the standby may take to answer, on each connection
 * @throws {LinkError} when it cannot be reached, does not answer, or refuses; both are closed
 */
export async function connectPair(
  address: LinkAddress,
  introduction: Introduction,
  timeoutMs = HANDSHAKE_MS,
): Promise<LinkPair> {
  const session = crypto.randomUUID();
  const control = await join(address, { role: "control", session, ...introduction }, timeoutMs);
  try {
    const bulk = await join(address, { role: "bulk", session, ...introduction }, timeoutMs);
    return { control, bulk };
  } catch (error) {
    control.close();
    throw error;
  }
}

/** Make one connection and be welcomed on it. */
async function join(
  address: LinkAddress,
  hello: HelloPayload,
  timeoutMs: number,
): Promise<LinkConnection> {
  const connection = await connectLink(address, timeoutMs);
  try {
    await connection.send({ type: "hello", ...hello });
    const answer = await connection.next(timeoutMs);
    if (answer.type === "welcome") return connection;
    const reason = answer.type === "refuse" ? answer.reason : `it said ${answer.type}`;
    throw new LinkError(`Cannot join the standby: ${reason}`);
  } catch (error) {
    connection.close();
    // Foreign bytes where a standby was expected are one more way of not reaching it.
    if (error instanceof WireError) throw new LinkError(error.message, { cause: error });
    throw error;
  }
}

/**
 * Accept pairs, one after another, until the listener is closed. Connections that do not introduce
 * themselves properly, or whose twin does not come, are told why where that is possible, and dropped;
 * so is everything that is no pair yet when the listener is closed or nobody takes pairs any more.
 *
 * @param refusal Why a primary is not taken, or nothing when it is
 * @param timeoutMs The longest a primary may take from its first connection to a pair
 * @throws {LinkError} when the system accepts no more connections
 */
export async function* acceptPairs(
  listener: Deno.Listener,
  engineVersion: string,
  refusal: (introduction: Introduction) => string | undefined,
  timeoutMs = HANDSHAKE_MS,
): AsyncGenerator<LinkPair, void> {
  const reception = new Reception(engineVersion, refusal, timeoutMs);
  const accepting = reception.accept(listener);
  // Thrown below, once the pairs that came before it are taken.
  accepting.catch(() => {});
  try {
    for (let pair; (pair = await reception.next()) !== undefined;) yield pair;
    await accepting;
  } finally {
    reception.close();
  }
}

/** A connection that is in no pair yet. */
interface HalfOpen {
  /** Ends it. */
  readonly timer: ReturnType<typeof setTimeout>;
  /** Once it has introduced itself and is taken. */
  hello?: HelloPayload;
}

/** The standby's end of the handshake: connections come in, pairs come out. */
class Reception {
  readonly #halfOpen = new Map<LinkConnection, HalfOpen>();
  readonly #pairs: LinkPair[] = [];
  #wake = Promise.withResolvers<void>();
  #closed = false;

  constructor(
    readonly engineVersion: string,
    readonly refusal: (introduction: Introduction) => string | undefined,
    readonly timeoutMs: number,
  ) {}

  /** Take connections until the listener is closed, or this is. */
  async accept(listener: Deno.Listener): Promise<void> {
    try {
      for await (const socket of listener) this.#receive(socket);
    } catch (error) {
      const detail = error instanceof Error ? error.message : String(error);
      throw new LinkError(`Cannot accept connections: ${detail}`, { cause: error });
    } finally {
      this.close();
    }
  }

  /** The next pair, or nothing when there will be none. */
  async next(): Promise<LinkPair | undefined> {
    while (true) {
      const pair = this.#pairs.shift();
      if (pair !== undefined || this.#closed) return pair;
      await this.#wake.promise;
      this.#wake = Promise.withResolvers<void>();
    }
  }

  /** Drop all that nobody has taken. */
  close(): void {
    this.#closed = true;
    for (const connection of this.#halfOpen.keys()) this.#drop(connection);
    for (const pair of this.#pairs.splice(0)) closePair(pair);
    this.#wake.resolve();
  }

  #receive(socket: Deno.Conn): void {
    if (this.#closed || this.#halfOpen.size >= LINK_HALF_OPEN_MAX) return socket.close();
    const connection = new LinkConnection(socket);
    const entry: HalfOpen = { timer: setTimeout(() => this.#drop(connection), this.timeoutMs) };
    this.#halfOpen.set(connection, entry);
    this.#introduce(connection, entry).catch(() => this.#drop(connection));
  }

  async #introduce(connection: LinkConnection, entry: HalfOpen): Promise<void> {
    const hello = await connection.next(this.timeoutMs);
    if (hello.type !== "hello") {
      return this.#refuse(connection, `the connection began with ${hello.type}, not with hello`);
    }
    const reason = this.refusal(hello);
    if (reason !== undefined) return this.#refuse(connection, reason);
    const [twin, first] =
      [...this.#halfOpen].find(([, { hello: said }]) => said?.session === hello.session) ?? [];
    if (first?.hello?.role === hello.role) {
      return this.#refuse(connection, `this session has its ${hello.role} connection already`);
    }
    const welcomed = connection.send({ type: "welcome", engineVersion: this.engineVersion });
    entry.hello = hello;
    if (twin !== undefined) this.#pair(connection, twin, hello.role);
    await welcomed;
  }

  #pair(connection: LinkConnection, twin: LinkConnection, role: LinkRole): void {
    for (const member of [connection, twin]) {
      clearTimeout(this.#halfOpen.get(member)?.timer);
      this.#halfOpen.delete(member);
    }
    const [control, bulk] = role === "control" ? [connection, twin] : [twin, connection];
    this.#pairs.push({ control, bulk });
    this.#wake.resolve();
  }

  async #refuse(connection: LinkConnection, reason: string): Promise<void> {
    await connection.refuse(reason);
    this.#drop(connection);
  }

  #drop(connection: LinkConnection): void {
    clearTimeout(this.#halfOpen.get(connection)?.timer);
    this.#halfOpen.delete(connection);
    connection.close();
  }
}
