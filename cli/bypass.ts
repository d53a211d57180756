/** `colo bypass`: lead a VM's frames past the engine, or through it again. */

import { Argument, Command } from "@commander-js/extra-typings";
import { loadVmConfig, type VmConfig } from "../engine/config/mod.ts";
import { openDirectPath, readRunRecord, runDirectoryOf } from "../engine/host/mod.ts";
import { askEngine, findSocket, UnreachableError } from "./_control.ts";

export function bypassCommand() {
  return new Command("bypass")
    .description(
      "lead what a VM sends past the engine (on), or through it again (off); `on` works when the " +
        "engine is dead as well",
    )
    .addArgument(new Argument("<state>", "on or off").choices(["on", "off"] as const))
    .requiredOption("--config <file>", "vm.toml of the running VM")
    .option("--socket <path>", "its control socket, where it is not the one of the config")
    .action(async (state, options) => {
      const config = await loadVmConfig(options.config);
      const socket = await findSocket(options);
      const enable = state === "on";
      try {
        await askEngine(socket, "colo-bypass", { enable });
      } catch (error) {
        if (!(error instanceof UnreachableError) || !enable) throw error;
        if (!await openWithoutEngine(config)) throw error;
      }
      console.log(enable ? "the network is open" : "the network is closed");
    });
}

/** @returns Whether there is a VM that an engine has left running */
async function openWithoutEngine(config: VmConfig): Promise<boolean> {
  const record = readRunRecord(runDirectoryOf(config));
  if (record?.runsVm !== true) return false;
  await openDirectPath(config, record);
  return true;
}
