/**
 * What a QEMU binary says about itself: version, migration capabilities, KVM.
 *
 * It is started without a machine and asked over QMP on its standard streams; all commands are
 * written at once, as QMP executes them in order.
 *
 * @module
 */

import { QemuError } from "../errors.ts";

/** A QEMU's own answers. */
export interface QemuProbe {
  /** `N.N.N` */
  readonly version: string;
  /** Names of the migration capabilities it knows */
  readonly capabilities: readonly string[];
  /** Whether it was built with KVM */
  readonly hasKvm: boolean;
}

interface Reply {
  readonly id?: string;
  readonly return?: unknown;
}

const PROBE_TIMEOUT_MS = 15_000;
const QUERIES = ["query-version", "query-migrate-capabilities", "query-kvm"];

/**
 * Start a QEMU without a machine and ask it what it is.
 *
 * @param command Program and leading arguments
 * @param env Variables to add to the environment
 * @throws {QemuError} when it cannot be started or does not answer; nothing is left running
 */
export async function probeQemu(
  command: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<QemuProbe> {
  const [program = "", ...leading] = command;
  const { stdout, stderr } = await exchange(program, [
    ...leading,
    ...["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio"],
  ], env);
  const replies = stdout.split("\n").flatMap(parseReply);
  const answer = (id: string) => replies.find((reply) => reply.id === id)?.return;
  const version = versionOf(answer("query-version"));
  if (version === undefined) {
    const detail = stderr.trim().split("\n").at(-1) || "it does not answer on QMP";
    throw new QemuError(`Cannot use ${program} as QEMU: ${detail}`);
  }
  return {
    version,
    capabilities: capabilitiesOf(answer("query-migrate-capabilities")),
    hasKvm: isRecord(answer("query-kvm")) && Object(answer("query-kvm")).present === true,
  };
}

async function exchange(program: string, args: string[], env: Readonly<Record<string, string>>) {
  const signal = AbortSignal.timeout(PROBE_TIMEOUT_MS);
  try {
    const child = new Deno.Command(program, {
      ...{ args, env, signal },
      ...{ stdin: "piped", stdout: "piped", stderr: "piped" },
    }).spawn();
    // Closing standard input early would make QEMU forget the commands it has not executed yet.
    const writer = child.stdin.getWriter();
    const commands = ["qmp_capabilities", ...QUERIES, "quit"]
      .map((name) => JSON.stringify({ execute: name, id: name }) + "\n").join("");
    writer.write(new TextEncoder().encode(commands)).catch(() => {});
    const [stdout, stderr] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.status,
    ]);
    await writer.close().catch(() => {});
    return { stdout, stderr };
  } catch (cause) {
    const detail = cause instanceof Error ? cause.message : String(cause);
    throw new QemuError(`Cannot use ${program} as QEMU: ${detail}`, { cause });
  }
}

function parseReply(line: string): Reply[] {
  try {
    const value: unknown = JSON.parse(line);
    return isRecord(value) ? [value] : [];
  } catch {
    return [];
  }
}

function versionOf(answer: unknown): string | undefined {
  const qemu = isRecord(answer) ? answer["qemu"] : undefined;
  if (!isRecord(qemu)) return undefined;
  return [qemu["major"], qemu["minor"], qemu["micro"]].join(".");
}

function capabilitiesOf(answer: unknown): string[] {
  if (!Array.isArray(answer)) return [];
  return answer.filter(isRecord).map((entry) => String(entry["capability"]));
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}
