/**
 * What a standby can be asked and told over its control socket.
 *
 * @module
 */

import type { ControlCommands } from "../control/mod.ts";
import type { SecondaryPhase } from "../failover/secondary.ts";

/** What the commands need of a standby. */
export interface ControlledStandby {
  /** How far it is, and the checkpoint that the VM would go on from. */
  status(): Pick<StandbyOverControl, "phase" | "epoch">;
  /** Have it take over, as the operator orders. */
  takeOver(): void;
}

/** What `query-colo-status` says of a standby. */
export interface StandbyOverControl {
  readonly vm: string;
  readonly mode: "secondary";
  readonly phase: SecondaryPhase;
  readonly epoch: number;
}

/** The commands by their names. */
export function standbyCommands(standby: ControlledStandby, vm: string): ControlCommands {
  return {
    "query-colo-status": {
      arguments: {},
      run: (): StandbyOverControl => ({ vm, mode: "secondary", ...standby.status() }),
    },
    "colo-lost-heartbeat": { arguments: {}, run: () => standby.takeOver() },
  };
}
