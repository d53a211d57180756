/** `colo export`: a stored checkpoint as a plain QEMU migration file. */

import { Command } from "@commander-js/extra-typings";
import { messageOf, StoreError } from "../engine/errors.ts";
import { formatBytes } from "../engine/host/mod.ts";
import { type Chain, exportStream } from "../engine/store/mod.ts";
import { WasmKernels } from "../wasm/mod.ts";
import { findStore, openStore } from "./_store.ts";

export function exportCommand() {
  return new Command("export")
    .description("write a stored checkpoint as a migration file that QEMU loads without colo")
    .argument("<name>", "which checkpoint")
    .argument("<file>", "the file; QEMU takes it with -incoming file:FILE")
    .option("--store <dir>", "directory of the store")
    .option("--config <file>", "vm.toml that names the store")
    .action(async (name, path, options) => {
      const { directory } = await findStore(options);
      const chain = openStore(directory).open(name);
      try {
        const bytes = writeExport(chain, path);
        const { machine, blocks } = chain.metadata;
        const main = Math.max(...blocks.map(({ sizeBytes }) => sizeBytes));
        console.log(
          `${name} is in ${path} (${formatBytes(bytes)}): start QEMU with the VM's own devices, ` +
            `-machine ${machine} -m ${main / 2 ** 20}M -incoming file:${path}`,
        );
      } finally {
        chain.close();
      }
    });
}

/** The file appears as a whole or not at all. */
function writeExport(chain: Chain, path: string): number {
  const temporary = `${path}.partial`;
  let file: Deno.FsFile;
  try {
    file = Deno.openSync(temporary, { write: true, create: true, truncate: true, mode: 0o600 });
  } catch (error) {
    throw new StoreError(`Cannot write ${path}: ${messageOf(error)}`);
  }
  let bytes = 0;
  try {
    for (const piece of exportStream(chain, WasmKernels.create())) {
      for (let at = 0; at < piece.length;) at += file.writeSync(piece.subarray(at));
      bytes += piece.length;
    }
    file.syncSync();
    Deno.renameSync(temporary, path);
    return bytes;
  } catch (error) {
    Deno.removeSync(temporary);
    throw error instanceof StoreError
      ? error
      : new StoreError(`Cannot write ${path}: ${messageOf(error)}`);
  } finally {
    file.close();
  }
}
