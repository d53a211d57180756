/**
 * What keeps a guest's copy on a secondary: a second QEMU that runs along (`LiveReplica`), or an image
 * that a QEMU is started from (`ImageReplica`).
 *
 * @module
 */

import type { ImageCommand } from "../image/keeper.ts";
import type { HeldEpoch, SeedBeginPayload } from "../link/messages.ts";

/** A checkpoint that is held as a whole. */
export interface WholeCheckpoint {
  readonly epoch: number;
  /** RAM records; each chunk starts with one that names its block. */
  readonly chunks: readonly Uint8Array[];
  readonly deviceState: Uint8Array;
}

/** What to do for a replica, in this order. */
export type ReplicaEffect =
  | { readonly type: "write"; readonly bytes: readonly Uint8Array[] }
  /** Get QEMU ready for a load, then answer `prepared`. */
  | { readonly type: "prepare" }
  /**
   * The VM stands still for the load of this checkpoint: get to its disks all that was written before it,
   * then answer `disks-settled`. For that of a seed (`enters`) nothing more gets to them until it is
   * loaded.
   */
  | { readonly type: "settle"; readonly epoch: number; readonly enters: boolean }
  | { readonly type: "image"; readonly command: ImageCommand }
  /** A VM that runs along stands still, and goes on from this checkpoint. */
  | { readonly type: "stopped"; readonly epoch: number }
  /** The VM runs, or would run, from this checkpoint; those merged with it were passed over. */
  | { readonly type: "loaded"; readonly epoch: number };

/** What comes of it. */
export type ReplicaAnswer =
  /** QEMU has been prepared for a load. */
  | { readonly type: "prepared" }
  /** The disks are as of the checkpoint that is to be loaded. */
  | { readonly type: "disks-settled" }
  /** Bytes from the secondary QEMU. */
  | { readonly type: "qemu-answer"; readonly bytes: Uint8Array }
  /** A checkpoint that was held before this process began, if there was one. */
  | { readonly type: "recovered"; readonly held: HeldEpoch | undefined }
  /** A QEMU stands by for the image that was seeded last. */
  | { readonly type: "standby-ready" }
  /** The checkpoint survives this process. */
  | { readonly type: "stored"; readonly epoch: number }
  /** The checkpoint is in the image. */
  | { readonly type: "applied"; readonly epoch: number }
  /** What the primary sent makes no sense, and was not taken. */
  | { readonly type: "refused"; readonly reason: string; readonly offset: number };

/** The guest that is seeded; `ramSectionId` is ours to choose, the same for the whole stream. */
export type Seed = Pick<SeedBeginPayload, "lineage" | "machine" | "blocks" | "ramSectionId">;

/** A guest's copy. */
export interface Replica {
  /** Whether what is held stays when the primary begins anew, or a QEMU ends. */
  readonly lasting: boolean;
  /** Whether there is a checkpoint that the VM could run from. */
  readonly holds: boolean;
  /** The checkpoint that the VM runs, or would run, from. */
  readonly epoch: number;
  /** The last checkpoint that is held as a whole, loaded or not; only where one is. */
  readonly wholeEpoch: number;
  /** A seed of everything is arriving. */
  readonly seeding: boolean;
  /** Nothing that is held as a whole is yet to be loaded. */
  readonly settled: boolean;
  /** Chunks are taken as they come, and need not be kept until the commit. */
  readonly takesPages: boolean;
  /** The last checkpoint that the primary may be told is held; -1 for none. */
  readonly committedEpoch: number;
  /** A seed of everything begins. */
  seedBegin(seed: Seed): ReplicaEffect[];
  /** What has changed since the checkpoint that is held follows, as one checkpoint. */
  resume(): ReplicaEffect[];
  /** A chunk that has been checked. */
  pages(chunk: Uint8Array): ReplicaEffect[];
  /**
   * The seed, or the checkpoint, is whole.
   *
   * @param load Whether the VM is to run from it, where a difference is made
   */
  commit(checkpoint: WholeCheckpoint, load: boolean): ReplicaEffect[];
  /** What is arriving will not become whole. */
  drop(): ReplicaEffect[];
  /** Load what is only held, if there is anything. */
  loadHeld(): ReplicaEffect[];
  /**
   * @throws {StreamError} when the secondary QEMU answers what it should not
   * @throws {WireError} when what the primary sent was no good
   */
  answer(answer: ReplicaAnswer): ReplicaEffect[];
}
