/**
 * How a gate is to behave, what it wants done, and what it holds.
 *
 * @module
 */

import type { NbdRequest } from "./nbd.ts";

/** One thing to do, in the order of the array. Bytes may be views of what the gate was given. */
export type GateEffect =
  | { readonly type: "to-server"; readonly bytes: Uint8Array }
  | { readonly type: "to-client"; readonly bytes: Uint8Array }
  /** All that was written before the checkpoint has been answered by the server: it may be loaded. */
  | { readonly type: "settled"; readonly epoch: number }
  /**
   * More waits than should: have the secondary load the last checkpoint that was taken, and meanwhile,
   * as long as `DiskGate.full`, read nothing from the client.
   */
  | { readonly type: "full" }
  /** The server did not do it: the secondary's disk is no copy any more. */
  | { readonly type: "failed"; readonly request: NbdRequest };

/** How a gate behaves. */
export interface GateOptions {
  /** Who answers the writes that wait; the server by default. `always`: the gate, and all other writes. */
  readonly answers?: "server" | "gate" | "always";
  /** Bytes that wait before it is full. */
  readonly bytesMax?: number;
}

/** A request that waits. */
export interface HeldRequest {
  /** The checkpoint that it was issued after. */
  readonly epoch: number;
  readonly request: NbdRequest;
  /** Its header, and its data as far as they have come. */
  readonly bytes: Uint8Array[];
  isWhole: boolean;
  /** The gate has said that it is done. */
  isAnswered: boolean;
}

/** Bytes for the same side that follow each other, in one piece: each write of them is a system call. */
export function joined(effects: readonly GateEffect[]): GateEffect[] {
  const result: GateEffect[] = [];
  for (let at = 0; at < effects.length;) {
    const first = effects[at]!;
    let end = at + 1;
    while (end < effects.length && "bytes" in first && effects[end]!.type === first.type) end++;
    const pieces = effects.slice(at, end).flatMap((effect) =>
      "bytes" in effect ? [effect.bytes] : []
    );
    if (pieces.length < 2) result.push(first);
    else result.push({ type: first.type as "to-server" | "to-client", bytes: concat(pieces) });
    at = end;
  }
  return result;
}

function concat(pieces: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(pieces.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}
