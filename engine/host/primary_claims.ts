/**
 * A primary's right to run its VM: the lease that it is paused without, and claims to run it alone.
 *
 * @module
 */

import type { PrimaryEvent, PrimaryPhase } from "../failover/primary.ts";
import type { Arbitration, LeaseEvents } from "./arbitration.ts";
import { LeasePause, type PausableVm } from "./lease_pause.ts";
import type { Vm } from "./start_vm.ts";
import { isDying } from "./vm_end.ts";

/** The primary, as far as it is needed here. */
export interface ClaimingPrimary extends Omit<PausableVm, "monitor" | "isExempt"> {
  vm(): Vm | undefined;
  /** Nothing more is to be started. */
  isDone(): boolean;
  /** Nothing more is to be decided. */
  isOver(): boolean;
  phase(): PrimaryPhase;
  /** The secondary has said that it cannot take over. */
  secondaryGaveUp(): boolean;
  step(event: PrimaryEvent): void;
}

/** Phases in which a VM may go on without a lease. */
const EXEMPT: readonly PrimaryPhase[] = [
  // A secondary vouches for the VM.
  "protected",
  // What is being decided about says nothing.
  "deciding",
  "ended",
];

/** The right of one primary. */
export class PrimaryClaims {
  readonly #arbitration: Arbitration;
  readonly #primary: ClaimingPrimary;
  readonly #pause: LeasePause;
  /** What is done for the lease. */
  readonly lease: LeaseEvents;

  constructor(arbitration: Arbitration, primary: ClaimingPrimary) {
    this.#arbitration = arbitration;
    this.#primary = primary;
    this.#pause = new LeasePause({
      monitor: () => primary.vm()?.qmp,
      hold: (on) => primary.hold(on),
      isSettled: () => primary.isSettled(),
      isExempt: () => EXEMPT.includes(primary.phase()),
      notice: (text) => primary.notice(text),
    });
    this.lease = {
      pause: () => this.#pause.pause(),
      resume: () => this.#pause.resume(),
      stale: (reason) => primary.step({ type: "stale", reason }),
    };
  }

  /**
   * Until when the lease lets the VM say anything, unless it is renewed before: one that an engine woke up
   * too late to pause may not.
   */
  get maySpeakUntilMs(): number {
    return EXEMPT.includes(this.#primary.phase()) ? Infinity : this.#arbitration.holdsUntilMs;
  }

  /** Another QEMU runs the VM now, or it was let run: what is to stand still goes on standing still. */
  reapply(): void {
    this.#pause.reapply();
  }

  /** The secondary is lost, and may have taken over. */
  async claim(): Promise<void> {
    const [arbitration, primary] = [this.#arbitration, this.#primary];
    const evidence = primary.secondaryGaveUp() ? "reported" : arbitration.evidenceOfPrimary;
    const vm = primary.vm();
    const lives = () =>
      vm !== undefined && primary.vm() === vm && !primary.isDone() && !isDying(vm);
    const verdict = await arbitration.claim(evidence, "pair", this.lease, lives);
    if (primary.isOver()) return;
    if (verdict.type === "undecided") primary.notice(verdict.reason);
    else primary.step(verdict);
  }
}
