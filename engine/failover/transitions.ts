/**
 * The form of a life cycle: what every event leads to in every phase, as data. A machine looks up
 * whether it takes an event, the tests walk every pair, and the diagrams of ARCHITECTURE.md are drawn
 * from it.
 *
 * @module
 */

import { StateError, WireError } from "../errors.ts";

/** What an event leads to in a phase. */
export type Reaction<Phase extends string> =
  /** It cannot happen: a {@linkcode StateError}, and nothing is changed. */
  | "impossible"
  /** The peer must not say it: a {@linkcode WireError}, and nothing is changed. */
  | "forbidden"
  /** Nothing, whatever it carries. */
  | "ignored"
  /** It is taken, and the phase stays. */
  | "stays"
  /** This phase. */
  | Phase
  /** One of these phases, each with its condition; the present one among them where it may stay. */
  | Readonly<Partial<Record<Phase, string>>>;

/** What one event leads to. */
export type Row<Phase extends string> =
  & Readonly<Partial<Record<Phase, Reaction<Phase>>>>
  /** In every phase that is not named. */
  & { readonly otherwise: Reaction<Phase> };

/** A life cycle. */
export interface Transitions<Phase extends string, Event extends string> {
  /** The first is that at the beginning; in the last every event is ignored. */
  readonly phases: readonly Phase[];
  readonly rows: Readonly<Record<Event, Row<Phase>>>;
}

/** What `event` leads to in `phase`. */
export function reactionTo<Phase extends string, Event extends string>(
  { phases, rows }: Transitions<Phase, Event>,
  phase: Phase,
  event: Event,
): Reaction<Phase> {
  if (phase === phases.at(-1)) return "ignored";
  const row = rows[event];
  return row[phase] ?? row.otherwise;
}

/**
 * Whether an event is to be taken.
 *
 * @param who Whose life it is, for messages
 * @returns False when it is ignored
 * @throws {StateError} when it cannot happen
 * @throws {WireError} when the peer must not say it
 */
export function takes<Phase extends string, Event extends string>(
  transitions: Transitions<Phase, Event>,
  phase: Phase,
  event: Event,
  who: string,
): boolean {
  const reaction = reactionTo(transitions, phase, event);
  const message = `Cannot take ${event}: the ${who} is ${phase}`;
  if (reaction === "forbidden") throw new WireError(message, 0);
  if (reaction === "impossible") {
    const required = transitions.phases.filter((other) =>
      reactionTo(transitions, other, event) !== "impossible"
    );
    throw new StateError(message, phase, required.join(" or "));
  }
  return reaction !== "ignored";
}
