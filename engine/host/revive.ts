/**
 * Starts a VM again on the same host, from the mirror that its engine has of it.
 *
 * @module
 */

import type { Capture } from "../checkpoint/capture.ts";
import { mirrorStream } from "../checkpoint/mirror_stream.ts";
import { QemuError } from "../errors.ts";
import type { PrimaryHostOptions } from "./primary_options.ts";
import { restoreVm } from "./restore.ts";
import type { Vm } from "./start_vm.ts";

/** A QEMU that dies so soon after it was revived is likely to do so for the same reason. */
const STABLE_MS = 10_000;
const EARLY_DEATHS_MAX = 3;

/** Says whether a QEMU that has died may be started again. Times in milliseconds of any clock. */
export class Revivals {
  #revivedMs = -Infinity;
  #earlyDeaths = 0;

  /** @param isWanted Whether any may */
  constructor(readonly isWanted: boolean) {}

  /** It has just died. */
  mayRevive(nowMs: number): boolean {
    this.#earlyDeaths = nowMs - this.#revivedMs < STABLE_MS ? this.#earlyDeaths + 1 : 0;
    return this.isWanted && this.#earlyDeaths < EARLY_DEATHS_MAX;
  }

  /** It runs again. */
  revived(nowMs: number): void {
    this.#revivedMs = nowMs;
  }
}

/**
 * Go on from the last checkpoint with another QEMU.
 *
 * @param reason Why the last one is gone
 * @throws {QemuError} when there is no checkpoint, or QEMU does not take it
 */
export async function reviveVm(
  { config, qemu, directory, report, run }: PrimaryHostOptions,
  capture: Capture,
  reason: string,
): Promise<Vm> {
  if (!capture.restorable) {
    throw new QemuError("Cannot start QEMU again: it ended while its mirror was being written");
  }
  const { machine, epoch } = capture;
  return await restoreVm({
    config,
    qemu,
    directory,
    run,
    consoleAppend: true,
    source: { name: "mirror", machine, epoch, stream: mirrorStream(capture), release() {} },
    report: (said) => {
      const { atMs } = said;
      report(said.event === "restored" ? { event: "running", atMs, epoch, reason } : said);
    },
  });
}
