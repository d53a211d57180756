/**
 * The way back, from the destination of a migration to its source: return path messages
 * `{be16 type, be16 length, payload}` up to SHUT, and from then on only be32 COLO messages.
 * Source: QEMU `migration/migration.c` (`source_return_path_thread`), `migration/colo.c`.
 *
 * @module
 */

import { StreamError } from "../errors.ts";
import { ByteWriter } from "./byte_writer.ts";
import { COLO_MESSAGES, type ColoMessage, RETURN_PATH } from "./format.ts";

/** Answer to a PING. */
export function pong(value: number): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u16(RETURN_PATH.PONG).u16(4).u32(value).finish();
}

/**
 * Ends the return path. Required before `checkpoint-ready`: without it QEMU reads that message as a
 * return path header and the migration fails.
 *
 * @param status 0 when the destination is content
 */
export function shut(status = 0): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u16(RETURN_PATH.SHUT).u16(4).u32(status).finish();
}

/** What comes over the way back. */
export type ReturnPathEvent =
  | { readonly type: "pong"; readonly value: number }
  | { readonly type: "shut"; readonly status: number }
  | { readonly type: "colo"; readonly message: ColoMessage };

/**
 * Reads the way back, however it is cut into chunks.
 *
 * @example
 * ```ts
 * import { pong, ReturnPathReader } from "./return_path.ts";
 *
 * const reader = new ReturnPathReader();
 * const bytes = pong(7);
 * reader.push(bytes.subarray(0, 3));
 * if (reader.push(bytes.subarray(3))[0]?.type !== "pong") throw new Error("not as expected");
 * ```
 */
export class ReturnPathReader {
  #rest = new Uint8Array(0);
  #offset = 0;
  #shut = false;

  /** @throws {StreamError} on anything but known messages of the right length; the reader is done then */
  push(chunk: Uint8Array): ReturnPathEvent[] {
    const bytes = new Uint8Array(this.#rest.length + chunk.length);
    bytes.set(this.#rest);
    bytes.set(chunk, this.#rest.length);
    const view = new DataView(bytes.buffer);
    const events: ReturnPathEvent[] = [];
    let at = 0;
    while (true) {
      const event = this.#shut ? this.#colo(view, at) : this.#message(view, at);
      if (event === undefined) break;
      at += this.#shut && event.type === "colo" ? 4 : 8;
      if (event.type === "shut") this.#shut = true;
      events.push(event);
    }
    this.#rest = bytes.slice(at);
    this.#offset += at;
    return events;
  }

  #message(view: DataView, at: number): ReturnPathEvent | undefined {
    if (view.byteLength < at + 4) return undefined;
    const type = view.getUint16(at);
    const length = view.getUint16(at + 2);
    if ((type !== RETURN_PATH.PONG && type !== RETURN_PATH.SHUT) || length !== 4) {
      throw new StreamError(
        `Cannot read return path: message type ${type} of ${length} bytes is not known`,
        this.#offset + at,
      );
    }
    if (view.byteLength < at + 8) return undefined;
    const value = view.getUint32(at + 4);
    return type === RETURN_PATH.PONG ? { type: "pong", value } : { type: "shut", status: value };
  }

  #colo(view: DataView, at: number): ReturnPathEvent | undefined {
    if (view.byteLength < at + 4) return undefined;
    const number = view.getUint32(at);
    const message = COLO_MESSAGES[number];
    if (message === undefined) {
      throw new StreamError(
        `Cannot read return path: COLO message ${number} is not known`,
        this.#offset + at,
      );
    }
    return { type: "colo", message };
  }
}
