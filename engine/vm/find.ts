/**
 * Finding a QEMU that can take a side of COLO: the one that was named, the machine's own, or the
 * private one, which is fetched when it is missing.
 *
 * @module
 */

import { QemuError } from "../errors.ts";
import { detectAccelerator } from "./accelerator.ts";
import type { Progress } from "./cache.ts";
import { fetchQemu, privateTool } from "./private_qemu.ts";
import { probeQemu } from "./probe.ts";
import { run, which } from "./run.ts";
import { type Accelerator, coloCapabilities, judgeQemu, type Role } from "./suitability.ts";

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
  const system = await which(SYSTEM_QEMU);
  if (system !== undefined) {
    const found = await examine([system], {}, "system", accel).catch(() => undefined);
    if (found !== undefined && found.refusal[role] === undefined) return found.qemu;
  }
  const launch = await fetchQemu(options.progress);
  const { qemu, refusal } = await examine(launch.command, launch.env, "fetched", accel);
  const reason = refusal[role];
  if (reason === undefined) return qemu;
  throw new QemuError(`Cannot use QEMU ${qemu.version} from Debian as a ${role}: ${reason}`);
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

interface Examined {
  readonly qemu: Qemu;
  /** For each side, why it cannot take it */
  readonly refusal: Readonly<Partial<Record<Role, string>>>;
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
  const { qemu, refusal } = await examine([path], {}, source, accel);
  const reason = refusal[role];
  if (reason === undefined) return qemu;
  throw new QemuError(
    `Cannot use QEMU ${qemu.version} (${path}) as a ${role}: ${reason}; ` +
      `name QEMU 11.1 or newer with ${origin}, or leave it out to have one found`,
  );
}

async function examine(
  command: readonly string[],
  env: Readonly<Record<string, string>>,
  source: QemuSource,
  accel: Accelerator,
): Promise<Examined> {
  const probe = await probeQemu(command, env);
  const { version } = probe;
  const qemu = { command, env, version, accel, source, capabilities: coloCapabilities(version) };
  if (accel === "kvm" && !probe.hasKvm) {
    const reason = "it was built without KVM";
    return { qemu, refusal: { primary: reason, secondary: reason } };
  }
  const { primary, secondary } = judgeQemu({ ...probe, accel });
  return {
    qemu,
    refusal: {
      ...(primary.ok ? {} : { primary: primary.reason }),
      ...(secondary.ok ? {} : { secondary: secondary.reason }),
    },
  };
}
