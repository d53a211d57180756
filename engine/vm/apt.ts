/**
 * Debian packages without installing them, and without touching the machine's own package state.
 *
 * `apt-get` is given a configuration, a state and a cache of its own in one directory, an empty list
 * of installed packages (so that a package's whole closure is fetched, the C library included) and
 * one source, whose signature is checked against the Debian keyring. It runs as any user.
 *
 * Everything but the source list is the machine's: proxies and credentials for mirrors go on working.
 *
 * @module
 */

import { join } from "@std/path/mod.js";
import { QemuError } from "../errors.ts";
import { type Progress, removeTree } from "./cache.ts";
import { debianMirrors, type SourceFile } from "./debian_sources.ts";
import { DownloadMeter } from "./download_meter.ts";
import { run, type RunOptions, which } from "./run.ts";

/** The Debian release that packages are taken from. */
export type Suite = "sid" | "bookworm";

/** An apt of one's own. Its lists are up to date when it is handed out. */
export interface PrivateApt {
  /**
   * Download packages with everything they depend on.
   *
   * @param what What the packages are, for progress lines
   * @returns Paths of the package files, of which an interrupted download keeps what it had
   * @throws {QemuError} when one cannot be had; call again to resume
   */
  downloadClosure(names: readonly string[], what: string): Promise<readonly string[]>;
  /**
   * Download packages as they are, without what they depend on.
   *
   * @returns Paths of the package files
   * @throws {QemuError} when one cannot be had
   */
  downloadOnly(names: readonly string[]): Promise<readonly string[]>;
  /** The `Depends` field of a package, such as `a (= 1), b | c`. */
  depends(name: string): Promise<string>;
  /** Remove all it has downloaded. */
  clear(): Promise<void>;
}

/** The commands needed, all of them in every Debian and its derivatives. */
const COMMANDS = ["apt-get", "apt-cache", "dpkg-deb"];

const LOCK_RETRY_MS = 500;
const LOCK_ATTEMPTS = 120;

const KEYRINGS = [
  "/usr/share/keyrings/debian-archive-keyring.pgp",
  "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/**
 * Why packages cannot be fetched on this machine, or undefined where they can.
 */
export async function whyNoApt(): Promise<string | undefined> {
  if (Deno.build.arch !== "x86_64") return "its processor is not an x86-64 one";
  for (const command of COMMANDS) {
    if (await which(command) === undefined) return `it has no ${command}`;
  }
  if (await debianKeyring() === undefined) {
    return "it has no Debian keyring (install debian-archive-keyring)";
  }
  return undefined;
}

/**
 * Set up an apt of one's own and bring its lists up to date.
 *
 * @param directory Where its configuration, lists and downloads go; reused when it exists
 * @throws {QemuError} when no mirror answers with lists that Debian has signed
 */
export async function openApt(
  directory: string,
  suite: Suite,
  progress?: Progress,
): Promise<PrivateApt> {
  const keyring = await debianKeyring();
  if (keyring === undefined) throw new QemuError("Cannot fetch packages: no Debian keyring");
  const mirrors = debianMirrors(await readSourceFiles());
  await prepareDirectory(directory);
  progress?.(`reading the package lists of Debian ${suite}`);
  const failures: string[] = [];
  for (const mirror of mirrors) {
    const source = `deb [arch=amd64 signed-by=${keyring}] ${mirror} ${suite} main\n`;
    await Deno.writeTextFile(join(directory, "sources.list"), source);
    try {
      await apt(directory, "apt-get", ["-q", "-o", "APT::Update::Error-Mode=any", "update"]);
      return privateApt(directory, progress);
    } catch (error) {
      failures.push(error instanceof Error ? error.message : String(error));
    }
  }
  throw new QemuError(`Cannot read the package lists of Debian ${suite}: ${failures.join("; ")}`);
}

/** Unpack package files into one tree, as any user, without running their scripts. */
export async function unpackPackages(files: readonly string[], directory: string): Promise<void> {
  for (const file of files) await run("dpkg-deb", ["--extract", file, directory]);
}

/** The configuration file that keeps apt inside one directory. Pure. */
export function aptConfiguration(directory: string): string {
  return [
    `Dir::State "${directory}/state";`,
    `Dir::State::status "${directory}/installed";`,
    `Dir::State::Lists "${directory}/state/lists";`,
    `Dir::Cache "${directory}/cache";`,
    `Dir::Cache::Archives "${directory}/cache/archives";`,
    `Dir::Cache::pkgcache "";`,
    `Dir::Cache::srcpkgcache "";`,
    `Dir::Etc::sourcelist "${directory}/sources.list";`,
    `Dir::Etc::sourceparts "${directory}/empty";`,
    `Dir::Etc::preferences "${directory}/none";`,
    `Dir::Etc::preferencesparts "${directory}/empty";`,
    `APT::Architecture "amd64";`,
    "#clear APT::Architectures;",
    `APT::Architectures { "amd64"; };`,
    `APT::Install-Recommends "false";`,
    // Root would hand the download to the user _apt, who cannot write to root's cache.
    `APT::Sandbox::User "root";`,
    `Acquire::Languages "none";`,
    `Acquire::PDiffs "false";`,
    `Acquire::Retries "3";`,
    "#clear Acquire::IndexTargets::deb::DEP-11;",
    "#clear Acquire::IndexTargets::deb::DEP-11-icons;",
    // The machine's hooks are about its own packages.
    "#clear APT::Update::Pre-Invoke;",
    "#clear APT::Update::Post-Invoke;",
    "#clear APT::Update::Post-Invoke-Success;",
    "#clear DPkg::Pre-Install-Pkgs;",
    "#clear DPkg::Post-Invoke;",
    "",
  ].join("\n");
}

function privateApt(directory: string, progress?: Progress): PrivateApt {
  const archives = join(directory, "cache", "archives");
  return {
    async downloadClosure(names, what) {
      // What an earlier, interrupted run has left of versions that the lists no longer hold.
      await apt(directory, "apt-get", ["-q", "-y", "autoclean"]);
      const meter = new DownloadMeter(what);
      await apt(directory, "apt-get", ["-q", "-y", "install", "--download-only", ...names], {
        onLine: (line) => {
          const news = meter.push(line);
          if (news !== undefined) progress?.(news);
        },
      });
      return await packageFiles(archives);
    },
    async downloadOnly(names) {
      const cwd = join(directory, "single");
      await removeTree(cwd);
      await Deno.mkdir(cwd);
      await apt(directory, "apt-get", ["-q", "download", ...names], { cwd });
      return await packageFiles(cwd);
    },
    async depends(name) {
      const text = await apt(directory, "apt-cache", ["show", "--no-all-versions", name]);
      return /^Depends: (.*)$/m.exec(text)?.[1] ?? "";
    },
    clear: () => removeTree(directory),
  };
}

/**
 * Run apt inside its directory. An apt-get whose parent was killed lives on until it next prints
 * something: what it holds is waited for.
 */
async function apt(
  directory: string,
  program: "apt-get" | "apt-cache",
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  for (let attempt = 1;; attempt++) {
    try {
      return await run(program, ["-c", join(directory, "apt.conf"), ...args], options);
    } catch (error) {
      const isHeld = error instanceof QemuError && error.message.includes("Could not get lock");
      if (!isHeld || attempt === LOCK_ATTEMPTS) throw error;
      await new Promise((resolve) => setTimeout(resolve, LOCK_RETRY_MS));
    }
  }
}

async function prepareDirectory(directory: string): Promise<void> {
  for (const name of ["state/lists/partial", "cache/archives/partial", "empty"]) {
    await Deno.mkdir(join(directory, name), { recursive: true });
  }
  await Deno.writeTextFile(join(directory, "installed"), "");
  await Deno.writeTextFile(join(directory, "apt.conf"), aptConfiguration(directory));
}

async function packageFiles(directory: string): Promise<string[]> {
  const entries = await Array.fromAsync(Deno.readDir(directory));
  return entries.filter(({ name }) => name.endsWith(".deb"))
    .map(({ name }) => join(directory, name)).sort();
}

async function debianKeyring(): Promise<string | undefined> {
  for (const path of KEYRINGS) {
    if (await Deno.stat(path).then((info) => info.isFile, () => false)) return path;
  }
  return undefined;
}

async function readSourceFiles(): Promise<SourceFile[]> {
  const parts = "/etc/apt/sources.list.d";
  const entries = await Array.fromAsync(Deno.readDir(parts)).catch(() => []);
  const names = entries.map(({ name }) => name)
    .filter((name) => name.endsWith(".list") || name.endsWith(".sources")).sort();
  const paths = ["/etc/apt/sources.list", ...names.map((name) => join(parts, name))];
  return await Promise.all(paths.map(async (path) => ({
    name: path,
    text: await Deno.readTextFile(path).catch(() => ""),
  })));
}
