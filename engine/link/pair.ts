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
import type { LinkAddress } from "./address.ts";
import type { HelloPayload, Message } from "./messages.ts";
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

/** The longest a peer may take to answer. */
const HANDSHAKE_MS = 5000;

/**
 * Connect to a standby.
 *
 * @throws {LinkError} when it cannot be reached, does not answer, or refuses; both are closed
 */
export async function connectPair(
  address: LinkAddress,
  introduction: Introduction,
): Promise<LinkPair> {
  const session = crypto.randomUUID();
  const control = await connectLink(address);
  try {
    const bulk = await connectLink(address);
    try {
      for (const [role, connection] of [["control", control], ["bulk", bulk]] as const) {
        await connection.send({ type: "hello", role, session, ...introduction });
      }
      for (const connection of [control, bulk]) {
        const answer = await connection.next(HANDSHAKE_MS);
        if (answer.type === "welcome") continue;
        const reason = answer.type === "refuse" ? answer.reason : `it said ${answer.type}`;
        throw new LinkError(`Cannot join the standby: ${reason}`);
      }
      return { control, bulk };
    } catch (error) {
      bulk.close();
      throw error;
    }
  } catch (error) {
    control.close();
    // Foreign bytes where a standby was expected are one more way of not reaching it.
    if (error instanceof WireError) throw new LinkError(error.message, { cause: error });
    throw error;
  }
}

/**
 * Accept pairs, one after another. Connections that do not introduce themselves properly are dropped.
 *
 * @param refusal Why a primary is not taken, or nothing when it is
 */
export async function* acceptPairs(
  listener: Deno.Listener,
  engineVersion: string,
  refusal: (introduction: Introduction) => string | undefined,
): AsyncGenerator<LinkPair, void> {
  const waiting = new Map<string, Map<HelloPayload["role"], LinkConnection>>();
  const complete: LinkPair[] = [];
  let wake = Promise.withResolvers<void>();
  let closed = false;
  const introduce = async (connection: LinkConnection) => {
    const hello: Message = await connection.next(HANDSHAKE_MS);
    if (hello.type !== "hello") return connection.close();
    const reason = refusal(hello);
    if (reason !== undefined) {
      await connection.send({ type: "refuse", reason });
      await connection.flush();
      return connection.close();
    }
    await connection.send({ type: "welcome", engineVersion });
    const session = waiting.get(hello.session) ?? new Map();
    session.set(hello.role, connection);
    const [control, bulk] = [session.get("control"), session.get("bulk")];
    if (control === undefined || bulk === undefined) {
      waiting.set(hello.session, session);
      setTimeout(() => {
        if (waiting.delete(hello.session)) connection.close();
      }, HANDSHAKE_MS);
      return;
    }
    waiting.delete(hello.session);
    complete.push({ control, bulk });
    wake.resolve();
  };
  const accept = async () => {
    for await (const connection of listener) {
      const link = new LinkConnection(connection);
      introduce(link).catch(() => link.close());
    }
  };
  accept().catch(() => {}).finally(() => {
    closed = true;
    wake.resolve();
  });
  while (true) {
    const pair = complete.shift();
    if (pair !== undefined) yield pair;
    else if (closed) return;
    else {
      await wake.promise;
      wake = Promise.withResolvers<void>();
    }
  }
}
