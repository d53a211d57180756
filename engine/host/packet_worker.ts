/**
 * The network's thread: waits for packets, and for calls of the main thread's.
 *
 * @module
 */

/// <reference no-default-lib="true" />
/// <reference lib="deno.worker" />

import { receiveMessageOnPort } from "node:worker_threads";
import { messageOf } from "../errors.ts";
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
import { PrimaryCards } from "./primary_cards.ts";
import { SecondaryCards } from "./secondary_cards.ts";
import { Doorbell, SocketLoop } from "./stream_socket.ts";

self.onmessage = ({ data }: MessageEvent<ToPacketWorker>) => {
  const { setup, port, bellFd, shared } = data;
  const answered = new Int32Array(shared, SHARED.answeredAt, 1);
  const permitted = new BigInt64Array(shared, SHARED.permittedAt, 1);
  const loop = new SocketLoop();
  const cards = createCards(setup, loop, () => {
    return performance.now() < Number(Atomics.load(permitted, 0));
  });
  const bell = new Doorbell(bellFd);
  // It is the other thread's to close.
  loop.watch({ fd: bellFd, close() {} }, {
    readable: () => {
      bell.answer();
      for (let call; (call = receiveMessageOnPort(port as never)) !== undefined;) {
        port.postMessage(answer(cards, call.message));
        if (call.message.name === END) loop.stop();
        Atomics.add(answered, 0, 1);
        Atomics.notify(answered, 0);
      }
    },
    closed(error) {
      throw error;
    },
  });
  say({ type: "ready" });
  loop.run();
  self.close();
};

function createCards(
  setup: PacketSetup,
  loop: SocketLoop,
  mayLeave: () => boolean,
): PrimaryCards | SecondaryCards {
  const events = {
    demand: (...args) => tell("demand", args),
    notice: (...args) => tell("notice", args),
    linkEnded: (...args) => tell("linkEnded", args),
  } satisfies PacketEvents;
  return setup.side === "primary"
    ? new PrimaryCards(setup.options, { ...events, mayLeave }, loop)
    : new SecondaryCards(setup.options, events, loop);
}

function answer(cards: object, { name, args }: CallToCards): CardsAnswer {
  try {
    if (name === END) return { result: undefined };
    if (name === CLOCK) return { result: performance.now() };
    const methods = cards as Record<string, (...args: readonly unknown[]) => unknown>;
    return { result: methods[name]!(...args) };
  } catch (error) {
    return { error: messageOf(error) };
  }
}

function tell(name: keyof PacketEvents, args: readonly unknown[]): void {
  say({ type: "event", name, args });
}

function say(message: FromPacketWorker): void {
  self.postMessage(message);
}

say({ type: "listening" });
