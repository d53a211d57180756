import { assert, assertEquals } from "@std/assert/mod.js";
import { QMP_EVENTS_UNREAD_MAX } from "../../engine/limits.ts";
import { QmpEventStream } from "../../engine/qmp/event_stream.ts";
import { eventTimeMs, type QmpEvent } from "../../engine/qmp/events.ts";

function event(number: number): QmpEvent {
  return { event: "MIGRATION_PASS", data: { pass: number }, timestamp: at(0, 0) };
}

function at(seconds: number, microseconds: number) {
  return { seconds, microseconds };
}

async function passes(stream: AsyncIterable<QmpEvent>): Promise<unknown[]> {
  const numbers = [];
  for await (const { data } of stream) numbers.push(data.pass);
  return numbers;
}

Deno.test("eventTimeMs keeps the microseconds of a date of today", () => {
  const seconds = 1_764_000_000;
  assertEquals(eventTimeMs({ timestamp: at(seconds, 0) }), seconds * 1000);
  for (let microseconds = 0; microseconds < 1_000_000; microseconds += 997) {
    const fractionMs = eventTimeMs({ timestamp: at(seconds, microseconds) }) - seconds * 1000;
    assertEquals(Math.round(fractionMs * 1000), microseconds);
  }
});

Deno.test("eventTimeMs is not a number when QEMU could not read its clock", () => {
  assert(Number.isNaN(eventTimeMs({ timestamp: at(-1, -1) })));
});

Deno.test("QmpEventStream hands over events in order, read before or after they come", async () => {
  const stream = new QmpEventStream(() => {});
  const early = [stream.next(), stream.next()];
  for (let i = 0; i < 4; i++) stream.push(event(i));
  stream.end();
  const read = (await Promise.all(early)).map(({ value }) => value?.data.pass);
  assertEquals([...read, ...await passes(stream)], [0, 1, 2, 3]);
});

Deno.test("QmpEventStream drops the oldest events and counts them when nobody reads", async () => {
  const unreadMax = 10;
  for (const sent of [0, 1, 10, 11, 20, 21, 22, 1000]) {
    const stream = new QmpEventStream(() => {}, unreadMax);
    for (let i = 0; i < sent; i++) stream.push(event(i));
    stream.end();
    const dropped = Math.max(0, sent - unreadMax);
    assertEquals(stream.dropped, dropped);
    assertEquals(
      await passes(stream),
      Array.from({ length: sent - dropped }, (_, i) => i + dropped),
    );
  }
});

Deno.test("QmpEventStream keeps the order when reading and dropping alternate", async () => {
  const stream = new QmpEventStream(() => {}, 3);
  const seen: unknown[] = [];
  for (let i = 0; i < 50; i++) {
    stream.push(event(i));
    if (i % 5 === 0) seen.push((await stream.next()).value?.data.pass);
  }
  stream.end();
  seen.push(...await passes(stream));
  assertEquals(seen.length + stream.dropped, 50);
  assertEquals(seen, [...seen].sort((a, b) => Number(a) - Number(b)));
  assertEquals(seen.slice(-3), [47, 48, 49]);
});

Deno.test("QmpEventStream takes a flood nobody reads without growing slower", () => {
  const stream = new QmpEventStream(() => {});
  const flood = 500_000;
  const startMs = performance.now();
  for (let i = 0; i < flood; i++) stream.push(event(i));
  const tookMs = performance.now() - startMs;
  assertEquals(stream.dropped, flood - QMP_EVENTS_UNREAD_MAX);
  assert(tookMs < 3000, `${tookMs} ms`);
});

Deno.test("QmpEventStream ends its subscription once its loop is left", async () => {
  let unsubscribed = 0;
  const stream = new QmpEventStream(() => unsubscribed++);
  stream.push(event(1));
  stream.push(event(2));
  for await (const _ of stream) break;
  assertEquals(unsubscribed, 1);
  stream.push(event(3));
  assertEquals(await stream.next(), { done: true, value: undefined });
});
