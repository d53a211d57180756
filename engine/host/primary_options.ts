/**
 * What a primary works with.
 *
 * @module
 */

import type { VmConfig } from "../config/mod.ts";
import type { Arbiter } from "../failover/arbiter.ts";
import type { LinkAddress } from "../link/mod.ts";
import type { Qemu } from "../vm/mod.ts";
import type { Arbitration } from "./arbitration.ts";
import type { NicPlugs } from "./nics.ts";
import type { Reporter } from "./report.ts";
import type { RestoreSource } from "./restore.ts";
import type { RunNotebook, Vm } from "./start_vm.ts";

/** What a primary needs. */
export interface PrimaryHostOptions {
  readonly config: VmConfig;
  readonly qemu: Qemu;
  /** A directory of this process's own, for sockets. */
  readonly directory: string;
  /** Where the VM is written down, and was by an engine before; left out: it is not. */
  readonly run?: RunNotebook | undefined;
  readonly report: Reporter;
  /** A VM that has taken over here, and what belongs to it: it is not started, but looked after. */
  readonly taken?: TakenVm | undefined;
  /** Who decides whether the VM may run here; left out: nobody but this side. */
  readonly arbiter?: Arbiter | undefined;
  /** The operator is certain that the VM runs nowhere else. */
  readonly isOrdered?: boolean | undefined;
  /** Write all that the primary QEMU says to this file, until its first stream ends. */
  readonly recordPath?: string | undefined;
  /** Start the VM where this left it, instead of booting it. */
  readonly restore?: RestoreSource | undefined;
  /** The longest that a secondary may owe an answer while nothing moves on the link; 10 s if left out. */
  readonly answerMs?: number | undefined;
  /** Threads that encode checkpoints; as many as suit the machine when left out. */
  readonly encoders?: number | undefined;
}

/** A VM that has taken over. */
export interface TakenVm {
  readonly vm: Vm;
  readonly arbitration: Arbitration;
  readonly plugs: NicPlugs;
  /** The standby that is to protect it, and no other. */
  readonly secondary?: LinkAddress | undefined;
}

/** How a primary ended. */
export type PrimaryEnd = "guest-ended" | "qemu-lost" | "stopped";
