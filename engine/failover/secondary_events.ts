/**
 * What happens in the life of a secondary.
 *
 * @module
 */

import type { ReplicaAnswer } from "../checkpoint/replica.ts";
import type { CommitPayload, SeedBeginPayload } from "../link/messages.ts";

/** What happens to a secondary. */
export type SecondaryEvent =
  | { readonly type: "qemu-ready" }
  /** A primary has connected. */
  | { readonly type: "link-up" }
  | { readonly type: "link-lost"; readonly reason: string }
  | { readonly type: "seed-begin"; readonly seed: SeedBeginPayload }
  /** What is held is of no use to the primary. */
  | { readonly type: "seed-anew" }
  | { readonly type: "pages"; readonly chunk: Uint8Array }
  | { readonly type: "device-state"; readonly piece: Uint8Array; readonly delta?: boolean }
  | { readonly type: "commit"; readonly epoch: number; readonly commit: CommitPayload }
  | ReplicaAnswer
  /** The primary QEMU is gone for certain. */
  | { readonly type: "primary-lost"; readonly reason: string }
  /** Too much waits for a load. */
  | { readonly type: "load-held" }
  /** Whoever knows that the primary is gone says so. */
  | { readonly type: "take-over"; readonly reason: string }
  /** The arbiter's answer to a claim: take over. */
  | { readonly type: "granted" }
  /** The arbiter's answer: the VM is another's, and what is held here is of no more use. */
  | { readonly type: "stale"; readonly reason: string }
  /** There is no answer but an operator's. */
  | { readonly type: "undecided"; readonly reason: string }
  /** The VM runs on its own. */
  | { readonly type: "promoted" }
  /** The guest has ended in good order. */
  | { readonly type: "goodbye"; readonly reason: string }
  | { readonly type: "qemu-lost"; readonly reason: string };
