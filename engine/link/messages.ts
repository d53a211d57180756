/**
 * What the two engines say to each other, on four connections.
 *
 * ```text
 *   control   primary -> secondary   hello, heartbeat*, primaryLost, goodbye
 *             secondary -> primary   welcome or refuse, heartbeat*, takenOver, goodbye
 *   bulk      primary -> secondary   hello, seedAnew?, { seedBegin, pages*, deviceState+, commit, ( pages*, state+, commit )* }
 *                                    where state is deviceState or deviceStateDelta
 *             secondary -> primary   welcome or refuse, replicaReady, { committed, loaded }*, replicaFailed
 *                                    where a second replicaReady answers seedAnew
 *   packets   primary -> secondary   hello, frames*: what the guest was sent in this epoch
 *             secondary -> primary   welcome or refuse, frames*: what its VM has sent in this epoch
 *   disks     primary -> secondary   hello, { nbd, diskCopy }*: what its QEMU says to the secondary's disks in
 *                                    this epoch, and which copy of its own they are
 *             secondary -> primary   welcome or refuse, diskCopy, { nbd, checkpointWanted }*: what the disks
 *                                    answer, and that what they hold besides becomes too much
 * ```
 *
 * A checkpoint is known by its *lineage*, which is that of the capture it was taken in, and its epoch. A
 * secondary that holds one says so when it is ready; the primary then seeds it with what has changed
 * since, or says `seedAnew`, if it cannot tell what that is.
 *
 * Epoch N is what a VM does between checkpoint N and the next one that it takes or loads. Frames
 * without records, and `nbd` without bytes, say that the epoch has begun. The first `nbd` of a disk says
 * that its client has connected.
 *
 * Wherever a welcome is due, `refuse` may come in its place, also from a peer that speaks another
 * version of the protocol: number and payload of `refuse` are the same in every version.
 *
 * Pages, device state and frames are binary; everything else is a JSON object, whose unknown members
 * are ignored.
 *
 * @module
 */

import { WireError } from "../errors.ts";
import {
  BLOCK_COUNT_MAX,
  BLOCK_NAME_BYTES_MAX,
  DISKS_MAX,
  GUEST_RAM_BYTES_MAX,
  PAGE_BYTES,
} from "../limits.ts";
import { FRAME_HEADER_BYTES, FRAME_TYPE_AT, type FrameParts, type ReceivedFrame } from "./wire.ts";

/** The connections of a link, in the order in which they are opened. */
export const LINK_ROLES = ["control", "bulk", "packets", "disks"] as const;

/** Which of them this is. */
export type LinkRole = typeof LINK_ROLES[number];

/** The primary introduces itself; all connections of a link carry the same session. */
export interface HelloPayload {
  readonly role: LinkRole;
  /** Random, made by the primary at each attempt. */
  readonly session: string;
  readonly vmName: string;
  readonly memoryMiB: number;
  readonly mode: "colo" | "continuous";
  /** Network cards of the VM: both sides have the same, in the same order. */
  readonly nics: number;
  /** Sizes of its disks in bytes, likewise. */
  readonly disks: readonly number[];
  /** The generation in which the primary runs the VM, and who it is to the arbiter. */
  readonly generation: number;
  readonly holder: string;
  readonly engineVersion: string;
}

/** A checkpoint that a secondary holds as a whole. */
export interface HeldEpoch {
  readonly lineage: string;
  readonly epoch: number;
}

/** The guest whose pages follow. */
export interface SeedBeginPayload {
  /** Random, made by the primary for each capture: what its checkpoints are known by. */
  readonly lineage: string;
  /** Only what has changed since the checkpoint follows that the secondary said it holds. */
  readonly resumes: boolean;
  /** Versioned machine name, such as `pc-i440fx-11.1`. */
  readonly machine: string;
  readonly blocks: readonly { readonly name: string; readonly sizeBytes: number }[];
  readonly ramSectionId: number;
}

/** What the checkpoint consists of that ends here. */
export interface CommitPayload {
  readonly pagesFrames: number;
  readonly pageBytes: number;
  readonly deviceStateBytes: number;
  /** Whether the secondary VM is to run from it; if not, it is held until one is that is. */
  readonly load: boolean;
}

/** Everything that is said. */
export type Message =
  | { readonly type: "hello" } & HelloPayload
  | { readonly type: "welcome"; readonly engineVersion: string }
  /** Whoever runs the VM himself says in which generation; 0 for anybody else. */
  | { readonly type: "refuse"; readonly reason: string; readonly generation: number }
  | { readonly type: "seedBegin"; readonly epoch: number } & SeedBeginPayload
  | { readonly type: "pages"; readonly epoch: number; readonly records: Uint8Array }
  | { readonly type: "deviceState"; readonly epoch: number; readonly bytes: Uint8Array }
  /** As `deviceState`, as the exclusive or with that of the last checkpoint. */
  | { readonly type: "deviceStateDelta"; readonly epoch: number; readonly bytes: Uint8Array }
  | { readonly type: "commit"; readonly epoch: number } & CommitPayload
  /**
   * What a network card has received, or its VM sent, in epoch `epoch`: records as QEMU's packet
   * chardevs have them. `nic` is the number of the card, from 0.
   */
  | {
    readonly type: "frames";
    readonly epoch: number;
    readonly nic: number;
    readonly records: Uint8Array;
  }
  /** Part of an NBD conversation about disk number `disk`, from 0; epoch 0 before there is one. */
  | {
    readonly type: "nbd";
    readonly epoch: number;
    readonly disk: number;
    readonly bytes: Uint8Array;
  }
  /** The secondary's disks are this copy of the primary's, or none where it is empty. */
  | { readonly type: "diskCopy"; readonly copy: string }
  /** The secondary's VM has written much since its last load, which the next one would empty. */
  | { readonly type: "checkpointWanted" }
  /** It can be seeded; `held`: from there on. */
  | { readonly type: "replicaReady"; readonly held?: HeldEpoch }
  /** What is held is of no use: get ready for a seed of everything, then say so. */
  | { readonly type: "seedAnew" }
  | { readonly type: "replicaFailed"; readonly reason: string }
  /** The secondary holds this checkpoint as a whole. */
  | { readonly type: "committed"; readonly epoch: number }
  /** The secondary VM runs from this checkpoint. */
  | { readonly type: "loaded"; readonly epoch: number }
  | { readonly type: "heartbeat" }
  /** The primary QEMU is dead for certain. */
  | { readonly type: "primaryLost"; readonly reason: string }
  /** The secondary VM runs on its own, since this time in milliseconds since the epoch. */
  | { readonly type: "takenOver"; readonly epoch: number; readonly runningAtMs: number }
  /** The guest has ended in good order: nobody is to take over. */
  | { readonly type: "goodbye"; readonly reason: string };

type MessageType = Message["type"];

/** Numbers on the wire; never used anew for another meaning within a protocol version. */
const NUMBERS: Readonly<Record<MessageType, number>> = {
  hello: 1,
  welcome: 2,
  refuse: 3,
  seedBegin: 5,
  pages: 6,
  deviceState: 7,
  commit: 8,
  replicaReady: 9,
  replicaFailed: 10,
  committed: 11,
  loaded: 12,
  primaryLost: 13,
  takenOver: 14,
  goodbye: 15,
  deviceStateDelta: 16,
  frames: 17,
  heartbeat: 18,
  nbd: 19,
  diskCopy: 20,
  checkpointWanted: 21,
  seedAnew: 22,
};

const TYPES: ReadonlyMap<number, MessageType> = new Map(
  (Object.keys(NUMBERS) as MessageType[]).map((type) => [NUMBERS[type], type]),
);

const EMPTY = new Uint8Array(0);

/** A name, a reason or a version: what a person reads. */
const TEXT_CHARS_MAX = 4096;

/** A text that the peer will take: a long reason must not cost the message that it explains. */
function cut(text: string): string {
  return text.length <= TEXT_CHARS_MAX ? text : `${text.slice(0, TEXT_CHARS_MAX - 1)}\u2026`;
}

/** The frame that carries a message. Texts are cut to what {@linkcode decodeMessage} takes. */
export function encodeMessage(message: Message): FrameParts {
  const type = NUMBERS[message.type];
  switch (message.type) {
    case "pages":
      return { type, epoch: message.epoch, payload: message.records };
    case "deviceState":
    case "deviceStateDelta":
      return { type, epoch: message.epoch, payload: message.bytes };
    case "frames":
      return {
        type,
        epoch: message.epoch,
        head: Uint8Array.of(message.nic),
        payload: message.records,
      };
    case "nbd":
      return {
        type,
        epoch: message.epoch,
        head: Uint8Array.of(message.disk),
        payload: message.bytes,
      };
    case "committed":
    case "loaded":
      return { type, epoch: message.epoch, payload: EMPTY };
    case "replicaReady": {
      const { held } = message;
      if (held === undefined) return { type, epoch: 0, payload: EMPTY };
      const json = JSON.stringify({ lineage: cut(held.lineage) });
      return { type, epoch: held.epoch, payload: new TextEncoder().encode(json) };
    }
    case "checkpointWanted":
    case "seedAnew":
    case "heartbeat":
      return { type, epoch: 0, payload: EMPTY };
    default: {
      const { type: _, ...members } = message;
      const epoch = "epoch" in message ? message.epoch : 0;
      const json = JSON.stringify(
        members,
        (_, value: unknown) => typeof value === "string" ? cut(value) : value,
      );
      return { type, epoch, payload: new TextEncoder().encode(json) };
    }
  }
}

/**
 * The message that a frame carries.
 *
 * @throws {WireError} when it is not known, or lacks what it must have
 */
export function decodeMessage(frame: ReceivedFrame): Message {
  const { epoch, payload, offset } = frame;
  const type = TYPES.get(frame.type);
  switch (type) {
    case undefined:
      throw new WireError(
        `Cannot read from the link: message type ${frame.type} is not known`,
        offset + FRAME_TYPE_AT,
      );
    case "pages":
      return { type, epoch, records: payload };
    case "deviceState":
    case "deviceStateDelta":
      return { type, epoch, bytes: payload };
    case "frames":
      if (payload.length === 0) {
        throw new WireError(
          "Cannot read from the link: frames: it says of no network card",
          offset + FRAME_HEADER_BYTES,
        );
      }
      return { type, epoch, nic: payload[0]!, records: payload.subarray(1) };
    case "nbd":
      if (payload.length === 0) {
        throw new WireError(
          "Cannot read from the link: nbd: it says of no disk",
          offset + FRAME_HEADER_BYTES,
        );
      }
      return { type, epoch, disk: payload[0]!, bytes: payload.subarray(1) };
    case "committed":
    case "loaded":
      return { type, epoch };
    case "checkpointWanted":
    case "seedAnew":
    case "heartbeat":
      return { type };
    case "replicaReady":
      if (payload.length === 0) return { type };
  }
  const members = new Members(type, payload, offset + FRAME_HEADER_BYTES);
  switch (type) {
    case "hello":
      return {
        type,
        role: members.oneOf("role", LINK_ROLES),
        session: members.text("session"),
        vmName: members.text("vmName"),
        memoryMiB: members.count("memoryMiB"),
        mode: members.oneOf("mode", ["colo", "continuous"]),
        nics: members.count("nics"),
        disks: members.counts("disks", DISKS_MAX),
        generation: members.count("generation"),
        holder: members.text("holder"),
        engineVersion: members.text("engineVersion"),
      };
    case "welcome":
      return { type, engineVersion: members.text("engineVersion") };
    case "refuse":
      return {
        type,
        reason: members.text("reason"),
        generation: members.optionalCount("generation"),
      };
    case "diskCopy":
      return { type, copy: members.text("copy") };
    case "replicaFailed":
    case "primaryLost":
    case "goodbye":
      return { type, reason: members.text("reason") };
    case "seedBegin":
      return {
        type,
        epoch,
        lineage: members.text("lineage"),
        resumes: members.boolean("resumes"),
        machine: members.text("machine"),
        blocks: members.blocks("blocks"),
        ramSectionId: members.count("ramSectionId"),
      };
    case "commit":
      return {
        type,
        epoch,
        pagesFrames: members.count("pagesFrames"),
        pageBytes: members.count("pageBytes"),
        deviceStateBytes: members.count("deviceStateBytes"),
        load: members.boolean("load"),
      };
    case "replicaReady":
      return { type, held: { lineage: members.text("lineage"), epoch } };
    case "takenOver":
      return { type, epoch, runningAtMs: members.number("runningAtMs") };
  }
}

/** The members of a JSON payload, each checked as it is taken. */
class Members {
  readonly #members: Readonly<Record<string, unknown>>;

  constructor(readonly type: MessageType, payload: Uint8Array, readonly offset: number) {
    let value: unknown;
    try {
      value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(payload));
    } catch {
      this.#fail("it is not JSON");
    }
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      this.#fail("it is no object");
    }
    this.#members = value as Readonly<Record<string, unknown>>;
  }

  text(name: string): string {
    const value = this.#members[name];
    if (typeof value !== "string" || value.length > TEXT_CHARS_MAX) {
      this.#fail(`${name} is no text`);
    }
    return value;
  }

  number(name: string): number {
    const value = this.#members[name];
    // JSON holds numbers, such as 1e999, that are too large to be one here.
    if (typeof value !== "number" || !Number.isFinite(value)) {
      this.#fail(`${name} is no number`);
    }
    return value;
  }

  boolean(name: string): boolean {
    const value = this.#members[name];
    if (typeof value !== "boolean") this.#fail(`${name} is neither true nor false`);
    return value;
  }

  count(name: string): number {
    const value = this.number(name);
    if (!Number.isSafeInteger(value) || value < 0) this.#fail(`${name} is no count`);
    return value;
  }

  /** A list of counts that is no longer than this. */
  counts(name: string, lengthMax: number): readonly number[] {
    const list = this.#members[name];
    const isCount = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0;
    if (!Array.isArray(list) || list.length > lengthMax || !list.every(isCount)) {
      this.#fail(`${name} is no list of counts`);
    }
    return list as readonly number[];
  }

  /** @returns 0 where it is left out */
  optionalCount(name: string): number {
    return Object.hasOwn(this.#members, name) ? this.count(name) : 0;
  }

  oneOf<Value extends string>(name: string, values: readonly Value[]): Value {
    const found = values.find((value) => value === this.#members[name]);
    if (found === undefined) this.#fail(`${name} is none of ${values.join(", ")}`);
    return found;
  }

  /** RAM blocks: distinct names, whole pages, within the limits of a guest. */
  blocks(name: string): SeedBeginPayload["blocks"] {
    const list = this.#members[name];
    if (!Array.isArray(list) || list.length === 0 || list.length > BLOCK_COUNT_MAX) {
      this.#fail(`${name} is no list of RAM blocks`);
    }
    const names = new Set<string>();
    let totalBytes = 0;
    const blocks = list.map((entry: unknown) => {
      const { name, sizeBytes } = (entry ?? {}) as { name?: unknown; sizeBytes?: unknown };
      if (typeof name !== "string" || name === "" || names.has(name)) {
        this.#fail("a RAM block's name");
      }
      if (new TextEncoder().encode(name).length > BLOCK_NAME_BYTES_MAX) {
        this.#fail("a RAM block's name");
      }
      if (typeof sizeBytes !== "number" || sizeBytes <= 0 || sizeBytes % PAGE_BYTES !== 0) {
        this.#fail(`RAM block "${name}" is no whole pages`);
      }
      names.add(name);
      totalBytes += sizeBytes;
      return { name, sizeBytes };
    });
    if (totalBytes > GUEST_RAM_BYTES_MAX) this.#fail(`guest RAM of ${totalBytes} bytes`);
    return blocks;
  }

  #fail(detail: string): never {
    throw new WireError(`Cannot read from the link: ${this.type}: ${detail}`, this.offset);
  }
}
