/**
 * The life of a primary as a table; what it does on its way says {@linkcode PrimaryMachine}.
 *
 * @module
 */

import type { PrimaryEvent } from "./primary_events.ts";
import type { Transitions } from "./transitions.ts";

/** How far a primary is. */
export const PRIMARY_PHASES = [
  /** The initial stream is on its way. */
  "starting",
  /** Checkpoints are taken into the mirror; nobody else holds them. */
  "alone",
  /** A secondary is being given the mirror. */
  "seeding",
  /** The secondary has been given everything, and knows nothing of what the guest says since. */
  "joining",
  /** The secondary can take over. */
  "protected",
  /** The secondary is lost, and may have taken over: nothing leaves until the arbiter has decided. */
  "deciding",
  /** The guest runs, and this engine does not see its memory. */
  "unattended",
  /** QEMU has ended, and is started again from the last checkpoint. */
  "reviving",
  "ended",
] as const;

/** How far a primary is. */
export type PrimaryPhase = typeof PRIMARY_PHASES[number];

const UNENTRUSTED = "nothing behind the seed was sent";
const ENTRUSTED = "it may take over";

/** What every event leads to in every phase. */
export const PRIMARY_TRANSITIONS: Transitions<PrimaryPhase, PrimaryEvent["type"]> = {
  phases: PRIMARY_PHASES,
  rows: {
    // The guest's memory.
    "initial": {
      starting: "alone",
      unattended: "alone",
      deciding: "stays",
      otherwise: "impossible",
    },
    "request": {
      starting: "impossible",
      unattended: "impossible",
      reviving: "impossible",
      otherwise: "stays",
    },
    "whole": {
      starting: "impossible",
      unattended: "impossible",
      reviving: "impossible",
      otherwise: "stays",
    },
    "capture-lost": {
      joining: { unattended: UNENTRUSTED, deciding: ENTRUSTED },
      protected: "deciding",
      deciding: "stays",
      reviving: "ignored",
      otherwise: "unattended",
    },

    // The secondary.
    "replica-ready": { alone: "seeding", otherwise: "ignored" },
    "seed-pass": { seeding: "stays", otherwise: "ignored" },
    // One that dies may have been sent its last page.
    "seed-sent": { seeding: "joining", reviving: "ignored", otherwise: "impossible" },
    "encoded": {
      starting: "ignored",
      unattended: "ignored",
      reviving: "ignored",
      otherwise: "stays",
    },
    "committed": { joining: "stays", protected: "stays", otherwise: "ignored" },
    "loaded": {
      joining: { joining: "the seed", protected: "a checkpoint behind it" },
      otherwise: "ignored",
    },
    "replica-lost": {
      seeding: "alone",
      joining: { alone: UNENTRUSTED, deciding: ENTRUSTED },
      protected: "deciding",
      otherwise: "ignored",
    },

    // The arbiter.
    "granted": {
      deciding: { alone: "the guest is captured", unattended: "the guest is not captured" },
      otherwise: "ignored",
    },
    "stale": { otherwise: "ended" },

    // When to take checkpoints.
    "demand": { otherwise: "stays" },
    "hold": { otherwise: "stays" },
    "release": { otherwise: "stays" },
    "paused": { otherwise: "stays" },
    "tick": { otherwise: "stays" },

    // QEMU.
    "guest-ended": { otherwise: "ended" },
    "qemu-lost": {
      alone: { reviving: "revivable", ended: "not revivable" },
      seeding: { reviving: "revivable", ended: "not revivable" },
      otherwise: "ended",
    },
    "revived": { reviving: "starting", otherwise: "impossible" },
  },
};
