/**
 * Stands between two QEMUs on unix sockets and counts what passes, or between two engines and can cut
 * them off.
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

/** Relays all connections to a port on loopback. */
export class CuttableRelay {
  /** Where to connect to. */
  readonly port: number;
  readonly #listener: Deno.TcpListener;
  readonly #connections: Deno.TcpConn[] = [];
  #isCut = false;

  constructor(targetPort: number) {
    this.#listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    this.port = this.#listener.addr.port;
    this.#serve(targetPort).catch(() => {});
  }

  /** No connection there is, and none can be made. */
  set isCut(isCut: boolean) {
    this.#isCut = isCut;
    if (isCut) { for (const connection of this.#connections.splice(0)) closeQuietly(connection); }
  }

  close(): void {
    this.isCut = true;
    this.#listener.close();
  }

  async #serve(targetPort: number): Promise<void> {
    for await (const source of this.#listener) {
      if (this.#isCut) closeQuietly(source);
      else this.#relay(source, targetPort).catch(() => closeQuietly(source));
    }
  }

  async #relay(source: Deno.TcpConn, port: number): Promise<void> {
    const target = await Deno.connect({ hostname: "127.0.0.1", port });
    this.#connections.push(source, target);
    for (const connection of [source, target]) connection.setNoDelay();
    await Promise.all([copy(source, target), copy(target, source)]);
  }
}

/** Copy until one side ends, then end both. */
async function copy(
  from: Deno.Conn,
  to: Deno.Conn,
  counted: (count: number) => void = () => {},
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

function closeQuietly(connection: Deno.Conn): void {
  try {
    connection.close();
  } catch {
    // Closed already.
  }
}
