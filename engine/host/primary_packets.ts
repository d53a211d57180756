/**
 * The network of a primary: QEMU's filters, and the thread between them and the link.
 *
 * @module
 */

import type { ReplicationMode } from "../config/mod.ts";
import { messageOf } from "../errors.ts";
import type { LinkConnection } from "../link/mod.ts";
import type { CheckpointRequest, FlowRule, OutboundStatistics } from "../proxy/mod.ts";
import {
  addPrimaryFilters,
  closeSockets,
  type FilteredNic,
  type FilterMonitor,
  type PrimarySockets,
  removePrimaryFilters,
  switchPrimaryFilters,
} from "./packet_filters.ts";
import { PacketThread } from "./packet_thread.ts";
import type { PrimaryCards } from "./primary_cards.ts";

/** What a primary's network needs. */
export interface PrimaryPacketsOptions {
  readonly monitor: FilterMonitor;
  readonly nics: readonly FilteredNic[];
  readonly mode: ReplicationMode;
  /** How long a frame waits for the secondary's before a checkpoint is asked for. */
  readonly timeoutMs: number;
  readonly excluded: readonly FlowRule[];
  /** A directory of this process's own, for sockets. */
  readonly directory: string;
  /** Until when anything may leave at all, by `performance.now()`, unless told otherwise by then. */
  readonly mayLeaveUntilMs: () => number;
  /** A checkpoint is wished for. */
  readonly demand: (request: CheckpointRequest) => void;
  readonly notice: (text: string) => void;
}

/** Between two words to the thread of what may leave. */
const PERMIT_MS = 20;

/** The network of one primary VM. */
export class PrimaryPackets {
  readonly #options: PrimaryPacketsOptions;
  readonly #thread: PacketThread<PrimaryCards>;
  #permits: ReturnType<typeof setInterval> | undefined;
  /** The secondary's end, from {@linkcode guard} on. */
  #link: LinkConnection | undefined;
  #bypass = false;
  #isClosed = false;

  private constructor(options: PrimaryPacketsOptions, thread: PacketThread<PrimaryCards>) {
    this.#options = options;
    this.#thread = thread;
  }

  /**
   * Add the filters, which frames pass by until {@linkcode guard}.
   *
   * @throws {QmpError} when QEMU does not take them
   * @throws {LocalProtocolError} when a rule makes no sense, of which a config says so
   */
  static async install(options: PrimaryPacketsOptions): Promise<PrimaryPackets> {
    const { monitor, nics, directory, mode, timeoutMs, excluded } = options;
    const sockets: PrimarySockets[] = [];
    try {
      for (const nic of nics) {
        // What an attempt has left that failed half way.
        await removePrimaryFilters(monitor, nic);
        sockets.push(await addPrimaryFilters(monitor, nic, directory));
      }
      const cards = nics.map((nic, index) => ({ nic, sockets: sockets[index]! }));
      const thread = await PacketThread.start<PrimaryCards>(
        { side: "primary", options: { cards, mode, timeoutMs, excluded } },
        { demand: options.demand, notice: options.notice },
        directory,
      );
      return new PrimaryPackets(options, thread);
    } catch (error) {
      for (const of of sockets) closeSockets(Object.values(of));
      throw error;
    }
  }

  /** What has happened, a card. */
  get statistics(): readonly OutboundStatistics[] {
    return this.#thread.call("statistics");
  }

  /**
   * Lead all frames through the thread from now on. Nothing is held back before {@linkcode begin}.
   *
   * @param link Where what the guest receives goes to
   * @param epoch Of the last checkpoint that the guest stood still for
   */
  async guard(link: LinkConnection, epoch: number): Promise<void> {
    this.#thread.connect(link);
    this.#link = link;
    this.#thread.call("begins", epoch);
    await this.#engage();
  }

  /** Frames pass this engine by, or do so no more; for an operator who knows what he does. */
  async bypass(on: boolean): Promise<void> {
    this.#bypass = on;
    if (on) this.#release();
    await this.#engage();
  }

  /** Whether an operator has frames pass this engine by. */
  get isBypassed(): boolean {
    return this.#bypass;
  }

  /** Frames are to be led through the thread. */
  get #wanted(): boolean {
    return this.#link !== undefined && !this.#bypass;
  }

  /** Switch QEMU's filters as is wanted now, which may change meanwhile. */
  async #engage(): Promise<void> {
    if (this.#wanted) this.#permits ??= setInterval(() => this.permit(), PERMIT_MS);
    this.permit();
    for (let on; on !== this.#wanted;) await this.#switch(on = this.#wanted);
    if (!this.#isClosed) this.#thread.call("guard", this.#wanted);
  }

  /** The guest stands still for this checkpoint: all that it has sent and received is from before it. */
  stopped(epoch: number): void {
    this.#thread.call("stopped", epoch);
  }

  /** The guest still stands still: what it sends from now on leaves by this checkpoint's rules. */
  begin(epoch: number): void {
    this.#thread.call("begin", epoch);
  }

  /** The secondary holds this checkpoint: what was said before it leaves. */
  committed(epoch: number): void {
    this.permit();
    this.#thread.call("committed", epoch);
  }

  /** The secondary may have taken over: until that is known nothing leaves. */
  secondaryLost(): void {
    this.#thread.call("secondaryLost");
  }

  /**
   * Nobody waits for anything any more: all that was held back leaves, and frames pass this engine by.
   *
   * @param link Only if that is the one that is being guarded for
   */
  runAlone(link?: LinkConnection): void {
    if (this.#link === undefined || (link !== undefined && link !== this.#link)) return;
    this.#link = undefined;
    this.#thread.disconnect();
    this.#release();
    this.#engage().catch((error) => this.#options.notice(messageOf(error)));
  }

  /** Until when what may leave may leave has changed. */
  permit(): void {
    this.#thread.permit(this.#options.mayLeaveUntilMs());
  }

  #release(): void {
    clearInterval(this.#permits);
    this.#permits = undefined;
    this.permit();
    this.#thread.call("release");
  }

  /** Give up the sockets; QEMU is not told. */
  close(): void {
    this.#isClosed = true;
    clearInterval(this.#permits);
    this.#thread.close();
  }

  async #switch(on: boolean): Promise<void> {
    const { monitor, nics } = this.#options;
    for (const nic of nics) await switchPrimaryFilters(monitor, nic, on);
  }
}
