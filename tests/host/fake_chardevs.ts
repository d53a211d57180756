/**
 * A QEMU's chardevs, and a link's packet connection, without a QEMU.
 *
 * @module
 */

import type { FilterMonitor } from "../../engine/host/packet_filters.ts";
import { connectLink, type LinkAddress, LinkConnection } from "../../engine/link/mod.ts";
import { concat } from "../proxy/packets.ts";

/** What is looked at of a command's arguments. */
interface Arguments {
  readonly id?: string;
  readonly backend?: {
    readonly data: { readonly addr: { readonly data: { readonly path: string } } };
  };
}

/** A QEMU as far as chardevs and filters go: a chardev is a socket that it listens at. */
export class FakeChardevs {
  readonly filters: string[] = [];
  readonly #chardevs = new Map<string, Chardev>();

  readonly monitor: FilterMonitor = {
    execute:
      ((name, args = {}) => this.#execute(name, args as Arguments)) as FilterMonitor["execute"],
  };

  chardev(port: string): Chardev {
    return this.#chardevs.get(`colo-nic0-${port}-socket`)!;
  }

  #execute(command: string, { id = "", backend }: Arguments): Promise<unknown> {
    switch (command) {
      case "chardev-add":
        this.#chardevs.set(id, new Chardev(backend!.data.addr.data.path));
        break;
      case "chardev-remove":
        this.#chardevs.get(id)!.close();
        break;
      case "object-add":
        this.filters.push(id);
        break;
      case "qom-list":
      case "query-chardev":
        return Promise.resolve([]);
      case "object-del":
        this.filters.splice(this.filters.indexOf(id), 1);
        break;
    }
    return Promise.resolve({});
  }
}

/** Reads until the other side closes. */
class Chardev {
  /** What has come so far. */
  readonly arrived: Uint8Array<ArrayBuffer>[] = [];
  readonly received: Promise<Uint8Array<ArrayBuffer>>;
  readonly #listener: Deno.UnixListener;
  readonly #connection: Promise<Deno.UnixConn>;

  constructor(path: string) {
    this.#listener = Deno.listen({ transport: "unix", path });
    this.#connection = this.#listener.accept();
    this.received = this.#read();
  }

  async write(bytes: Uint8Array): Promise<void> {
    await (await this.#connection).write(bytes);
  }

  close(): void {
    this.#listener.close();
    this.#connection.then((connection) => connection.close());
  }

  async #read(): Promise<Uint8Array<ArrayBuffer>> {
    const connection = await this.#connection;
    const pieces = this.arrived;
    const space = new Uint8Array(8192);
    const read = () => connection.read(space).catch(() => null);
    for (let count; (count = await read()) !== null;) {
      pieces.push(space.slice(0, count));
      // As a busy QEMU, which forgets what it has not read when the other side hangs up.
      await new Promise((resolve) => setTimeout(resolve, 5));
      const isThere = await connection.write(Uint8Array.of(0)).then(() => true, () => false);
      if (!isThere) break;
    }
    return concat(pieces);
  }
}

/**
 * Both ends of a packet connection.
 *
 * @param directory Where it is a unix connection
 */
export async function withPacketLink(
  work: (near: LinkConnection, far: LinkConnection) => Promise<void>,
  directory?: string,
): Promise<void> {
  using listener = directory === undefined
    ? Deno.listen({ hostname: "127.0.0.1", port: 0 })
    : Deno.listen({ transport: "unix", path: `${directory}/link.sock` });
  const near = await connectLink(listener.addr as LinkAddress);
  const far = new LinkConnection(await listener.accept());
  try {
    await work(near, far);
  } finally {
    near.close();
    far.close();
  }
}
