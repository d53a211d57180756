/**
 * A QEMU that stands by for a held checkpoint: everything is prepared but the last few bytes.
 *
 * @module
 */

import type { VmConfig } from "../config/mod.ts";
import { messageOf, QemuError } from "../errors.ts";
import {
  standbyBegin,
  standbyCapabilities,
  standbyEnd,
  standbyPages,
} from "../image/standby_stream.ts";
import { eventTimeMs, type QmpClient } from "../qmp/mod.ts";
import type { RamBlock } from "../stream/format.ts";
import type { Qemu } from "../vm/mod.ts";
import { beginIncoming, endIncoming, runOnceLoaded } from "./colo_qemu.ts";
import { ReplicaPort } from "./replica_port.ts";
import type { Reporter } from "./report.ts";
import { type RunNotebook, startVm, type Vm } from "./start_vm.ts";
import { untilItRuns } from "./vm_end.ts";

/** What it stands by for. */
export interface StandbyOptions {
  readonly config: VmConfig;
  readonly qemu: Qemu;
  /** A directory of this process's own, for sockets. */
  readonly directory: string;
  readonly report: Reporter;
  /** Where it is written down. */
  readonly run?: RunNotebook | undefined;
  /** The file that it is to run on; absent: it has memory of its own, and is fed all of it. */
  readonly memoryPath?: string | undefined;
  /** Versioned machine name, such as `pc-i440fx-11.1`. */
  readonly machine: string;
  /** In the order of the primary. */
  readonly blocks: readonly RamBlock[];
}

/** One QEMU that stands by. */
export class StandbyQemu {
  readonly #vm: Vm;
  readonly #port: ReplicaPort;
  readonly #shared: boolean;

  private constructor(vm: Vm, port: ReplicaPort, shared: boolean) {
    this.#vm = vm;
    this.#port = port;
    this.#shared = shared;
  }

  /**
   * Start it.
   *
   * @throws {QemuError} when it cannot be started; nothing is left running
   */
  static async start(options: StandbyOptions): Promise<StandbyQemu> {
    const { config, qemu, directory, report, memoryPath, machine, blocks, run } = options;
    const shared = memoryPath !== undefined;
    const vm = await startVm({ config, qemu, directory, incoming: true, memoryPath, report, run });
    try {
      const path = `${directory}/standby.sock`;
      await Deno.remove(path).catch(() => {});
      await vm.process.whileAlive(beginIncoming(vm.qmp, standbyCapabilities(shared), path));
      const standby = new StandbyQemu(vm, new ReplicaPort(path), shared);
      standby.#write(standbyBegin(machine, blocks, shared));
      return standby;
    } catch (error) {
      await vm.stop();
      throw error;
    }
  }

  get pid(): number {
    return this.#vm.process.pid;
  }

  /** Once it runs for good. */
  get vm(): Vm {
    return this.#vm;
  }

  get qmp(): QmpClient {
    return this.#vm.qmp;
  }

  /** Fulfilled when it has ended. */
  get exited(): Vm["process"]["exited"] {
    return this.#vm.process.exited;
  }

  /** Give it pages; fulfilled when it has room for more. */
  async feed(chunk: Uint8Array): Promise<void> {
    this.#write(standbyPages(chunk));
    await this.#port.room();
  }

  /**
   * Let it run, however long that takes.
   *
   * @param late Called when it takes long
   * @returns When it did, in milliseconds since the epoch
   * @throws {QemuError} when it ends instead
   */
  async run(deviceState: Uint8Array, late: () => void): Promise<number> {
    const resumed = this.qmp.waitFor("RESUME", () => true, { timeoutMs: Infinity });
    runOnceLoaded(this.qmp);
    this.#write([standbyEnd(deviceState)]);
    const event = await untilItRuns(this.#vm, resumed, late).catch((error) => {
      throw new QemuError(`Cannot take over: the standby QEMU does not run: ${messageOf(error)}`);
    });
    return eventTimeMs(event);
  }

  /** It runs for good: as any other VM it can be migrated, with all of its memory. */
  async release(): Promise<void> {
    await endIncoming(this.qmp, standbyCapabilities(this.#shared));
    this.#port.close();
  }

  kill(): void {
    this.#vm.process.kill();
  }

  async stop(): Promise<void> {
    this.#port.close();
    await this.#vm.stop();
  }

  #write(bytes: readonly Uint8Array[]): void {
    // A QEMU that takes no more ends, and that is noticed.
    this.#port.write(bytes, () => this.kill());
  }
}
