/**
 * Switching the other host off before its VM is run here, by a command of the operator's.
 *
 * The command is a fence agent, or behaves like one: it is told what to do as `key=value` lines on its
 * standard input, and ends with 0 when, and only when, the other host is off.
 *
 * ```text
 *  ip=10.0.9.2
 *  username=admin
 *  password=secret
 *  action=off
 *  plug=hostA
 * ```
 *
 * Source: ClusterLabs fence-agents, `doc/FenceAgentAPI.md`.
 *
 * @module
 */

import { ConfigError, messageOf } from "../errors.ts";

/** The operator's fence command. */
export interface FenceSettings {
  /** The program and its arguments, such as `["fence_ipmilan"]` */
  readonly command: readonly string[];
  /** What the device calls the other host */
  readonly plug: string;
  /** Whatever else the agent needs to be told, such as `ip` and `password` */
  readonly options?: Readonly<Record<string, string>> | undefined;
  /** How long it may take; 60 s if absent. */
  readonly timeoutMs?: number | undefined;
}

/** A program to be run. */
export interface FenceRun {
  readonly command: readonly string[];
  readonly stdin: string;
  readonly timeoutMs: number;
}

/** How a program has ended. */
export type FenceEnd =
  /** @param complaint The end of what it has written to its standard error */
  | { readonly type: "exited"; readonly code: number; readonly complaint: string }
  /** It took too long, and was killed. */
  | { readonly type: "timed-out" };

/** Runs a program. Throws when it cannot be started. */
export type FenceRunner = (run: FenceRun) => Promise<FenceEnd>;

/** Whether the other host is off. */
export type FenceAnswer =
  | { readonly type: "off" }
  /** It may be on. */
  | { readonly type: "failed"; readonly reason: string };

/** Agents wait some 20 s for a device to switch, and log in to it before that. */
export const FENCE_TIMEOUT_MS = 60_000;

/** What is told by us, under its old names too. */
const OWN_KEYS: readonly string[] = ["action", "option", "plug", "port"];

const KEY = /^[A-Za-z][A-Za-z0-9_-]*$/;

const COMPLAINT_CHARS_MAX = 300;

/**
 * What the command is told. Pure.
 *
 * @throws {ConfigError} when an option is none, or would say something else than it seems
 */
export function fenceInput({ plug, options = {} }: FenceSettings): string {
  for (const [key, value] of Object.entries({ ...options, plug })) {
    // A value may be a password: messages name the key alone.
    if (!KEY.test(key)) fail(`${JSON.stringify(key)} is no name of an option`);
    if (key !== "plug" && OWN_KEYS.includes(key)) fail(`${key} is told by colo; leave it out`);
    if (/\p{Cc}/u.test(value)) fail(`the value of ${key} has more than one line`);
    if (/\s$/.test(value)) fail(`the value of ${key} ends with a space, which agents cut off`);
  }
  if (plug === "") {
    fail("the plug is missing; give the name that the fence device has for the host");
  }
  const said = { ...options, action: "off", plug };
  return Object.entries(said).map(([key, value]) => `${key}=${value}\n`).join("");
}

/** The operator's fence, ready to be used. */
export class Fence {
  readonly #run: FenceRun;
  readonly #runner: FenceRunner;

  /** @throws {ConfigError} when it cannot be used as it is configured: now, and not when it is needed */
  constructor(settings: FenceSettings, runner: FenceRunner) {
    const { command, timeoutMs = FENCE_TIMEOUT_MS } = settings;
    if (command[0] === undefined || command[0] === "") fail("no command is given");
    this.#run = { command, stdin: fenceInput(settings), timeoutMs };
    this.#runner = runner;
  }

  /** Switch the other host off. Never throws, and answers within the time that it may take. */
  async off(): Promise<FenceAnswer> {
    const [name] = this.#run.command;
    const failed = (detail: string): FenceAnswer => ({
      type: "failed",
      reason: `Cannot switch the other host off: ${name} ${detail}`,
    });
    try {
      const end = await this.#runner(this.#run);
      if (end.type === "timed-out") {
        return failed(`has not ended within ${this.#run.timeoutMs / 1000} s`);
      }
      if (end.code === 0) return { type: "off" };
      const said = lastLine(end.complaint);
      return failed(`ended with ${end.code}${said === "" ? "" : `: ${said}`}`);
    } catch (error) {
      return failed(`could not be run: ${messageOf(error)}`);
    }
  }
}

function lastLine(text: string): string {
  const lines = text.split("\n").map((line) => line.replaceAll(/\p{Cc}/gu, " ").trim());
  return (lines.findLast((line) => line !== "") ?? "").slice(0, COMPLAINT_CHARS_MAX);
}

function fail(detail: string): never {
  throw new ConfigError(`Cannot use the fence: ${detail}`);
}
