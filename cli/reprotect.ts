/** `colo reprotect`: name the standby that a VM without one is to be protected by. */

import { Command } from "@commander-js/extra-typings";
import { askEngine, findSocket } from "./_control.ts";

export function reprotectCommand() {
  return new Command("reprotect")
    .description(
      "protect a running VM that has no secondary by the standby at an address, and by no other until " +
        "its engine ends",
    )
    .argument("<address>", "where that standby listens, such as 127.0.0.1:7700")
    .option("--config <file>", "vm.toml of the running VM")
    .option("--socket <path>", "its control socket, where it is not the one of the config")
    .action(async (address, options) => {
      await askEngine(await findSocket(options), "colo-reprotect", { address });
      console.log(`it is being protected by ${address}; colo status says how far that is`);
    });
}
