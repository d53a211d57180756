/**
 * Starts a VM from a stored checkpoint.
 *
 * @module
 */

import type { VmConfig } from "../config/mod.ts";
import { messageOf, QemuError } from "../errors.ts";
import { eventTimeMs, type QmpClient } from "../qmp/mod.ts";
import type { Qemu } from "../vm/mod.ts";
import type { Reporter } from "./report.ts";
import { type RunNotebook, startVm, type Vm } from "./start_vm.ts";
import { writeAll } from "./capture_port.ts";
import { runOnceLoaded } from "./colo_qemu.ts";

/** What a VM is restored from. */
export interface RestoreSource {
  /** Name of the stored checkpoint. */
  readonly name: string;
  readonly epoch: number;
  /** Versioned machine name; the VM gets this machine, whatever its config says. */
  readonly machine: string;
  /** The RAM image to run on, if there is one. */
  readonly memoryPath?: string | undefined;
  /** What QEMU is to load; each piece is valid until the next is asked for. */
  readonly stream: Iterable<Uint8Array>;
  /** Called when QEMU has opened its files, or could not. */
  release(): void;
}

/** What is needed to restore a VM. */
export interface RestoreOptions {
  readonly config: VmConfig;
  readonly qemu: Qemu;
  /** A directory of this process's own, for sockets. */
  readonly directory: string;
  readonly report: Reporter;
  readonly source: RestoreSource;
  /** Whether what the console has shown is kept, as when the same VM goes on. */
  readonly consoleAppend?: boolean;
  /** Where it is written down. */
  readonly run?: RunNotebook | undefined;
}

/** From the last byte until the VM runs; loading is done by then but for the devices. */
const RESUME_MS = 60_000;

/**
 * Start a VM where a stored checkpoint left it.
 *
 * @throws {QemuError} when QEMU does not load it; nothing is left running
 * @throws {StoreError} when the checkpoint turns out to be damaged; nothing is left running
 */
export async function restoreVm(options: RestoreOptions): Promise<Vm> {
  const { config, qemu, directory, report, source, consoleAppend, run } = options;
  const startMs = performance.now();
  let vm: Vm;
  try {
    vm = await startVm({
      config: { ...config, vm: { ...config.vm, machine: source.machine } },
      qemu,
      directory,
      incoming: true,
      memoryPath: source.memoryPath,
      consoleAppend,
      report,
      run,
    });
  } finally {
    source.release();
  }
  try {
    const { atMs, feedMs } = await vm.process.whileAlive(load(vm.qmp, directory, source));
    report({
      event: "restored",
      atMs,
      name: source.name,
      epoch: source.epoch,
      instant: source.memoryPath !== undefined,
      feedMs,
      durationMs: performance.now() - startMs,
    });
    if (run?.record !== undefined) run.record = { ...run.record, runsVm: true };
    return vm;
  } catch (error) {
    await vm.stop();
    throw error;
  }
}

async function load(
  qmp: QmpClient,
  directory: string,
  source: RestoreSource,
): Promise<{ readonly atMs: number; readonly feedMs: number }> {
  const path = `${directory}/restore.sock`;
  const ignoreShared = (state: boolean) => ({ capability: "x-ignore-shared", state }) as const;
  const isInstant = source.memoryPath !== undefined;
  await qmp.execute("migrate-set-capabilities", {
    capabilities: [{ capability: "events", state: true }, ignoreShared(isInstant)],
  });
  await qmp.execute("migrate-incoming", { uri: `unix:${path}` });
  const resumed = Promise.withResolvers<number>();
  // It may be told before it is waited for.
  resumed.promise.catch(() => {});
  qmp.on("RESUME", (event) => resumed.resolve(eventTimeMs(event)));
  runOnceLoaded(qmp);
  qmp.on("MIGRATION", ({ data }) => {
    if (data.status !== "failed") return;
    resumed.reject(new QemuError("Cannot restore: QEMU did not take the checkpoint"));
  });
  using connection = await Deno.connect({ transport: "unix", path });
  const feedMs = performance.now();
  for (const piece of source.stream) {
    await writeAll(connection, piece).catch((cause) => {
      throw new QemuError(`Cannot restore: QEMU broke off: ${messageOf(cause)}`, { cause });
    });
  }
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) =>
    timer = setTimeout(
      () => reject(new QemuError(`Cannot restore: the VM does not run after ${RESUME_MS} ms`)),
      RESUME_MS,
    )
  );
  const atMs = await Promise.race([resumed.promise, late]).finally(() => clearTimeout(timer));
  const tookMs = performance.now() - feedMs;
  // A VM that is to be protected sends all of its memory.
  await settled(qmp);
  if (isInstant) {
    await qmp.execute("migrate-set-capabilities", { capabilities: [ignoreShared(false)] });
  }
  return { atMs, feedMs: tookMs };
}

/** A VM runs a moment before its migration counts as completed. */
async function settled(qmp: QmpClient): Promise<void> {
  while ((await qmp.execute("query-migrate")).status === "active") {
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/** How a VM ended that was restored and is not protected. */
export type RestoredEnd = "guest-ended" | "qemu-lost" | "stopped";

/**
 * Restore a VM and let it run, unprotected, until it ends or the signal is aborted.
 *
 * @throws as {@linkcode restoreVm}
 */
export async function runRestored(
  options: RestoreOptions,
  signal: AbortSignal,
): Promise<RestoredEnd> {
  const vm = await restoreVm(options);
  let shutDown = false;
  vm.qmp.on("SHUTDOWN", () => shutDown = true);
  const stopped = new Promise<"stopped">((resolve) => {
    if (signal.aborted) resolve("stopped");
    else signal.addEventListener("abort", () => resolve("stopped"));
  });
  const ended = vm.process.exited.then(({ code }) =>
    shutDown && code === 0 ? "guest-ended" : "qemu-lost"
  );
  const end = await Promise.race([ended, stopped]);
  await vm.stop();
  return end;
}
