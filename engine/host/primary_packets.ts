/**
 * The network of a primary: between the chardevs of its filters and the packet connection of the link
 * stands an {@linkcode OutboundProxy} for each card.
 *
 * @module
 */

import { WasmKernels } from "../../wasm/mod.ts";
import type { ReplicationMode } from "../config/mod.ts";
import { LinkError, messageOf, PacketError, WireError } from "../errors.ts";
import { PACKET_LINK_BYTES_MAX } from "../limits.ts";
import type { LinkConnection, Message } from "../link/mod.ts";
import {
  type CheckpointRequest,
  type FlowRule,
  OutboundProxy,
  type OutboundStatistics,
} from "../proxy/mod.ts";
import { RecordBuffer } from "../proxy/record_buffer.ts";
import {
  addPrimaryFilters,
  type FilteredNic,
  type FilterMonitor,
  type PrimarySockets,
  removePrimaryFilters,
  switchPrimaryFilters,
} from "./packet_filters.ts";
import { CLOSED, SocketPoller, UnixSocket } from "./unix_socket.ts";

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
  /** Whether anything may leave at all, now that this process runs again; what may not leave waits. */
  readonly mayLeave: () => boolean;
  /** A checkpoint is wished for. */
  readonly demand: (request: CheckpointRequest) => void;
  readonly notice: (text: string) => void;
}

type FramesMessage = Extract<Message, { type: "frames" }>;

/** Between two looks at what has waited too long, a share of the timeout. */
const TICKS_A_TIMEOUT = 8;

/** The network of one primary VM. */
export class PrimaryPackets {
  readonly #options: PrimaryPacketsOptions;
  readonly #poller = new SocketPoller();
  readonly #cards: readonly Card[];
  #ticker: ReturnType<typeof setInterval> | undefined;
  /** The secondary's end, from {@linkcode guard} on. */
  #link: LinkConnection | undefined;
  #bypass = false;
  /** Frames are led through this engine, all of them. */
  #guarding = false;
  /** What the guest receives now, it receives in this epoch. */
  #inboundEpoch = 0;
  /** The first checkpoint that what leaves is held back for; undefined while nothing is. */
  #guardedEpoch: number | undefined;

  private constructor(options: PrimaryPacketsOptions, sockets: readonly PrimarySockets[]) {
    this.#options = options;
    this.#cards = options.nics.map((nic, index) =>
      new Card(nic, sockets[index]!, options, this.#poller)
    );
    for (const [index, card] of this.#cards.entries()) {
      card.onMirrored = (records) => this.#forward(index, records);
    }
  }

  /**
   * Add the filters, which frames pass by until {@linkcode guard}.
   *
   * @throws {QmpError} when QEMU does not take them
   * @throws {ConfigError} when a rule makes no sense
   */
  static async install(options: PrimaryPacketsOptions): Promise<PrimaryPackets> {
    const { monitor, nics, directory } = options;
    const sockets: PrimarySockets[] = [];
    try {
      for (const nic of nics) {
        // What an attempt has left that failed half way.
        await removePrimaryFilters(monitor, nic);
        sockets.push(await addPrimaryFilters(monitor, nic, directory));
      }
    } catch (error) {
      for (const { mirror, out, in: input } of sockets) {
        for (const socket of [mirror, out, input]) socket.close();
      }
      throw error;
    }
    return new PrimaryPackets(options, sockets);
  }

  /** What has happened, a card. */
  get statistics(): readonly OutboundStatistics[] {
    return this.#cards.map(({ proxy }) => proxy.statistics);
  }

  /**
   * Lead all frames through this engine from now on. Nothing is held back before {@linkcode begin}.
   *
   * @param link Where what the guest receives goes to
   * @param epoch Of the last checkpoint that the guest stood still for
   */
  async guard(link: LinkConnection, epoch: number): Promise<void> {
    this.#link = link;
    this.#inboundEpoch = epoch;
    for (const card of this.#cards) card.forgetSecondary();
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

  /** Frames are to be led through this engine. */
  get #wanted(): boolean {
    return this.#link !== undefined && !this.#bypass;
  }

  /** Switch QEMU's filters as is wanted now, which may change meanwhile. */
  async #engage(): Promise<void> {
    for (let on; on !== this.#wanted;) await this.#switch(on = this.#wanted);
    this.#guarding = this.#wanted;
    if (!this.#guarding || this.#ticker !== undefined) return;
    this.#ticker = setInterval(() => this.#tick(), this.#options.timeoutMs / TICKS_A_TIMEOUT);
  }

  /** The guest stands still for this checkpoint: all that it has sent and received is from before it. */
  stopped(epoch: number): void {
    if (this.#guarding) { for (const card of this.#cards) card.drain(); }
    this.#inboundEpoch = epoch;
  }

  /** The guest still stands still: what it sends from now on leaves by this checkpoint's rules. */
  begin(epoch: number): void {
    if (!this.#guarding) return;
    const mode = this.#options.mode === "colo" ? "compare" : "continuous";
    for (const { proxy } of this.#cards) {
      if (this.#guardedEpoch === undefined) proxy.protect(mode, epoch);
      else proxy.checkpoint(epoch);
    }
    this.#guardedEpoch ??= epoch;
  }

  /** The secondary holds this checkpoint: what was said before it leaves. */
  committed(epoch: number): void {
    if (this.#guardedEpoch === undefined || epoch < this.#guardedEpoch) return;
    for (const card of this.#cards) {
      card.proxy.committed(epoch);
      card.flush();
    }
  }

  /**
   * The secondary VM has said something, or begun an epoch.
   *
   * @throws {WireError} when it makes no sense: drop the link
   */
  received({ epoch, nic, records }: FramesMessage): void {
    const card = this.#cards[nic];
    if (card === undefined) throw new WireError(`Cannot take frames of network card ${nic}`, 0);
    if (this.#guardedEpoch === undefined || epoch < this.#guardedEpoch) return;
    if (epoch > card.proxy.epoch) {
      throw new WireError(`Cannot take frames of epoch ${epoch}: it has not begun`, 0);
    }
    try {
      card.heard(epoch, records);
    } catch (error) {
      if (!(error instanceof PacketError)) throw error;
      throw new WireError(error.message, error.offset);
    }
  }

  /** The secondary may have taken over: until that is known nothing leaves. */
  secondaryLost(): void {
    for (const { proxy } of this.#cards) proxy.secondaryLost();
  }

  /**
   * Nobody waits for anything any more: all that was held back leaves, and frames pass this engine by.
   *
   * @param link Only if that is the one that is being guarded for
   */
  runAlone(link?: LinkConnection): void {
    if (this.#link === undefined || (link !== undefined && link !== this.#link)) return;
    this.#link = undefined;
    this.#release();
    this.#engage().catch((error) => this.#options.notice(messageOf(error)));
  }

  #release(): void {
    this.#guarding = false;
    this.#guardedEpoch = undefined;
    clearInterval(this.#ticker);
    this.#ticker = undefined;
    for (const card of this.#cards) {
      card.proxy.runAlone();
      card.flush();
    }
  }

  /** Give up the sockets; QEMU is not told. */
  async close(): Promise<void> {
    this.#link = undefined;
    clearInterval(this.#ticker);
    await this.#poller.close();
    for (const card of this.#cards) card.close();
  }

  async #switch(on: boolean): Promise<void> {
    const { monitor, nics } = this.#options;
    for (const nic of nics) await switchPrimaryFilters(monitor, nic, on);
  }

  #tick(): void {
    for (const card of this.#cards) card.tick();
  }

  #forward(nic: number, records: Uint8Array): void {
    const link = this.#link;
    // The network may lose frames, and a guest must not wait for a link.
    if (link === undefined || link.bytesQueued - link.bytesSent > PACKET_LINK_BYTES_MAX) return;
    link.send({ type: "frames", epoch: this.#inboundEpoch, nic, records }).catch((error) => {
      if (!(error instanceof LinkError)) throw error;
    });
  }
}

/** One network card. */
class Card {
  readonly proxy: OutboundProxy;
  onMirrored: (records: Uint8Array) => void = () => {};
  readonly #poller: SocketPoller;
  readonly #mirrored: RecordBuffer;
  readonly #options: PrimaryPacketsOptions;
  readonly #name: string;
  readonly #in: UnixSocket;
  #out: UnixSocket;
  #mirror: UnixSocket;
  #secondaryEpoch = -1;

  constructor(
    nic: FilteredNic,
    sockets: PrimarySockets,
    options: PrimaryPacketsOptions,
    poller: SocketPoller,
  ) {
    this.#name = nic.id;
    this.#poller = poller;
    this.#options = options;
    const { timeoutMs, excluded } = options;
    const [seed] = crypto.getRandomValues(new Uint32Array(1));
    this.proxy = new OutboundProxy(WasmKernels.create(), {
      vnetHeader: nic.vnetHeader,
      timeoutMs,
      excluded,
      seed: seed!,
    });
    this.#mirrored = new RecordBuffer(`the mirror of ${nic.id}`, nic.vnetHeader ? 8 : 4);
    this.#in = sockets.in;
    poller.watch(this.#in, { writable: () => this.flush(), closed: this.#closed });
    this.#out = this.#watch(sockets.out, () => this.#readOut());
    this.#mirror = this.#watch(sockets.mirror, () => this.#readMirror());
  }

  /** Read all that QEMU has written. */
  drain(): void {
    this.#readMirror();
    this.#readOut();
  }

  /** Another secondary, or the same one anew, begins with a record, and with an epoch. */
  forgetSecondary(): void {
    this.#secondaryEpoch = -1;
    this.proxy.secondary.reset();
  }

  /**
   * The secondary VM's frames of an epoch.
   *
   * @throws {PacketError} when they are none
   */
  heard(epoch: number, records: Uint8Array): void {
    const now = performance.now();
    const { proxy } = this;
    if (epoch !== this.#secondaryEpoch) {
      this.#secondaryEpoch = epoch;
      proxy.loaded(epoch, now);
    }
    for (let at = 0; at < records.length;) {
      const space = proxy.secondary.space();
      const piece = records.subarray(at, at + space.length);
      space.set(piece);
      proxy.secondaryReceived(piece.length, now);
      at += piece.length;
    }
    this.flush();
  }

  /** Write what may leave. */
  flush(): void {
    const { output, isInDoubt } = this.proxy;
    while (output.bytes > 0 && !isInDoubt && this.#options.mayLeave()) {
      const count = this.#in.send(output.peek());
      if (count === 0) {
        this.#poller.awaitRoom(this.#in);
        break;
      }
      output.sent(count);
    }
    const request = this.proxy.takeRequest();
    if (request !== undefined) this.#options.demand(request);
  }

  tick(): void {
    this.proxy.tick(performance.now());
    this.flush();
  }

  close(): void {
    for (const socket of [this.#out, this.#in, this.#mirror]) socket.close();
  }

  #watch(socket: UnixSocket, readable: () => void): UnixSocket {
    this.#poller.watch(socket, { readable, writable() {}, closed: this.#closed });
    return socket;
  }

  readonly #closed = (error?: unknown): void => {
    if (error !== undefined) this.#options.notice(`${this.#name}: ${messageOf(error)}`);
  };

  #readOut(): void {
    const { proxy } = this;
    try {
      for (let count; (count = this.#read(this.#out, proxy.primary.space())) > 0;) {
        proxy.primaryReceived(count, performance.now());
      }
    } catch (error) {
      this.#out = this.#reopen(this.#out, error, () => this.#readOut());
      proxy.primary.reset();
    }
    this.flush();
  }

  #readMirror(): void {
    try {
      for (let count; (count = this.#read(this.#mirror, this.#mirrored.space())) > 0;) {
        this.#mirrored.filled(count);
        const records = this.#mirrored.take();
        if (records.length > 0) this.onMirrored(records);
      }
    } catch (error) {
      this.#mirror = this.#reopen(this.#mirror, error, () => this.#readMirror());
      this.#mirrored.reset();
    }
  }

  #read(socket: UnixSocket, space: Uint8Array): number {
    const count = socket.receive(space);
    if (count === CLOSED) this.#poller.unwatch(socket);
    return count;
  }

  /** QEMU's bytes were no records: a new connection begins with one. */
  #reopen(socket: UnixSocket, error: unknown, readable: () => void): UnixSocket {
    if (!(error instanceof PacketError)) throw error;
    this.#options.notice(`${this.#name}: ${error.message}`);
    this.#poller.unwatch(socket);
    socket.close();
    return this.#watch(new UnixSocket(socket.path), readable);
  }
}
