/**
 * The disks of a guest on a secondary in mode `continuous`, beside its memory and in one step with it, on
 * behalf of another thread.
 *
 * ```text
 *  a primary connects   "unequal" made; what was held of the guest is thrown away
 *  until the first mark its writes go into the images at once: they are made equal
 *  mark of checkpoint N the logs up to there are sealed; then the memory of N is committed
 *  memory committed     the images take the logs; "unequal" removed after the first one
 *  somebody takes over  what no checkpoint has is dropped
 * ```
 *
 * While there is a file `unequal` the images belong to no checkpoint: nobody runs from one.
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { freeBuffer } from "../buffers.ts";
import type { ImageFiles } from "../image/files.ts";
import { DiskReplica, type DiskReplicaEffect, type DiskTarget } from "./disk_replica.ts";

/** What the keeper is told. */
export type ToDisks =
  /** A primary is about to make the images equal, with one connection a disk. */
  | { readonly type: "disks-begin" }
  /** What its client says, in this epoch, the keeper's from now on; nothing but that the epoch has begun where there are no bytes. */
  | {
    readonly type: "disk-bytes";
    readonly disk: number;
    readonly epoch: number;
    readonly bytes: Uint8Array;
  };

/** What the keeper answers. */
export type FromDisks =
  | { readonly type: "disk-answer"; readonly disk: number; readonly bytes: Uint8Array }
  /** There is room for so many bytes more of `disk-bytes`. */
  | { readonly type: "disk-taken"; readonly bytes: number }
  /** A disk is no copy any more. */
  | { readonly type: "disk-failed"; readonly reason: string };

/** One disk. */
export interface KeptDisk {
  /** What the primary asks for: letters and digits. */
  readonly name: string;
  readonly target: DiskTarget;
}

const UNEQUAL = "unequal";

/** All writes belong to the one seed that is held: what is older is thrown away. */
const GENERATION = 1;

/** Keeps all disks of one guest. */
export class DiskKeeper {
  readonly #files: ImageFiles;
  readonly #disks: readonly { readonly replica: DiskReplica; epoch: number; isOpen: boolean }[];
  readonly #answer: (answer: FromDisks) => void;
  /** Of `disk-bytes` that nobody was told of. */
  #takenBytes = 0;

  /** @param files Where the logs are, beside the guest's memory */
  constructor(
    files: ImageFiles,
    kernels: KernelSet,
    disks: readonly KeptDisk[],
    answer: (answer: FromDisks) => void,
  ) {
    this.#files = files;
    this.#answer = answer;
    this.#disks = disks.map(({ name, target }) => ({
      replica: new DiskReplica({ files, kernels, name, target }),
      epoch: 0,
      isOpen: false,
    }));
  }

  /** Whether the images are those of the checkpoint that is held of the guest's memory. */
  get isEqual(): boolean {
    return !this.#files.list().includes(UNEQUAL);
  }

  /** @param epoch The checkpoint that is held of the guest's memory, if one is */
  recover(epoch: number | undefined): void {
    const held = epoch === undefined ? undefined : { generation: GENERATION, epoch };
    for (const { replica } of this.#disks) replica.recover(held);
  }

  /** Do as told. Never throws: what fails is answered. */
  tell(command: ToDisks): void {
    if (command.type === "disks-begin") return this.#begin();
    const disk = this.#disks[command.disk]!;
    if (!disk.isOpen) {
      disk.isOpen = true;
      this.#do(command.disk, disk.replica.connect() ?? []);
    }
    if (command.epoch > disk.epoch) {
      disk.epoch = command.epoch;
      this.#do(command.disk, disk.replica.checkpoint(command.epoch));
    }
    this.#do(command.disk, disk.replica.fromClient(command.bytes));
    this.#takenBytes += command.bytes.length;
    if (disk.replica.isBetween) freeBuffer(command.bytes);
    this.#makeRoom();
  }

  /** The guest's memory as of this checkpoint, of which all marks have come, is committed. */
  committed(epoch: number): void {
    let isMarked = true;
    for (const [index, { replica, epoch: marked }] of this.#disks.entries()) {
      this.#do(index, replica.commit(epoch));
      isMarked &&= marked >= epoch;
    }
    // A seed has no mark.
    if (isMarked) this.#files.remove(UNEQUAL);
    this.#makeRoom();
  }

  /** Somebody takes over from what is committed. */
  drop(): void {
    for (const { replica } of this.#disks) replica.drop();
    this.#makeRoom();
  }

  /** Let more come, unless a commit has to take some of what is held first. */
  #makeRoom(): void {
    if (this.#takenBytes === 0 || this.#disks.some(({ replica }) => replica.full)) return;
    this.#answer({ type: "disk-taken", bytes: this.#takenBytes });
    this.#takenBytes = 0;
  }

  #begin(): void {
    if (this.#disks.length === 0) return;
    this.#files.create(UNEQUAL).close();
    for (const disk of this.#disks) {
      disk.replica.begin(GENERATION, true);
      disk.epoch = 0;
      disk.isOpen = false;
    }
  }

  #do(disk: number, effects: readonly DiskReplicaEffect[]): void {
    for (const effect of effects) {
      if (effect.type === "send") {
        this.#answer({ type: "disk-answer", disk, bytes: effect.bytes.slice() });
      } else if (effect.type === "failed") {
        this.#answer({ type: "disk-failed", reason: effect.reason });
      }
    }
  }
}
