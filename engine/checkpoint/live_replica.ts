/**
 * The secondary VM that runs: the engine is the COLO primary of a QEMU started with `-incoming defer`.
 *
 * ```text
 *            seedBegin        commit(seed)             READY
 *  empty ------------> seeding --------> starting -------------> idle <------------------------+
 *                                                                 | load                       |
 *                                        preparing -prepared-> asked -REPLY-> loading -LOADED--+
 * ```
 *
 * QEMU is given a checkpoint only when the engine holds it as a whole. Checkpoints that wait while
 * another is loaded are loaded in their order.
 *
 * Pure: messages in, bytes for QEMU and events out. Source of the byte order: QEMU `migration/colo.c`.
 *
 * @module
 */

import { LocalProtocolError, StreamError } from "../errors.ts";
import type { RamBlock } from "../stream/format.ts";
import { type ReturnPathEvent, ReturnPathReader } from "../stream/return_path.ts";
import * as write from "../stream/writer.ts";

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
  /** Get QEMU ready for a load, then call {@linkcode LiveReplica.prepared}. */
  | { readonly type: "prepare" }
  /** QEMU runs from this checkpoint. */
  | { readonly type: "loaded"; readonly epoch: number };

/** How far a live replica is. */
export type LiveReplicaState =
  | "empty"
  | "seeding"
  | "starting"
  | "idle"
  | "preparing"
  | "asked"
  | "loading";

/** The engine's side of one secondary QEMU. */
export class LiveReplica {
  readonly #answers = new ReturnPathReader();
  readonly #waiting: WholeCheckpoint[] = [];
  #state: LiveReplicaState = "empty";
  #ramSectionId = 0;
  #epoch = 0;

  get state(): LiveReplicaState {
    return this.#state;
  }

  /** The checkpoint that QEMU runs from. */
  get epoch(): number {
    return this.#epoch;
  }

  /** True when every checkpoint that was committed has been loaded. */
  get settled(): boolean {
    return this.#state === "idle" && this.#waiting.length === 0;
  }

  /** Bytes of the checkpoints that QEMU has not been given yet. */
  get waitingBytes(): number {
    const bytes = this.#waiting.map(({ chunks, deviceState }) =>
      chunks.reduce((sum, chunk) => sum + chunk.length, deviceState.length)
    );
    return bytes.slice(this.#state === "loading" ? 1 : 0).reduce((sum, count) => sum + count, 0);
  }

  /** Begin the initial stream. */
  seedBegin(machine: string, blocks: readonly RamBlock[], ramSectionId: number): ReplicaEffect[] {
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

  /** Pages of the seed: they go into QEMU's RAM at once, which does not run yet. */
  seedPages(chunk: Uint8Array): ReplicaEffect[] {
    this.#require("seeding");
    const id = this.#ramSectionId;
    return [{ type: "write", bytes: [write.ramPart(id), chunk, write.ramSectionEnd(id)] }];
  }

  /** The seed is whole: QEMU takes the device state and gets ready. */
  seedCommit(epoch: number, deviceState: Uint8Array): ReplicaEffect[] {
    this.#require("seeding");
    this.#state = "starting";
    this.#epoch = epoch;
    const id = this.#ramSectionId;
    return [{
      type: "write",
      bytes: [write.ramEnd(id), write.ramSectionEnd(id), deviceState, write.vmDescription()],
    }];
  }

  /** Load a checkpoint, now or when those before it are loaded. */
  load(checkpoint: WholeCheckpoint): ReplicaEffect[] {
    if (this.#state === "empty" || this.#state === "seeding") this.#require("idle");
    this.#waiting.push(checkpoint);
    return this.#next();
  }

  /** QEMU is ready for the load that was announced. */
  prepared(): ReplicaEffect[] {
    this.#require("preparing");
    this.#state = "asked";
    return [{ type: "write", bytes: [write.coloMessage("checkpoint-request")] }];
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
        this.#state = "loading";
        return [this.#checkpoint(this.#waiting[0]!)];
      case "loading vmstate-received":
        return [];
      case "loading vmstate-loaded":
        this.#state = "idle";
        this.#epoch = this.#waiting.shift()!.epoch;
        return [{ type: "loaded", epoch: this.#epoch }, ...this.#next()];
    }
    throw new StreamError(
      `Cannot load a checkpoint: the secondary QEMU said ${event.message} while ${this.#state}`,
      0,
    );
  }

  #next(): ReplicaEffect[] {
    if (this.#state !== "idle" || this.#waiting.length === 0) return [];
    this.#state = "preparing";
    return [{ type: "prepare" }];
  }

  #checkpoint({ chunks, deviceState }: WholeCheckpoint): ReplicaEffect {
    const id = this.#ramSectionId;
    return {
      type: "write",
      bytes: [
        write.coloMessage("vmstate-send"),
        write.ramEnd(id),
        ...chunks,
        write.ramSectionEnd(id),
        write.endOfFile(),
        write.vmstateSize(deviceState.length),
        deviceState,
      ],
    };
  }

  #require(state: LiveReplicaState): void {
    if (this.#state !== state) {
      throw new LocalProtocolError(`Cannot feed the replica: it is ${this.#state}, not ${state}`);
    }
  }
}
