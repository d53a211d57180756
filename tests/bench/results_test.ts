import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import type { AreaResult } from "../../bench/area.ts";
import { formatFigure, renderSection, renderTable, replaceSection } from "../../bench/results.ts";
import type { Row } from "../../bench/row.ts";

const ROWS: readonly Row[] = [
  {
    case: "5,000 pages",
    unit: "ms",
    ours: 12.3456,
    peer: 16.46,
    peerName: "native pair",
    ratio: 0.75004,
    bar: 0.75,
    ok: false,
  },
  {
    case: "alone",
    unit: "ms",
    ours: 3,
    peer: null,
    peerName: null,
    ratio: null,
    bar: null,
    ok: null,
  },
];

Deno.test("renderTable aligns its columns and says which way the bar goes", () => {
  assertEquals(
    renderTable(ROWS, "most").split("\n"),
    [
      "| case        | unit | ours | peer |             | ratio |    bar | ok     |",
      "| ----------- | ---- | ---: | ---: | ----------- | ----: | -----: | ------ |",
      "| 5,000 pages | ms   | 12.3 | 16.5 | native pair |  0.75 | ≤ 0.75 | **no** |",
      "| alone       | ms   |    3 |      |             |       |        |        |",
    ],
  );
  assertStringIncludes(renderTable(ROWS, "least"), "≥ 0.75");
  const own = ROWS.map((row) => ({ ...row, sense: "most" as const }));
  assertStringIncludes(renderTable(own, "least"), "≤ 0.75");
});

Deno.test("formatFigure keeps three digits that count", () => {
  const shown = [0.0123456, 1.5, 99.96, 12345.6, null, NaN].map(formatFigure);
  assertEquals(shown, ["0.0123", "1.5", "100", "12346", "", "?"]);
});

Deno.test("renderSection says what was measured when, with what, on what", () => {
  const result: AreaResult = {
    area: "pause",
    versions: { colo: "0.1.0", deno: "2.9.6", qemu: "11.1.3 (tcg)" },
    host: { cores: 2, cpu: "A CPU", memoryGiB: 24, kernel: "6.1.0" },
    rows: ROWS,
  };
  const section = renderSection(
    { name: "pause", about: "How long.", bar: "most" },
    result,
    { date: new Date("2026-11-24T05:06:07Z"), tookMs: 61_400, plots: ["plots/pause-ms.svg"] },
  );
  assert(section.startsWith("## pause\n\nHow long.\n\n"));
  assertStringIncludes(
    section,
    "2026-11-24 05:06 UTC, in 61 s; colo 0.1.0, Deno 2.9.6, QEMU 11.1.3 (tcg); " +
      "2 cores (A CPU), 24 GiB, Linux 6.1.0.",
  );
  assert(section.endsWith("![pause](plots/pause-ms.svg)\n"));
  const { versions } = result;
  const without = { ...result, versions: { ...versions, qemu: null } };
  const facts = { date: new Date(0), tookMs: 0, plots: [] };
  const kernels = { name: "kernels", about: "", bar: "least" } as const;
  assert(!renderSection(kernels, without, facts).includes("QEMU"));
});

Deno.test("replaceSection begins a file, with the sections in the order of the areas", () => {
  let file = replaceSection("", "wire", "## wire\n\nw\n");
  assert(file.startsWith("# Benchmark results\n"));
  file = replaceSection(file, "kernels", "## kernels\n\nk\n");
  assert(file.endsWith("\n\n## kernels\n\nk\n\n## wire\n\nw\n"), file);
});

Deno.test("replaceSection replaces its own section and keeps the others as they are", () => {
  let file = "";
  for (const name of ["kernels", "pause", "wire"] as const) {
    file = replaceSection(file, name, `## ${name}\n\nold ${name}\n\n### within\n\nmore\n`);
  }
  const changed = replaceSection(file, "pause", "## pause\n\nnew pause\n");
  assertEquals(
    changed,
    file.replace("old pause\n\n### within\n\nmore\n", "new pause\n"),
  );
  assertEquals(replaceSection(changed, "pause", "## pause\n\nnew pause\n"), changed);
});

Deno.test("replaceSection keeps sections that it does not know", () => {
  const file = replaceSection("# Old title\n\n## notes\n\nn\n", "seed", "## seed\n\ns\n");
  assert(file.endsWith("\n\n## seed\n\ns\n\n## notes\n\nn\n"), file);
});
