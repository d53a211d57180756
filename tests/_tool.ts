/**
 * Programs that ours are compared with.
 *
 * @module
 */

import { anyProgram } from "../bench/rig/debian_program.ts";

const PROGRAMS = {
  cpio: ["bin/cpio", ["cpio"]],
  lz4: ["usr/bin/lz4", ["lz4", "liblz4-1"]],
  xxhsum: ["usr/bin/xxhsum", ["xxhash"]],
} as const;

/** A program that other people wrote. */
export class Tool {
  readonly #command: readonly string[];

  private constructor(command: readonly string[]) {
    this.#command = command;
  }

  /** Nothing where it cannot be had; it was said then why its tests are left out. */
  static async find(name: keyof typeof PROGRAMS): Promise<Tool | undefined> {
    const [path, packages] = PROGRAMS[name];
    const command = await anyProgram(path, packages).catch((error) => `${error}`);
    if (typeof command !== "string") return new Tool(command);
    console.log(`the tests with ${name} are left out: ${command}`);
    return undefined;
  }

  /** As a line of a shell, which a path with blanks would break. */
  get line(): string {
    return this.#command.join(" ");
  }

  /** What it prints, when it is told this; throws what it complains of. */
  async run(args: readonly string[], input: Uint8Array = new Uint8Array(0)): Promise<Uint8Array> {
    const [program = "", ...leading] = this.#command;
    const child = new Deno.Command(program, {
      args: [...leading, ...args],
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    // One that refuses its input does not read it.
    const sent = new Blob([Uint8Array.from(input)]).stream().pipeTo(child.stdin).catch(() => {});
    const { success, stdout, stderr } = await child.output();
    await sent;
    if (success) return stdout;
    throw new Error(`${program} failed: ${new TextDecoder().decode(stderr)}`);
  }
}
