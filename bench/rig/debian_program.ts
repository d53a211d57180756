/**
 * Packages and programs of Debian 12 that the machine may lack, fetched once into the cache and run from
 * there, with the C library that they were built for.
 *
 * @module
 */

import { basename, join } from "@std/path/mod.js";
import { openApt, unpackPackages, whyNoApt } from "../../engine/vm/apt.ts";
import { cacheDirectory, exists, makeOnce } from "../../engine/vm/cache.ts";
import { which } from "../../engine/vm/run.ts";

/** Where packages are unpacked, or why they cannot be had here. */
export type Unpacked = { readonly prefix: string } | { readonly whyNot: string };

/** @param name Of the directory in the cache */
export async function debianPackages(name: string, packages: readonly string[]): Promise<Unpacked> {
  const prefix = join(cacheDirectory(), `${name}-bookworm-amd64`);
  if (!await exists(prefix)) {
    const whyNot = await whyNoApt();
    if (whyNot !== undefined) return { whyNot };
  }
  await makeOnce({
    target: prefix,
    what: name,
    progress: console.log,
    make: async (directory) => {
      const apt = await openApt(join(cacheDirectory(), `apt-bookworm-${name}`), "bookworm");
      await unpackPackages(await apt.downloadOnly(packages), directory);
      await apt.clear();
    },
  });
  return { prefix };
}

/**
 * A program of Debian's.
 *
 * @param path Of the program inside its package
 * @param packages With the libraries that it needs
 * @returns The program and its fixed leading arguments, or why it cannot be had here
 */
export async function debianProgram(
  path: string,
  packages: readonly string[],
): Promise<readonly string[] | string> {
  const unpacked = await debianPackages(basename(path), [...packages, "libc6"]);
  if ("whyNot" in unpacked) return unpacked.whyNot;
  const { prefix } = unpacked;
  const libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
  return [
    `${prefix}/lib64/ld-linux-x86-64.so.2`,
    ...["--library-path", libraries.map((tree) => `${prefix}/${tree}`).join(":")],
    `${prefix}/${path}`,
  ];
}

/** A program of the machine's, or else Debian's; for arguments and result see {@linkcode debianProgram}. */
export async function anyProgram(
  path: string,
  packages: readonly string[],
): Promise<readonly string[] | string> {
  const installed = await which(basename(path));
  return installed === undefined ? await debianProgram(path, packages) : [installed];
}
