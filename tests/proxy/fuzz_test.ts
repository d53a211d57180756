import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { PacketError } from "../../engine/errors.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import { anyFrame, mutated } from "./any_frame.ts";
import { concat, record, udp, vnetRecord } from "./packets.ts";
import { Rig } from "./rig.ts";

const frames = fc.array(fc.oneof(anyFrame, mutated(anyFrame)), { minLength: 1, maxLength: 30 });

type Event = "checkpoint" | "load" | "lost" | "alone" | "protect" | "time" | "write some";

const events = fc.array(
  fc.oneof(
    { weight: 3, arbitrary: fc.tuple(fc.constantFrom("primary", "secondary", "both"), frames) },
    {
      weight: 2,
      arbitrary: fc.constantFrom<Event>(
        ...["checkpoint", "load", "lost", "alone", "protect", "time", "write some"] as const,
      ),
    },
  ),
  { maxLength: 12 },
);

/** What a rig takes; whatever comes, nothing but its own errors may leave it. */
function take(rig: Rig, side: "primary" | "secondary", bytes: Uint8Array): void {
  try {
    if (side === "primary") rig.primaryBytes(bytes);
    else rig.secondaryBytes(bytes);
  } catch (error) {
    assert(error instanceof PacketError, String(error));
    rig.proxy[side].reset();
  }
}

function happen(rig: Rig, event: Event): void {
  const { proxy } = rig;
  switch (event) {
    case "checkpoint":
      return proxy.checkpoint(proxy.epoch + 1);
    case "load":
      return proxy.loaded(proxy.epoch, rig.now);
    case "lost":
      return proxy.secondaryLost();
    case "alone":
      return proxy.runAlone();
    case "protect":
      return proxy.protect("compare", proxy.epoch + 1);
    case "time":
      return void rig.wait(150);
    case "write some": {
      proxy.output.sent(proxy.output.peek().length >> 1);
      return proxy.output.restart();
    }
  }
}

/** Bring everything to an end. */
function settle(rig: Rig): void {
  rig.proxy.protect("compare", rig.proxy.epoch + 1);
  rig.checkpoint();
  rig.output();
  assertEquals(rig.proxy.statistics.held, 0);
}

for (const vnetHeader of [false, true]) {
  const framed = vnetHeader ? vnetRecord : record;

  Deno.test(`frames of any kind, whole and mutated, vnet header ${vnetHeader}: nothing but own errors, and nothing leaks`, () => {
    // One proxy for all runs, with little memory: what leaks in one is missed in the next.
    const rig = new Rig({
      vnetHeader,
      primarySegments: 6,
      secondarySegments: 6,
      connectionsMax: 16,
    }, WasmKernels.create());
    rig.output = () => [];
    fc.assert(
      fc.property(events, (events) => {
        for (const event of events) {
          if (typeof event === "string") happen(rig, event);
          else {
            const bytes = concat(event[1].map((frame) => framed(frame)));
            if (event[0] !== "secondary") take(rig, "primary", bytes);
            if (event[0] !== "primary") take(rig, "secondary", bytes);
          }
        }
        rig.proxy.output.sent(rig.proxy.output.bytes);
        settle(rig);
        rig.proxy.output.sent(rig.proxy.output.bytes);
        const frame = framed(udp({ data: "still there" }));
        rig.primaryBytes(frame);
        rig.secondaryBytes(frame);
        assertEquals(rig.proxy.output.bytes, frame.length);
        rig.proxy.output.sent(frame.length);
      }),
      { numRuns: 1000 },
    );
    assertEquals(rig.proxy.statistics.lost, 0);
  });
}

Deno.test("bytes of any kind: nothing but own errors, and a new connection works", () => {
  const rig = Rig.comparing();
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 200 }),
    mutated(frames.map((frames) => concat(frames.map(record)))),
  );
  fc.assert(
    fc.property(bytes, fc.constantFrom("primary", "secondary"), (bytes, side) => {
      take(rig, side, bytes);
      rig.proxy.primary.reset();
      rig.proxy.secondary.reset();
      rig.checkpoint();
      const frame = udp({ data: "still there" });
      rig.primary(frame);
      assertEquals(rig.secondary(frame), [frame]);
    }),
    { numRuns: 1000 },
  );
});

Deno.test("both sides send the same frames of any kind: all of them leave", () => {
  fc.assert(
    fc.property(fc.array(mutated(anyFrame), { maxLength: 20 }), (frames) => {
      const rig = Rig.comparing();
      rig.primary(...frames);
      rig.secondary(...frames);
      rig.checkpoint();
      assertEquals(rig.proxy.statistics.held, 0);
      assertEquals(rig.proxy.statistics.primaryFrames, frames.length);
    }),
    { numRuns: 300 },
  );
});
