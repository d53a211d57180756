/**
 * Starts the QEMU that a config describes, with its monitor open.
 *
 * @module
 */

import type { VmConfig } from "../config/mod.ts";
import { QmpClient } from "../qmp/mod.ts";
import { messageOf, QemuError } from "../errors.ts";
import {
  AdoptedQemu,
  identify,
  type MachineDescription,
  type Qemu,
  qemuArgs,
  type QemuProcess,
  startQemu,
} from "../vm/mod.ts";
import type { Reporter } from "./report.ts";
import type { RunRecord } from "./run_directory.ts";

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
  /** Where it is written down, for whoever comes after this process. */
  readonly run?: RunNotebook | undefined;
}

/** Where the QEMU that runs is written down. */
export interface RunNotebook {
  record: RunRecord | undefined;
}

/** QEMU answers within milliseconds; a machine that is busy starting two of them may take longer. */
const START_MS = 20_000;

/** A QEMU that runs answers at once, unless it hangs or somebody else talks to it. */
const ADOPT_MS = 3000;

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
    const { pid } = process;
    const identity = identify(pid);
    if (options.run !== undefined && identity !== undefined) {
      options.run.record = { ...identity, qmpPath, runsVm: !options.incoming, qemu };
    }
    const qmp = await process.whileAlive(
      QmpClient.connect(qmpPath, { timeoutMs: START_MS, retryForMs: START_MS }),
    );
    const { version, accel, source } = qemu;
    report({ event: "qemu-started", atMs: Date.now(), pid, version, accel, source });
    return vmOf(process, qmp);
  } catch (error) {
    await process.stop();
    throw error;
  }
}

/**
 * Take care of a VM that an engine has left running.
 *
 * @throws {QemuError} when its monitor does not answer; it runs on
 */
export async function adoptVm(record: RunRecord, qemu: Qemu, report: Reporter): Promise<Vm> {
  const qmp = await connectMonitor(record);
  const { version, accel, source } = qemu;
  const { pid } = record;
  report({ event: "qemu-adopted", atMs: Date.now(), pid, version, accel, source });
  return vmOf(new AdoptedQemu(record), qmp);
}

/**
 * Talk to a VM that an engine has left running.
 *
 * @throws {QemuError} when its monitor does not answer; it runs on
 */
export async function connectMonitor({ pid, qmpPath }: RunRecord): Promise<QmpClient> {
  try {
    return await QmpClient.connect(qmpPath, { timeoutMs: ADOPT_MS, retryForMs: ADOPT_MS });
  } catch (error) {
    throw new QemuError(
      `Cannot take care of the VM, which runs as process ${pid}: its monitor does not answer: ` +
        `${messageOf(error)}; end that process if it hangs`,
    );
  }
}

function vmOf(process: QemuProcess, qmp: QmpClient): Vm {
  return {
    process,
    qmp,
    stop: async () => {
      await process.stop();
      await qmp.close();
    },
  };
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
