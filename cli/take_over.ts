/** `colo take-over`: have a standby run the VM, because the operator knows that it runs nowhere. */

import { Command } from "@commander-js/extra-typings";
import { standbyControlPath } from "../engine/control/mod.ts";
import { askEngine, findSocket } from "./_control.ts";

export function takeOverCommand() {
  return new Command("take-over")
    .description(
      "have a standby that has lost its primary run the VM: see first that it does not run there",
    )
    .option("--config <file>", "vm.toml of the standby")
    .option("--socket <path>", "its control socket, where it is not the one of the config")
    .action(async (options) => {
      const { socket } = options;
      await askEngine(
        socket ?? standbyControlPath(await findSocket(options)),
        "colo-lost-heartbeat",
      );
      console.log("the standby takes over");
    });
}
