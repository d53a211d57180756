/**
 * `RESULTS.md`: one section an area, each replaced when its area is measured anew. Pure.
 *
 * @module
 */

import { type Area, AREA_NAMES, type AreaName, type AreaResult } from "./area.ts";
import type { Row } from "./row.ts";

const TITLE = `# Benchmark results

Written by \`deno task bench\`. Every figure is a median over alternations in one run: ours, peer, ours,
peer. What is slow on this machine is slow for both, so the ratio is what counts.
`;

/** What stands above and below the rows of a section. */
export interface SectionFacts {
  /** When it was measured. */
  readonly date: Date;
  /** How long that took. */
  readonly tookMs: number;
  /** Paths of the area's plots, as seen from the file. */
  readonly plots: readonly string[];
}

/** The section of one area. */
export function renderSection(
  area: Pick<Area, "name" | "about" | "bar">,
  { versions, host, rows }: AreaResult,
  { date, tookMs, plots }: SectionFacts,
): string {
  const qemu = versions.qemu === null ? "" : `, QEMU ${versions.qemu}`;
  return [
    `## ${area.name}`,
    area.about,
    `${date.toISOString().slice(0, 16).replace("T", " ")} UTC, in ${
      Math.round(tookMs / 1000)
    } s; ` +
    `colo ${versions.colo}, Deno ${versions.deno}${qemu}; ` +
    `${host.cores} cores (${host.cpu}), ${host.memoryGiB} GiB, Linux ${host.kernel}.`,
    renderTable(rows, area.bar),
    ...plots.map((path) => `![${area.name}](${path})`),
  ].join("\n\n") + "\n";
}

/** The rows as a table in Markdown. */
export function renderTable(rows: readonly Row[], bar: Area["bar"]): string {
  const head = ["case", "unit", "ours", "peer", "", "ratio", "bar", "ok"];
  const lines = rows.map((row) => [
    row.case,
    row.unit,
    formatFigure(row.ours),
    formatFigure(row.peer),
    row.peerName ?? "",
    formatFigure(row.ratio),
    row.bar === null ? "" : `${(row.sense ?? bar) === "least" ? "≥" : "≤"} ${row.bar}`,
    row.ok === null ? "" : row.ok ? "yes" : "**no**",
  ]);
  const widths = head.map((cell, column) =>
    Math.max(3, cell.length, ...lines.map((line) => line[column]!.length))
  );
  const numeric = [false, false, true, true, false, true, true, false];
  const show = (cells: readonly string[]) =>
    `| ${
      cells.map((cell, column) =>
        numeric[column] ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!)
      ).join(" | ")
    } |`;
  const rule = widths.map((width, column) =>
    numeric[column] ? `${"-".repeat(width - 1)}:` : "-".repeat(width)
  );
  return [show(head), show(rule), ...lines.map(show)].join("\n");
}

/** Three significant digits, and thousands kept whole. */
export function formatFigure(value: number | null): string {
  if (value === null) return "";
  if (!Number.isFinite(value)) return "?";
  if (Math.abs(value) >= 1000) return String(Math.round(value));
  return String(Number(value.toPrecision(3)));
}

/**
 * Put a section into the file.
 *
 * @param markdown The file as it is; empty when there is none
 * @returns The file with this section new, the others as they were, in the order of the areas
 */
export function replaceSection(markdown: string, name: AreaName, section: string): string {
  const sections = new Map<string, string>();
  for (const text of markdown.split(/^(?=## )/m)) {
    const found = /^## (\S+)/.exec(text)?.[1];
    if (found !== undefined) sections.set(found, text);
  }
  sections.set(name, section);
  const known = AREA_NAMES.flatMap((area) => sections.get(area) ?? []);
  const others = [...sections].filter(([area]) => !AREA_NAMES.some((name) => name === area));
  const ordered = [...known, ...others.map(([, text]) => text)];
  return [TITLE, ...ordered].map((text) => text.trimEnd() + "\n").join("\n");
}
