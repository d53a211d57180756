/** `colo status`: how a running VM is protected. */

import { Command } from "@commander-js/extra-typings";
import { standbyControlPath } from "../engine/control/mod.ts";
import type { StandbyOverControl, StatusOverControl } from "../engine/host/mod.ts";
import { formatBytes } from "../engine/host/mod.ts";
import { askEngine, findSocket, UnreachableError } from "./_control.ts";

export function statusCommand() {
  return new Command("status")
    .description("say whether a VM is protected and what that has cost, or how far its standby is")
    .option("--config <file>", "vm.toml of the running VM")
    .option("--socket <path>", "its control socket, where it is not the one of the config")
    .option("--json", "print one JSON object")
    .action(async (options) => {
      const socket = await findSocket(options);
      const status = await ask(socket).catch((error) => {
        if (!(error instanceof UnreachableError)) throw error;
        return ask(standbyControlPath(socket)).catch(() => Promise.reject(error));
      });
      if (options.json) return console.log(JSON.stringify(status));
      for (const line of formatStatus(status)) console.log(line);
    });
}

async function ask(socket: string): Promise<StatusOverControl | StandbyOverControl> {
  return await askEngine(socket, "query-colo-status") as StatusOverControl | StandbyOverControl;
}

function formatPhase({ phase, protected: isProtected, bypass }: StatusOverControl): string {
  if (isProtected) return phase;
  // It has a standby, which is no protection while the network is open.
  return bypass && phase === "protected" ? "not protected" : `${phase}, not protected`;
}

/** Lines for a person. */
export function formatStatus(status: StatusOverControl | StandbyOverControl): string[] {
  if (status.mode === "secondary") {
    return [`standby      ${status.vm}: ${status.phase}, checkpoint ${status.epoch}`];
  }
  const { statistics: counted, network, "disks-copying": copying } = status;
  const ms = (value: number) => `${value.toFixed(1)} ms`;
  const mean = counted.checkpoints === 0 ? 0 : counted["downtime-total"] / counted.checkpoints;
  return [
    `vm           ${status.vm}: ${formatPhase(status)}`,
    ...(copying === undefined ? [] : [
      `disks        ${formatBytes(copying["done-bytes"])} of ` +
      `${formatBytes(copying["total-bytes"])} copied to the standby`,
    ]),
    `checkpoints  ${counted.checkpoints}, the last is ${status.epoch}; ` +
    `${counted["periodic-count"]} periodic, ${counted["discompare-count"]} for differences`,
    `paused       ${ms(mean)} mean, ${ms(counted["downtime-max"])} max`,
    `on the link  ${formatBytes(counted["transferred-bytes"])} for ` +
    `${formatBytes(counted["dirty-bytes"])} of memory`,
    ...network.map((card, index) =>
      `card ${index}       ${card.released} frames left, ${card.held} wait; ` +
      `${card.mismatches} connections differed, ${card.timeouts} timeouts, ${card.lost} lost`
    ),
    ...(status.bypass ? ["network      open: frames pass the engine by (colo bypass off)"] : []),
  ];
}
