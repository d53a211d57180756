/** `colo standby`: stand by for a VM as secondary. */

import { Command } from "@commander-js/extra-typings";
import { loadVmConfig, requireListen } from "../engine/config/mod.ts";
import { ConfigError } from "../engine/errors.ts";
import { createArbiter, SecondaryHost } from "../engine/host/mod.ts";
import { findQemu } from "../engine/vm/mod.ts";
import { EXIT } from "./exit_codes.ts";
import { inRunDirectory, interruptible, lineReporter, progress } from "./shared.ts";

export function standbyCommand() {
  return new Command("standby")
    .description("stand by at replication.listen for a VM that runs elsewhere, and take it over")
    .argument("<config>", "vm.toml of this host")
    .option("--qemu <path>", "QEMU to use (default: COLO_QEMU, the system's, or a private one)")
    .option("--take-over", "run the VM from the checkpoint that an earlier standby has left here")
    .option("--json", "print every event as one JSON object a line")
    .action(async (path, options) => {
      const config = await loadVmConfig(path);
      requireListen(config);
      const { takeOver = false } = options;
      if (takeOver && config.replication.mode !== "continuous") {
        throw new ConfigError(
          `Cannot take over: only in replication.mode "continuous" a checkpoint outlives its standby`,
        );
      }
      const { accel } = config.vm;
      const qemuPath = options.qemu ?? config.qemuPath;
      const qemu = await findQemu({ path: qemuPath, accel, role: "secondary", progress });
      Deno.exitCode = await interruptible((signal) =>
        inRunDirectory(config, async (run) => {
          const report = lineReporter(options.json ?? false);
          const host = new SecondaryHost({
            config,
            qemu,
            directory: run.path,
            run,
            arbiter: createArbiter(config),
            report,
            takeOver,
          });
          signal.addEventListener("abort", () => host.stop());
          const end = await host.run();
          if (signal.aborted) return EXIT.INTERRUPTED;
          return end === "qemu-lost" ? EXIT.LOST : EXIT.OK;
        })
      );
    });
}
