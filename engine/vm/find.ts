/**
 * Finding a QEMU that can take a side of COLO: the one that was named, the machine's own, or the
 * private one, which is fetched when it is missing.
 *
 * @module
 */

import { QemuError } from "../errors.ts";
import { detectAccelerator } from "./accelerator.ts";
import type { Progress } from "./cache.ts";
import { fetchQemu, type Launch, privateQemuDirectory, privateTool } from "./private_qemu.ts";
import { probeQemu } from "./probe.ts";
import { run, which } from "./run.ts";
import {
  type Accelerator,
  coloCapabilities,
  judgeQemu,
  type Role,
  type Suitability,
} from "./suitability.ts";

/** Where a QEMU was found. */
export type QemuSource = "option" | "environment" | "system" | "fetched";

/** A QEMU that can do what was asked for. */
export interface Qemu {
  /** Program and fixed leading arguments */
  readonly command: readonly string[];
  /** What to add to its environment */
  readonly env: Readonly<Record<string, string>>;
  /** `N.N.N` */
  readonly version: string;
  readonly accel: Accelerator;
  readonly source: QemuSource;
  /** Migration capabilities to set on both sides, in this order */
  readonly capabilities: readonly string[];
}

/** What {@linkcode findQemu} is to find. */
export interface FindQemuOptions {
  /** A QEMU binary that the user named */
  readonly path?: string | undefined;
  /** The accelerator that the user named */
  readonly accel?: Accelerator | undefined;
  /** The side it is to take */
  readonly role: Role;
  readonly progress?: Progress | undefined;
}

/** The name of the machine's own QEMU in `PATH`. */
export const SYSTEM_QEMU = "qemu-system-x86_64";

/** The environment variable that names a QEMU binary. */
export const QEMU_VARIABLE = "COLO_QEMU";

/**
 * Find a QEMU for one side of COLO.
 *
 * A QEMU that was named (option, then `COLO_QEMU`) is taken or refused, never replaced. Without a
 * name it is the machine's own where that can do it, else the private one.
 *
 * @throws {QemuError} when the named one is missing or unsuitable, or the private one cannot be had
 */
export async function findQemu(options: FindQemuOptions): Promise<Qemu> {
  const { accel } = await detectAccelerator(options.accel);
  const { role } = options;
  if (options.path !== undefined) return await takeNamed(options.path, "option", accel, role);
  const named = Deno.env.get(QEMU_VARIABLE);
  if (named) return await takeNamed(named, "environment", accel, role);
  return await findSystem(accel, role, options.progress) ??
    await findPrivate(accel, role, options.progress);
}

/**
 * The command of one of QEMU's tools that goes with a QEMU; run it with the QEMU's `env`.
 */
export function qemuTool(name: "qemu-img" | "qemu-nbd", qemu: Qemu): readonly string[] {
  return qemu.source === "fetched" ? privateTool(qemu.command, name) : [name];
}

/** The newest versioned machine type that an alias such as `pc` or `q35` stands for. */
export async function resolveMachine(qemu: Qemu, alias: string): Promise<string> {
  const [program = "", ...leading] = qemu.command;
  const text = await run(program, [...leading, "-machine", "help"], { env: qemu.env });
  const line = text.split("\n").find((row) => row.startsWith(`${alias} `));
  return /\(alias of ([^)]+)\)/.exec(line ?? "")?.[1] ?? alias;
}

/** A QEMU that was found, and what it can do. */
export interface ExaminedQemu {
  readonly qemu: Qemu;
  readonly suitability: Suitability;
}

/**
 * Ask a QEMU what it is, and judge it.
 *
 * @throws {QemuError} when it cannot be started or does not answer
 */
export async function examineQemu(
  launch: Launch,
  source: QemuSource,
  accel: Accelerator,
): Promise<ExaminedQemu> {
  const probe = await probeQemu(launch.command, launch.env);
  const { version } = probe;
  const qemu = { ...launch, version, accel, source, capabilities: coloCapabilities(version) };
  if (accel === "kvm" && !probe.hasKvm) {
    const refusal = { ok: false, reason: "it was built without KVM" };
    return { qemu, suitability: { primary: refusal, secondary: refusal } };
  }
  return { qemu, suitability: judgeQemu({ ...probe, accel }) };
}

async function findSystem(
  accel: Accelerator,
  role: Role,
  progress?: Progress,
): Promise<Qemu | undefined> {
  const path = await which(SYSTEM_QEMU);
  if (path === undefined) return undefined;
  try {
    const { qemu, suitability } = await examineQemu({ command: [path], env: {} }, "system", accel);
    const { ok, reason } = suitability[role];
    if (ok) return qemu;
    progress?.(`passing over QEMU ${qemu.version} (${path}): as a ${role}, ${reason}`);
  } catch (error) {
    progress?.(`passing over ${path}: ${error instanceof Error ? error.message : error}`);
  }
  return undefined;
}

async function findPrivate(accel: Accelerator, role: Role, progress?: Progress): Promise<Qemu> {
  const launch = await fetchQemu(progress);
  const { qemu, suitability } = await examineQemu(launch, "fetched", accel).catch((cause) => {
    const remedy = `remove ${privateQemuDirectory()} to have it fetched anew`;
    throw new QemuError(`${cause instanceof Error ? cause.message : cause}; ${remedy}`, { cause });
  });
  const { ok, reason } = suitability[role];
  if (ok) return qemu;
  throw new QemuError(`Cannot use QEMU ${qemu.version} from Debian as a ${role}: ${reason}`);
}

async function takeNamed(
  name: string,
  source: "option" | "environment",
  accel: Accelerator,
  role: Role,
): Promise<Qemu> {
  const origin = source === "option" ? "--qemu" : QEMU_VARIABLE;
  const path = await which(name);
  if (path === undefined) {
    throw new QemuError(
      `Cannot use QEMU ${name}: no such program; correct ${origin}, or leave it out to have one found`,
    );
  }
  const launch = { command: [path], env: {} };
  const { qemu, suitability } = await examineQemu(launch, source, accel);
  const { ok, reason } = suitability[role];
  if (ok) return qemu;
  throw new QemuError(
    `Cannot use QEMU ${qemu.version} (${path}) as a ${role}: ${reason}; ` +
      `name QEMU 11.1 or newer with ${origin}, or leave it out to have one found`,
  );
}
