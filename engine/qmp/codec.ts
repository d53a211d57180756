/**
 * QMP on the wire: bytes to messages, commands to bytes. Pure.
 *
 * A server sends JSON objects, each on one line that ends with CR LF; a client sends JSON objects.
 * The kind of a server's message shows in the member it has:
 *
 * ```text
 *   {"QMP": {"version": ..., "capabilities": [...]}}                 greeting, once, first
 *   {"return": ..., "id": ...}                                       a command succeeded
 *   {"error": {"class": ..., "desc": ...}, "id": ...}                a command was refused
 *   {"event": ..., "data": {...}, "timestamp": {"seconds": ..., "microseconds": ...}}
 * ```
 *
 * Source: QEMU `docs/interop/qmp-spec.rst`. A monitor with `pretty=on` spreads an object over many
 * lines; that is not read here.
 *
 * @module
 */

import { QmpProtocolError } from "../errors.ts";
import { QMP_LINE_BYTES_MAX } from "../limits.ts";
import type { QmpEvent, QmpTimestamp } from "./events.ts";
import type { VersionInfo } from "./schema.ts";

/** The first thing a server says. */
export interface QmpGreeting {
  readonly version: VersionInfo;
  /** Extensions of the protocol, such as `oob`. */
  readonly capabilities: readonly string[];
}

/** One message of a server. */
export type QmpMessage =
  | { readonly kind: "greeting"; readonly greeting: QmpGreeting }
  | { readonly kind: "return"; readonly id: unknown; readonly value: unknown }
  | {
    readonly kind: "error";
    readonly id: unknown;
    readonly errorClass: string;
    readonly description: string;
  }
  | { readonly kind: "event"; readonly event: QmpEvent };

type JsonObject = Readonly<Record<string, unknown>>;

const LINE_FEED = 0x0a;
const QUOTE_CHARS_MAX = 60;
/** What is kept for the next unfinished line; a larger buffer is given back after its line. */
const KEPT_BUFFER_BYTES = 64 * 1024;

/**
 * Cuts a stream of bytes into messages. Any chunking of the same bytes gives the same messages.
 *
 * @example
 * ```ts
 * import { QmpDecoder, type QmpMessage } from "./codec.ts";
 *
 * const decoder = new QmpDecoder();
 * const messages: QmpMessage[] = [];
 * for (const piece of ['{"return": {}, ', '"id": 1}\r\n{"ret']) {
 *   decoder.push(new TextEncoder().encode(piece), (message) => messages.push(message));
 * }
 * if (messages.length !== 1 || messages[0]?.kind !== "return") throw new Error("not one answer");
 * ```
 */
export class QmpDecoder {
  readonly #lineBytesMax: number;
  readonly #text = new TextDecoder("utf-8", { fatal: true });
  /** The beginning of a line whose end has not come: the first `#partBytes` of `#part`. */
  #part = new Uint8Array(0);
  #partBytes = 0;
  #failure: QmpProtocolError | undefined;

  /** @param lineBytesMax Bytes of the longest line that is accepted, its line feed not counted */
  constructor(lineBytesMax: number = QMP_LINE_BYTES_MAX) {
    this.#lineBytesMax = lineBytesMax;
  }

  /**
   * Take the next bytes and deliver the messages they complete.
   *
   * @param chunk Next bytes of the stream; not kept, not changed
   * @param deliver Called for each message, in order; must not throw
   * @throws {QmpProtocolError} What came is not QMP. Everything before it was delivered; every later
   * call throws the same error
   */
  push(chunk: Uint8Array, deliver: (message: QmpMessage) => void): void {
    if (this.#failure !== undefined) throw this.#failure;
    try {
      let start = 0;
      for (;;) {
        const end = chunk.indexOf(LINE_FEED, start);
        if (end < 0) break;
        const line = this.#completeLine(chunk.subarray(start, end));
        start = end + 1;
        const message = this.#readLine(line);
        if (message !== undefined) deliver(message);
      }
      this.#keep(chunk.subarray(start));
    } catch (error) {
      if (error instanceof QmpProtocolError) this.#failure = error;
      throw error;
    }
  }

  #completeLine(end: Uint8Array): Uint8Array {
    if (this.#partBytes === 0) {
      this.#checkLength(end.length);
      return end;
    }
    this.#keep(end);
    const line = this.#part.subarray(0, this.#partBytes);
    this.#partBytes = 0;
    if (this.#part.length > KEPT_BUFFER_BYTES) this.#part = new Uint8Array(0);
    return line;
  }

  /** Doubling the buffer keeps a line of many chunks linear. */
  #keep(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    const needed = this.#partBytes + bytes.length;
    this.#checkLength(needed);
    if (needed > this.#part.length) {
      const grown = new Uint8Array(Math.max(needed, 2 * this.#part.length));
      grown.set(this.#part.subarray(0, this.#partBytes));
      this.#part = grown;
    }
    this.#part.set(bytes, this.#partBytes);
    this.#partBytes = needed;
  }

  #checkLength(lineBytes: number): void {
    if (lineBytes > this.#lineBytesMax) {
      throw new QmpProtocolError(
        `Cannot read QMP: a line is longer than ${this.#lineBytesMax} bytes`,
      );
    }
  }

  /** @returns undefined for an empty line */
  #readLine(line: Uint8Array): QmpMessage | undefined {
    let text: string;
    try {
      text = this.#text.decode(line);
    } catch {
      throw protocolError("not UTF-8", new TextDecoder().decode(line));
    }
    if (text.trim() === "") return undefined;
    return classify(text);
  }
}

/**
 * Write a command as one line.
 *
 * @param command Its name
 * @param args Its arguments, left out when undefined
 * @param id Comes back in the answer
 * @returns UTF-8 bytes, line feed included
 */
export function encodeCommand(
  command: string,
  args: object | undefined,
  id: number,
): Uint8Array<ArrayBuffer> {
  const text = JSON.stringify({ execute: command, arguments: args, id });
  return new TextEncoder().encode(text + "\n");
}

function classify(text: string): QmpMessage {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw protocolError("not JSON", text);
  }
  const message = isObject(value) ? read(value) : undefined;
  if (message === undefined) {
    throw protocolError("neither a greeting, an answer nor an event", text);
  }
  return message;
}

function read(object: JsonObject): QmpMessage | undefined {
  if (Object.hasOwn(object, "return")) {
    return { kind: "return", id: object.id, value: object.return };
  }
  if (Object.hasOwn(object, "event")) return readEvent(object);
  if (Object.hasOwn(object, "error")) return readError(object);
  if (Object.hasOwn(object, "QMP")) return readGreeting(object.QMP);
  return undefined;
}

function readEvent({ event, data = {}, timestamp }: JsonObject): QmpMessage | undefined {
  if (typeof event !== "string" || !isObject(data) || !isTimestamp(timestamp)) return undefined;
  return { kind: "event", event: { event, data, timestamp } };
}

function readError({ id, error }: JsonObject): QmpMessage | undefined {
  if (!isObject(error)) return undefined;
  const { class: errorClass, desc: description } = error;
  if (typeof errorClass !== "string" || typeof description !== "string") return undefined;
  return { kind: "error", id, errorClass, description };
}

function readGreeting(value: unknown): QmpMessage | undefined {
  if (!isObject(value) || !isVersion(value.version)) return undefined;
  const { version, capabilities } = value;
  if (!Array.isArray(capabilities)) return undefined;
  const names = capabilities.filter((name) => typeof name === "string");
  return { kind: "greeting", greeting: { version, capabilities: names } };
}

function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isTimestamp(value: unknown): value is QmpTimestamp {
  return isObject(value) && Number.isSafeInteger(value.seconds) &&
    Number.isSafeInteger(value.microseconds);
}

function isVersion(value: unknown): value is VersionInfo {
  return isObject(value) && typeof value.package === "string" && isObject(value.qemu) &&
    [value.qemu.major, value.qemu.minor, value.qemu.micro].every(Number.isSafeInteger);
}

function protocolError(what: string, text: string): QmpProtocolError {
  const quote = JSON.stringify(text.slice(0, QUOTE_CHARS_MAX).trimEnd());
  const more = text.length > QUOTE_CHARS_MAX ? ` and ${text.length - QUOTE_CHARS_MAX} more` : "";
  return new QmpProtocolError(`Cannot read QMP: ${what}: ${quote}${more}`);
}
