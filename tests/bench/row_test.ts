import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { compareRow, costRow, median } from "../../bench/row.ts";

Deno.test("median is the middle value, or the mean of the two middle ones", () => {
  assertEquals(median([3, 1, 2]), 2);
  assertEquals(median([10, 1, 2, 9]), 5.5);
  assertEquals(median([7]), 7);
  assert(Number.isNaN(median([])));
});

Deno.test("median has as many values below it as above, and leaves its input alone", () => {
  const values = fc.array(fc.integer({ min: -1000, max: 1000 }), { minLength: 1, maxLength: 30 });
  fc.assert(fc.property(values, (values) => {
    const before = [...values];
    const middle = median(values);
    assertEquals(values, before);
    assert(values.filter((value) => value < middle).length <= values.length / 2);
    assert(values.filter((value) => value > middle).length <= values.length / 2);
  }));
});

Deno.test("costRow compares medians", () => {
  const row = costRow({
    case: "a",
    unit: "ms",
    ours: [1, 100, 3],
    peer: [6, 5, 600],
    peerName: "b",
  });
  assertEquals(row, {
    case: "a",
    unit: "ms",
    ours: 3,
    peer: 6,
    peerName: "b",
    ratio: 0.5,
    bar: null,
    ok: null,
  });
});

Deno.test("costRow is content with a ratio up to the bar, and not above it", () => {
  const judge = (ours: number) =>
    costRow({ case: "a", unit: "ms", ours: [ours], peer: [4], peerName: "b", bar: 0.75 }).ok;
  assertEquals([judge(2), judge(3), judge(3.01)], [true, true, false]);
});

Deno.test("costRow misses the bar where nothing was measured", () => {
  const row = costRow({ case: "a", unit: "ms", ours: [], peer: [4], peerName: "b", bar: 0.75 });
  assertEquals(row.ok, false);
});

Deno.test("compareRow takes its bar for the least where more is better", () => {
  const cost = { case: "a", unit: "requests/s", ours: [85], peer: [100], peerName: "b" };
  assertEquals(compareRow({ ...cost, bar: 0.85 }, "least").ok, true);
  assertEquals(compareRow({ ...cost, bar: 0.86 }, "least").ok, false);
  assertEquals(compareRow({ ...cost, bar: 0.86 }, "most").ok, true);
  assertEquals(compareRow({ ...cost, ours: [], bar: 0.1 }, "least").ok, false);
  assertEquals(compareRow(cost, "least").ok, null);
});
