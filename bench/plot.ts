/**
 * Bar charts as SVG. Pure.
 *
 * @module
 */

import { formatFigure } from "./results.ts";
import type { Row } from "./row.ts";

/** Bars that belong together. */
export interface BarGroup {
  readonly label: string;
  readonly bars: readonly { readonly name: string; readonly value: number }[];
}

/** A chart. */
export interface BarChart {
  readonly title: string;
  readonly unit: string;
  readonly groups: readonly BarGroup[];
}

const WIDTH = 860;
const LABEL_WIDTH = 300;
const FIGURE_WIDTH = 80;
const BAR_HEIGHT = 14;
const GROUP_GAP = 10;
const TOP = 64;
const COLORS = ["#2563eb", "#d97706", "#6b7280", "#059669"];

/** More peers than this have no color of their own. */
const PEER_NAMES_MAX = 2;

/** Values so far apart are drawn on a logarithmic scale. */
const LOGARITHMIC_FROM = 50;

/**
 * Draw horizontal bars, one color a name.
 *
 * @returns A whole SVG document; the same chart gives the same text
 */
export function drawBars({ title, unit, groups }: BarChart): string {
  const names = [...new Set(groups.flatMap(({ bars }) => bars.map(({ name }) => name)))];
  const values = groups.flatMap(({ bars }) => bars.map(({ value }) => value));
  const scale = chooseScale(values.filter((value) => value > 0 && Number.isFinite(value)));
  const color = (name: string) => COLORS[names.indexOf(name) % COLORS.length]!;
  const parts: string[] = [];
  let y = TOP;
  for (const { label, bars } of groups) {
    const middle = y + bars.length * BAR_HEIGHT / 2 + 4;
    parts.push(text(LABEL_WIDTH - 8, middle, label, "end"));
    for (const { name, value } of bars) {
      const width = Number(Math.max(1, scale.width(value)).toFixed(1));
      parts.push(
        `<rect x="${LABEL_WIDTH}" y="${y}" width="${width}" height="${BAR_HEIGHT - 2}" ` +
          `fill="${color(name)}"/>`,
        text(LABEL_WIDTH + width + 5, y + BAR_HEIGHT - 4, formatFigure(value), "start"),
      );
      y += BAR_HEIGHT;
    }
    y += GROUP_GAP;
  }
  const legend = names.map((name, index) => {
    const x = 12 + index * 210;
    return `<rect x="${x}" y="38" width="12" height="12" fill="${color(name)}"/>` +
      text(x + 17, 48, name, "start");
  });
  const heading = `${title}, ${unit}${scale.logarithmic ? ", logarithmic" : ""}`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${y}" ` +
    `viewBox="0 0 ${WIDTH} ${y}" font-family="sans-serif" font-size="11">`,
    `<rect width="${WIDTH}" height="${y}" fill="#ffffff"/>`,
    `<text x="12" y="22" font-size="14" font-weight="bold">${escapeXml(heading)}</text>`,
    ...legend,
    ...parts,
    "</svg>\n",
  ].join("\n");
}

/** The charts of an area: one a unit, since only like can be drawn beside like. */
export function chartsOf(area: string, rows: readonly Row[]): BarChart[] {
  return [...Map.groupBy(rows, ({ unit }) => unit)].map(([unit, rows]) => {
    const peers = new Set(rows.map(({ peerName }) => peerName));
    const named = peers.size <= PEER_NAMES_MAX;
    return {
      title: area,
      unit,
      // Rows of one case compare the same with several peers.
      groups: [...Map.groupBy(rows, (row) => row.case)].map(([label, rows]) => ({
        label,
        bars: [
          { name: "colo", value: rows[0]!.ours },
          ...rows.flatMap(({ peer, peerName }) =>
            peer === null ? [] : [{ name: named && peerName || "peer", value: peer }]
          ),
        ],
      })),
    };
  });
}

interface Scale {
  readonly logarithmic: boolean;
  /** Length of a bar, in pixels. */
  readonly width: (value: number) => number;
}

function chooseScale(values: readonly number[]): Scale {
  const room = WIDTH - LABEL_WIDTH - FIGURE_WIDTH;
  const most = Math.max(...values);
  const least = Math.min(...values);
  const bar = (share: number) => Number.isFinite(share) ? share * room : 0;
  if (most / least < LOGARITHMIC_FROM || values.length === 0) {
    return { logarithmic: false, width: (value) => bar(value / most) };
  }
  const from = Math.floor(Math.log10(least));
  const to = Math.log10(most);
  return { logarithmic: true, width: (value) => bar((Math.log10(value) - from) / (to - from)) };
}

function text(x: number, y: number, content: string, anchor: "start" | "end"): string {
  return `<text x="${x}" y="${y}" text-anchor="${anchor}">${escapeXml(content)}</text>`;
}

function escapeXml(content: string): string {
  return content.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
