/**
 * Reads `vm.toml` from disk, and looks whether the files that it names are there.
 *
 * @module
 */

import { dirname, resolve } from "@std/path/mod.js";
import { ConfigError } from "../errors.ts";
import { parseVmConfig, type VmConfig } from "./vm_config.ts";

/**
 * @throws {ConfigError} when the file cannot be read, is wrong, or names a file or a console's
 *   directory that is not there
 */
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
  const { kernel, initrd, console, disks } = config.vm;
  const files: [string, string | undefined][] = [
    ["vm.kernel", kernel],
    ["vm.initrd", initrd],
    ...disks.map((disk, index): [string, string] => [`vm.disks[${index}].path`, disk.path]),
    ["qemu.path", config.qemuPath],
  ];
  for (const [key, file] of files) {
    if (file === undefined) continue;
    const info = await stat(file);
    if (info === undefined || info.isDirectory) {
      throw new ConfigError(`Cannot use ${path}: ${key} names ${file}, which is no file`);
    }
  }
  if (console !== undefined && !(await stat(dirname(console)))?.isDirectory) {
    throw new ConfigError(
      `Cannot use ${path}: vm.console is to be in ${dirname(console)}, which is no directory`,
    );
  }
  return config;
}

function stat(path: string): Promise<Deno.FileInfo | undefined> {
  return Deno.stat(path).catch(() => undefined);
}
