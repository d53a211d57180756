/**
 * The control socket: a unix socket at which an engine is asked and told, in QMP.
 *
 * A client is served one command at a time, and nothing is read from it meanwhile, so that one that
 * sends without end only waits.
 *
 * @module
 */

import { dirname } from "@std/path/mod.js";
import { ColoError, messageOf } from "../errors.ts";
import { CONTROL_CLIENTS_MAX } from "../limits.ts";
import { ENGINE_VERSION } from "../version.ts";
import { type ControlCommands, ControlSession, refused, succeeded } from "./session.ts";

/** A control socket that is served. */
export class ControlServer {
  readonly path: string;
  readonly #listener: Deno.UnixListener;
  readonly #commands: ControlCommands;
  readonly #clients = new Set<Deno.UnixConn>();
  #closed = false;

  private constructor(path: string, listener: Deno.UnixListener, commands: ControlCommands) {
    this.path = path;
    this.#listener = listener;
    this.#commands = commands;
  }

  /**
   * Listen at a path. Its directory is made, for this user alone, when it does not exist.
   *
   * @throws {ColoError} when another engine listens there, or nobody can
   */
  static async listen(path: string, commands: ControlCommands): Promise<ControlServer> {
    try {
      await Deno.mkdir(dirname(path), { recursive: true, mode: 0o700 });
      await removeStale(path);
      const listener = Deno.listen({ transport: "unix", path });
      const server = new ControlServer(path, listener, commands);
      server.#accept();
      return server;
    } catch (error) {
      throw new ColoError(`Cannot open the control socket ${path}: ${messageOf(error)}`);
    }
  }

  /** Stop listening, and drop all clients. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    // This removes the socket as well, a moment later.
    this.#listener.close();
    for (const client of this.#clients) drop(client);
  }

  async #accept(): Promise<void> {
    try {
      for await (const client of this.#listener) {
        if (this.#clients.size >= CONTROL_CLIENTS_MAX) {
          drop(client);
          continue;
        }
        this.#clients.add(client);
        this.#serve(client).catch(() => {}).finally(() => {
          this.#clients.delete(client);
          drop(client);
        });
      }
    } catch {
      // The socket was closed under us; a VM does not end for that.
    }
  }

  async #serve(client: Deno.UnixConn): Promise<void> {
    const session = new ControlSession(this.#commands, ENGINE_VERSION);
    await send(client, session.greeting());
    const buffer = new Uint8Array(4096);
    for (let count; (count = await client.read(buffer)) !== null;) {
      for (const effect of session.push(buffer.subarray(0, count))) {
        if (effect.type === "write") await send(client, effect.message);
        else await send(client, await answer(effect));
      }
    }
  }
}

async function answer(
  { command, args, id }: Extract<ReturnType<ControlSession["push"]>[number], { type: "run" }>,
): Promise<object> {
  try {
    return succeeded(id, await command.run(args));
  } catch (error) {
    return refused(id, messageOf(error));
  }
}

async function send(client: Deno.UnixConn, message: object): Promise<void> {
  const bytes = new TextEncoder().encode(JSON.stringify(message) + "\r\n");
  for (let at = 0; at < bytes.length;) at += await client.write(bytes.subarray(at));
}

function drop(client: Deno.UnixConn): void {
  try {
    client.close();
  } catch {
    // It is closed already.
  }
}

/** A socket that nobody listens at was left by an engine that was killed. */
async function removeStale(path: string): Promise<void> {
  const info = await Deno.lstat(path).catch(() => undefined);
  if (info === undefined) return;
  if (!info.isSocket) throw new ColoError("there is a file of that name");
  const client = await Deno.connect({ transport: "unix", path }).catch(() => undefined);
  if (client !== undefined) {
    client.close();
    throw new ColoError("another engine listens there; give it another [control] socket");
  }
  await Deno.remove(path);
}
