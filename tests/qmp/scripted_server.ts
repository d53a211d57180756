/**
 * A QMP server whose every word the test decides, over a unix socket in a directory of its own.
 *
 * @module
 */

import { assertEquals } from "@std/assert/mod.js";
import { TextLineStream } from "@std/streams/text_line_stream.js";

/** A command as the client sent it. */
export interface ReceivedCommand {
  readonly execute: string;
  readonly arguments?: Record<string, unknown>;
  readonly id: number;
}

export const GREETING = {
  QMP: {
    version: { qemu: { major: 11, minor: 1, micro: 3 }, package: "scripted" },
    capabilities: ["oob"],
  },
};

/** The server's end of one connection. */
export class ScriptedSession implements Disposable {
  readonly #conn: Deno.Conn;
  readonly #lines: ReadableStreamDefaultReader<string>;

  constructor(conn: Deno.Conn) {
    this.#conn = conn;
    const lines: ReadableStream<string> = conn.readable
      .pipeThrough(new TextDecoderStream())
      .pipeThrough(new TextLineStream());
    this.#lines = lines.getReader();
  }

  /** Greets, and agrees to the negotiation. */
  async welcome(): Promise<void> {
    await this.send(GREETING);
    const { execute, id } = await this.next();
    assertEquals(execute, "qmp_capabilities");
    await this.send({ return: {}, id });
  }

  /** The next command of the client. */
  async next(): Promise<ReceivedCommand> {
    const { done, value } = await this.#lines.read();
    if (done) throw new Error("the client is gone");
    return JSON.parse(value);
  }

  /** Whether the client has closed its end, after what it still had sent. */
  async ended(): Promise<boolean> {
    return (await this.#lines.read()).done;
  }

  async send(...messages: readonly unknown[]): Promise<void> {
    await this.sendText(messages.map((message) => JSON.stringify(message) + "\r\n").join(""));
  }

  async sendText(text: string): Promise<void> {
    const bytes = new TextEncoder().encode(text);
    for (let at = 0; at < bytes.length;) at += await this.#conn.write(bytes.subarray(at));
  }

  /** Sends an event; its number is in its data and in its timestamp. */
  async event(name: string, data: Record<string, unknown> = {}, number = 0): Promise<void> {
    await this.send({ event: name, data, timestamp: { seconds: 1, microseconds: number } });
  }

  [Symbol.dispose](): void {
    try {
      this.#conn.close();
    } catch {
      // The stream closed it when the client went.
    }
  }
}

/** Listens; a test accepts each connection itself. */
export class ScriptedServer implements AsyncDisposable {
  readonly path: string;
  readonly #directory = Deno.makeTempDirSync({ prefix: "qmp-" });
  #listener: Deno.UnixListener | undefined;

  constructor() {
    this.path = `${this.#directory}/qmp.sock`;
  }

  listen(): this {
    this.#listener = Deno.listen({ transport: "unix", path: this.path });
    return this;
  }

  async accept(): Promise<ScriptedSession> {
    if (this.#listener === undefined) throw new Error("not listening");
    return new ScriptedSession(await this.#listener.accept());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listener?.close();
    await Deno.remove(this.#directory, { recursive: true });
  }
}
