/**
 * The life of a secondary as a table, one for each kind of replica; what it does on its way says
 * {@linkcode SecondaryMachine}.
 *
 * @module
 */

import type { SecondaryEvent } from "./secondary_events.ts";
import type { Row, Transitions } from "./transitions.ts";

/** How far a secondary is. */
export const SECONDARY_PHASES = [
  /** Its QEMU is being started. */
  "starting",
  /** It waits to be seeded. */
  "waiting",
  "seeding",
  /** It can take over. */
  "protecting",
  /** The primary is lost: the arbiter is asked whether to take over. */
  "deciding",
  /** It holds a guest, and knows nothing about the primary any more. */
  "orphaned",
  "taking-over",
  "promoted",
  "ended",
] as const;

/** How far a secondary is. */
export type SecondaryPhase = typeof SECONDARY_PHASES[number];

type SecondaryRow = Row<SecondaryPhase>;

/** What a primary has sent comes too late once it is lost. */
const LATE = {
  deciding: "ignored",
  "taking-over": "ignored",
  promoted: "ignored",
} as const;

const DATA: SecondaryRow = {
  seeding: "stays",
  protecting: "stays",
  ...LATE,
  otherwise: "forbidden",
};

/** An answer of a replica's that has nothing to do with the phase; a VM that was promoted is let go. */
const ANSWER: SecondaryRow = { promoted: "ignored", otherwise: "stays" };

/** An answer by which a seed may come to be loaded. */
const LOADING_ANSWER: SecondaryRow = {
  seeding: { seeding: "not all", protecting: "the seed is loaded" },
  promoted: "ignored",
  otherwise: "stays",
};

const IMPOSSIBLE: SecondaryRow = { otherwise: "impossible" };

/** What is the same for all replicas. */
const COMMON = {
  "link-up": {
    seeding: "impossible",
    protecting: "impossible",
    promoted: "ignored",
    otherwise: "stays",
  },
  "seed-begin": { waiting: "seeding", orphaned: "seeding", ...LATE, otherwise: "forbidden" },
  "pages": DATA,
  "device-state": DATA,
  "commit": DATA,
  "take-over": { protecting: "deciding", orphaned: "deciding", otherwise: "impossible" },
  "granted": { deciding: "taking-over", otherwise: "ignored" },
  "stale": { deciding: "orphaned", otherwise: "ignored" },
  "undecided": { deciding: "orphaned", otherwise: "ignored" },
  "promoted": { "taking-over": "promoted", otherwise: "impossible" },
  "goodbye": { ...LATE, otherwise: "ended" },
  "load-held": { promoted: "ignored", otherwise: "stays" },
} as const satisfies Partial<Record<SecondaryEvent["type"], SecondaryRow>>;

const ENTITLED = "it holds all that was said";
const NOT_ENTITLED = "more was said than it holds";
const WHOLE = "the seed is whole";
const NOT_WHOLE = "the seed is not whole";
const FULL = "a seed of everything";
const RESUMED = "a seed of what has changed";
const HOLDING = "a checkpoint is held";
const EMPTY = "none is held";
const UNLINKED = "no primary is connected";
const LINKED = "another primary is connected";

/** With a VM that runs along: what it holds is gone with its QEMU. */
export const LIVE_TRANSITIONS: Transitions<SecondaryPhase, SecondaryEvent["type"]> = {
  phases: SECONDARY_PHASES,
  rows: {
    ...COMMON,
    "qemu-ready": { starting: "waiting", otherwise: "impossible" },
    "link-up": {
      ...COMMON["link-up"],
      orphaned: { orphaned: "it has no disks", starting: "it has disks" },
    },
    "link-lost": {
      seeding: { starting: FULL, orphaned: RESUMED },
      protecting: { deciding: ENTITLED, orphaned: NOT_ENTITLED },
      promoted: "ignored",
      otherwise: "stays",
    },
    "seed-anew": { orphaned: "starting", ...LATE, otherwise: "forbidden" },
    "primary-lost": {
      seeding: {
        deciding: WHOLE,
        starting: `${NOT_WHOLE}, ${FULL}`,
        orphaned: `${NOT_WHOLE}, ${RESUMED}`,
      },
      protecting: { deciding: WHOLE, starting: NOT_WHOLE },
      orphaned: { deciding: UNLINKED, orphaned: LINKED },
      otherwise: "ignored",
    },
    "qemu-lost": { "taking-over": "ended", promoted: "ended", otherwise: "starting" },
    "prepared": ANSWER,
    "disks-settled": ANSWER,
    "qemu-answer": LOADING_ANSWER,
    "recovered": IMPOSSIBLE,
    "standby-ready": IMPOSSIBLE,
    "stored": IMPOSSIBLE,
    "applied": IMPOSSIBLE,
    "refused": IMPOSSIBLE,
  },
};

/** With an image: what it holds lasts until there is something better. */
export const IMAGE_TRANSITIONS: Transitions<SecondaryPhase, SecondaryEvent["type"]> = {
  phases: SECONDARY_PHASES,
  rows: {
    ...COMMON,
    "qemu-ready": {
      starting: { orphaned: HOLDING, waiting: EMPTY },
      otherwise: "impossible",
    },
    "link-lost": {
      seeding: { orphaned: HOLDING, waiting: EMPTY },
      protecting: { deciding: ENTITLED, orphaned: NOT_ENTITLED },
      promoted: "ignored",
      otherwise: "stays",
    },
    "seed-anew": { orphaned: "stays", ...LATE, otherwise: "forbidden" },
    "primary-lost": {
      seeding: {
        deciding: WHOLE,
        orphaned: `${NOT_WHOLE}, ${HOLDING}`,
        waiting: `${NOT_WHOLE}, ${EMPTY}`,
      },
      // An image of a seed is held by then.
      protecting: { deciding: WHOLE, orphaned: NOT_WHOLE },
      orphaned: { deciding: UNLINKED, orphaned: LINKED },
      otherwise: "ignored",
    },
    // Before a takeover it is no part of what is held, and is replaced.
    "qemu-lost": { "taking-over": "ended", promoted: "ended", otherwise: "impossible" },
    "prepared": IMPOSSIBLE,
    "disks-settled": IMPOSSIBLE,
    "qemu-answer": IMPOSSIBLE,
    "recovered": { starting: "stays", otherwise: "impossible" },
    "standby-ready": LOADING_ANSWER,
    "stored": ANSWER,
    "applied": LOADING_ANSWER,
    "refused": ANSWER,
  },
};
