import { assert, assertEquals } from "@std/assert/mod.js";
import fc from "fast-check";
import { chartsOf, drawBars } from "../../bench/plot.ts";
import type { Row } from "../../bench/row.ts";

/** Lengths of the bars, without the background and the legend. */
function barWidths(svg: string): number[] {
  return [...svg.matchAll(/<rect x="300" y="\d+" width="([^"]+)" height="12"/g)]
    .map(([, width]) => Number(width));
}

const chart = (...values: readonly number[]) => ({
  title: "t",
  unit: "ms",
  groups: values.map((value) => ({ label: "g", bars: [{ name: "n", value }] })),
});

function row(fields: Partial<Row>): Row {
  const common = { case: "a", unit: "ms", ours: 1, peer: 2, peerName: "p" };
  return { ...common, ratio: null, bar: null, ok: null, ...fields };
}

Deno.test("drawBars draws bars as long as their values are large", () => {
  const svg = drawBars(chart(10, 20, 40));
  const [a = 0, b = 0, c = 0] = barWidths(svg);
  assert(Math.abs(b - 2 * a) < 0.2 && Math.abs(c - 4 * a) < 0.2, `${a} ${b} ${c}`);
  assert(!svg.includes("logarithmic"));
});

Deno.test("drawBars takes a logarithmic scale, and says so, where values lie far apart", () => {
  const svg = drawBars(chart(1, 10, 100));
  const [a = 0, b = 0, c = 0] = barWidths(svg);
  assert(a < b && b < c && Math.abs((c - b) - b) < 0.2, `${a} ${b} ${c}`);
  assert(svg.includes("t, ms, logarithmic"));
});

Deno.test("drawBars escapes what is markup in SVG", () => {
  const svg = drawBars({
    title: "a < b & c",
    unit: "x",
    groups: [{ label: "<g>", bars: [{ name: "&n", value: 1 }] }],
  });
  assert(svg.includes("a &lt; b &amp; c") && svg.includes("&lt;g&gt;") && svg.includes("&amp;n"));
});

Deno.test("drawBars keeps every bar inside the picture, whatever the values", () => {
  const value = fc.oneof(fc.double({ noNaN: true, min: 0, max: 1e12 }), fc.constant(NaN));
  fc.assert(fc.property(fc.array(value, { maxLength: 8 }), (values) => {
    const widths = barWidths(drawBars(chart(...values)));
    assertEquals(widths.length, values.length);
    assert(widths.every((width) => width >= 1 && width <= 860 - 300 - 80), `${widths}`);
  }));
});

Deno.test("chartsOf makes one chart a unit, and one group of the rows of a case", () => {
  const charts = chartsOf("pause", [
    row({ case: "a", ours: 1, peer: 2, peerName: "p" }),
    row({ case: "a", ours: 1, peer: 3, peerName: "q" }),
    row({ case: "b", unit: "bytes", ours: 4, peer: null, peerName: null }),
  ]);
  assertEquals(charts, [
    {
      title: "pause",
      unit: "ms",
      groups: [{
        label: "a",
        bars: [{ name: "colo", value: 1 }, { name: "p", value: 2 }, { name: "q", value: 3 }],
      }],
    },
    { title: "pause", unit: "bytes", groups: [{ label: "b", bars: [{ name: "colo", value: 4 }] }] },
  ]);
});

Deno.test("chartsOf calls all peers so where there are too many to tell apart", () => {
  const rows = ["p", "q", "r"].map((peerName) => row({ case: peerName, peerName }));
  const [chart] = chartsOf("kernels", rows);
  const names = new Set(chart!.groups.flatMap(({ bars }) => bars.map(({ name }) => name)));
  assertEquals([...names], ["colo", "peer"]);
});
