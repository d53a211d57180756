/**
 * KVM or TCG: what a guest on this machine can run with.
 *
 * The presence of `/dev/kvm` proves nothing: it can exist and open, and a 64-bit guest still spin for
 * ever in its first instructions. KVM is taken only where the processor shows hardware
 * virtualization too, or when the user says so.
 *
 * @module
 */

import type { Accelerator } from "./suitability.ts";

/** What the choice depends on. */
export interface AcceleratorFacts {
  /** The user's own word, which is not questioned */
  readonly told?: Accelerator | undefined;
  /** The text of `/proc/cpuinfo` */
  readonly cpuinfo: string;
  /** Whether `/dev/kvm` opens for reading and writing */
  readonly kvmOpens: boolean;
}

/** An accelerator, and why it was chosen. */
export interface AcceleratorChoice {
  readonly accel: Accelerator;
  readonly reason: string;
}

/** Choose between KVM and TCG. Pure. */
export function chooseAccelerator(facts: AcceleratorFacts): AcceleratorChoice {
  if (facts.told !== undefined) return { accel: facts.told, reason: "asked for" };
  const flag = /^flags\s*:.*\b(svm|vmx)\b/m.exec(facts.cpuinfo)?.[1];
  if (flag === undefined) {
    return { accel: "tcg", reason: "the processor shows neither svm nor vmx" };
  }
  if (!facts.kvmOpens) {
    return { accel: "tcg", reason: "/dev/kvm cannot be opened for reading and writing" };
  }
  return { accel: "kvm", reason: `the processor shows ${flag} and /dev/kvm opens` };
}

/**
 * Look at this machine and choose.
 *
 * @param told The user's own choice, if there is one
 */
export async function detectAccelerator(told?: Accelerator): Promise<AcceleratorChoice> {
  const cpuinfo = await Deno.readTextFile("/proc/cpuinfo").catch(() => "");
  return chooseAccelerator({ told, cpuinfo, kvmOpens: await opensKvm() });
}

async function opensKvm(): Promise<boolean> {
  try {
    (await Deno.open("/dev/kvm", { read: true, write: true })).close();
    return true;
  } catch {
    return false;
  }
}
