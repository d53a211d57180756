/**
 * Starts the QEMU that a config describes, with its monitor open.
 *
 * @module
 */

import type { VmConfig } from "../config/mod.ts";
import { QmpClient } from "../qmp/mod.ts";
import {
  type MachineDescription,
  type Qemu,
  qemuArgs,
  type QemuProcess,
  startQemu,
} from "../vm/mod.ts";
import type { Reporter } from "./report.ts";

/** A QEMU that runs. */
export interface Vm {
  readonly process: QemuProcess;
  readonly qmp: QmpClient;
  /** End it and close its monitor. */
  stop(): Promise<void>;
}

/** What to start, and how. */
export interface StartVmOptions {
  readonly config: VmConfig;
  readonly qemu: Qemu;
  /** Where its sockets go. */
  readonly directory: string;
  /** As a secondary, which waits for its primary. */
  readonly incoming: boolean;
  /** See {@linkcode MachineDescription.memoryPath}. */
  readonly memoryPath?: string | undefined;
  /** See {@linkcode MachineDescription.consoleAppend}. */
  readonly consoleAppend?: boolean | undefined;
  readonly report: Reporter;
}

/** QEMU answers within milliseconds; a machine that is busy starting two of them may take longer. */
const START_MS = 20_000;

/**
 * Start a VM.
 *
 * @throws {QemuError} when QEMU does not start; nothing is left running
 */
export async function startVm(options: StartVmOptions): Promise<Vm> {
  const { config, qemu, directory, report } = options;
  const qmpPath = `${directory}/qmp-${crypto.randomUUID().slice(0, 8)}.sock`;
  const process = await startQemu({
    qemu,
    args: qemuArgs(describeMachine(options, qmpPath)),
    name: config.vm.name,
    readyPath: qmpPath,
    // Ctrl-C is the engine's to handle: QEMU must not end before the other side knows why.
    detached: true,
  });
  try {
    const qmp = await process.whileAlive(
      QmpClient.connect(qmpPath, { timeoutMs: START_MS, retryForMs: START_MS }),
    );
    const { version, accel, source } = qemu;
    const { pid } = process;
    report({ event: "qemu-started", atMs: Date.now(), pid, version, accel, source });
    return {
      process,
      qmp,
      stop: async () => {
        await process.stop();
        await qmp.close();
      },
    };
  } catch (error) {
    await process.stop();
    throw error;
  }
}

function describeMachine(
  { config: { vm }, qemu, incoming, memoryPath, consoleAppend = false }: StartVmOptions,
  qmpPath: string,
): MachineDescription {
  return {
    name: vm.name,
    machine: vm.machine,
    accel: qemu.accel,
    memoryMiB: vm.memoryMiB,
    ...(memoryPath === undefined ? {} : { memoryPath }),
    cpus: vm.cpus,
    ...(vm.kernel === undefined ? {} : { kernelPath: vm.kernel }),
    ...(vm.initrd === undefined ? {} : { initrdPath: vm.initrd }),
    ...(vm.append === undefined ? {} : { append: vm.append }),
    ...(vm.console === undefined ? {} : { consolePath: vm.console, consoleAppend }),
    disks: vm.disks,
    nics: vm.nics.map((nic, index) => ({ id: `nic${index}`, ...nic })),
    qmpPath,
    incoming,
    extraArgs: vm.extraArgs,
  };
}
