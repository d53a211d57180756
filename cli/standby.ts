/** `colo standby`: stand by for a VM as secondary. */

import { Command } from "@commander-js/extra-typings";
import { loadVmConfig, requireListen } from "../engine/config/mod.ts";
import { ConfigError, NotOursError } from "../engine/errors.ts";
import { runPrimary, runSecondary } from "./_hosts.ts";
import { inRunDirectory, interruptible, progress } from "./shared.ts";

export function standbyCommand() {
  return new Command("standby")
    .description(
      "stand by at replication.listen for a VM that runs elsewhere, and take it over; one that was " +
        "taken over, and still runs here, is looked after",
    )
    .argument("<config>", "vm.toml of this host")
    .option("--qemu <path>", "QEMU to use (default: COLO_QEMU, the system's, or a private one)")
    .option("--take-over", "run the VM from the checkpoint that an earlier standby has left here")
    .option("--json", "print every event as one JSON object a line")
    .action(async (path, options) => {
      const { qemu: qemuPath, json = false, takeOver = false } = options;
      const config = await loadVmConfig(path);
      requireListen(config);
      if (takeOver && config.replication.mode !== "continuous") {
        throw new ConfigError(
          `Cannot take over: only in replication.mode "continuous" a checkpoint outlives its standby`,
        );
      }
      Deno.exitCode = await interruptible((signal) =>
        inRunDirectory(config, async (run) => {
          const context = { config, run, signal, qemuPath, json };
          if (run.record?.runsVm) {
            try {
              return await runPrimary(context);
            } catch (error) {
              if (!(error instanceof NotOursError)) throw error;
              progress("another host runs the VM: standing by for it");
            }
          }
          return await runSecondary(context, takeOver);
        })
      );
    });
}
