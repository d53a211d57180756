/**
 * The connections of a link, and how they find each other: the primary opens all of them, introduces
 * itself on each with the same random session, and the secondary welcomes or refuses.
 *
 * Bulk data and packets have connections of their own, so that a large checkpoint holds up neither a
 * word about life and death nor the guest's network.
 *
 * @module
 */

import { LinkError, WireError } from "../errors.ts";
import { LINK_HALF_OPEN_MAX } from "../limits.ts";
import type { LinkAddress } from "./address.ts";
import { type HelloPayload, LINK_ROLES, type LinkRole } from "./messages.ts";
import { connectLink, LinkConnection } from "./transport.ts";

/** The standby does not take this primary. */
export class RefusedError extends LinkError {
  override name = "RefusedError";

  /** @param generation The one in which the other side runs the VM itself; 0 when it does not */
  constructor(message: string, readonly generation: number) {
    super(message);
  }
}

/** Why a primary is not taken. */
export interface Refusal {
  readonly reason: string;
  /** The generation in which this side runs the VM itself. */
  readonly generation?: number;
}

/** All connections between two engines. */
export type Link = Readonly<Record<LinkRole, LinkConnection>>;

/** Close them all. */
export function closeLink(link: Link): void {
  for (const role of LINK_ROLES) link[role].close();
}

/** What a primary says of itself and its guest. */
export type Introduction = Omit<HelloPayload, "role" | "session">;

/** The longest a peer may take to introduce itself with all connections, or to answer. */
const HANDSHAKE_MS = 5000;

/**
 * Connect to a standby.
 *
 * @param timeoutMs The longest the standby may take to answer, on each connection
 * @throws {LinkError} when it cannot be reached, does not answer, or refuses; all are closed
 */
export async function openLink(
  address: LinkAddress,
  introduction: Introduction,
  timeoutMs = HANDSHAKE_MS,
): Promise<Link> {
  const session = crypto.randomUUID();
  const opened: Partial<Record<LinkRole, LinkConnection>> = {};
  try {
    for (const role of LINK_ROLES) {
      opened[role] = await join(address, { role, session, ...introduction }, timeoutMs);
    }
    return opened as Link;
  } catch (error) {
    for (const connection of Object.values(opened)) connection.close();
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
    const generation = answer.type === "refuse" ? answer.generation : 0;
    throw new RefusedError(`Cannot join the standby: ${reason}`, generation);
  } catch (error) {
    connection.close();
    // Foreign bytes where a standby was expected are one more way of not reaching it.
    if (error instanceof WireError) throw new LinkError(error.message, { cause: error });
    throw error;
  }
}

/**
 * Accept links, one after another, until the listener is closed. Connections that do not introduce
 * themselves properly, or whose siblings do not come, are told why where that is possible, and dropped;
 * so is everything that is no link yet when the listener is closed or nobody takes links any more.
 *
 * @param refusal Why a primary is not taken, or nothing when it is
 * @param timeoutMs The longest a primary may take from its first connection to its last
 * @throws {LinkError} when the system accepts no more connections
 */
export async function* acceptLinks(
  listener: Deno.Listener,
  engineVersion: string,
  refusal: (introduction: Introduction) => Refusal | undefined,
  timeoutMs = HANDSHAKE_MS,
): AsyncGenerator<Link, void> {
  const reception = new Reception(engineVersion, refusal, timeoutMs);
  const accepting = reception.accept(listener);
  // Thrown below, once the links that came before it are taken.
  accepting.catch(() => {});
  try {
    for (let link; (link = await reception.next()) !== undefined;) yield link;
    await accepting;
  } finally {
    reception.close();
  }
}

/** A connection that is in no link yet. */
interface HalfOpen {
  /** Ends it. */
  readonly timer: ReturnType<typeof setTimeout>;
  /** Once it has introduced itself and is taken. */
  hello?: HelloPayload;
}

/** The standby's end of the handshake: connections come in, links come out. */
class Reception {
  readonly #halfOpen = new Map<LinkConnection, HalfOpen>();
  readonly #links: Link[] = [];
  #wake = Promise.withResolvers<void>();
  #closed = false;

  constructor(
    readonly engineVersion: string,
    readonly refusal: (introduction: Introduction) => Refusal | undefined,
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

  /** The next link, or nothing when there will be none. */
  async next(): Promise<Link | undefined> {
    while (true) {
      const link = this.#links.shift();
      if (link !== undefined || this.#closed) return link;
      await this.#wake.promise;
      this.#wake = Promise.withResolvers<void>();
    }
  }

  /** Drop all that nobody has taken. */
  close(): void {
    this.#closed = true;
    for (const connection of this.#halfOpen.keys()) this.#drop(connection);
    for (const link of this.#links.splice(0)) closeLink(link);
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
    const refusal = this.refusal(hello);
    if (refusal !== undefined) {
      return this.#refuse(connection, refusal.reason, refusal.generation);
    }
    const siblings = [...this.#halfOpen].filter(([, { hello: said }]) =>
      said?.session === hello.session
    );
    if (siblings.some(([, { hello: said }]) => said?.role === hello.role)) {
      return this.#refuse(connection, `this session has its ${hello.role} connection already`);
    }
    const welcomed = connection.send({ type: "welcome", engineVersion: this.engineVersion });
    entry.hello = hello;
    if (siblings.length + 1 === LINK_ROLES.length) this.#complete(hello.session);
    await welcomed;
  }

  /** Every connection of the session has come. */
  #complete(session: string): void {
    const connections: Partial<Record<LinkRole, LinkConnection>> = {};
    for (const [connection, { hello, timer }] of [...this.#halfOpen]) {
      if (hello?.session !== session) continue;
      clearTimeout(timer);
      this.#halfOpen.delete(connection);
      connections[hello.role] = connection;
    }
    this.#links.push(connections as Link);
    this.#wake.resolve();
  }

  async #refuse(connection: LinkConnection, reason: string, generation = 0): Promise<void> {
    await connection.refuse(reason, generation);
    this.#drop(connection);
  }

  #drop(connection: LinkConnection): void {
    clearTimeout(this.#halfOpen.get(connection)?.timer);
    this.#halfOpen.delete(connection);
    connection.close();
  }
}
