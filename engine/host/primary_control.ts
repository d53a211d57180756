/**
 * What a running primary can be asked and told over its control socket.
 *
 * @module
 */

import { type ControlCommands, ControlServer, defaultControlPath } from "../control/mod.ts";
import type { VmConfig } from "../config/mod.ts";
import { ColoError, messageOf } from "../errors.ts";
import type { PrimaryPhase } from "../failover/primary.ts";
import { type LinkAddress, parseAddress } from "../link/mod.ts";
import type { QmpClient } from "../qmp/mod.ts";
import type { OutboundStatistics } from "../proxy/mod.ts";
import type { SaveResult } from "../store/mod.ts";
import type { ColoStatistics } from "./statistics.ts";

/** What the commands need of a primary. */
export interface ControlledPrimary {
  /** How far it is, and the number of its last checkpoint. */
  status(): Omit<StatusOverControl, "vm" | "mode" | "protected">;
  /** The monitor of its QEMU. */
  readonly qmp: QmpClient;
  /** See {@linkcode PrimaryHost.save}. */
  save(name: string): Promise<SaveResult>;
  /** Have frames pass the engine by, or no more. */
  bypass(on: boolean): Promise<void>;
  /** See {@linkcode PrimaryLink.reprotect}. */
  reprotect(address: LinkAddress): void;
}

/** The commands by their names. */
export function primaryCommands(
  primary: ControlledPrimary,
  { vm, replication }: Pick<VmConfig, "vm" | "replication">,
): ControlCommands {
  const reach = replication.encryption === "none" ? "network" : "host";
  return {
    "query-status": { arguments: {}, run: () => primary.qmp.execute("query-status") },
    "query-colo-status": {
      arguments: {},
      run: (): StatusOverControl => {
        const status = primary.status();
        const { phase } = status;
        const mode = phase === "ended" ? "none" : "primary";
        // A takeover would contradict what has left unseen.
        const isProtected = phase === "protected" && !status.bypass;
        return { vm: vm.name, mode, protected: isProtected, ...status };
      },
    },
    "colo-bypass": {
      arguments: { enable: "boolean" },
      run: ({ enable }) => primary.bypass(enable === true),
    },
    "colo-reprotect": {
      arguments: { address: "string" },
      run: ({ address }) => primary.reprotect(parseAddress(String(address), undefined, reach)),
    },
    "colo-checkpoint-save": {
      arguments: { name: "string" },
      run: async ({ name }) => describe(await primary.save(String(name))),
    },
  };
}

/** What `query-colo-status` says. */
export interface StatusOverControl {
  readonly vm: string;
  readonly mode: "primary" | "none";
  readonly phase: PrimaryPhase;
  readonly protected: boolean;
  /** Frames pass the engine by, because the operator wants it so. */
  readonly bypass: boolean;
  readonly epoch: number;
  readonly statistics: ColoStatistics;
  /** A network card each, once a secondary has come. */
  readonly network: readonly OutboundStatistics[];
  /** While the disks are copied to the secondary, which cannot be seeded before. */
  readonly "disks-copying"?: DisksCopying;
}

/** How far the disks are copied. */
export interface DisksCopying {
  readonly "done-bytes": number;
  /** Grows when the guest writes. */
  readonly "total-bytes": number;
}

/** What a saved checkpoint is called on the control socket. */
export interface SavedOverControl {
  readonly name: string;
  readonly full: boolean;
  readonly pages: number;
  readonly bytes: number;
  readonly epoch: number;
  readonly "duration-ms": number;
  /** How long no checkpoint could be begun; the guest ran. */
  readonly "frozen-ms": number;
  /** Checkpoints that the retention rule has ended. */
  readonly retired: readonly string[];
  readonly "retain-failure"?: string;
}

function describe(result: SaveResult): SavedOverControl {
  const { checkpoint, durationMs, frozenMs, retired, retainFailure } = result;
  const { metadata } = checkpoint;
  return {
    name: checkpoint.name,
    full: metadata.parent === undefined,
    pages: metadata.pages,
    bytes: checkpoint.sizeBytes,
    epoch: metadata.epoch,
    "duration-ms": durationMs,
    "frozen-ms": frozenMs,
    retired,
    ...(retainFailure === undefined ? {} : { "retain-failure": retainFailure }),
  };
}

/**
 * Open the control socket of a VM. A VM runs without one as well: what stands in its way is said, and
 * that is all.
 *
 * @param pathOf The standby's, of the VM's
 */
export async function openControl(
  { controlPath, vm }: VmConfig,
  commands: ControlCommands,
  notice: (text: string) => void,
  pathOf: (path: string) => string = (path) => path,
): Promise<ControlServer | undefined> {
  try {
    return await ControlServer.listen(pathOf(controlPath ?? defaultControlPath(vm.name)), commands);
  } catch (error) {
    if (!(error instanceof ColoError)) throw error;
    notice(messageOf(error));
    return undefined;
  }
}
