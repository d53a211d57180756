/**
 * Simulate failovers: `deno task sim --seeds 2000 --from 1`, or one seed with `--seed N --verbose`.
 *
 * @module
 */

import { FAULT_KINDS, type FaultKind } from "./faults.ts";
import { type Outcome, simulate } from "./world.ts";

/** Between two words about how far it is. */
const PROGRESS_MS = 10_000;

/** The command that replays a seed. */
export function replayCommand(seed: number): string {
  return `deno task sim --seed ${seed} --verbose`;
}

/** What many seeds came to. */
export class Summary {
  seeds = 0;
  readonly failures: Outcome[] = [];
  readonly #faults = new Map<FaultKind, number>();
  readonly #sums = new Map<string, number>();

  add(outcome: Outcome): void {
    this.seeds++;
    if (outcome.error !== undefined) this.failures.push(outcome);
    for (const [kind, count] of outcome.faults) {
      this.#faults.set(kind, (this.#faults.get(kind) ?? 0) + count);
    }
    for (const [name, count] of Object.entries(outcome)) {
      if (typeof count === "number") this.#sums.set(name, this.sum(name) + count);
    }
  }

  sum(name: string): number {
    return this.#sums.get(name) ?? 0;
  }

  faults(kind: FaultKind): number {
    return this.#faults.get(kind) ?? 0;
  }

  lines(elapsedMs: number): string[] {
    const hours = (this.sum("simulatedMs") / 3_600_000).toFixed(1);
    return [
      `${this.seeds} seeds, ${this.failures.length} failed; ${hours} simulated hours, ` +
      `${(1000 * this.seeds / elapsedMs).toFixed(0)} seeds/s`,
      `${this.sum("outputs")} outputs seen, ${this.sum("takeovers")} takeovers, ` +
      `${this.sum("grants")} grants, ${this.sum("stales")} stale, ` +
      `${this.sum("resumes")} seeds of what had changed, ` +
      `${this.sum("setbacks")} taken over from an unprotected state, ` +
      `${this.sum("losses")} lost while unprotected`,
      `faults: ${FAULT_KINDS.map((kind) => `${kind} ${this.faults(kind)}`).join(", ")}`,
    ];
  }
}

function numberOf(name: string): number | undefined {
  const at = Deno.args.indexOf(`--${name}`);
  if (at < 0) return undefined;
  const value = Number(Deno.args[at + 1]);
  if (!Number.isSafeInteger(value) || value < 0) {
    console.error(`Cannot simulate: --${name} takes a number`);
    Deno.exit(2);
  }
  return value;
}

function main(): void {
  const seed = numberOf("seed");
  const isVerbose = Deno.args.includes("--verbose");
  const from = seed ?? numberOf("from") ?? 1;
  const count = seed === undefined ? numberOf("seeds") ?? 2000 : 1;
  const summary = new Summary();
  const beganMs = performance.now();
  let saidMs = beganMs;
  for (let next = from; next < from + count; next++) {
    const outcome = simulate(next, isVerbose ? { trace: console.log } : {});
    summary.add(outcome);
    if (outcome.error !== undefined) {
      console.log(`seed ${next}: ${outcome.error.message}; ${replayCommand(next)}`);
      if (isVerbose) console.log(outcome.error.stack);
    }
    if (performance.now() - saidMs < PROGRESS_MS) continue;
    saidMs = performance.now();
    console.error(`${summary.seeds} of ${count} seeds, ${summary.failures.length} failed`);
  }
  for (const line of summary.lines(performance.now() - beganMs)) console.log(line);
  Deno.exit(summary.failures.length === 0 ? 0 : 1);
}

if (import.meta.main) main();
