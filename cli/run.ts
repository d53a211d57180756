/** `colo run`: start a VM as primary. */

import { Command } from "@commander-js/extra-typings";
import { loadVmConfig, requireListen, requirePeer } from "../engine/config/mod.ts";
import { NotOursError } from "../engine/errors.ts";
import { runPrimary, runSecondary } from "./_hosts.ts";
import { inRunDirectory, interruptible, progress } from "./shared.ts";

export function runCommand() {
  return new Command("run")
    .description(
      "start a VM and keep it protected, by the standby at replication.peer or, with etcd, by any",
    )
    .argument("<config>", "vm.toml of this host")
    .option("--qemu <path>", "QEMU to use (default: COLO_QEMU, the system's, or a private one)")
    .option(
      "--alone",
      "run it though the other host does not answer: you know that it is not there",
    )
    .option("--or-stand-by", "stand by for the VM where another host runs it by now")
    .option("--json", "print every event as one JSON object a line")
    .option("--record <file>", "write all that the primary QEMU sends to a file for `colo inspect`")
    .action(async (path, options) => {
      const { qemu: qemuPath, json = false, orStandBy = false, alone, record } = options;
      const config = await loadVmConfig(path);
      // With etcd it finds whoever stands by.
      if (config.failover.arbiter === "manual") requirePeer(config);
      if (orStandBy) requireListen(config);
      Deno.exitCode = await interruptible((signal) =>
        inRunDirectory(config, async (run) => {
          const context = { config, run, signal, qemuPath, json };
          try {
            return await runPrimary(context, { recordPath: record, isOrdered: alone });
          } catch (error) {
            if (!orStandBy || !(error instanceof NotOursError)) throw error;
            progress("another host runs the VM: standing by for it");
            return await runSecondary(context);
          }
        })
      );
    });
}
