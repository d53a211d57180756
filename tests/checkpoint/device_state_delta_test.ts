import { assertEquals, assertThrows } from "@std/assert/mod.js";
import { IncomingCheckpoint } from "../../engine/checkpoint/incoming.ts";
import { exclusiveOr } from "../../engine/checkpoint/device_state_delta.ts";
import { WireError } from "../../engine/errors.ts";
import { BLOCKS } from "../stream/sample.ts";

const totals = (epoch: number, deviceStateBytes: number) => ({
  epoch,
  pagesFrames: 0,
  pageBytes: 0,
  deviceStateBytes,
});

Deno.test("IncomingCheckpoint makes device state from its difference to the last one", () => {
  const incoming = new IncomingCheckpoint(BLOCKS);
  const states = [Uint8Array.of(1, 2, 3), Uint8Array.of(1, 9, 3), Uint8Array.of(4, 9, 3)];
  incoming.deviceState(states[0]!);
  assertEquals(incoming.commit(totals(0, 3)).deviceState, states[0]!);
  for (const epoch of [1, 2]) {
    const difference = exclusiveOr(states[epoch - 1]!, states[epoch]!);
    incoming.deviceState(difference.subarray(0, 1), true);
    incoming.deviceState(difference.subarray(1), true);
    assertEquals(incoming.commit(totals(epoch, 3)).deviceState, states[epoch]!);
  }
});

Deno.test("IncomingCheckpoint refuses a difference from another device state", () => {
  const incoming = new IncomingCheckpoint(BLOCKS);
  incoming.deviceState(Uint8Array.of(1), true);
  assertThrows(() => incoming.commit(totals(0, 1)), WireError, "difference from another");
});

Deno.test("IncomingCheckpoint refuses whole and difference in one checkpoint", () => {
  const incoming = new IncomingCheckpoint(BLOCKS);
  incoming.deviceState(Uint8Array.of(1));
  assertThrows(() => incoming.deviceState(Uint8Array.of(1), true), WireError, "in one checkpoint");
});

Deno.test("IncomingCheckpoint takes the difference from the last whole checkpoint after a drop", () => {
  const incoming = new IncomingCheckpoint(BLOCKS);
  incoming.deviceState(Uint8Array.of(5));
  incoming.commit(totals(0, 1));
  incoming.deviceState(Uint8Array.of(9));
  incoming.drop();
  incoming.deviceState(Uint8Array.of(5 ^ 6), true);
  assertEquals(incoming.commit(totals(1, 1)).deviceState, Uint8Array.of(6));
});
