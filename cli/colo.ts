/**
 * The `colo` command.
 *
 * ```sh
 * deno run -A cli/colo.ts demo
 * ```
 *
 * @module
 */

import { Command, CommanderError } from "@commander-js/extra-typings";
import { ColoError, ConfigError } from "../engine/errors.ts";
import { ENGINE_VERSION } from "../engine/version.ts";
import { bypassCommand } from "./bypass.ts";
import { checkpointCommand } from "./checkpoint.ts";
import { demoCommand } from "./demo.ts";
import { doctorCommand } from "./doctor.ts";
import { EXIT, EXIT_CODES_HELP } from "./exit_codes.ts";
import { exportCommand } from "./export.ts";
import { inspectCommand } from "./inspect.ts";
import { reprotectCommand } from "./reprotect.ts";
import { restoreCommand } from "./restore.ts";
import { runCommand } from "./run.ts";
import { standbyCommand } from "./standby.ts";
import { statusCommand } from "./status.ts";
import { takeOverCommand } from "./take_over.ts";

/** The whole command line, as a value: parsing it starts nothing. */
export function coloCommand() {
  const program = new Command("colo")
    .description("Keep a QEMU virtual machine alive through the death of its host")
    .version(ENGINE_VERSION, "--version", "print the version")
    .helpCommand(false)
    .addCommand(demoCommand())
    .addCommand(runCommand())
    .addCommand(standbyCommand())
    .addCommand(statusCommand())
    .addCommand(bypassCommand())
    .addCommand(reprotectCommand())
    .addCommand(takeOverCommand())
    .addCommand(checkpointCommand())
    .addCommand(restoreCommand())
    .addCommand(exportCommand())
    .addCommand(doctorCommand())
    .addCommand(inspectCommand());
  const commands = program.commands.flatMap((command) => [command, ...command.commands]);
  for (const command of [program, ...commands]) {
    command.exitOverride().helpOption("--help", "show this help").addHelpText(
      "after",
      EXIT_CODES_HELP,
    );
  }
  return program;
}

/** Run one command line; the exit code is left in `Deno.exitCode`. */
export async function main(args: readonly string[]): Promise<void> {
  try {
    await coloCommand().parseAsync([...args], { from: "user" });
  } catch (error) {
    if (error instanceof CommanderError) {
      Deno.exitCode = error.exitCode === 0 ? EXIT.OK : EXIT.USAGE;
    } else if (error instanceof ColoError) {
      console.error(`colo: ${error.message}`);
      Deno.exitCode = error instanceof ConfigError ? EXIT.USAGE : EXIT.FAILED;
    } else {
      throw error;
    }
  }
}

if (import.meta.main) {
  await main(Deno.args);
  // Nothing that is still open may keep a finished command alive.
  Deno.exit();
}
