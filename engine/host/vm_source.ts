/**
 * Where a primary has its VM from: it has just taken over, an engine before has left it running, or it is
 * started.
 *
 * @module
 */

import { NotOursError } from "../errors.ts";
import { killLeftover } from "../vm/mod.ts";
import { releasePrimary } from "./colo_qemu.ts";
import { filteredNics } from "./nics.ts";
import { removeInboundBuffer } from "./inbound_buffer.ts";
import { removePrimaryFilters } from "./packet_filters.ts";
import type { PrimaryHostOptions } from "./primary_options.ts";
import { restoreVm } from "./restore.ts";
import { adoptVm, startVm, type Vm } from "./start_vm.ts";

/**
 * Have a VM that runs.
 *
 * @param begin Asks whether it may, before it does, or goes on; throws when it may not
 * @throws {QemuError} when it cannot be started, or does not answer
 * @throws {NotOursError} as `begin`; it does not run then
 * @throws {ArbiterError} as `begin`; one that ran before is as it was
 */
export async function obtainVm(
  options: PrimaryHostOptions,
  begin: (wasRunning: boolean) => Promise<void>,
): Promise<Vm> {
  return options.taken?.vm ?? await adopt(options, begin) ?? await start(options, begin);
}

async function start(
  { config, qemu, directory, report, restore, run }: PrimaryHostOptions,
  begin: (wasRunning: boolean) => Promise<void>,
): Promise<Vm> {
  await begin(false);
  return restore === undefined
    ? await startVm({ config, qemu, directory, incoming: false, report, run })
    : await restoreVm({ config, qemu, directory, report, source: restore, run });
}

/** The VM as an engine that has ended left it: it runs again, and its network is open. */
async function adopt(
  { config, qemu, report, run }: PrimaryHostOptions,
  begin: (wasRunning: boolean) => Promise<void>,
): Promise<Vm | undefined> {
  const record = run?.record;
  if (record === undefined) return undefined;
  if (!record.runsVm) {
    await killLeftover(record);
    return undefined;
  }
  const vm = await adoptVm(record, qemu, report);
  try {
    await begin(true);
  } catch (error) {
    if (!(error instanceof NotOursError)) {
      await vm.qmp.close();
      throw error;
    }
    // What it would say now somebody else says.
    vm.process.kill();
    await vm.stop();
    throw error;
  }
  await releasePrimary(vm.qmp);
  // It may have been paused because of a lease that the engine before could not renew.
  if ((await vm.qmp.execute("query-status")).status === "paused") await vm.qmp.execute("cont");
  for (const nic of filteredNics(config)) {
    await removePrimaryFilters(vm.qmp, nic);
    await removeInboundBuffer(vm.qmp, nic);
  }
  return vm;
}
