/**
 * Running a helper program to its end, and finding one.
 *
 * @module
 */

import { join } from "@std/path/mod.js";
import { TextLineStream } from "@std/streams/mod.js";
import { QemuError } from "../errors.ts";

/** How to run a program. */
export interface RunOptions {
  readonly cwd?: string;
  /** What to add to the environment */
  readonly env?: Readonly<Record<string, string>>;
  /** Called with each line of its standard output as it comes */
  readonly onLine?: (line: string) => void;
}

/**
 * Run a program to its end, in the C locale.
 *
 * @returns Its standard output
 * @throws {QemuError} when it cannot be started or fails, with the last line of its complaint
 */
export async function run(
  program: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  try {
    const child = new Deno.Command(program, {
      args: [...args],
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
      env: { ...options.env, LC_ALL: "C" },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const [lines, complaint, status] = await Promise.all([
      collectLines(child.stdout, options.onLine),
      new Response(child.stderr).text(),
      child.status,
    ]);
    if (!status.success) throw new Error(lastComplaint(complaint) ?? `exit code ${status.code}`);
    return lines.join("\n");
  } catch (cause) {
    const detail = cause instanceof Error ? cause.message : String(cause);
    throw new QemuError(`Cannot run ${program} ${args.at(-1) ?? ""}: ${detail}`, { cause });
  }
}

/** The path of a program in `PATH`, or undefined. A name with a slash is a path already. */
export async function which(name: string): Promise<string | undefined> {
  const directories = (Deno.env.get("PATH") ?? "").split(":");
  const paths = name.includes("/") ? [name] : directories.map((directory) => join(directory, name));
  for (const path of paths) {
    if (await isExecutable(path)) return path;
  }
  return undefined;
}

async function isExecutable(path: string): Promise<boolean> {
  try {
    const info = await Deno.stat(path);
    return info.isFile && ((info.mode ?? 0) & 0o111) !== 0;
  } catch {
    return false;
  }
}

async function collectLines(
  stream: ReadableStream<Uint8Array<ArrayBuffer>>,
  onLine?: (line: string) => void,
): Promise<string[]> {
  const lines: string[] = [];
  const text: ReadableStream<string> = stream.pipeThrough(new TextDecoderStream())
    .pipeThrough(new TextLineStream());
  for await (const line of text) {
    lines.push(line);
    onLine?.(line);
  }
  return lines;
}

/** apt marks what matters with `E:`; other programs say it last. */
function lastComplaint(text: string): string | undefined {
  const lines = text.split("\n").map((line) => line.trim()).filter((line) => line !== "");
  return lines.find((line) => line.startsWith("E: ")) ?? lines.at(-1);
}
