/**
 * The thread that looks after a VM's network. It waits for packets and for nothing else, so that one
 * that comes is on its way again at once, whatever the main thread is busy with.
 *
 * ```text
 *   main thread    call("stopped", 7) --port--> method of the cards
 *                  waits                          |
 *                  goes on <------------------ its result
 *                  hears of it <-- event --    what happens by itself
 * ```
 *
 * A call is as good as one in the same thread: when it returns, what was called is done, which is what
 * matters at the boundary of a checkpoint. It takes some 15 us, for nothing in the thread takes long.
 *
 * @module
 */

import { receiveMessageOnPort } from "node:worker_threads";
import { LocalProtocolError } from "../errors.ts";
import type { LinkConnection } from "../link/mod.ts";
import {
  type CallToCards,
  type CardsAnswer,
  CLOCK,
  END,
  type FromPacketWorker,
  type PacketEvents,
  type PacketSetup,
  SHARED,
  type ToPacketWorker,
} from "./packet_worker_messages.ts";
import { Doorbell, StreamSocket } from "./stream_socket.ts";

type Method = (...args: never[]) => unknown;

/** Names of methods. */
type MethodOf<Cards> = {
  [Name in keyof Cards]: Cards[Name] extends Method ? Name : never;
}[keyof Cards];

type Arguments<Called> = Called extends (...args: infer Args) => unknown ? Args : never;
type Result<Called> = Called extends (...args: never[]) => infer Value ? Value : never;

/** What happens in the thread that is not the thread's own business. */
export type PacketThreadEvents = Partial<Omit<PacketEvents, "linkEnded">>;

/** A thread that has not answered by then never will. */
const [CALL_WAITS, CALL_WAIT_MS] = [10, 1000];

/** Looks at the other thread's clock. */
const CLOCK_CALLS = 3;

/** The main thread's end. */
export class PacketThread<Cards> {
  readonly #worker: Worker;
  readonly #port: MessagePort;
  readonly #bell = new Doorbell();
  readonly #answered: Int32Array<SharedArrayBuffer>;
  readonly #permitted: BigInt64Array<SharedArrayBuffer>;
  readonly #started = Promise.withResolvers<void>();
  /** So much, at the most, this thread's clock is ahead of the other's. */
  #aheadMs = 0;
  /** The packet connection of a link that the thread has. */
  #link: LinkConnection | undefined;
  #linkNumber = 0;
  readonly #directory: string;
  #isStarted = false;
  #isClosed = false;
  #failure: string | undefined;

  private constructor(setup: PacketSetup, events: PacketThreadEvents, directory: string) {
    this.#directory = directory;
    const { port1, port2 } = new MessageChannel();
    const shared = new SharedArrayBuffer(SHARED.bytes);
    this.#port = port1;
    this.#answered = new Int32Array(shared, SHARED.answeredAt, 1);
    this.#permitted = new BigInt64Array(shared, SHARED.permittedAt, 1);
    this.#worker = new Worker(new URL("./packet_worker.ts", import.meta.url), { type: "module" });
    const listeners: Partial<PacketEvents> = {
      ...events,
      linkEnded: (number, reason) => {
        if (number === this.#linkNumber) this.#link?.close(reason);
      },
    };
    this.#worker.onmessage = ({ data }: MessageEvent<FromPacketWorker>) => {
      switch (data.type) {
        case "listening": {
          const begin: ToPacketWorker = { setup, port: port2, bellFd: this.#bell.fd, shared };
          return this.#worker.postMessage(begin, [port2]);
        }
        case "ready":
          this.#isStarted = true;
          return this.#started.resolve();
        case "event": {
          const listener = listeners[data.name] as ((...args: readonly unknown[]) => void);
          return listener?.(...data.args);
        }
      }
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      const reason = `its thread has ended: ${event.message}`;
      if (this.#isStarted) return void this.#fail(reason);
      this.#failure = reason;
      this.#started.reject(this.#broken());
    };
  }

  /**
   * Start a thread. It runs until {@linkcode close}, and the sockets that it is given are its own.
   *
   * @param events Called in this thread; what nobody listens to is of no interest
   * @param directory Of this process's own, for a socket
   * @throws {LocalProtocolError} when it cannot begin
   */
  static async start<Cards>(
    setup: PacketSetup,
    events: PacketThreadEvents,
    directory: string,
  ): Promise<PacketThread<Cards>> {
    const thread = new PacketThread<Cards>(setup, events, directory);
    try {
      await thread.#started.promise;
    } catch (error) {
      thread.#worker.terminate();
      thread.#hangUp();
      throw error;
    }
    thread.#compareClocks();
    return thread;
  }

  /**
   * Give the thread this connection in place of the one that it has.
   *
   * @throws {LinkError} when it cannot be given
   */
  connect(connection: LinkConnection): void {
    if (this.#link === connection) return;
    this.disconnect();
    const given = connection.giveAway(() => this.#takenBack(connection));
    const { fd } = StreamSocket.copyOf(given) ?? led(given, this.#directory);
    this.#link = connection;
    this.#call({ name: "connect", args: [fd, ++this.#linkNumber] });
  }

  /** The thread has no connection any more; what has come by now still counts. */
  disconnect(): void {
    if (this.#link === undefined) return;
    this.#link = undefined;
    this.#call({ name: "disconnect", args: [] });
  }

  /**
   * Call a method of the cards, and wait for it.
   *
   * @throws {LocalProtocolError} when it throws, or the thread has ended
   */
  call<Name extends MethodOf<Cards>>(
    name: Name,
    ...args: Arguments<Cards[Name]>
  ): Result<Cards[Name]> {
    return this.#call({ name: String(name), args }) as Result<Cards[Name]>;
  }

  /** What may leave leaves until this time of `performance.now()`, unless told otherwise by then. */
  permit(untilMs: number): void {
    if (this.#failure !== undefined) return;
    const until = Math.floor(Math.min(untilMs - this.#aheadMs, Number.MAX_SAFE_INTEGER));
    Atomics.store(this.#permitted, 0, BigInt(Math.max(0, until)));
  }

  /**
   * Close the sockets to QEMU. The peer is to hear over the link of what has come of the VM, so that
   * lasts until somebody closes it, and the thread as long.
   */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#call({ name: "close", args: [] });
    if (this.#link === undefined) this.#end();
  }

  #takenBack(connection: LinkConnection): void {
    if (this.#link !== connection) return;
    this.disconnect();
    if (this.#isClosed) this.#end();
  }

  #end(): void {
    this.#call({ name: END, args: [] });
    this.#failure = "its thread was closed";
    this.#hangUp();
  }

  #hangUp(): void {
    this.#port.close();
    this.#bell.close();
  }

  /** The shortest of some calls says it best: this process may stand still in the middle of one. */
  #compareClocks(): void {
    this.#aheadMs = Infinity;
    for (let calls = 0; calls < CLOCK_CALLS; calls++) {
      const theirMs = this.#call({ name: CLOCK, args: [] }) as number;
      this.#aheadMs = Math.min(this.#aheadMs, performance.now() - theirMs);
    }
  }

  #call(call: CallToCards): unknown {
    if (this.#failure !== undefined) throw this.#broken();
    const count = Atomics.load(this.#answered, 0);
    this.#port.postMessage(call);
    this.#bell.ring();
    // Of a wait in which this process stood still nothing can be said.
    for (let waits = 0; Atomics.load(this.#answered, 0) === count; waits++) {
      if (waits === CALL_WAITS) throw this.#fail(`its thread does not answer ${call.name}`);
      Atomics.wait(this.#answered, 0, count, CALL_WAIT_MS);
    }
    const answer: CardsAnswer = receiveMessageOnPort(this.#port as never)!.message;
    if ("result" in answer) return answer.result;
    throw new LocalProtocolError(`Cannot have the network's thread ${call.name}: ${answer.error}`);
  }

  /** Ends this process: QEMU stands still when nobody reads its chardevs, which only that closes. */
  #fail(reason: string): LocalProtocolError {
    this.permit(-Infinity);
    this.#failure = reason;
    const error = this.#broken();
    queueMicrotask(() => {
      throw error;
    });
    return error;
  }

  #broken(): LocalProtocolError {
    return new LocalProtocolError(`Cannot look after the network: ${this.#failure}`);
  }
}

/** A socket that leads to where this connection does by way of the main thread. */
function led(connection: Deno.Conn, directory: string): StreamSocket {
  const path = `${directory}/packets-${crypto.randomUUID().slice(0, 8)}`;
  const listener = Deno.listen({ transport: "unix", path });
  const near = StreamSocket.connect(path);
  const lead = async () => {
    const far = await listener.accept();
    listener.close();
    try {
      await Promise.all([
        connection.readable.pipeTo(far.writable),
        far.readable.pipeTo(connection.writable),
      ]);
    } catch {
      // One of them has ended, and so does the other.
    }
    try {
      far.close();
    } catch {
      // Closed already.
    }
  };
  lead();
  return near;
}
