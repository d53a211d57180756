/**
 * What a primary's messages mean to a secondary, and what the secondary's effects are as messages. Pure.
 *
 * @module
 */

import type { Message } from "../link/messages.ts";
import type { SecondaryEffect } from "./secondary.ts";
import type { SecondaryEvent } from "./secondary_events.ts";

/** @returns What has happened, or nothing where the message is about something else */
export function secondaryEvent(message: Message): SecondaryEvent | undefined {
  switch (message.type) {
    case "seedBegin":
      return { type: "seed-begin", seed: message };
    case "seedAnew":
      return { type: "seed-anew" };
    case "pages":
      return { type: "pages", chunk: message.records };
    case "deviceState":
      return { type: "device-state", piece: message.bytes, delta: false };
    case "deviceStateDelta":
      return { type: "device-state", piece: message.bytes, delta: true };
    case "commit":
      return { type: "commit", epoch: message.epoch, commit: message };
    case "primaryLost":
      return { type: "primary-lost", reason: message.reason };
    case "goodbye":
      return { type: "goodbye", reason: message.reason };
    default:
      return undefined;
  }
}

/** What is to be told. */
export type Telling = Extract<SecondaryEffect, { readonly type: `tell-${string}` }>;

/** How it is told. */
export function secondaryMessage(effect: Telling): Message {
  switch (effect.type) {
    case "tell-ready":
      return {
        type: "replicaReady",
        ...effect.held === undefined ? {} : { held: effect.held },
      };
    case "tell-committed":
      return { type: "committed", epoch: effect.epoch };
    case "tell-loaded":
      return { type: "loaded", epoch: effect.epoch };
    case "tell-failed":
      return { type: "replicaFailed", reason: effect.reason };
  }
}
