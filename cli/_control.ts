/** What the commands share that talk to a running engine. */

import { loadVmConfig } from "../engine/config/mod.ts";
import { defaultControlPath } from "../engine/control/mod.ts";
import { ColoError, ConfigError, messageOf, QmpCommandError } from "../engine/errors.ts";
import { QmpClient } from "../engine/qmp/mod.ts";

/** Which engine is meant. */
export interface ControlOptions {
  readonly config?: string | undefined;
  readonly socket?: string | undefined;
}

/** Where the engine listens. */
export async function findSocket({ config, socket }: ControlOptions): Promise<string> {
  if (socket !== undefined) return socket;
  if (config === undefined) {
    throw new ConfigError("Cannot tell which VM is meant: give --config vm.toml or --socket PATH");
  }
  const { controlPath, vm } = await loadVmConfig(config);
  return controlPath ?? defaultControlPath(vm.name);
}

/** Nobody listens at a control socket. */
export class UnreachableError extends ColoError {
  override name = "UnreachableError";
}

/**
 * Have a running engine do something.
 *
 * @returns Its answer
 * @throws {UnreachableError} when none listens there
 * @throws {ColoError} with the engine's own words when it does not do it
 */
export async function askEngine(
  socket: string,
  command: string,
  args: Readonly<Record<string, unknown>> = {},
  timeoutMs = 10_000,
): Promise<unknown> {
  const client = await QmpClient.connect(socket).catch((error) => {
    throw new UnreachableError(
      `Cannot reach the VM at ${socket}: ${messageOf(error)}; does its engine run?`,
    );
  });
  try {
    return await client.executeRaw(command, args, { timeoutMs });
  } catch (error) {
    if (error instanceof QmpCommandError) throw new ColoError(error.description);
    throw error;
  } finally {
    await client.close();
  }
}
