/**
 * The network of a secondary VM that runs along, in a thread of its own: what the primary receives is
 * given to it, what it says goes to the primary's engine.
 *
 * @module
 */

import { WasmKernels } from "../../wasm/mod.ts";
import { messageOf, PacketError, WireError } from "../errors.ts";
import { InboundGate } from "../proxy/inbound_gate.ts";
import { RecordBuffer } from "../proxy/record_buffer.ts";
import { SaidFrames } from "../proxy/said_frames.ts";
import type { FilteredNic, SecondarySockets } from "./packet_filters.ts";
import { type FramesMessage, PacketLink } from "./packet_link.ts";
import { CLOSED, type SocketLoop, StreamSocket } from "./stream_socket.ts";

/** One network card, and where its frames come and go. */
export interface SecondaryCard {
  readonly nic: FilteredNic;
  readonly sockets: SecondarySockets;
}

/** What a {@linkcode SecondaryCards} is told once. */
export interface SecondaryCardsOptions {
  readonly cards: readonly SecondaryCard[];
}

/** What happens by itself. */
export interface SecondaryCardsEvents {
  notice(text: string): void;
  /** The link of this number has ended by itself. */
  linkEnded(number: number, reason: string): void;
}

/** What a VM that takes over says once more, and what it is given, a card. */
export type LateFrames = Record<"said" | "received", readonly Uint8Array[]>;

/** The cards of one secondary VM. */
export class SecondaryCards {
  readonly #events: SecondaryCardsEvents;
  readonly #loop: SocketLoop;
  readonly #cards: readonly Card[];
  /** The primary's end. */
  #link: PacketLink | undefined;
  /** What the VM says now, it says in this epoch. */
  #epoch = 0;

  constructor({ cards }: SecondaryCardsOptions, events: SecondaryCardsEvents, loop: SocketLoop) {
    this.#events = events;
    this.#loop = loop;
    this.#cards = cards.map((card, index) =>
      new Card(card, loop, {
        heard: (records) => this.#tell(index, records),
        notice: (text) => events.notice(text),
      })
    );
  }

  /** What the primary receives comes from there from now on, and what the VM says goes there. */
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

  /** The VM stands still and will go on from this checkpoint: all that it has said was said before. */
  stopped(epoch: number): void {
    for (const card of this.#cards) card.stopped();
    this.#epoch = epoch;
    for (const index of this.#cards.keys()) this.#tell(index, new Uint8Array(0));
  }

  /** The VM runs from this checkpoint. */
  loaded(epoch: number): void {
    for (const card of this.#cards) card.loaded(epoch);
  }

  /** The VM has taken over; asked once. */
  takeLate(): readonly LateFrames[] {
    return this.#cards.map((card) => card.takeLate());
  }

  /** QEMU is gone, or somebody else's to look after. The link, if there is one, lasts until it is closed. */
  close(): void {
    for (const card of this.#cards) card.close();
  }

  /** @throws {WireError} when it makes no sense */
  #received({ epoch, nic, records }: FramesMessage): void {
    const card = this.#cards[nic];
    if (card === undefined) throw new WireError(`Cannot take frames of network card ${nic}`, 0);
    card.received(epoch, records);
  }

  #tell(nic: number, records: Uint8Array): void {
    const link = this.#link;
    if (link === undefined) return;
    // What the primary does not hear it waits for, until a checkpoint; but an epoch's begin must be told.
    if (link.isFull && records.length > 0) return;
    link.send({ type: "frames", epoch: this.#epoch, nic, records });
  }
}

interface CardEvents {
  /** The VM has said something. */
  heard(records: Uint8Array): void;
  notice(text: string): void;
}

/** One network card. */
class Card {
  readonly #name: string;
  readonly #gate: InboundGate;
  readonly #said: RecordBuffer;
  readonly #saidOfLate: SaidFrames;
  readonly #loop: SocketLoop;
  readonly #outPath: string;
  readonly #events: CardEvents;
  readonly #in: StreamSocket;
  #out: StreamSocket;

  constructor(
    { nic: { id, vnetHeader }, sockets }: SecondaryCard,
    loop: SocketLoop,
    events: CardEvents,
  ) {
    const prefixBytes = vnetHeader ? 8 : 4;
    this.#name = id;
    this.#gate = new InboundGate(prefixBytes);
    this.#said = new RecordBuffer(`the secondary's ${id}`, prefixBytes);
    this.#saidOfLate = new SaidFrames(WasmKernels.create(), vnetHeader);
    this.#loop = loop;
    this.#events = events;
    this.#outPath = sockets.out.path;
    this.#in = new StreamSocket(sockets.in.fd);
    loop.watch(this.#in, { writable: () => this.#flush(), closed: this.#closed });
    this.#out = this.#watch(new StreamSocket(sockets.out.fd));
  }

  received(epoch: number, records: Uint8Array): void {
    this.#gate.received(epoch, records);
    this.#flush();
  }

  stopped(): void {
    this.#gate.stopped();
    this.#read();
    this.#saidOfLate.forget();
  }

  loaded(epoch: number): void {
    this.#gate.loaded(epoch);
    this.#flush();
  }

  /** What the VM said of late and is worth to be said again, and what it was to receive. */
  takeLate(): LateFrames {
    this.#read();
    return { said: this.#saidOfLate.take(performance.now()), received: this.#gate.take() };
  }

  close(): void {
    for (const socket of [this.#in, this.#out]) {
      this.#loop.unwatch(socket);
      socket.close();
    }
  }

  /** Write what the VM may receive; a VM that does not take it is not waited for. */
  #flush(): void {
    for (let bytes; (bytes = this.#gate.peek()).length > 0;) {
      const count = this.#in.send(bytes);
      if (count === 0) return this.#loop.awaitRoom(this.#in);
      this.#gate.sent(count);
    }
  }

  #watch(socket: StreamSocket): StreamSocket {
    const readable = () => this.#read();
    this.#loop.watch(socket, { readable, closed: this.#closed });
    return socket;
  }

  readonly #closed = (error?: unknown): void => {
    if (error !== undefined) this.#events.notice(`${this.#name}: ${messageOf(error)}`);
  };

  #read(): void {
    const socket = this.#out;
    try {
      for (let count; (count = socket.receive(this.#said.space())) !== 0;) {
        if (count === CLOSED) return this.#loop.unwatch(socket);
        this.#said.filled(count);
        const records = this.#said.take();
        if (records.length === 0) continue;
        this.#saidOfLate.add(records, performance.now());
        this.#events.heard(records);
      }
    } catch (error) {
      if (!(error instanceof PacketError)) throw error;
      this.#events.notice(`${this.#name}: ${error.message}`);
      this.#loop.unwatch(socket);
      socket.close();
      this.#said.reset();
      this.#out = this.#watch(StreamSocket.connect(this.#outPath));
    }
  }
}
