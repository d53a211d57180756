/**
 * One end of an NBD conversation: the socket that leads to a QEMU.
 *
 * @module
 */

import { writeAll } from "./capture_port.ts";

/** What a read may bring at once. */
const READ_BYTES = 256 * 1024;

/** Writes in their order, and reads. */
export class NbdSocket {
  readonly #connection: Deno.Conn;
  #writing: Promise<void> = Promise.resolve();
  #closed = false;

  constructor(connection: Deno.Conn) {
    this.#connection = connection;
  }

  /** Queue bytes; what a broken socket does not take is lost, and noticed where it is read. */
  write(bytes: Uint8Array): void {
    const own = bytes.slice();
    this.#writing = this.#writing
      .then(() => this.#closed ? undefined : writeAll(this.#connection, own))
      .catch(() => this.close());
  }

  /** Call `take` with all that is said, one after another, until either side closes. */
  async read(take: (bytes: Uint8Array) => Promise<void>): Promise<void> {
    const buffer = new Uint8Array(READ_BYTES);
    try {
      for (let count; !this.#closed && (count = await this.#connection.read(buffer)) !== null;) {
        await take(buffer.subarray(0, count));
      }
    } catch (error) {
      // A socket that breaks has ended; whatever else fails is somebody's to know.
      if (!this.#closed && !isBroken(error)) throw error;
    } finally {
      this.close();
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#connection.close();
  }
}

function isBroken(error: unknown): boolean {
  return error instanceof Deno.errors.ConnectionReset || error instanceof Deno.errors.BrokenPipe ||
    error instanceof Deno.errors.BadResource || error instanceof Deno.errors.Interrupted;
}
