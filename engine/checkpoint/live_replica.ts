/**
 * The secondary VM that runs: the engine is the COLO primary of a QEMU started with `-incoming defer`.
 *
 * ```text
 *         seedBegin         commit(seed)         disks-settled          READY
 *  empty ---------> seeding -----------> seeded --------------> starting -----> idle <-----------+
 *                                                                                | load          |
 *                      preparing -prepared-> asked -REPLY-> settling ---------> loading -LOADED--+
 * ```
 *
 * QEMU is given a checkpoint only when the engine holds it as a whole. Checkpoints that wait, because
 * another is being loaded or because nobody has asked for a load yet, become one load: all their RAM
 * records in their order, and the device state of the last. QEMU applies the records one after another
 * to the image that its next load starts from, each to what those before it have left (`colo_cache`
 * in `migration/ram.c`), so that the merged load leaves what the single ones would have left.
 *
 * Pure: messages in, bytes for QEMU and events out. Source of the byte order: QEMU `migration/colo.c`.
 *
 * @module
 */

import { LocalProtocolError, StateError, StreamError } from "../errors.ts";
import { REPLICA_HELD_BYTES_MAX } from "../limits.ts";
import { type ReturnPathEvent, ReturnPathReader } from "../stream/return_path.ts";
import * as write from "../stream/writer.ts";
import type { Replica, ReplicaAnswer, ReplicaEffect, Seed, WholeCheckpoint } from "./replica.ts";

/** How far a live replica is. */
export type LiveReplicaState =
  | "empty"
  | "seeding"
  | "seeded"
  | "starting"
  | "idle"
  | "preparing"
  | "asked"
  | "settling"
  | "loading";

/** The engine's side of one secondary QEMU. */
export class LiveReplica implements Replica {
  readonly lasting = false;
  readonly #answers = new ReturnPathReader();
  readonly #heldBytesMax: number;
  #state: LiveReplicaState = "empty";
  #ramSectionId = 0;
  #epoch = 0;
  /** What the next load will consist of. */
  #chunks: Uint8Array[] = [];
  #deviceState: Uint8Array = new Uint8Array(0);
  #heldEpoch: number | undefined;
  #heldBytes = 0;
  #wanted = false;
  #loadingEpoch = 0;
  /** What QEMU is given when the disks are settled. */
  #loading: readonly Uint8Array[] = [];
  #wholeEpoch = -1;

  /** @param heldBytesMax More than this is not held without a load */
  constructor(heldBytesMax: number = REPLICA_HELD_BYTES_MAX) {
    this.#heldBytesMax = heldBytesMax;
  }

  get state(): LiveReplicaState {
    return this.#state;
  }

  /** The checkpoint that QEMU runs from. */
  get epoch(): number {
    return this.#epoch;
  }

  /** True when QEMU runs from the last of the checkpoints. */
  get settled(): boolean {
    return this.#state === "idle" && this.#heldEpoch === undefined;
  }

  /** Whether another checkpoint may come: false when QEMU is too slow for what waits for it. */
  get hasRoom(): boolean {
    return this.#heldBytes <= this.#heldBytesMax;
  }

  get holds(): boolean {
    return this.#state !== "empty" && this.#state !== "seeding";
  }

  get seeding(): boolean {
    return this.#state === "seeding";
  }

  get takesPages(): boolean {
    return this.seeding;
  }

  get wholeEpoch(): number {
    return this.#wholeEpoch;
  }

  get committedEpoch(): number {
    return this.hasRoom ? this.#wholeEpoch : -1;
  }

  pages(chunk: Uint8Array): ReplicaEffect[] {
    return this.seeding ? this.seedPages(chunk) : [];
  }

  commit(checkpoint: WholeCheckpoint, load: boolean): ReplicaEffect[] {
    if (this.seeding) return this.seedCommit(checkpoint.epoch, checkpoint.deviceState);
    return load ? this.load(checkpoint) : this.hold(checkpoint);
  }

  /** What is arriving is kept by others until it is whole. */
  drop(): ReplicaEffect[] {
    return [];
  }

  answer(answer: ReplicaAnswer): ReplicaEffect[] {
    switch (answer.type) {
      case "prepared":
        // The replica it was for may have been thrown away meanwhile.
        return this.#state === "preparing" ? this.prepared() : [];
      case "disks-settled":
        return this.#state === "settling" || this.#state === "seeded" ? this.disksSettled() : [];
      case "qemu-answer":
        return this.received(answer.bytes);
      default:
        throw new StateError(`Cannot take ${answer.type}`, "live", "image");
    }
  }

  /** Begin the initial stream. */
  seedBegin({ machine, blocks, ramSectionId }: Seed): ReplicaEffect[] {
    this.#require("empty");
    this.#state = "seeding";
    this.#ramSectionId = ramSectionId;
    return [{
      type: "write",
      bytes: [
        write.header(),
        write.configuration(machine),
        write.openReturnPath(),
        write.ping(),
        write.ramStart(ramSectionId, blocks),
      ],
    }];
  }

  /** To QEMU it is a checkpoint as any other. */
  resume(): ReplicaEffect[] {
    return [];
  }

  /** Pages of the seed: they go into QEMU's RAM at once, which does not run yet. */
  seedPages(chunk: Uint8Array): ReplicaEffect[] {
    this.#require("seeding");
    const id = this.#ramSectionId;
    return [{ type: "write", bytes: [write.ramPart(id), chunk, write.ramSectionEnd(id)] }];
  }

  /** The seed is whole: when the disks are settled, QEMU takes the device state and gets ready. */
  seedCommit(epoch: number, deviceState: Uint8Array): ReplicaEffect[] {
    this.#require("seeding");
    this.#state = "seeded";
    this.#epoch = epoch;
    this.#wholeEpoch = epoch;
    const id = this.#ramSectionId;
    this.#loading = [write.ramEnd(id), write.ramSectionEnd(id), deviceState];
    return [{ type: "stopped", epoch }, { type: "settle", epoch, enters: true }];
  }

  /** Keep a checkpoint for the next load. */
  hold({ epoch, chunks, deviceState }: WholeCheckpoint): ReplicaEffect[] {
    if (this.#state === "empty" || this.#state === "seeding") this.#require("idle");
    this.#heldBytes += deviceState.length - this.#deviceState.length;
    for (const chunk of chunks) {
      this.#chunks.push(chunk);
      this.#heldBytes += chunk.length;
    }
    this.#deviceState = deviceState;
    this.#heldEpoch = epoch;
    this.#wholeEpoch = epoch;
    return this.hasRoom ? this.#next() : this.loadHeld();
  }

  /** Load a checkpoint and those that are held, now or as soon as the load that is under way is done. */
  load(checkpoint: WholeCheckpoint): ReplicaEffect[] {
    return [...this.hold(checkpoint), ...this.loadHeld()];
  }

  /** Load what is held, if there is anything. */
  loadHeld(): ReplicaEffect[] {
    this.#wanted = this.#heldEpoch !== undefined;
    return this.#next();
  }

  /** QEMU is ready for the load that was announced. */
  prepared(): ReplicaEffect[] {
    this.#require("preparing");
    this.#state = "asked";
    return [{ type: "write", bytes: [write.coloMessage("checkpoint-request")] }];
  }

  /** The disks are as of the checkpoint that is to be loaded. */
  disksSettled(): ReplicaEffect[] {
    if (this.#state === "seeded") this.#state = "starting";
    else {
      this.#require("settling");
      this.#state = "loading";
    }
    const bytes = this.#loading;
    this.#loading = [];
    return [{ type: "write", bytes }];
  }

  /**
   * QEMU has answered.
   *
   * @throws {StreamError} when the answer is not the one that is due; the replica is of no further use
   */
  received(bytes: Uint8Array): ReplicaEffect[] {
    return this.#answers.push(bytes).flatMap((event) => this.#answer(event));
  }

  #answer(event: ReturnPathEvent): ReplicaEffect[] {
    if (event.type === "pong") return [];
    if (event.type === "shut") {
      if (event.status === 0) return [];
      throw new StreamError("Cannot seed the secondary QEMU: it refused the stream", 0);
    }
    switch (`${this.#state} ${event.message}`) {
      case "starting checkpoint-ready":
        this.#state = "idle";
        return [{ type: "loaded", epoch: this.#epoch }, ...this.#next()];
      case "asked checkpoint-reply":
        this.#state = "settling";
        this.#loading = this.#takeHeld();
        return [
          { type: "stopped", epoch: this.#loadingEpoch },
          { type: "settle", epoch: this.#loadingEpoch, enters: false },
        ];
      case "loading vmstate-received":
        return [];
      case "loading vmstate-loaded":
        this.#state = "idle";
        this.#epoch = this.#loadingEpoch;
        return [{ type: "loaded", epoch: this.#epoch }, ...this.#next()];
    }
    throw new StreamError(
      `Cannot load a checkpoint: the secondary QEMU said ${event.message} while ${this.#state}`,
      0,
    );
  }

  #next(): ReplicaEffect[] {
    if (this.#state !== "idle" || !this.#wanted) return [];
    this.#state = "preparing";
    return [{ type: "prepare" }];
  }

  /** What is held now is loaded; what comes from here on is for the next load. */
  #takeHeld(): readonly Uint8Array[] {
    const id = this.#ramSectionId;
    const chunks = this.#chunks;
    const deviceState = this.#deviceState;
    this.#loadingEpoch = this.#heldEpoch!;
    this.#chunks = [];
    this.#deviceState = new Uint8Array(0);
    this.#heldEpoch = undefined;
    this.#heldBytes = 0;
    this.#wanted = false;
    return [
      write.coloMessage("vmstate-send"),
      write.ramEnd(id),
      ...chunks,
      write.ramSectionEnd(id),
      write.endOfFile(),
      write.vmstateSize(deviceState.length),
      deviceState,
    ];
  }

  #require(state: LiveReplicaState): void {
    if (this.#state !== state) {
      throw new LocalProtocolError(`Cannot feed the replica: it is ${this.#state}, not ${state}`);
    }
  }
}
