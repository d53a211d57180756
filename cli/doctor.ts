/** `colo doctor`: what this machine can do. */

import { Command } from "@commander-js/extra-typings";
import { diagnose, formatDiagnosis } from "../engine/vm/mod.ts";

export function doctorCommand() {
  return new Command("doctor")
    .description("say which QEMU would be used on this machine, and why")
    .option("--qemu <path>", "QEMU to judge as well")
    .option("--json", "print one JSON object")
    .action(async ({ qemu, json }) => {
      const diagnosis = await diagnose({ path: qemu });
      console.log(json ? JSON.stringify(diagnosis, null, 2) : formatDiagnosis(diagnosis));
    });
}
