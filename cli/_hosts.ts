/** What `colo run` and `colo standby` share: a host's part in the life of a VM. */

import type { VmConfig } from "../engine/config/mod.ts";
import {
  createArbiter,
  PrimaryHost,
  type PrimaryHostOptions,
  type RunDirectory,
  SecondaryHost,
} from "../engine/host/mod.ts";
import { findQemu } from "../engine/vm/mod.ts";
import { EXIT } from "./exit_codes.ts";
import { lineReporter, progress } from "./shared.ts";

/** What a host's part is played with. */
export interface HostContext {
  readonly config: VmConfig;
  readonly run: RunDirectory;
  readonly signal: AbortSignal;
  /** Of QEMU, where the command line names one. */
  readonly qemuPath?: string | undefined;
  readonly json: boolean;
}

/** Run the VM, or look after one that runs here. @returns The exit code */
export async function runPrimary(
  context: HostContext,
  options: Pick<PrimaryHostOptions, "recordPath" | "isOrdered"> = {},
): Promise<number> {
  const { config, run, signal } = context;
  const qemu = await qemuFor("primary", context);
  // Nobody has listened to it so far.
  if (signal.aborted) return EXIT.INTERRUPTED;
  const host = new PrimaryHost({
    config,
    qemu,
    directory: run.path,
    run,
    arbiter: createArbiter(config),
    report: lineReporter(context.json),
    ...options,
  });
  signal.addEventListener("abort", () => host.stop("the operator ended it"));
  return exitCode(signal, await host.run());
}

/** Stand by for the VM. @returns The exit code */
export async function runSecondary(context: HostContext, takeOver = false): Promise<number> {
  const { config, run, signal } = context;
  const qemu = await qemuFor("secondary", context);
  if (signal.aborted) return EXIT.INTERRUPTED;
  const host = new SecondaryHost({
    config,
    qemu,
    directory: run.path,
    run,
    arbiter: createArbiter(config),
    report: lineReporter(context.json),
    takeOver,
  });
  signal.addEventListener("abort", () => host.stop());
  return exitCode(signal, await host.run());
}

async function qemuFor(role: "primary" | "secondary", { config, run, qemuPath }: HostContext) {
  const { record } = run;
  // A VM that is looked after is what it is.
  if (record?.runsVm && record.qemu !== undefined) return record.qemu;
  const { accel } = config.vm;
  return await findQemu({ path: qemuPath ?? config.qemuPath, accel, role, progress });
}

function exitCode(signal: AbortSignal, end: "guest-ended" | "qemu-lost" | "stopped"): number {
  if (signal.aborted) return EXIT.INTERRUPTED;
  return end === "qemu-lost" ? EXIT.LOST : EXIT.OK;
}
