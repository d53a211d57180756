/**
 * The demo guest with a database on its first disk and checksummed sectors on its second, and a client
 * of it (see `disk_guest/disk.lua`).
 *
 * @module
 */

import { join } from "@std/path/mod.js";
import { QemuError } from "../../engine/errors.ts";
import { writeCpio } from "../../engine/vm/cpio.ts";
import { type DemoGuest, prepareDemoGuest } from "../../engine/vm/mod.ts";
import { debianPackages } from "./debian_program.ts";

/** Where the guest listens. */
export const DISK_PORT = 9100;

/** Make the guest. */
export async function prepareDiskGuest(directory: string): Promise<DemoGuest> {
  const guest = await prepareDemoGuest();
  const sqlite = await debianPackages("sqlite", ["libsqlite3-0"]);
  if ("whyNot" in sqlite) throw new QemuError(`Cannot fetch SQLite: ${sqlite.whyNot}`);
  const own = (name: string) => new URL(`disk_guest/${name}`, import.meta.url);
  const library = join(sqlite.prefix, "usr/lib/x86_64-linux-gnu/libsqlite3.so.0");
  const files = [
    ["init-disk", 0o755, own("init.sh")],
    ["disk.lua", 0o644, own("disk.lua")],
    ["lib/libsqlite3.so.0", 0o755, library],
  ] as const;
  const archive = writeCpio(files.map(([path, mode, source]) => {
    return { type: "file", path, mode, content: Deno.readFileSync(source) };
  }));
  // Linux takes several archives one after another.
  const initrdPath = join(directory, "disk-guest.initrd");
  await Deno.copyFile(guest.initrdPath, initrdPath);
  await Deno.writeFile(initrdPath, archive, { append: true });
  return { ...guest, initrdPath, append: `${guest.append} rdinit=/init-disk` };
}

/** Make a raw image full of zeros. */
export async function makeDisk(path: string, sizeBytes: number): Promise<void> {
  await Deno.writeFile(path, new Uint8Array(0));
  await Deno.truncate(path, sizeBytes);
}

/** One connection to the guest. */
export class DiskClient {
  readonly #connection: Deno.TcpConn;
  #rest = "";

  private constructor(connection: Deno.TcpConn) {
    this.#connection = connection;
  }

  /** @param port Of this machine, which leads to the guest's {@linkcode DISK_PORT} */
  static async connect(port: number): Promise<DiskClient> {
    return new DiskClient(await Deno.connect({ hostname: "127.0.0.1", port }));
  }

  /** Have the guest do something; throws when it does not answer in time, or could not. */
  async ask(line: string, timeoutMs = 60_000): Promise<string> {
    const timer = setTimeout(() => this.close(), timeoutMs);
    try {
      await this.#connection.write(new TextEncoder().encode(`${line}\n`));
      const buffer = new Uint8Array(64 * 1024);
      while (!this.#rest.includes("\n")) {
        const count = await this.#connection.read(buffer);
        if (count === null) throw new Error(`${line}: the guest has closed its connection`);
        this.#rest += new TextDecoder().decode(buffer.subarray(0, count));
      }
    } finally {
      clearTimeout(timer);
    }
    const [answer = "", ...rest] = this.#rest.split("\n");
    this.#rest = rest.join("\n");
    if (answer.startsWith("ERROR")) throw new Error(`${line}: ${answer}`);
    return answer;
  }

  close(): void {
    try {
      this.#connection.close();
    } catch {
      // Closed already.
    }
  }
}
