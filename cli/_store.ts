/** What the commands on stored checkpoints share: which store is meant. */

import { loadVmConfig, requireStore } from "../engine/config/mod.ts";
import { ConfigError } from "../engine/errors.ts";
import { CheckpointStore, DirectoryFiles } from "../engine/store/mod.ts";
import { WasmKernels } from "../wasm/mod.ts";

/** Options that name a store. */
export interface StoreOptions {
  readonly store?: string | undefined;
  readonly config?: string | undefined;
}

/** Where checkpoints and their RAM images are. */
export interface StorePlace {
  readonly directory: string;
  readonly images: string;
}

/**
 * The directories that the options name.
 *
 * @throws {ConfigError} when they name none
 */
export async function findStore({ store, config }: StoreOptions): Promise<StorePlace> {
  if (config !== undefined) {
    const loaded = await loadVmConfig(config);
    if (store === undefined) {
      const { directory, images = directory } = requireStore(loaded);
      return { directory, images };
    }
    return { directory: store, images: loaded.store?.images ?? store };
  }
  if (store !== undefined) return { directory: store, images: store };
  throw new ConfigError("Cannot tell which store is meant: give --store DIR or --config vm.toml");
}

/** The store in a directory. */
export function openStore(directory: string): CheckpointStore {
  return new CheckpointStore(new DirectoryFiles(directory), () => WasmKernels.create());
}
