import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { InboundGate } from "../../engine/proxy/inbound_gate.ts";

const PREFIX = 4;

/** A record whose content says which it is. */
function record(id: number, size = 8): Uint8Array {
  const bytes = new Uint8Array(PREFIX + size);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, size);
  view.setUint32(PREFIX, id);
  return bytes;
}

function join(...parts: readonly Uint8Array[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

/** What a chardev makes of the bytes that it was given. */
class Reader {
  readonly ids: number[] = [];
  #rest = new Uint8Array(0);

  take(bytes: Uint8Array): void {
    this.#rest = join(this.#rest, bytes) as Uint8Array<ArrayBuffer>;
    while (this.#rest.length >= PREFIX) {
      const view = new DataView(this.#rest.buffer);
      const end = PREFIX + view.getUint32(0);
      if (end > this.#rest.length) return;
      this.ids.push(view.getUint32(PREFIX));
      this.#rest = this.#rest.slice(end);
    }
  }

  get isBetweenRecords(): boolean {
    return this.#rest.length === 0;
  }
}

Deno.test("InboundGate gives a frame to the VM that runs from its epoch, and to no other", () => {
  const gate = new InboundGate(PREFIX);
  gate.received(3, record(1));
  assertEquals(gate.peek().length, 0, "it does not run yet");
  gate.loaded(3);
  assertEquals(gate.peek(), record(1));
  gate.sent(gate.peek().length);
  gate.received(4, record(2));
  assertEquals(gate.peek().length, 0, "it has not loaded 4 yet");
  gate.received(3, record(3));
  gate.stopped();
  assertEquals(gate.peek().length, 0, "the load would wipe it out");
  gate.loaded(4);
  gate.sent(gate.peek().length);
  assertEquals(gate.peek().length, 0, "3 is part of checkpoint 4");
  gate.received(3, record(4));
  assertEquals(gate.waitingBytes, 0, "too late");
});

Deno.test("InboundGate ends the record that it has begun to write", () => {
  const gate = new InboundGate(PREFIX);
  const reader = new Reader();
  gate.loaded(1);
  gate.received(1, join(record(1), record(2)));
  reader.take(gate.peek().slice(0, 5));
  gate.sent(5);
  gate.received(2, record(3));
  gate.loaded(2);
  for (let bytes; (bytes = gate.peek()).length > 0; gate.sent(bytes.length)) reader.take(bytes);
  assertEquals(reader.ids, [1, 3]);
});

Deno.test("InboundGate gives up all that waits to a VM that has taken over", () => {
  const gate = new InboundGate(PREFIX);
  gate.loaded(3);
  const reader = new Reader();
  gate.received(3, join(record(1), record(2)));
  gate.received(4, record(3));
  gate.received(9, record(4));
  reader.take(gate.peek().subarray(0, 5));
  gate.sent(5);
  gate.stopped();
  for (const piece of gate.take()) reader.take(piece);
  assertEquals([reader.ids, reader.isBetweenRecords], [[1, 2, 3, 4], true]);
  assertEquals([gate.take(), gate.waitingBytes], [[], 0]);
});

Deno.test("InboundGate loses frames, and counts them, rather than keep more than it may", () => {
  const gate = new InboundGate(PREFIX, 30);
  gate.received(1, record(1));
  gate.received(1, record(2));
  gate.received(1, record(3));
  assertEquals([gate.waitingBytes, gate.lostBytes], [24, 12]);
});

Deno.test("InboundGate writes whole records of the right epochs, in order, whatever comes when", () => {
  const step = fc.oneof(
    fc.record({
      type: fc.constant("received"),
      ahead: fc.nat(2),
      count: fc.integer({ min: 1, max: 3 }),
    }),
    fc.record({ type: fc.constant("sent"), bytes: fc.integer({ min: 1, max: 40 }) }),
    fc.record({ type: fc.constant("stopped") }),
    fc.record({ type: fc.constant("loaded"), ahead: fc.integer({ min: 1, max: 2 }) }),
  );
  let written = 0;
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60, size: "max" }), (steps) => {
      const gate = new InboundGate(PREFIX);
      const reader = new Reader();
      const epochs: number[] = [];
      let epoch = 0;
      let stopped = false;
      let id = 0;
      gate.loaded(0);
      for (const step of steps) {
        switch (step.type) {
          case "received": {
            // An epoch's frames come before the next one's.
            const tag = Math.max(epoch + step.ahead, epochs.at(-1) ?? 0);
            const records = Array.from({ length: step.count }, () => {
              epochs.push(tag);
              return record(id++);
            });
            gate.received(tag, join(...records));
            break;
          }
          case "sent": {
            const before = reader.ids.length;
            const wasWhole = reader.isBetweenRecords;
            const bytes = gate.peek().slice(0, step.bytes);
            if (stopped) assertEquals(bytes.length, 0);
            reader.take(bytes);
            gate.sent(bytes.length);
            // The rest of one that was begun may be of an earlier epoch.
            for (const one of reader.ids.slice(before + (wasWhole ? 0 : 1))) {
              assertEquals(epochs[one], epoch);
            }
            break;
          }
          case "stopped":
            gate.stopped();
            stopped = true;
            break;
          case "loaded":
            epoch += step.ahead;
            gate.loaded(epoch);
            stopped = false;
            break;
        }
      }
      assertEquals(reader.ids, reader.ids.toSorted((a, b) => a - b));
      assertEquals(new Set(reader.ids).size, reader.ids.length);
      written += reader.ids.length;
    }),
    { numRuns: 500 },
  );
  assert(written > 300, `only ${written} were written`);
});
