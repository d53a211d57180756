/**
 * The network of a primary, in a thread of its own: between the chardevs of its filters and the packet
 * connection of the link stands an {@linkcode OutboundProxy} for each card.
 *
 * @module
 */

import { WasmKernels } from "../../wasm/mod.ts";
import type { ReplicationMode } from "../config/mod.ts";
import { messageOf, PacketError, WireError } from "../errors.ts";
import {
  type CheckpointRequest,
  type FlowRule,
  OutboundProxy,
  type OutboundStatistics,
} from "../proxy/mod.ts";
import { RecordBuffer } from "../proxy/record_buffer.ts";
import type { FilteredNic, PrimarySockets } from "./packet_filters.ts";
import { type FramesMessage, PacketLink } from "./packet_link.ts";
import { CLOSED, type SocketLoop, StreamSocket } from "./stream_socket.ts";

/** One network card, and where its frames come and go. */
export interface PrimaryCard {
  readonly nic: FilteredNic;
  readonly sockets: PrimarySockets;
}

/** What a {@linkcode PrimaryCards} is told once. */
export interface PrimaryCardsOptions {
  readonly cards: readonly PrimaryCard[];
  readonly mode: ReplicationMode;
  /** How long a frame waits for the secondary's before a checkpoint is asked for. */
  readonly timeoutMs: number;
  readonly excluded: readonly FlowRule[];
}

/** What happens by itself. */
export interface PrimaryCardsEvents {
  /** Whether anything may leave at all, now that this process runs again; what may not leave waits. */
  mayLeave(): boolean;
  /** A checkpoint is wished for. */
  demand(request: CheckpointRequest): void;
  notice(text: string): void;
  /** The link of this number has ended by itself. */
  linkEnded(number: number, reason: string): void;
}

/** Between two looks at what has waited too long, a share of the timeout. */
const TICKS_A_TIMEOUT = 8;

/** The cards of one primary VM. */
export class PrimaryCards {
  readonly #options: PrimaryCardsOptions;
  readonly #events: PrimaryCardsEvents;
  readonly #loop: SocketLoop;
  readonly #cards: readonly Card[];
  /** The secondary's end. */
  #link: PacketLink | undefined;
  /** Frames are led through here, all of them. */
  #guarding = false;
  /** What the guest receives now, it receives in this epoch. */
  #inboundEpoch = 0;
  /** The first checkpoint that what leaves is held back for; undefined while nothing is. */
  #guardedEpoch: number | undefined;

  constructor(options: PrimaryCardsOptions, events: PrimaryCardsEvents, loop: SocketLoop) {
    this.#options = options;
    this.#events = events;
    this.#loop = loop;
    this.#cards = options.cards.map((card, index) =>
      new Card(card, options, loop, {
        mayLeave: () => events.mayLeave(),
        demand: (request) => events.demand(request),
        notice: (text) => events.notice(text),
        mirrored: (records) => this.#forward(index, records),
      })
    );
  }

  /** What has happened, a card. */
  statistics(): readonly OutboundStatistics[] {
    return this.#cards.map(({ proxy }) => proxy.statistics);
  }

  /** Where what the guest receives goes to from now on, and what the secondary says comes from. */
  connect(fd: number, number: number): void {
    this.#link?.close();
    this.#link = new PacketLink(new StreamSocket(fd), this.#loop, {
      frames: (message) => this.#received(message),
      notice: (text) => this.#events.notice(text),
      ended: (reason) => {
        this.#link = undefined;
        this.#events.linkEnded(number, reason);
      },
    });
  }

  /** What has come by now still counts. */
  disconnect(): void {
    this.#link?.close();
    this.#link = undefined;
  }

  /**
   * Another secondary, or the same one anew, begins with a record.
   *
   * @param epoch Of the last checkpoint that the guest stood still for
   */
  begins(epoch: number): void {
    this.#inboundEpoch = epoch;
    for (const card of this.#cards) card.forgetSecondary();
  }

  /** QEMU leads all frames through here, or none any more. */
  guard(on: boolean): void {
    this.#guarding = on;
    if (on) this.#loop.every(this.#options.timeoutMs / TICKS_A_TIMEOUT, () => this.#tick());
    for (const card of this.#cards) card.flush();
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

  /** The secondary may have taken over: until that is known nothing leaves. */
  secondaryLost(): void {
    for (const { proxy } of this.#cards) proxy.secondaryLost();
  }

  /** Nobody waits for anything any more: all that was held back leaves. */
  release(): void {
    this.#guarding = false;
    this.#guardedEpoch = undefined;
    this.#loop.every(0);
    for (const card of this.#cards) {
      card.proxy.runAlone();
      card.flush();
    }
  }

  /** QEMU is gone, or somebody else's to look after. The link, if there is one, lasts until it is closed. */
  close(): void {
    for (const card of this.#cards) card.close();
  }

  /**
   * The secondary VM has said something, or begun an epoch.
   *
   * @throws {WireError} when it makes no sense
   */
  #received({ epoch, nic, records }: FramesMessage): void {
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

  #tick(): void {
    for (const card of this.#cards) card.tick();
  }

  #forward(nic: number, records: Uint8Array): void {
    const link = this.#link;
    // The network may lose frames, and a guest must not wait for a link.
    if (link === undefined || link.isFull) return;
    link.send({ type: "frames", epoch: this.#inboundEpoch, nic, records });
  }
}

interface CardEvents extends Pick<PrimaryCardsEvents, "mayLeave" | "demand" | "notice"> {
  /** The guest is sent something. */
  mirrored(records: Uint8Array): void;
}

/** One network card. */
class Card {
  readonly proxy: OutboundProxy;
  readonly #loop: SocketLoop;
  readonly #mirrored: RecordBuffer;
  readonly #events: CardEvents;
  readonly #name: string;
  readonly #in: StreamSocket;
  readonly #sockets: PrimarySockets;
  #out: StreamSocket;
  #mirror: StreamSocket;
  #secondaryEpoch = -1;

  constructor(
    { nic, sockets }: PrimaryCard,
    options: PrimaryCardsOptions,
    loop: SocketLoop,
    events: CardEvents,
  ) {
    this.#name = nic.id;
    this.#loop = loop;
    this.#events = events;
    this.#sockets = sockets;
    const { timeoutMs, excluded } = options;
    const [seed] = crypto.getRandomValues(new Uint32Array(1));
    this.proxy = new OutboundProxy(WasmKernels.create(), {
      vnetHeader: nic.vnetHeader,
      timeoutMs,
      excluded,
      seed: seed!,
    });
    this.#mirrored = new RecordBuffer(`the mirror of ${nic.id}`, nic.vnetHeader ? 8 : 4);
    this.#in = new StreamSocket(sockets.in.fd);
    loop.watch(this.#in, { writable: () => this.flush(), closed: this.#closed });
    this.#out = this.#watch(new StreamSocket(sockets.out.fd), () => this.#readOut());
    this.#mirror = this.#watch(new StreamSocket(sockets.mirror.fd), () => this.#readMirror());
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
    while (output.bytes > 0 && !isInDoubt && this.#events.mayLeave()) {
      const count = this.#in.send(output.peek());
      if (count === 0) {
        this.#loop.awaitRoom(this.#in);
        break;
      }
      output.sent(count);
    }
    const request = this.proxy.takeRequest();
    if (request !== undefined) this.#events.demand(request);
  }

  tick(): void {
    this.proxy.tick(performance.now());
    this.flush();
  }

  close(): void {
    for (const socket of [this.#out, this.#in, this.#mirror]) {
      this.#loop.unwatch(socket);
      socket.close();
    }
  }

  #watch(socket: StreamSocket, readable: () => void): StreamSocket {
    this.#loop.watch(socket, { readable, closed: this.#closed });
    return socket;
  }

  readonly #closed = (error?: unknown): void => {
    if (error !== undefined) this.#events.notice(`${this.#name}: ${messageOf(error)}`);
  };

  #readOut(): void {
    const { proxy } = this;
    try {
      for (let count; (count = this.#read(this.#out, proxy.primary.space())) > 0;) {
        proxy.primaryReceived(count, performance.now());
      }
    } catch (error) {
      this.#out = this.#reopen("out", this.#out, error, () => this.#readOut());
      proxy.primary.reset();
    }
    this.flush();
  }

  #readMirror(): void {
    try {
      for (let count; (count = this.#read(this.#mirror, this.#mirrored.space())) > 0;) {
        this.#mirrored.filled(count);
        const records = this.#mirrored.take();
        if (records.length > 0) this.#events.mirrored(records);
      }
    } catch (error) {
      this.#mirror = this.#reopen("mirror", this.#mirror, error, () => this.#readMirror());
      this.#mirrored.reset();
    }
  }

  #read(socket: StreamSocket, space: Uint8Array): number {
    const count = socket.receive(space);
    if (count === CLOSED) this.#loop.unwatch(socket);
    return count;
  }

  /** QEMU's bytes were no records: a new connection begins with one. */
  #reopen(
    port: "out" | "mirror",
    socket: StreamSocket,
    error: unknown,
    readable: () => void,
  ): StreamSocket {
    if (!(error instanceof PacketError)) throw error;
    this.#events.notice(`${this.#name}: ${error.message}`);
    this.#loop.unwatch(socket);
    socket.close();
    return this.#watch(StreamSocket.connect(this.#sockets[port].path), readable);
  }
}
