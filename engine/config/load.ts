/**
 * Reads `vm.toml` from disk, and looks whether the files that it names are there.
 *
 * @module
 */

import { resolve } from "@std/path/mod.js";
import { ConfigError } from "../errors.ts";
import { parseVmConfig, type VmConfig } from "./vm_config.ts";

/** @throws {ConfigError} when the file cannot be read, is wrong, or names a file that is not there */
export async function loadVmConfig(path: string): Promise<VmConfig> {
  let text: string;
  try {
    text = await Deno.readTextFile(path);
  } catch (error) {
    const detail = error instanceof Deno.errors.NotFound
      ? "there is no such file"
      : error instanceof Error
      ? error.message
      : String(error);
    throw new ConfigError(`Cannot read ${path}: ${detail}`);
  }
  const config = parseVmConfig(text, resolve(path));
  const { kernel, initrd, disks } = config.vm;
  const files: [string, string | undefined][] = [
    ["vm.kernel", kernel],
    ["vm.initrd", initrd],
    ...disks.map((disk, index): [string, string] => [`vm.disks[${index}].path`, disk.path]),
  ];
  for (const [key, file] of files) {
    if (file === undefined) continue;
    const found = await Deno.stat(file).then((info) => !info.isDirectory, () => false);
    if (!found) throw new ConfigError(`Cannot use ${path}: ${key} names ${file}, which is no file`);
  }
  return config;
}
