/**
 * The unix socket of a secondary QEMU: what a replica writes goes there in its order, QEMU's answers
 * come back.
 *
 * @module
 */

import { REPLICA_QUEUE_BYTES_MAX } from "../limits.ts";
import { writeAll } from "./capture_port.ts";

/** One secondary QEMU. */
export class ReplicaPort {
  readonly #connection: Deno.UnixConn;
  #writing: Promise<void> = Promise.resolve();
  #queuedBytes = 0;
  #closed = false;

  private constructor(connection: Deno.UnixConn) {
    this.#connection = connection;
  }

  /** Connect to a QEMU that waits for its primary at `path`. */
  static async connect(path: string): Promise<ReplicaPort> {
    return new ReplicaPort(await Deno.connect({ transport: "unix", path }));
  }

  /**
   * Queue bytes for QEMU.
   *
   * @param onBroken Called when QEMU does not take them
   */
  write(parts: readonly Uint8Array[], onBroken: (error: unknown) => void): void {
    for (const part of parts) {
      this.#queuedBytes += part.length;
      this.#writing = this.#writing.then(async () => {
        if (!this.#closed) await writeAll(this.#connection, part);
        this.#queuedBytes -= part.length;
      });
    }
    this.#writing = this.#writing.catch((error) => {
      if (this.#closed) return;
      this.close();
      onBroken(error);
    });
  }

  /** Fulfilled when there is room for more: so a fast link does not fill this machine's memory. */
  async room(): Promise<void> {
    if (this.#queuedBytes > REPLICA_QUEUE_BYTES_MAX) await this.#writing;
  }

  /** Call `handle` with everything that QEMU answers, until it closes. */
  async read(handle: (bytes: Uint8Array) => void): Promise<void> {
    const buffer = new Uint8Array(4096);
    try {
      for (let count; (count = await this.#connection.read(buffer)) !== null;) {
        handle(buffer.slice(0, count));
      }
    } catch (error) {
      if (!this.#closed) throw error;
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#connection.close();
  }
}
