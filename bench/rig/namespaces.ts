/**
 * Network namespaces of a process's own, which go when it goes.
 *
 * @module
 */

import { ColoError } from "../../engine/errors.ts";
import { run, which } from "../../engine/vm/run.ts";

/** One end of a network. */
export interface NetworkSide {
  readonly address: string;
  /** Put before a command, runs it there. */
  readonly prefix: readonly string[];
}

/** Two ends that reach each other. */
export interface NetworkPair {
  readonly primary: NetworkSide;
  readonly secondary: NetworkSide;
}

const NAME = /^colo-(\d+)-/;

let made = 0;

/** Why there can be none on this machine, or nothing. */
export async function whyNoNamespaces(): Promise<string | undefined> {
  if (Deno.uid() !== 0) return "network namespaces need root";
  if (await which("ip") === undefined) return "`ip` is missing: install iproute2";
  return undefined;
}

/** Namespaces that are made and removed together. */
export class Namespaces<Role extends string> {
  readonly #prefix = `colo-${Deno.pid}-${++made}`;
  readonly #made: Role[] = [];

  /**
   * Make one for each role, with a loopback of its own and nothing else.
   *
   * @throws {ColoError} when the kernel refuses; nothing is left behind
   */
  static async create<Role extends string>(roles: readonly Role[]): Promise<Namespaces<Role>> {
    await removeOrphans();
    const namespaces = new Namespaces<Role>();
    await namespaces.build(async () => {
      for (const role of roles) {
        await run("ip", ["netns", "add", namespaces.name(role)]);
        namespaces.#made.push(role);
        await namespaces.ip(role, "link", "set", "lo", "up");
      }
    });
    return namespaces;
  }

  /** Do what makes a network of them; if it fails they are removed. */
  async build(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      await this.close();
      const detail = error instanceof Error ? error.message : String(error);
      throw new ColoError(`Cannot make network namespaces: ${detail}`, { cause: error });
    }
  }

  name(role: Role): string {
    return `${this.#prefix}-${role}`;
  }

  /** Put before a command, runs it there. */
  prefix(role: Role): readonly string[] {
    return ["ip", "netns", "exec", this.name(role)];
  }

  /** Run `ip` there. */
  async ip(role: Role, ...args: readonly string[]): Promise<void> {
    await run("ip", ["-n", this.name(role), ...args]);
  }

  /** Run a program there to its end; returns what it says. */
  async run(role: Role, ...command: readonly string[]): Promise<string> {
    const [program = "", ...args] = [...this.prefix(role), ...command];
    return await run(program, args);
  }

  /** Remove the namespaces, what runs in them, and the cables with them. */
  async close(): Promise<void> {
    for (const role of this.#made.splice(0)) await remove(this.name(role));
  }
}

async function remove(name: string): Promise<void> {
  // One in which something runs would live on without a name.
  const pids = await run("ip", ["netns", "pids", name]).catch(() => "");
  for (const pid of pids.split("\n").filter((line) => line !== "")) {
    try {
      Deno.kill(Number(pid), "SIGKILL");
    } catch {
      // It has ended meanwhile.
    }
  }
  await run("ip", ["netns", "delete", name]).catch(() => {});
}

/** Remove what processes have left that were killed. */
async function removeOrphans(): Promise<void> {
  const list = await run("ip", ["netns", "list"]);
  for (const line of list.split("\n")) {
    const [name = ""] = line.split(" ");
    const pid = NAME.exec(name)?.[1];
    if (pid === undefined) continue;
    const lives = await Deno.stat(`/proc/${pid}`).then(() => true, () => false);
    if (!lives) await remove(name);
  }
}
