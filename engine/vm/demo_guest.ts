/**
 * The demo guest: a small Linux that counts web requests and proves on its console, twice a second,
 * that it has lost nothing (see `demo_guest/init.sh`). Its connections can be put to the proof as well
 * (see `demo_guest/server.lua`).
 *
 * Kernel, modules and programs are Debian's, fetched into the cache; the initial RAM filesystem is
 * written here.
 *
 * @module
 */

import { encodeHex } from "@std/encoding/mod.js";
import { basename, join } from "@std/path/mod.js";
import { QemuError } from "../errors.ts";
import { openApt, unpackPackages, whyNoApt } from "./apt.ts";
import { cacheDirectory, exists, makeOnce, type Progress } from "./cache.ts";
import { type CpioEntry, writeCpio } from "./cpio.ts";
import counterScript from "./demo_guest/counter.sh" with { type: "text" };
import initScript from "./demo_guest/init.sh" with { type: "text" };
import serverScript from "./demo_guest/server.lua" with { type: "text" };

/** What QEMU needs to boot the demo guest. */
export interface DemoGuest {
  readonly kernelPath: string;
  readonly initrdPath: string;
  /** The kernel's command line, with its console on the first serial port; add `colo.*` to it */
  readonly append: string;
  /** For `-cpu`: one that gives random numbers, without which a boot waits a second for them. */
  readonly cpu: string;
  /** The guest's programs in one that is statically linked, which runs on a host as well */
  readonly busyboxPath: string;
}

/** The release whose kernel the demo guest was measured with. */
const SUITE = "bookworm";
const KERNEL_PACKAGE = "linux-image-cloud-amd64";

/** Kernel modules in the order they need each other, with where they lie. */
const MODULES = [
  "drivers/virtio/virtio_ring",
  "drivers/virtio/virtio",
  "drivers/virtio/virtio_pci_legacy_dev",
  "drivers/virtio/virtio_pci_modern_dev",
  "drivers/virtio/virtio_pci",
  "net/core/failover",
  "drivers/net/net_failover",
  "drivers/net/virtio_net",
  "drivers/block/virtio_blk",
] as const;

/** Programs and what they need, with the packages they are from. */
const PROGRAMS = [
  { package: "busybox-static", source: "bin/busybox", path: "bin/busybox" },
  { package: "luajit", source: "usr/bin/luajit", path: "bin/luajit" },
  {
    package: "lua-socket",
    source: "usr/lib/x86_64-linux-gnu/liblua5.1-socket.so.2.0.0",
    path: "lib/socket/core.so",
  },
  {
    package: "libc6",
    source: "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    path: "lib64/ld-linux-x86-64.so.2",
  },
  { package: "libc6", source: "lib/x86_64-linux-gnu/libc.so.6", path: "lib/libc.so.6" },
  { package: "libc6", source: "lib/x86_64-linux-gnu/libm.so.6", path: "lib/libm.so.6" },
  { package: "libgcc-s1", source: "lib/x86_64-linux-gnu/libgcc_s.so.1", path: "lib/libgcc_s.so.1" },
] as const;

const COMMAND_LINE = "console=ttyS0 quiet ipv6.disable_ipv6=1";

const CPU = "qemu64,+rdrand";

const INDEX_PAGE = `<!doctype html>
<title>colo demo guest</title>
<p><a href="/cgi-bin/counter">counter</a>: goes up by one at each request.</p>
<p><a href="/file">file</a>: random bytes written at boot.</p>
`;

/**
 * Fetch and build the demo guest unless it is in the cache.
 *
 * @throws {QemuError} when this machine cannot fetch it; nothing half-made is left in its place
 */
export async function prepareDemoGuest(
  options: { readonly progress?: Progress } = {},
): Promise<DemoGuest> {
  const { progress } = options;
  const wanted = [...MODULES, ...PROGRAMS.map(({ source }) => source)];
  const parts = await digestOf(new TextEncoder().encode(wanted.join()));
  const directory = join(cacheDirectory(), `guest-${SUITE}-amd64-${parts}`);
  await makeOnce({
    target: directory,
    what: "the demo guest",
    progress,
    make: (target) => fetchParts(target, progress),
  });
  return {
    kernelPath: join(directory, "vmlinuz"),
    initrdPath: await buildInitrd(directory),
    append: COMMAND_LINE,
    cpu: CPU,
    busyboxPath: join(directory, "busybox"),
  };
}

async function fetchParts(target: string, progress?: Progress): Promise<void> {
  const obstacle = await whyNoApt();
  if (obstacle !== undefined) {
    throw new QemuError(
      `Cannot fetch the demo guest on this machine: ${obstacle}; configure a kernel or a disk of ` +
        "your own instead",
    );
  }
  const apt = await openApt(join(cacheDirectory(), `apt-${SUITE}`), SUITE, progress);
  const kernel = /^linux-image-\S+/.exec(await apt.depends(KERNEL_PACKAGE))?.[0];
  if (kernel === undefined) {
    throw new QemuError(`Cannot fetch the demo guest: ${KERNEL_PACKAGE} depends on no kernel`);
  }
  const packages = [kernel, ...new Set(PROGRAMS.map((program) => program.package))];
  progress?.(`fetching the demo guest from Debian's packages: ${packages.join(", ")}`);
  const files = await apt.downloadOnly(packages);
  const unpacked = join(target, "unpacked");
  await unpackPackages(files, unpacked);
  await pickParts(unpacked, target, kernel.replace("linux-image-", ""));
  await Deno.remove(unpacked, { recursive: true });
  await apt.clear();
}

/** A kernel package holds a hundred megabytes of modules; a few files are wanted. */
async function pickParts(unpacked: string, target: string, release: string): Promise<void> {
  await Deno.copyFile(join(unpacked, `boot/vmlinuz-${release}`), join(target, "vmlinuz"));
  for (const { source, path } of PROGRAMS) {
    await Deno.copyFile(join(unpacked, source), join(target, basename(path)));
  }
  for (const module of MODULES) {
    const path = join(unpacked, "lib/modules", release, "kernel", `${module}.ko`);
    await Deno.copyFile(path, join(target, moduleFile(module)));
  }
}

/** Write the initial RAM filesystem, under a name that changes with its content. */
async function buildInitrd(directory: string): Promise<string> {
  const archive = writeCpio(await initrdEntries(directory));
  const path = join(directory, `initrd-${await digestOf(archive)}.cpio`);
  if (await exists(path)) return path;
  const temporary = await Deno.makeTempFile({
    dir: directory,
    prefix: "initrd-",
    suffix: ".partial",
  });
  await Deno.writeFile(temporary, archive);
  await Deno.rename(temporary, path);
  return path;
}

/** Enough of a hash to tell one content from another. */
async function digestOf(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  return encodeHex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))).slice(0, 12);
}

async function initrdEntries(directory: string): Promise<CpioEntry[]> {
  const read = (name: string) => Deno.readFile(join(directory, name));
  const order = MODULES.map((module) => moduleFile(module).replace(/\.ko$/, ""));
  const folders = [
    ...["bin", "dev", "lib", "lib/socket", "lib64", "modules", "proc", "run", "sys"],
    ...["www", "www/cgi-bin"],
  ];
  return [
    ...folders.map((path): CpioEntry => ({ type: "directory", path, mode: 0o755 })),
    file("init", initScript, 0o755),
    file("server.lua", serverScript),
    ...await Promise.all(
      PROGRAMS.map(async ({ path }) => file(path, await read(basename(path)), 0o755)),
    ),
    file("modules/order", order.join("\n") + "\n"),
    ...await Promise.all(
      MODULES.map(async (module) =>
        file(`modules/${moduleFile(module)}`, await read(moduleFile(module)))
      ),
    ),
    file("www/index.html", INDEX_PAGE),
    file("www/cgi-bin/counter", counterScript, 0o755),
    { type: "symlink", path: "www/file", target: "/run/file" },
  ];
}

function moduleFile(module: string): string {
  return `${module.split("/").at(-1)}.ko`;
}

function file(path: string, content: string | Uint8Array, mode = 0o644): CpioEntry {
  const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
  return { type: "file", path, mode, content: bytes };
}
