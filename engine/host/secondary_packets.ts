/**
 * The network of a secondary VM that runs along: what the primary receives is given to it, what it says
 * goes to the primary's engine, and nothing else reaches or leaves it before it takes over.
 *
 * @module
 */

import { WasmKernels } from "../../wasm/mod.ts";
import { LinkError, messageOf, PacketError, WireError } from "../errors.ts";
import { PACKET_LINK_BYTES_MAX } from "../limits.ts";
import type { LinkConnection, Message } from "../link/mod.ts";
import { InboundGate } from "../proxy/inbound_gate.ts";
import { RecordBuffer } from "../proxy/record_buffer.ts";
import { SaidFrames } from "../proxy/said_frames.ts";
import {
  addSecondaryFilters,
  type FilteredNic,
  type FilterMonitor,
  openSecondaryFilters,
  passFrames,
  removeSecondaryFilters,
  type SecondarySockets,
} from "./packet_filters.ts";
import { CLOSED, SocketPoller, UnixSocket } from "./unix_socket.ts";

type FramesMessage = Extract<Message, { type: "frames" }>;

/** The network of one secondary VM. */
export class SecondaryPackets {
  readonly #monitor: FilterMonitor;
  readonly #nics: readonly FilteredNic[];
  readonly #directory: string;
  readonly #poller = new SocketPoller();
  readonly #cards: readonly Card[];
  #link: LinkConnection | undefined;
  /** What the VM says now, it says in this epoch. */
  #epoch = 0;

  private constructor(
    monitor: FilterMonitor,
    nics: readonly FilteredNic[],
    sockets: readonly SecondarySockets[],
    directory: string,
    notice: (text: string) => void,
  ) {
    this.#directory = directory;
    this.#monitor = monitor;
    this.#nics = nics;
    this.#cards = nics.map((nic, index) =>
      new Card(nic, sockets[index]!, this.#poller, {
        heard: (records) => this.#tell(index, records),
        notice,
      })
    );
  }

  /**
   * Add the filters to a VM that does not run yet.
   *
   * @throws {QmpError} when QEMU does not take them
   */
  static async install(
    monitor: FilterMonitor,
    nics: readonly FilteredNic[],
    directory: string,
    notice: (text: string) => void,
  ): Promise<SecondaryPackets> {
    const sockets: SecondarySockets[] = [];
    for (const nic of nics) sockets.push(await addSecondaryFilters(monitor, nic, directory));
    return new SecondaryPackets(monitor, nics, sockets, directory, notice);
  }

  /** The primary's engine, or nobody. */
  connect(link: LinkConnection | undefined): void {
    this.#link = link;
  }

  /**
   * The primary VM has received something.
   *
   * @throws {WireError} when it makes no sense: drop the link
   */
  received({ epoch, nic, records }: FramesMessage): void {
    const card = this.#cards[nic];
    if (card === undefined) throw new WireError(`Cannot take frames of network card ${nic}`, 0);
    card.received(epoch, records);
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

  /**
   * The VM has taken over, and the network finds it here: its network cards get what their netdevs have,
   * and what it said of late leaves, for the primary that was to let it go is dead.
   *
   * @throws {QmpError} when QEMU refuses
   */
  async release(): Promise<void> {
    for (const nic of this.#nics) await openSecondaryFilters(this.#monitor, nic);
    const late = this.#cards.map((card) => card.takeLate());
    await this.close();
    for (const [index, nic] of this.#nics.entries()) {
      const { said, received } = late[index]!;
      await passFrames(this.#monitor, nic, "netdev", said, this.#directory);
      await passFrames(this.#monitor, nic, "guest", received, this.#directory);
      await removeSecondaryFilters(this.#monitor, nic);
    }
  }

  /** Give up the sockets; QEMU is not told. */
  async close(): Promise<void> {
    await this.#poller.close();
    for (const card of this.#cards) card.close();
  }

  #tell(nic: number, records: Uint8Array): void {
    const link = this.#link;
    if (link === undefined) return;
    // What the primary does not hear it waits for, until a checkpoint; but an epoch's begin must be told.
    const isFull = link.bytesQueued - link.bytesSent > PACKET_LINK_BYTES_MAX;
    if (isFull && records.length > 0) return;
    link.send({ type: "frames", epoch: this.#epoch, nic, records }).catch((error) => {
      if (!(error instanceof LinkError)) throw error;
    });
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
  readonly #poller: SocketPoller;
  readonly #events: CardEvents;
  readonly #in: UnixSocket;
  #out: UnixSocket;

  constructor(
    { id, vnetHeader }: FilteredNic,
    sockets: SecondarySockets,
    poller: SocketPoller,
    events: CardEvents,
  ) {
    const prefixBytes = vnetHeader ? 8 : 4;
    this.#name = id;
    this.#gate = new InboundGate(prefixBytes);
    this.#said = new RecordBuffer(`the secondary's ${id}`, prefixBytes);
    this.#saidOfLate = new SaidFrames(WasmKernels.create(), vnetHeader);
    this.#poller = poller;
    this.#events = events;
    this.#in = sockets.in;
    poller.watch(this.#in, { writable: () => this.#flush(), closed: this.#closed });
    this.#out = this.#watch(sockets.out);
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
  takeLate(): Record<"said" | "received", readonly Uint8Array[]> {
    this.#read();
    return { said: this.#saidOfLate.take(performance.now()), received: this.#gate.take() };
  }

  close(): void {
    this.#in.close();
    this.#out.close();
  }

  /** Write what the VM may receive; a VM that does not take it is not waited for. */
  #flush(): void {
    for (let bytes; (bytes = this.#gate.peek()).length > 0;) {
      const count = this.#in.send(bytes);
      if (count === 0) return this.#poller.awaitRoom(this.#in);
      this.#gate.sent(count);
    }
  }

  #watch(socket: UnixSocket): UnixSocket {
    const readable = () => this.#read();
    this.#poller.watch(socket, { readable, writable() {}, closed: this.#closed });
    return socket;
  }

  readonly #closed = (error?: unknown): void => {
    if (error !== undefined) this.#events.notice(`${this.#name}: ${messageOf(error)}`);
  };

  #read(): void {
    const socket = this.#out;
    try {
      for (let count; (count = socket.receive(this.#said.space())) !== 0;) {
        if (count === CLOSED) return this.#poller.unwatch(socket);
        this.#said.filled(count);
        const records = this.#said.take();
        if (records.length === 0) continue;
        this.#saidOfLate.add(records, performance.now());
        this.#events.heard(records);
      }
    } catch (error) {
      if (!(error instanceof PacketError)) throw error;
      this.#events.notice(`${this.#name}: ${error.message}`);
      this.#poller.unwatch(socket);
      socket.close();
      this.#said.reset();
      this.#out = this.#watch(new UnixSocket(socket.path));
    }
  }
}
