/**
 * What leaves: the frames that the primary VM sends, held back until they may. Pure: bytes, checkpoint
 * events and `now` in; bytes to write, and the wish for a checkpoint, out.
 *
 * > An outgoing packet of the primary leaves only when the secondary VM produced the same payload, or a
 * > checkpoint taken after it is wholly held by the secondary, or the arbiter has let the primary run
 * > alone.
 *
 * ```text
 *   mode         what lets a frame go
 *   alone        nothing holds it back
 *   compare      the same payload of the secondary's, or the commit      (`colo`)
 *   continuous   the commit                                              (no secondary VM runs)
 * ```
 *
 * Frames belong to *epochs*: epoch N is what the primary does between checkpoint N and the next one.
 *
 * ```text
 *              checkpoint(N)                committed(N)              loaded(N)
 *   primary  ---- epoch N-1 ----|---------------- epoch N ---------------------------
 *   secondary ------- epoch N-1 ------------------| (forgotten)       |-- epoch N ---
 *                                                 ^ frames before N leave, in order
 * ```
 *
 * A frame is compared with frames of the same epoch alone: what the secondary said before it loaded
 * checkpoint N was said by another life. ARP, neighbor discovery and what is not IP is not compared:
 * the primary's passes, the secondary's is dropped, and so are both sides' of excluded flows. When the
 * secondary is lost nothing passes until it is known who goes on.
 *
 * @module
 */

import type { KernelSet } from "../../wasm/mod.ts";
import { StateError } from "../errors.ts";
import {
  PACKET_CONNECTION_IDLE_MS,
  PACKET_CONNECTIONS_MAX,
  PACKET_HISTORY_SEGMENTS,
  PACKET_PRIMARY_SEGMENTS,
  PACKET_REASSEMBLY_SEGMENTS,
  PACKET_SECONDARY_SEGMENTS,
} from "../limits.ts";
import { Comparator, comparatorScratchBytes } from "./comparator.ts";
import type { CheckpointReason } from "./comparison.ts";
import { describeFrame } from "./flow.ts";
import { compileFlowRules, type FlowRule } from "./flow_rules.ts";
import { FRAME_INPUT_BYTES, FrameInput } from "./frame_input.ts";
import { FRAME_STEP, FrameStore, LINK, NONE } from "./frame_store.ts";
import { HeldFrames } from "./held_frames.ts";
import { GATHER_BYTES, Outbox } from "./outbox.ts";

export type { CheckpointReason } from "./comparison.ts";

/** What lets frames go. */
export type OutboundMode = "alone" | "compare" | "continuous";

/** What an {@linkcode OutboundProxy} may be told. */
export interface OutboundProxyOptions {
  /** Whether the chardevs' records carry a vnet header (`vnet_hdr_support=true`). Default: no. */
  readonly vnetHeader?: boolean;
  /** How long a frame waits for the secondary's before a checkpoint is asked for. Default: 200. */
  readonly timeoutMs?: number;
  /** Flows that are not compared. */
  readonly excluded?: readonly FlowRule[];
  /** 32 random bits, so that nobody outside can make flows collide. */
  readonly seed?: number;
  /** Connections tracked. */
  readonly connectionsMax?: number;
  readonly connectionIdleMs?: number;
  /** Segments of 256 KiB for frames of the primary that wait. */
  readonly primarySegments?: number;
  /** Likewise for the secondary's. */
  readonly secondarySegments?: number;
}

/** The wish for a checkpoint. There is one until the checkpoint is taken, however many causes. */
export interface CheckpointRequest {
  readonly reason: CheckpointReason;
  /** The flow it is about, such as `tcp 10.0.0.1:80 > 10.0.0.2:4000`; undefined when about none. */
  readonly flow: string | undefined;
}

/** What has happened so far. */
export interface OutboundStatistics {
  readonly primaryFrames: number;
  readonly secondaryFrames: number;
  /** Frames that were held back and left. */
  readonly released: number;
  /** Of those, the ones that a commit let go. */
  readonly committed: number;
  /** Frames of the primary that were lost because there was no room. */
  readonly lost: number;
  readonly malformed: number;
  /** Connections in which the sides differed. */
  readonly mismatches: number;
  readonly timeouts: number;
  readonly connections: number;
  /** Frames held back now. */
  readonly held: number;
}

const DEFAULT_TIMEOUT_MS = 200;
const DEFAULT_SEED = 0x9e37_79b9;

/**
 * The outgoing side of a protected VM, at the primary.
 *
 * @example
 * ```ts
 * import { WasmKernels } from "../../wasm/mod.ts";
 * import { OutboundProxy } from "./outbound_proxy.ts";
 *
 * const proxy = new OutboundProxy(WasmKernels.create());
 * proxy.protect("continuous", 1);
 * const record = [0, 0, 0, 60, ...new Uint8Array(60)];
 * proxy.primary.space().set(record);
 * proxy.primaryReceived(record.length, performance.now());
 * if (proxy.output.peek().length !== 0) throw new Error("left without a checkpoint");
 *
 * proxy.checkpoint(2);
 * proxy.committed(2);
 * if (proxy.output.peek().length !== 64) throw new Error("held for ever");
 * proxy.output.sent(64);
 * ```
 */
export class OutboundProxy {
  /** Takes what the primary's `out` chardev sends: read into its space, then {@linkcode primaryReceived}. */
  readonly primary: FrameInput;
  /** Likewise what the secondary's `out` chardev sends, as it comes over the link. */
  readonly secondary: FrameInput;
  /** What is to be written to the primary's `in` chardev. */
  readonly output: Outbox;

  readonly #store: FrameStore;
  readonly #held: HeldFrames;
  readonly #comparator: Comparator;
  readonly #timeoutMs: number;
  #mode: OutboundMode = "alone";
  #epoch = 0;
  #committedEpoch = 0;
  /** The checkpoint that the secondary VM goes on from; NONE when it is not known to run. */
  #secondaryEpoch: number = NONE;
  #loadedAt = 0;
  #isInDoubt = false;
  #isRequested = false;
  #request: CheckpointRequest | undefined;
  #primaryFrames = 0;
  #secondaryFrames = 0;
  #released = 0;
  #committed = 0;
  #lost = 0;
  #timeouts = 0;

  /**
   * @param kernels Whose memory the frames are in; some 110 MiB of address space are taken for
   * good, and memory only for what is used of them
   * @throws {ConfigError} when a rule makes no sense
   */
  constructor(kernels: KernelSet, options: OutboundProxyOptions = {}) {
    const {
      vnetHeader = false,
      seed = DEFAULT_SEED,
      timeoutMs = DEFAULT_TIMEOUT_MS,
      connectionsMax = PACKET_CONNECTIONS_MAX,
      connectionIdleMs = PACKET_CONNECTION_IDLE_MS,
    } = options;
    const isExcluded = compileFlowRules(options.excluded ?? []);
    this.#store = new FrameStore(kernels, {
      primary: options.primarySegments ?? PACKET_PRIMARY_SEGMENTS,
      secondary: options.secondarySegments ?? PACKET_SECONDARY_SEGMENTS,
      reassembly: PACKET_REASSEMBLY_SEGMENTS,
      history: PACKET_HISTORY_SEGMENTS,
      scratchBytes: comparatorScratchBytes(connectionsMax) + 2 * FRAME_INPUT_BYTES + GATHER_BYTES,
    });
    const { primary, secondary } = this.#store;
    const input = { vnetHeader, seed };
    this.primary = new FrameInput(this.#store, primary, { ...input, name: "the primary" });
    this.secondary = new FrameInput(this.#store, secondary, { ...input, name: "the secondary" });
    this.output = new Outbox(this.#store, vnetHeader ? 8 : 4);
    this.#held = new HeldFrames(this.#store);
    this.#timeoutMs = timeoutMs;
    this.#comparator = new Comparator(this.#store, {
      hold: (frame) => this.#held.append(frame),
      pass: (frame) => this.output.push(frame),
      release: (frame) => this.#release(frame),
      want: (reason, frame) => this.#wantFor(reason, frame),
    }, { vnetHeader, seed, timeoutMs, connectionsMax, connectionIdleMs, isExcluded });
  }

  /** What lets frames go at present. */
  get mode(): OutboundMode {
    return this.#mode;
  }

  /** The secondary is lost, and may have taken over: nothing is to leave, be it in the output already. */
  get isInDoubt(): boolean {
    return this.#isInDoubt;
  }

  /** The last checkpoint taken. */
  get epoch(): number {
    return this.#epoch;
  }

  get statistics(): OutboundStatistics {
    return {
      primaryFrames: this.#primaryFrames,
      secondaryFrames: this.#secondaryFrames,
      released: this.#released,
      committed: this.#committed,
      lost: this.#lost,
      malformed: this.#comparator.malformed,
      mismatches: this.#comparator.mismatches,
      timeouts: this.#timeouts,
      connections: this.#comparator.connections,
      held: this.#held.count,
    };
  }

  /** Whether a checkpoint is wished for, once a wish. */
  takeRequest(): CheckpointRequest | undefined {
    const request = this.#request;
    this.#request = undefined;
    return request;
  }

  /**
   * `count` bytes of the primary's have been read into {@linkcode primary}'s space.
   *
   * @param now In ms, of any clock that does not go back
   * @throws {PacketError} when they are no records; what came before them is dealt with, and nothing
   * more is taken until {@linkcode FrameInput.reset}
   */
  primaryReceived(count: number, now: number): void {
    const { primary } = this;
    const arrival = wrapped(now);
    primary.filled(count);
    try {
      while (primary.next()) {
        this.#primaryFrames += primary.count;
        const end = primary.first + primary.count * FRAME_STEP;
        for (let frame = primary.first; frame < end; frame += FRAME_STEP) {
          this.#store.begin(frame, this.#epoch, arrival);
          this.#takePrimary(frame);
        }
      }
    } finally {
      this.#comparator.flush();
    }
    if (this.#store.primary.isLow || this.#store.primaryWhole.isLow) this.#want("queue-full");
  }

  #takePrimary(frame: number): void {
    if (this.primary.isOverflowing) {
      this.#lost++;
      this.#store.drop(frame);
      this.#want("queue-full");
    } else if (this.#mode === "alone") this.output.push(frame);
    else if (this.#mode === "compare" && !this.#isInDoubt) this.#comparator.primary(frame);
    else this.#held.append(frame);
  }

  /**
   * `count` bytes of the secondary's have been read into {@linkcode secondary}'s space.
   *
   * @param now As {@linkcode primaryReceived}
   * @throws {PacketError} as {@linkcode primaryReceived}
   */
  secondaryReceived(count: number, now: number): void {
    const { secondary } = this;
    const arrival = wrapped(now);
    secondary.filled(count);
    try {
      while (secondary.next()) {
        this.#secondaryFrames += secondary.count;
        const isUseful = !secondary.isOverflowing && this.#isComparing;
        const end = secondary.first + secondary.count * FRAME_STEP;
        for (let frame = secondary.first; frame < end; frame += FRAME_STEP) {
          this.#store.begin(frame, this.#secondaryEpoch, arrival);
          if (isUseful) this.#comparator.secondary(frame);
          else this.#store.drop(frame);
        }
      }
    } finally {
      this.#comparator.flush();
    }
    if (!this.#isComparing) return;
    if (this.#store.secondary.isLow || this.#store.secondaryWhole.isLow) this.#want("queue-full");
  }

  /** Does the secondary VM run from the last checkpoint that it holds? */
  get #isComparing(): boolean {
    return this.#mode === "compare" && !this.#isInDoubt &&
      this.#secondaryEpoch === this.#committedEpoch;
  }

  /**
   * Protect the primary from now on; call it while the primary stands still for the checkpoint with
   * which a secondary joins. What the primary sends after it waits.
   *
   * @param epoch Number of that checkpoint
   * @throws {StateError} when there was a later checkpoint; nothing was changed
   */
  protect(mode: "compare" | "continuous", epoch: number): void {
    this.#beginEpoch(epoch);
    this.#forgetSecondary();
    this.#isInDoubt = false;
    this.#mode = mode;
  }

  /**
   * A checkpoint was taken, and all that the primary sent before it has been received (its chardev was
   * read until it would block, while it stood still).
   *
   * @throws {StateError} when there was a later one; nothing was changed
   */
  checkpoint(epoch: number): void {
    this.#beginEpoch(epoch);
  }

  #beginEpoch(epoch: number): void {
    if (!(Number.isSafeInteger(epoch) && epoch > this.#epoch && epoch < 2 ** 31)) {
      throw new StateError(
        `Cannot begin checkpoint ${epoch}: checkpoint ${this.#epoch} was taken before`,
        `checkpoint ${this.#epoch}`,
        "a later checkpoint",
      );
    }
    this.#comparator.beginEpoch();
    this.#held.beginEpoch();
    this.#epoch = epoch;
    this.#isRequested = false;
    this.#request = undefined;
  }

  /**
   * The secondary holds all of a checkpoint: what the primary sent before it leaves, in order. What the
   * secondary says until it has loaded it is forgotten.
   *
   * @throws {StateError} when that checkpoint was not taken; nothing was changed
   */
  committed(epoch: number): void {
    // Nothing is held back, whichever checkpoint that was.
    if (this.#mode === "alone") return;
    if (epoch > this.#epoch) {
      throw new StateError(
        `Cannot commit checkpoint ${epoch}: it was not taken`,
        `checkpoint ${this.#epoch}`,
        `checkpoint ${epoch}`,
      );
    }
    if (epoch <= this.#committedEpoch) return;
    this.#committedEpoch = epoch;
    this.#restart(epoch);
    const { links } = this.#store;
    for (let frame = this.#held.first; frame !== NONE; frame = this.#held.first) {
      if (links[frame + LINK.EPOCH]! >= epoch) break;
      this.#comparator.committed(frame);
      if (links[frame + LINK.PARTS] === NONE) this.#committed++;
      this.#leave(frame);
    }
    if (this.#mode === "compare" && !this.#isInDoubt) this.#reconsider(epoch);
  }

  /** What was sent since may need no more than the secondary has said by the checkpoint. */
  #reconsider(epoch: number): void {
    const { links } = this.#store;
    const frames: number[] = [];
    for (let frame = this.#held.first; frame !== NONE; frame = links[frame + LINK.HELD_BEHIND]!) {
      if (links[frame + LINK.EPOCH] === epoch) frames.push(frame);
    }
    for (const frame of frames) {
      if (links[frame + LINK.HELD] === 1) this.#comparator.reconsider(frame);
    }
    this.#comparator.flush();
  }

  /**
   * The secondary VM runs from a checkpoint: its frames from now on are of that epoch. Implies
   * {@linkcode committed}.
   *
   * @throws {StateError} as {@linkcode committed}
   */
  loaded(epoch: number, now: number): void {
    this.committed(epoch);
    this.#secondaryEpoch = epoch;
    this.#loadedAt = wrapped(now);
  }

  /**
   * The secondary is gone, and may have taken over. What is held back waits for the arbiter, or for the
   * next secondary, and so does all that comes, compared or not: ARP would draw the network to this VM.
   */
  secondaryLost(): void {
    this.#forgetSecondary();
    this.#isInDoubt = true;
  }

  /**
   * The arbiter lets the primary run alone: everything leaves, in order, and nothing waits any more. The
   * checkpoints of the next protection may have any numbers.
   */
  runAlone(): void {
    this.#comparator.flush();
    this.#mode = "alone";
    this.#isInDoubt = false;
    this.#epoch = 0;
    this.#committedEpoch = 0;
    while (this.#held.first !== NONE) this.#leave(this.#held.first);
    this.#forgetSecondary();
    this.#comparator.clear();
    this.#isRequested = false;
    this.#request = undefined;
  }

  /** Time has passed; call it some times within the timeout. */
  tick(now: number): void {
    const at = wrapped(now);
    this.#comparator.tick(at);
    const frame = this.#held.firstOfEpoch;
    if (frame === NONE || !this.#isComparing || this.#committedEpoch !== this.#epoch) return;
    const waitedMs = at - this.#store.links[frame + LINK.ARRIVAL]! | 0;
    const comparedMs = at - this.#loadedAt | 0;
    if (Math.min(waitedMs, comparedMs) < this.#timeoutMs || this.#isRequested) return;
    this.#timeouts++;
    this.#wantFor("timeout", frame);
  }

  #forgetSecondary(): void {
    this.#secondaryEpoch = NONE;
    this.#restart(NONE);
  }

  #restart(epoch: number): void {
    this.#comparator.restart(epoch);
    this.secondary.dropFrames();
  }

  #wantFor(reason: CheckpointReason, frame: number): void {
    // A checkpoint that is on its way lets the frame go.
    if (this.#store.links[frame + LINK.EPOCH]! < this.#epoch) return;
    this.#want(reason, frame);
  }

  #want(reason: CheckpointReason, frame: number = NONE): void {
    if (this.#isRequested || this.#mode === "alone") return;
    this.#isRequested = true;
    const flow = frame === NONE ? undefined : describeFrame(this.#store, frame);
    this.#request = { reason, flow };
  }

  /** A frame that was compared leaves, or the fragments that it was made of. */
  #release(frame: number): void {
    const { links } = this.#store;
    let part = links[frame + LINK.PARTS]!;
    if (part === NONE) return this.#leave(frame);
    for (; part !== NONE; part = links[part + LINK.NEXT]!) this.#leave(part);
    this.#leave(frame);
  }

  /** A frame leaves in its turn; the fragments of one that was made of them do so themselves. */
  #leave(frame: number): void {
    this.#held.remove(frame);
    if (this.#store.links[frame + LINK.PARTS] !== NONE) return this.#store.drop(frame);
    this.#released++;
    this.output.push(frame);
  }
}

/** Milliseconds as a signed number of 32 bits, to be subtracted and cut to 32 bits again. */
function wrapped(now: number): number {
  return Math.floor(now) | 0;
}
