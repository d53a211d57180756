/**
 * One end of an NBD conversation: the socket that leads to a QEMU.
 *
 * @module
 */

import { writeAll } from "./capture_port.ts";

/** So much of what waits goes in one write; a larger piece alone, as it is. */
const JOINED_BYTES_MAX = 64 * 1024;

/** Something to write. */
interface Piece {
  readonly bytes: Uint8Array;
  readonly written?: () => void;
}

/** Writes in their order, and reads. */
export class NbdSocket {
  readonly #connection: Deno.Conn;
  readonly #queue: Piece[] = [];
  #isWriting = false;
  #closed = false;

  constructor(connection: Deno.Conn) {
    this.#connection = connection;
  }

  /**
   * Queue pieces, which are not copied and must stay as they are; what a broken socket does not take is
   * lost, and noticed where it is read.
   *
   * @param written Called when they need not stay as they are any more, unless the socket breaks
   */
  write(pieces: readonly Uint8Array[], written?: () => void): void {
    for (const [index, bytes] of pieces.entries()) {
      this.#queue.push({ bytes, ...(written && index === pieces.length - 1 && { written }) });
    }
    if (!this.#isWriting) this.#write();
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
        const { bytes, written } = this.#next();
        await writeAll(this.#connection, bytes);
        written?.();
      }
    } catch {
      this.close();
    }
    this.#isWriting = false;
  }

  #next(): Piece {
    let [count, size] = [0, 0];
    while (count < this.#queue.length) {
      const more = this.#queue[count]!.bytes.length;
      if (size + more > JOINED_BYTES_MAX) break;
      size += more;
      count++;
    }
    if (count < 2) return this.#queue.shift()!;
    const joined = new Uint8Array(size);
    let at = 0;
    for (const { bytes, written } of this.#queue.splice(0, count)) {
      joined.set(bytes, at);
      at += bytes.length;
      written?.();
    }
    return { bytes: joined };
  }
}

function isBroken(error: unknown): boolean {
  return error instanceof Deno.errors.ConnectionReset || error instanceof Deno.errors.BrokenPipe ||
    error instanceof Deno.errors.BadResource || error instanceof Deno.errors.Interrupted;
}
