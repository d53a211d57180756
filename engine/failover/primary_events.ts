/**
 * What happens in the life of a primary.
 *
 * @module
 */

/** What happens to a primary. */
export type PrimaryEvent =
  | { readonly type: "initial" }
  | { readonly type: "request" }
  | { readonly type: "whole"; readonly epoch: number }
  | { readonly type: "replica-ready" }
  /** Once round the mirror; so many pages have been written since they were sent. */
  | { readonly type: "seed-pass"; readonly missingPages: number }
  /** The secondary lacks nothing of checkpoint `epoch`. */
  | { readonly type: "seed-sent"; readonly epoch: number }
  /** The checkpoint to be sent has gone into the mirror: the next one may come. */
  | { readonly type: "encoded" }
  | { readonly type: "committed"; readonly epoch: number }
  | { readonly type: "loaded"; readonly epoch: number }
  | { readonly type: "replica-lost"; readonly reason: string }
  /** The arbiter lets the primary run alone. */
  | { readonly type: "granted" }
  /** The VM is another's: this one must not run any more. */
  | { readonly type: "stale"; readonly reason: string }
  /** A checkpoint that the secondary loads is wanted soon. */
  | { readonly type: "demand" }
  /** The mirror is to stay as it is: no checkpoint is begun until `release`. */
  | { readonly type: "hold" }
  | { readonly type: "release" }
  /** The guest has stood still for so long. */
  | { readonly type: "paused"; readonly pauseMs: number }
  | { readonly type: "tick" }
  | { readonly type: "capture-lost"; readonly reason: string }
  | { readonly type: "guest-ended"; readonly reason: string }
  /** @param revivable Whether it may be started again from the last checkpoint */
  | { readonly type: "qemu-lost"; readonly reason: string; readonly revivable?: boolean }
  /** QEMU runs from the last checkpoint. */
  | { readonly type: "revived" };
