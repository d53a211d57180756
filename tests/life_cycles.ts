/**
 * Draws the life cycles of `engine/failover` into ARCHITECTURE.md, from the tables that the machines run
 * by: `deno task build:diagrams`; with `--check` it only says whether the drawings are up to date.
 *
 * @module
 */

import { PRIMARY_TRANSITIONS } from "../engine/failover/primary_transitions.ts";
import { IMAGE_TRANSITIONS, LIVE_TRANSITIONS } from "../engine/failover/secondary_transitions.ts";
import { reactionTo, type Transitions } from "../engine/failover/transitions.ts";

const DOCUMENT_URL = new URL("../ARCHITECTURE.md", import.meta.url);

/** The drawings, by the names that their places in the document have. */
const DIAGRAMS: Readonly<Record<string, string>> = {
  "primary": diagramOf(PRIMARY_TRANSITIONS),
  "secondary, colo": diagramOf(LIVE_TRANSITIONS),
  "secondary, continuous": diagramOf(IMAGE_TRANSITIONS),
};

/** An arrow, and the events that lead along it, with their conditions. */
interface Arrow {
  readonly from: string;
  readonly to: string;
  readonly events: Map<string, string>;
}

/**
 * A Mermaid diagram of a life cycle. What leads to one phase from all others is one arrow from all of
 * them, and what may also leave the phase as it is has none for that.
 */
export function diagramOf<Phase extends string, Event extends string>(
  transitions: Transitions<Phase, Event>,
): string {
  const { phases } = transitions;
  const arrows = arrowsOf(transitions);
  const events = Object.keys(transitions.rows);
  const common = phases.flatMap((to): Arrow[] => {
    const leading = events.filter((event) =>
      phases.every((from) => from === to || arrowFor(arrows, from, to)?.events.has(event))
    );
    for (const arrow of arrows) {
      if (arrow.to === to) { for (const event of leading) arrow.events.delete(event); }
    }
    return leading.length === 0
      ? []
      : [{ from: "any", to, events: new Map(leading.map((event) => [event, ""])) }];
  });
  const apart = new Set<string>(common.map(({ to }) => to));
  const named = phases.filter((phase) => phase.includes("-"));
  const inner = [
    ...named.map((phase) => `state "${phase}" as ${idOf(phase)}`),
    `[*] --> ${idOf(phases[0]!)}`,
    ...arrows.filter(({ events, to }) => events.size > 0 && !apart.has(to)).map(lineOf),
  ];
  const rest = arrows.filter(({ events, to }) => events.size > 0 && apart.has(to));
  const lines = common.length === 0 ? inner : [
    'state "any phase" as any {',
    ...inner.map((line) => `  ${line}`),
    "}",
    ...[...common, ...rest].map(lineOf),
  ];
  return ["stateDiagram-v2", ...lines.map((line) => `  ${line}`)].join("\n");
}

function arrowsOf<Phase extends string, Event extends string>(
  transitions: Transitions<Phase, Event>,
): Arrow[] {
  const { phases, rows } = transitions;
  const arrows: Arrow[] = [];
  for (const from of phases) {
    for (const to of phases.filter((to) => to !== from)) {
      const events = new Map<string, string>();
      for (const event of Object.keys(rows) as Event[]) {
        const reaction = reactionTo(transitions, from, event);
        const when = reaction === to ? "" : typeof reaction === "object" ? reaction[to] : undefined;
        if (when !== undefined) events.set(event, when);
      }
      if (events.size > 0) arrows.push({ from, to, events });
    }
  }
  return arrows;
}

function arrowFor(arrows: readonly Arrow[], from: string, to: string): Arrow | undefined {
  return arrows.find((arrow) => arrow.from === from && arrow.to === to);
}

function lineOf({ from, to, events }: Arrow): string {
  const labels = [...events].map(([event, when]) => when === "" ? event : `${event} (${when})`);
  return `${idOf(from)} --> ${idOf(to)}: ${labels.join(", ")}`;
}

/** Mermaid takes no hyphen in a name. */
function idOf(phase: string): string {
  return phase.replaceAll("-", "_");
}

/** The document with its drawings as they should be. */
function redrawn(document: string): string {
  return Object.entries(DIAGRAMS).reduce((text, [name, diagram]) => {
    const begin = `<!-- life cycle: ${name} -->\n`;
    const at = text.indexOf(begin);
    const end = text.indexOf("\n```\n", at) + "\n```\n".length;
    if (at < 0 || end < at) {
      throw new Error(`Cannot draw into ARCHITECTURE.md: no "${begin.trim()}"`);
    }
    return `${text.slice(0, at)}${begin}\n\`\`\`mermaid\n${diagram}\n\`\`\`\n${text.slice(end)}`;
  }, document);
}

if (import.meta.main) {
  const document = await Deno.readTextFile(DOCUMENT_URL);
  const wanted = redrawn(document);
  if (!Deno.args.includes("--check")) {
    await Deno.writeTextFile(DOCUMENT_URL, wanted);
  } else if (document !== wanted) {
    console.error(
      "Cannot accept ARCHITECTURE.md: its life cycles are not what engine/failover says, " +
        "run `deno task build:diagrams` and commit the result",
    );
    Deno.exit(1);
  }
}
