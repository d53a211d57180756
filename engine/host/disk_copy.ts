/**
 * Which copy of a primary's disks the images of a standby are: the primary gives it a name when they are
 * equal, and remembers what it has written since. So one that returns is sent no more than that.
 *
 * The name is kept in memory that looks like files: what was written may not be on a disk yet, so with
 * the machine it must be gone. It names the image files as well: others in their place are no copy.
 *
 * @module
 */

import type { VmConfig } from "../config/mod.ts";
import { memoryDirectory } from "./image_directory.ts";

/** The name, as this process and those after it find it. */
export class DiskCopyName {
  readonly #path: string;
  readonly #diskPaths: readonly string[];

  constructor(config: VmConfig) {
    this.#path = `${memoryDirectory(config)}.copy`;
    this.#diskPaths = config.vm.disks.map(({ path }) => path);
  }

  /** @returns An empty text when the images are no copy that anybody knows of */
  load(): string {
    try {
      const [name = "", ...files] = Deno.readTextFileSync(this.#path).split("\n");
      return files.join() === this.#files().join() ? name : "";
    } catch {
      return "";
    }
  }

  /** @param name Empty: they are about to become something else */
  store(name: string): void {
    try {
      Deno.removeSync(this.#path);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
    if (name === "") return;
    const options = { createNew: true, mode: 0o600 };
    Deno.writeTextFileSync(this.#path, [name, ...this.#files()].join("\n"), options);
  }

  #files(): readonly string[] {
    return this.#diskPaths.map((path) => {
      const { dev, ino } = Deno.statSync(path);
      return `${dev}:${ino}`;
    });
  }
}
