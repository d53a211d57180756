/** `colo run`: start a VM as primary. */

import { Command } from "@commander-js/extra-typings";
import { loadVmConfig, requirePeer } from "../engine/config/mod.ts";
import { createArbiter, PrimaryHost } from "../engine/host/mod.ts";
import { findQemu } from "../engine/vm/mod.ts";
import { EXIT } from "./exit_codes.ts";
import { inRunDirectory, interruptible, lineReporter, progress } from "./shared.ts";

export function runCommand() {
  return new Command("run")
    .description("start a VM and keep it protected by the standby at replication.peer")
    .argument("<config>", "vm.toml of this host")
    .option("--qemu <path>", "QEMU to use (default: COLO_QEMU, the system's, or a private one)")
    .option("--json", "print every event as one JSON object a line")
    .option("--record <file>", "write all that the primary QEMU sends to a file for `colo inspect`")
    .action(async (path, options) => {
      const config = await loadVmConfig(path);
      requirePeer(config);
      const { accel } = config.vm;
      const qemuPath = options.qemu ?? config.qemuPath;
      const qemu = await findQemu({ path: qemuPath, accel, role: "primary", progress });
      Deno.exitCode = await interruptible((signal) =>
        inRunDirectory(config, async (run) => {
          const host = new PrimaryHost({
            config,
            qemu,
            directory: run.path,
            run,
            arbiter: createArbiter(config),
            report: lineReporter(options.json ?? false),
            recordPath: options.record,
          });
          signal.addEventListener("abort", () => host.stop("the operator ended it"));
          const end = await host.run();
          if (signal.aborted) return EXIT.INTERRUPTED;
          return end === "qemu-lost" ? EXIT.LOST : EXIT.OK;
        })
      );
    });
}
