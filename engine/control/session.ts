/**
 * What one client of the control socket says and hears: the server's side of QMP, as QEMU speaks it.
 * Pure: bytes in, answers and calls out.
 *
 * ```text
 *  server                                             client
 *    {"QMP": {"version": ..., "capabilities": []}} --->
 *    <------------------------- {"execute": "qmp_capabilities"}
 *    {"return": {}} ---------------------------------->
 *    <------ {"execute": NAME, "arguments": {...}, "id": ...}
 *    {"return": ..., "id": ...}  or  {"error": {"class", "desc"}, "id": ...}
 * ```
 *
 * Source: QEMU `docs/interop/qmp-spec.rst`; error texts are those of QEMU's own monitor.
 *
 * @module
 */

import { CONTROL_OBJECT_BYTES_MAX } from "../limits.ts";
import { JsonObjects } from "./json_objects.ts";

/** Types that an argument may have. */
export type ArgumentType = "string" | "integer" | "boolean";

/** Arguments of a command, after they were checked. */
export type CommandArguments = Readonly<Record<string, unknown>>;

/** One command. */
export interface ControlCommand {
  /** Its arguments by their names; a name that ends with `?` may be left out. */
  readonly arguments: Readonly<Record<string, ArgumentType>>;
  /**
   * Do it.
   *
   * @returns What goes to the client as `return`
   * @throws whatever went wrong; its message goes to the client
   */
  run(args: CommandArguments): unknown;
}

/** Commands by their names. */
export type ControlCommands = Readonly<Record<string, ControlCommand>>;

/** What is to be done for a client, in this order. */
export type SessionEffect =
  | { readonly type: "write"; readonly message: object }
  /** Run it, then write {@linkcode succeeded} or {@linkcode refused}. */
  | {
    readonly type: "run";
    readonly command: ControlCommand;
    readonly args: CommandArguments;
    readonly id: unknown;
  };

/** The server's side of one connection. */
export class ControlSession {
  readonly #commands: ControlCommands;
  readonly #version: string;
  readonly #input = new JsonObjects(CONTROL_OBJECT_BYTES_MAX);
  #negotiated = false;

  /** @param version Of the engine, `N.N.N` */
  constructor(commands: ControlCommands, version: string) {
    this.#version = version;
    this.#commands = {
      ...commands,
      "query-commands": {
        arguments: {},
        run: () => Object.keys(this.#commands).sort().map((name) => ({ name })),
      },
      "query-version": { arguments: {}, run: () => versionInfo(version) },
    };
  }

  /** The first thing that a client hears. */
  greeting(): object {
    return { QMP: { version: versionInfo(this.#version), capabilities: [] } };
  }

  /** Take what a client has sent. */
  push(chunk: Uint8Array): SessionEffect[] {
    return this.#input.push(chunk).map((input) =>
      input.type === "malformed" ? write(refused(undefined, input.reason)) : this.#take(input.value)
    );
  }

  #take(object: Readonly<Record<string, unknown>>): SessionEffect {
    const { execute, arguments: args = {}, id } = object;
    const unknown = Object.keys(object).find((key) =>
      !["execute", "arguments", "id"].includes(key)
    );
    if (unknown !== undefined) {
      return write(refused(id, `QMP input member '${unknown}' is unexpected`));
    }
    if (typeof execute !== "string") {
      return write(refused(id, "QMP input lacks member 'execute'"));
    }
    if (typeof args !== "object" || args === null || Array.isArray(args)) {
      return write(refused(id, "QMP input member 'arguments' must be an object"));
    }
    if (!this.#negotiated) return this.#negotiate(execute, id);
    if (!Object.hasOwn(this.#commands, execute)) {
      const known = execute === "qmp_capabilities";
      const reason = known
        ? "Capabilities negotiation is already complete, command ignored"
        : `The command ${execute.slice(0, 80)} has not been found`;
      return write(refused(id, reason, "CommandNotFound"));
    }
    const command = this.#commands[execute]!;
    const problem = checkArguments(command.arguments, args);
    if (problem !== undefined) return write(refused(id, problem));
    return { type: "run", command, args: args as CommandArguments, id };
  }

  #negotiate(execute: string, id: unknown): SessionEffect {
    if (execute === "qmp_capabilities") {
      this.#negotiated = true;
      return write(succeeded(id, {}));
    }
    const reason = "Expecting capabilities negotiation with 'qmp_capabilities'";
    return write(refused(id, reason, "CommandNotFound"));
  }
}

/** The answer to a command that was done. */
export function succeeded(id: unknown, value: unknown): object {
  return { return: value ?? {}, ...(id === undefined ? {} : { id }) };
}

/** The answer to a command that was not done. */
export function refused(id: unknown, description: string, errorClass = "GenericError"): object {
  return {
    error: { class: errorClass, desc: description },
    ...(id === undefined ? {} : { id }),
  };
}

function write(message: object): SessionEffect {
  return { type: "write", message };
}

function versionInfo(version: string): object {
  const [major = 0, minor = 0, micro = 0] = version.split(".").map(Number);
  return { qemu: { major, minor, micro }, package: "colo" };
}

function checkArguments(expected: ControlCommand["arguments"], args: object): string | undefined {
  const given = new Map<string, unknown>(Object.entries(args));
  for (const [key, type] of Object.entries(expected)) {
    const name = key.replace(/\?$/, "");
    const value = given.get(name);
    given.delete(name);
    if (value === undefined) {
      if (key === name) return `Parameter '${name}' is missing`;
    } else if (!hasType(type, value)) {
      return `Invalid parameter type for '${name}', expected: ${type}`;
    }
  }
  const [extra] = given.keys();
  return extra === undefined ? undefined : `Parameter '${extra.slice(0, 80)}' is unexpected`;
}

function hasType(type: ArgumentType, value: unknown): boolean {
  switch (type) {
    case "string":
      return typeof value === "string";
    case "integer":
      return Number.isSafeInteger(value);
    case "boolean":
      return typeof value === "boolean";
  }
}
