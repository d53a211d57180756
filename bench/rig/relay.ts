/**
 * Stands between two QEMUs on unix sockets and counts what passes.
 *
 * @module
 */

import { writeAll } from "../../engine/host/capture_port.ts";

const BUFFER_BYTES = 1024 * 1024;

/** Relays one connection. */
export class CountingRelay {
  /** Bytes from the side that connected to the side that listens. */
  forwardBytes = 0;
  backwardBytes = 0;
  readonly #listener: Deno.UnixListener;
  readonly #connections: Deno.UnixConn[] = [];

  /**
   * @param path Where to listen; must not exist
   * @param targetPath Where to connect to when somebody has connected
   */
  constructor(readonly path: string, targetPath: string) {
    this.#listener = Deno.listen({ transport: "unix", path });
    this.#serve(targetPath).catch(() => {});
  }

  async #serve(targetPath: string): Promise<void> {
    const source = await this.#listener.accept();
    this.#connections.push(source);
    const target = await Deno.connect({ transport: "unix", path: targetPath });
    this.#connections.push(target);
    await Promise.all([
      copy(source, target, (count) => this.forwardBytes += count),
      copy(target, source, (count) => this.backwardBytes += count),
    ]);
  }

  close(): void {
    this.#listener.close();
    for (const connection of this.#connections) closeQuietly(connection);
  }
}

/** Copy until one side ends, then end both. */
async function copy(
  from: Deno.UnixConn,
  to: Deno.UnixConn,
  counted: (count: number) => void,
): Promise<void> {
  const buffer = new Uint8Array(BUFFER_BYTES);
  try {
    for (let count; (count = await from.read(buffer)) !== null;) {
      counted(count);
      await writeAll(to, buffer.subarray(0, count));
    }
  } finally {
    closeQuietly(from);
    closeQuietly(to);
  }
}

function closeQuietly(connection: Deno.UnixConn): void {
  try {
    connection.close();
  } catch {
    // Closed already.
  }
}
