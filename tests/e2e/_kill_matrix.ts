/**
 * What may happen to a protected pair, when, and what must have become of it: data for
 * `kill_matrix_test.ts`.
 *
 * @module
 */

import type { ReplicationMode } from "../../engine/config/mod.ts";

/** Whom it happens to. */
export type Target =
  | "primary QEMU"
  | "primary engine"
  | "secondary QEMU"
  | "secondary engine"
  | "both engines"
  | "link";

/**
 * What happens: SIGKILL; SIGSTOP, and SIGCONT {@linkcode STOP_MS} later; a cable that is pulled out, and
 * put back after {@linkcode CUT_MS}.
 */
export type Action = "kill" | "stop" | "cut";

/** When it happens. */
export type Moment =
  /** The primary sends its memory to a secondary that has just come. */
  | "seeding"
  /** Everything has been loaded, and the next checkpoint is not due. */
  | "between checkpoints"
  /** The primary's guest stands still. */
  | "in a checkpoint"
  /** The secondary's QEMU stands still, to load. In mode `colo`. */
  | "while the secondary loads"
  /** A whole checkpoint is on its way into the image. In mode `continuous`. */
  | "while the standby applies";

/** What must have become of it. */
export interface Outcome {
  /** On which host the VM goes on: where the primary was, where the secondary was, or whoever won. */
  readonly runs: "primary" | "secondary" | "either";
  /** The longest that a client may wait for an answer. */
  readonly gapMs: number;
  /** Whether the pair says meanwhile that nobody could take over. */
  readonly unprotected: "yes" | "no" | "either";
  /** Nobody could have taken over: what the guest has said since its last checkpoint may be forgotten. */
  readonly forgets?: boolean;
}

/** One cell. */
export interface Cell extends Outcome {
  readonly mode: ReplicationMode;
  readonly target: Target;
  readonly action: Action;
  readonly moment: Moment;
}

/** A process that is stopped goes on after this: longer than a heartbeat's timeout and a QEMU's patience. */
export const STOP_MS = 5000;

/** Longer than the heartbeat's timeout and the arbiter's lease. */
export const CUT_MS = 4000;

/** A takeover, and a TCP connection that asks again after 200, 600, 1400, 3000 ms. */
const TAKEOVER_GAP_MS = 3500;

/** Nothing but a checkpoint that waits for the secondary, or a heartbeat's timeout and the arbiter. */
const HICCUP_GAP_MS = 3500;

/** An engine that is started anew: for the program to load, and to find its QEMU. */
const RESTART_GAP_MS = 4000;

/** A QEMU that is started anew from the mirror; connections that miss 3000 ms ask again after 6200. */
const REVIVE_GAP_MS = 7000;

/** Stopped, and connections that ask at ever longer intervals. */
const STOP_GAP_MS = STOP_MS + 3500;

/** A QEMU that does not answer between two checkpoints is given 3 s. */
const HANG_GAP_MS = 3000 + 3500;

const MOMENTS: Readonly<Record<ReplicationMode, readonly Moment[]>> = {
  colo: ["seeding", "between checkpoints", "in a checkpoint", "while the secondary loads"],
  continuous: ["seeding", "between checkpoints", "in a checkpoint", "while the standby applies"],
};

const takeover: Outcome = { runs: "secondary", gapMs: TAKEOVER_GAP_MS, unprotected: "yes" };
const goesOnAlone: Outcome = { runs: "primary", gapMs: HICCUP_GAP_MS, unprotected: "yes" };
/** The image protects, and not the QEMU that stands by for it. */
const unharmed: Outcome = { runs: "primary", gapMs: HICCUP_GAP_MS, unprotected: "no" };
const goesOn: Outcome = { runs: "primary", gapMs: STOP_GAP_MS, unprotected: "either" };

const revived: Outcome = {
  runs: "primary",
  gapMs: REVIVE_GAP_MS,
  unprotected: "yes",
  forgets: true,
};

/** A row of the matrix: what must happen at all moments, but for those that are named. */
interface MatrixRow extends Partial<Readonly<Record<Moment, Outcome>>> {
  readonly target: Target;
  readonly action: Action;
  readonly otherwise: Outcome;
  /** In this one alone; in both if absent. */
  readonly mode?: ReplicationMode;
}

const ROWS: readonly MatrixRow[] = [
  {
    target: "primary QEMU",
    action: "kill",
    mode: "colo",
    // It is started again from the mirror, since the config says `revive`.
    seeding: revived,
    otherwise: takeover,
  },
  {
    target: "primary QEMU",
    action: "kill",
    mode: "continuous",
    // What an image lacks is little: all of it may have been sent, which is as good as a checkpoint.
    seeding: { ...revived, runs: "either" },
    otherwise: takeover,
  },
  {
    target: "primary QEMU",
    action: "stop",
    seeding: goesOn,
    // In a checkpoint it is given longer than it is stopped for, until that is whole.
    "in a checkpoint": { ...goesOn, runs: "either" },
    otherwise: { runs: "secondary", gapMs: HANG_GAP_MS, unprotected: "yes" },
  },
  {
    target: "primary engine",
    action: "kill",
    seeding: { runs: "primary", gapMs: RESTART_GAP_MS, unprotected: "yes" },
    otherwise: takeover,
  },
  {
    target: "primary engine",
    action: "stop",
    seeding: goesOn,
    otherwise: takeover,
  },
  {
    target: "secondary QEMU",
    action: "kill",
    mode: "colo",
    otherwise: goesOnAlone,
  },
  {
    target: "secondary QEMU",
    action: "kill",
    mode: "continuous",
    seeding: goesOnAlone,
    otherwise: unharmed,
  },
  {
    target: "secondary QEMU",
    action: "stop",
    mode: "colo",
    // Checkpoints go on: they are held by its engine, and loaded later.
    otherwise: { runs: "primary", gapMs: HICCUP_GAP_MS, unprotected: "either" },
  },
  {
    target: "secondary QEMU",
    action: "stop",
    mode: "continuous",
    seeding: goesOnAlone,
    otherwise: unharmed,
  },
  { target: "secondary engine", action: "kill", otherwise: goesOnAlone },
  { target: "secondary engine", action: "stop", otherwise: goesOnAlone },
  {
    target: "both engines",
    action: "kill",
    otherwise: { runs: "primary", gapMs: RESTART_GAP_MS, unprotected: "yes" },
  },
  {
    target: "both engines",
    action: "stop",
    seeding: goesOn,
    otherwise: { runs: "either", gapMs: STOP_GAP_MS, unprotected: "either" },
  },
  {
    target: "link",
    action: "cut",
    // A secondary that is not whole asks for nothing.
    seeding: goesOnAlone,
    otherwise: { runs: "either", gapMs: TAKEOVER_GAP_MS, unprotected: "yes" },
  },
];

/** All cells, those of one mode behind those of the other. */
export const CELLS: readonly Cell[] = (["colo", "continuous"] as const).flatMap((mode) =>
  ROWS.filter((row) => row.mode === undefined || row.mode === mode).flatMap((row) =>
    MOMENTS[mode].map((moment) => {
      const { target, action, otherwise } = row;
      return { mode, target, action, moment, ...row[moment] ?? otherwise };
    })
  )
);
