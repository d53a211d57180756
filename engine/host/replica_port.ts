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
  readonly #path: string;
  readonly #connected = Promise.withResolvers<Deno.UnixConn | undefined>();
  #connection: Deno.UnixConn | undefined;
  #writing: Promise<void> = Promise.resolve();
  #queuedBytes = 0;
  #closed = false;

  /**
   * @param path Where a QEMU waits for its primary. It is connected to when there is something to say:
   * from then until the first byte comes QEMU does nothing else, its monitor and its disks included
   */
  constructor(path: string) {
    this.#path = path;
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
        if (!this.#closed) await writeAll(await this.#connect(), part);
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
    const connection = await this.#connected.promise;
    if (connection === undefined) return;
    try {
      for (let count; (count = await connection.read(buffer)) !== null;) {
        handle(buffer.slice(0, count));
      }
    } catch (error) {
      if (!this.#closed) throw error;
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#connected.resolve(undefined);
    this.#connection?.close();
  }

  async #connect(): Promise<Deno.UnixConn> {
    if (this.#connection !== undefined) return this.#connection;
    const connection = await Deno.connect({ transport: "unix", path: this.#path });
    this.#connection = connection;
    this.#connected.resolve(connection);
    if (this.#closed) connection.close();
    return connection;
  }
}
