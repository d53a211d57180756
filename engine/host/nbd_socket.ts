/**
 * One end of an NBD conversation: the socket that leads to a QEMU.
 *
 * @module
 */

import { writeAll } from "./capture_port.ts";

/** So much of what waits goes in one write; a larger piece alone, as it is. */
const JOINED_BYTES_MAX = 64 * 1024;

/** Writes in their order, and reads. */
export class NbdSocket {
  readonly #connection: Deno.Conn;
  readonly #queue: Uint8Array[] = [];
  #writing: Promise<void> = Promise.resolve();
  #isWriting = false;
  #closed = false;

  constructor(connection: Deno.Conn) {
    this.#connection = connection;
  }

  /**
   * Queue pieces, which are not copied and must stay as they are; what a broken socket does not take is
   * lost, and noticed where it is read.
   */
  write(pieces: readonly Uint8Array[]): void {
    this.#queue.push(...pieces);
    if (!this.#isWriting) this.#writing = this.#write();
  }

  /** Fulfilled when all that was queued is written, or lost. */
  async drained(): Promise<void> {
    await this.#writing;
  }

  /**
   * Read once.
   *
   * @returns Bytes read, or nothing when either side has closed
   */
  async read(space: Uint8Array): Promise<number | undefined> {
    if (this.#closed) return undefined;
    try {
      const count = await this.#connection.read(space);
      if (count !== null && !this.#closed) return count;
    } catch (error) {
      // A socket that breaks has ended; whatever else fails is somebody's to know.
      if (!this.#closed && !isBroken(error)) throw error;
    }
    this.close();
    return undefined;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#connection.close();
  }

  async #write(): Promise<void> {
    this.#isWriting = true;
    try {
      while (this.#queue.length > 0 && !this.#closed) {
        await writeAll(this.#connection, this.#next());
      }
    } catch {
      this.close();
    }
    this.#isWriting = false;
  }

  #next(): Uint8Array {
    let [count, bytes] = [0, 0];
    while (count < this.#queue.length && bytes + this.#queue[count]!.length <= JOINED_BYTES_MAX) {
      bytes += this.#queue[count++]!.length;
    }
    if (count < 2) return this.#queue.shift()!;
    const joined = new Uint8Array(bytes);
    let at = 0;
    for (const piece of this.#queue.splice(0, count)) {
      joined.set(piece, at);
      at += piece.length;
    }
    return joined;
  }
}

function isBroken(error: unknown): boolean {
  return error instanceof Deno.errors.ConnectionReset || error instanceof Deno.errors.BrokenPipe ||
    error instanceof Deno.errors.BadResource || error instanceof Deno.errors.Interrupted;
}
