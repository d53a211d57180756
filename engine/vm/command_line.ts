/**
 * QEMU's argument list for a machine. Pure, and deterministic: both sides of a pair must get the same
 * devices in the same order, as migration identifies them by where they sit.
 *
 * What is guest-visible follows from the description alone; nothing is left to QEMU's defaults
 * (`-nodefaults -no-user-config`), which differ between builds.
 *
 * @module
 */

import type { Accelerator } from "./suitability.ts";

/** A virtual machine, as one QEMU process is to run it. */
export interface MachineDescription {
  /** Shown in QEMU's own messages and in process lists */
  readonly name: string;
  /** Machine type; a versioned one (`pc-i440fx-11.1`) where two builds of QEMU are to agree */
  readonly machine: string;
  readonly accel: Accelerator;
  readonly memoryMiB: number;
  /** File that is its main memory, and that it writes to; absent: memory of QEMU's own */
  readonly memoryPath?: string;
  readonly cpus: number;
  /** Kernel to boot directly, with its initial RAM disk and command line */
  readonly kernelPath?: string;
  readonly initrdPath?: string;
  readonly append?: string;
  /** In order; the n-th is block node `diskN` under device `diskN-device` */
  readonly disks: readonly DiskDescription[];
  /** In order; each is device `ID-device` on netdev `ID` */
  readonly nics: readonly NicDescription[];
  /** The file that the serial console's output goes to; without it the output is thrown away */
  readonly consolePath?: string;
  /** Whether that file is kept and written on; if not it is emptied */
  readonly consoleAppend?: boolean;
  /** Unix socket that QEMU listens on for QMP */
  readonly qmpPath: string;
  /** Wait for `migrate-incoming` instead of booting */
  readonly incoming: boolean;
  /** Appended as they are */
  readonly extraArgs: readonly string[];
}

/** A virtio disk. */
export interface DiskDescription {
  readonly path: string;
  readonly format: "raw" | "qcow2";
}

/** A network card and what is behind it. */
export interface NicDescription {
  /** Id of the netdev, which net filters refer to */
  readonly id: string;
  readonly mac: string;
  /** The value of `-netdev` without the id, such as `user,hostfwd=...` or `tap,ifname=...` */
  readonly netdev: string;
  /** Device model, such as `virtio-net-pci` */
  readonly model: string;
  /** Whether a tap carries the virtio-net header; QEMU decides where it is left out */
  readonly vnetHdr?: boolean;
}

/**
 * Build QEMU's arguments, to follow the program and its fixed leading arguments.
 *
 * @example
 * ```ts
 * import { qemuArgs } from "./command_line.ts";
 *
 * const args = qemuArgs({
 *   name: "web",
 *   machine: "pc-i440fx-11.1",
 *   accel: "tcg",
 *   memoryMiB: 128,
 *   cpus: 1,
 *   disks: [],
 *   nics: [],
 *   qmpPath: "/tmp/web/qmp",
 *   incoming: false,
 *   extraArgs: [],
 * });
 * if (!args.includes("pc-i440fx-11.1,accel=tcg,suppress-vmdesc=on")) throw new Error("no machine");
 * ```
 */
export function qemuArgs(machine: MachineDescription): readonly string[] {
  return [
    ...["-name", `guest=${escapeCommas(machine.name)}`],
    ...["-nodefaults", "-no-user-config", "-display", "none"],
    ...["-machine", machineOption(machine)],
    ...["-m", `size=${machine.memoryMiB}M`],
    ...memoryArgs(machine),
    ...["-smp", `cpus=${machine.cpus}`],
    ...kernelArgs(machine),
    ...machine.disks.flatMap(diskArgs),
    ...machine.nics.flatMap(nicArgs),
    ...["-chardev", consoleChardev(machine), "-serial", "chardev:console"],
    ...["-chardev", `socket,id=qmp,path=${escapeCommas(machine.qmpPath)},server=on,wait=off`],
    ...["-qmp", "chardev:qmp"],
    ...(machine.incoming ? ["-incoming", "defer"] : []),
    ...machine.extraArgs,
  ];
}

/** QEMU separates an option's parts by commas, and takes two commas for one. */
export function escapeCommas(value: string): string {
  return value.replaceAll(",", ",,");
}

/** Name of the main memory's RAM block, which the backend of another must have as well. */
const MAIN_MEMORY = "pc.ram";

function machineOption({ machine, accel, memoryPath }: MachineDescription): string {
  const memory = memoryPath === undefined ? "" : `,memory-backend=${MAIN_MEMORY}`;
  // A COLO primary of QEMU 11.1 would add to its description of the VM at every checkpoint, for ever.
  return `${machine},accel=${accel},suppress-vmdesc=on${memory}`;
}

function memoryArgs({ memoryMiB, memoryPath }: MachineDescription): string[] {
  if (memoryPath === undefined) return [];
  const path = escapeCommas(memoryPath);
  return [
    "-object",
    `memory-backend-file,id=${MAIN_MEMORY},mem-path=${path},share=on,size=${memoryMiB}M`,
  ];
}

function kernelArgs({ kernelPath, initrdPath, append }: MachineDescription): string[] {
  return [
    ...(kernelPath === undefined ? [] : ["-kernel", kernelPath]),
    ...(initrdPath === undefined ? [] : ["-initrd", initrdPath]),
    ...(append === undefined ? [] : ["-append", append]),
  ];
}

function diskArgs({ path, format }: DiskDescription, index: number): string[] {
  const node = `disk${index}`;
  const file = `file.driver=file,file.filename=${escapeCommas(path)}`;
  return [
    ...["-blockdev", `driver=${format},node-name=${node},${file}`],
    ...["-device", `virtio-blk-pci,id=${node}-device,drive=${node}`],
  ];
}

function nicArgs({ id, mac, netdev, model, vnetHdr }: NicDescription): string[] {
  const isTap = netdev === "tap" || netdev.startsWith("tap,");
  const header = isTap && vnetHdr !== undefined ? `,vnet_hdr=${vnetHdr ? "on" : "off"}` : "";
  return [
    ...["-netdev", `${netdev},id=${id}${header}`],
    // Without a boot ROM there is no RAM block whose size depends on the build's firmware.
    ...["-device", `${model},id=${id}-device,netdev=${id},mac=${mac},romfile=`],
  ];
}

function consoleChardev({ consolePath, consoleAppend }: MachineDescription): string {
  if (consolePath === undefined) return "null,id=console";
  return `file,id=console,path=${escapeCommas(consolePath)}${consoleAppend ? ",append=on" : ""}`;
}
