/**
 * Where the generation of a VM is kept on this host, for an arbiter that is nobody else.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { dirname } from "@std/path/mod.js";
import type { VmConfig } from "../config/mod.ts";
import { ArbiterError } from "../errors.ts";
import { decodeOwner, encodeOwner, type Ownership } from "../failover/arbiter.ts";
import type { GenerationFile } from "../failover/manual_arbiter.ts";
import { writeAll } from "./capture_port.ts";

/** Where it is, the same at every start: `$XDG_STATE_HOME/colo`, else `~/.local/state/colo`. */
export function generationPath({ path, vm }: Pick<VmConfig, "path" | "vm">): string {
  const state = Deno.env.get("XDG_STATE_HOME") ||
    `${Deno.env.get("HOME") || "/var/lib"}/.local/state`;
  const hash = createHash("sha256").update(path).digest("hex").slice(0, 8);
  return `${state}/colo/${vm.name}-${hash}.json`;
}

/** A file that is as it was, or as it is to be, whatever happens meanwhile. */
export class DiskGenerationFile implements GenerationFile {
  constructor(readonly path: string) {}

  async load(): Promise<Ownership | undefined> {
    let text: string;
    try {
      text = await Deno.readTextFile(this.path);
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      throw error;
    }
    const owner = decodeOwner(text);
    if (owner !== undefined) return owner;
    throw new ArbiterError(
      `Cannot use ${this.path}: it holds no generation; restore it, from a copy or from what the ` +
        "other host's says: without it nobody here knows which host may run the VM",
    );
  }

  async store(owner: Ownership): Promise<void> {
    await Deno.mkdir(dirname(this.path), { recursive: true, mode: 0o700 });
    const temporary = `${this.path}.new`;
    using file = await Deno.open(temporary, { write: true, create: true, truncate: true });
    await writeAll(file, new TextEncoder().encode(encodeOwner(owner)));
    await file.sync();
    await Deno.rename(temporary, this.path);
    using directory = await Deno.open(dirname(this.path));
    await directory.sync();
  }
}
