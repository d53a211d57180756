/**
 * The control socket of an engine, which speaks QMP.
 *
 * @module
 */

export { defaultControlPath, runtimeDirectory, standbyControlPath } from "./path.ts";
export { ControlServer } from "./server.ts";
export {
  type ArgumentType,
  type CommandArguments,
  type ControlCommand,
  type ControlCommands,
  ControlSession,
  type SessionEffect,
} from "./session.ts";
