/**
 * What the main thread and the network's thread say to each other.
 *
 * @module
 */

import type { PrimaryCardsEvents, PrimaryCardsOptions } from "./primary_cards.ts";
import type { SecondaryCardsEvents, SecondaryCardsOptions } from "./secondary_cards.ts";

/** Whose network it is. */
export type PacketSetup =
  | { readonly side: "primary"; readonly options: PrimaryCardsOptions }
  | { readonly side: "secondary"; readonly options: SecondaryCardsOptions };

/** What happens in the thread by itself. */
export type PacketEvents = Omit<PrimaryCardsEvents, "mayLeave"> & SecondaryCardsEvents;

/** The first and only message that is not a call. */
export interface ToPacketWorker {
  readonly setup: PacketSetup;
  /** For calls and their answers. */
  readonly port: MessagePort;
  /** Rung for each call. */
  readonly bellFd: number;
  readonly shared: SharedArrayBuffer;
}

/** What is called, in the cards. */
export interface CallToCards {
  readonly name: string;
  readonly args: readonly unknown[];
}

/** Names of calls to the thread itself: end, and say what time it is. */
export const [END, CLOCK] = ["end", "clock"] as const;

/** Whatever came of it. */
export type CardsAnswer = { readonly result: unknown } | { readonly error: unknown };

/** What the thread says unasked. */
export type FromPacketWorker =
  /** It listens: what was said before is lost. */
  | { readonly type: "listening" }
  /** It waits for packets. */
  | { readonly type: "ready" }
  | {
    readonly type: "event";
    readonly name: keyof PacketEvents;
    readonly args: readonly unknown[];
  };

/** The memory that both threads have: calls answered so far, and until when what may leave may leave. */
export const SHARED = { bytes: 16, answeredAt: 0, permittedAt: 8 } as const;
