/**
 * A QEMU 11 of one's own, without root and without touching the machine's packages: Debian's
 * packages unpacked into the cache and run through their own dynamic loader.
 *
 * ```text
 * PREFIX/usr/lib64/ld-linux-x86-64.so.2 --library-path PREFIX/usr/lib/x86_64-linux-gnu:PREFIX/usr/lib
 *   PREFIX/usr/bin/qemu-system-x86_64 -L PREFIX/usr/share/qemu -L ... (firmware)
 * ```
 *
 * @module
 */

import { basename, dirname, join } from "@std/path/mod.js";
import { QemuError } from "../errors.ts";
import { openApt, unpackPackages, whyNoApt } from "./apt.ts";
import { cacheDirectory, exists, makeOnce, type Progress } from "./cache.ts";

/** How to start a program, and what to add to its environment. */
export interface Launch {
  readonly command: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

/** QEMU and its tools; everything else comes as their dependencies. */
const PACKAGES = ["qemu-system-x86", "qemu-utils"];

const LOADER_ARGS_COUNT = 3;

/** Where the private QEMU is, or would be. */
export function privateQemuDirectory(cache: string = cacheDirectory()): string {
  return join(cache, "qemu-sid-amd64");
}

/** Whether the private QEMU is in the cache. */
export async function hasPrivateQemu(): Promise<boolean> {
  return await exists(privateQemuDirectory());
}

/**
 * Fetch the private QEMU unless it is there.
 *
 * @throws {QemuError} when this machine cannot fetch it; what was downloaded is kept for a next try
 */
export async function fetchQemu(progress?: Progress): Promise<Launch> {
  const prefix = privateQemuDirectory();
  await makeOnce({
    target: prefix,
    what: "QEMU",
    progress,
    make: async (directory) => {
      const obstacle = await whyNoApt();
      if (obstacle !== undefined) {
        throw new QemuError(
          `Cannot fetch QEMU on this machine: ${obstacle}; install QEMU 11.1 or newer and name it ` +
            "with --qemu PATH or COLO_QEMU",
        );
      }
      const apt = await openApt(join(cacheDirectory(), "apt-sid"), "sid", progress);
      const files = await apt.downloadClosure(PACKAGES, "QEMU");
      progress?.(`unpacking ${files.length} packages`);
      await unpackPackages(files, directory);
      await apt.clear();
    },
  });
  return privateLaunch(prefix);
}

/** How the QEMU in a prefix is started. Pure. */
export function privateLaunch(prefix: string): Launch {
  const libraries = [`${prefix}/usr/lib/x86_64-linux-gnu`, `${prefix}/usr/lib`];
  return {
    command: [
      `${prefix}/usr/lib64/ld-linux-x86-64.so.2`,
      "--library-path",
      libraries.join(":"),
      `${prefix}/usr/bin/qemu-system-x86_64`,
      ...["-L", `${prefix}/usr/share/qemu`],
      ...["-L", `${prefix}/usr/share/seabios`],
      ...["-L", `${prefix}/usr/lib/ipxe/qemu`],
    ],
    env: { QEMU_MODULE_DIR: `${prefix}/usr/lib/x86_64-linux-gnu/qemu` },
  };
}

/** The command of a tool that lies beside the QEMU of a private command. Pure. */
export function privateTool(command: readonly string[], name: string): readonly string[] {
  const binary = command[LOADER_ARGS_COUNT] ?? "";
  return [...command.slice(0, LOADER_ARGS_COUNT), join(dirname(binary), basename(name))];
}
