/**
 * What an area of the benchmark is, and what it comes to.
 *
 * @module
 */

import type { Row } from "./row.ts";

/** The areas, in the order they are run and written down. */
export const AREA_NAMES = [
  "kernels",
  "pause",
  "wire",
  "seed",
  "store",
  "continuous",
  "failover",
  "compare",
  "net",
  "disk",
] as const;

/** Name of an area. */
export type AreaName = typeof AREA_NAMES[number];

/** What an area is given. */
export interface BenchContext {
  /** Rougher, in less than a minute. */
  readonly quick: boolean;
  /** A directory of the benchmark's own. */
  readonly directory: string;
  /** Aborted when the benchmark is to end early. */
  readonly signal: AbortSignal;
  /** Takes lines about what is going on. */
  readonly progress: (line: string) => void;
}

/** Something that is measured. */
export interface Area {
  readonly name: AreaName;
  /** What is compared with what, in a sentence or two. */
  readonly about: string;
  /** Whether a bar is the least ratio wanted, or the most. */
  readonly bar: "least" | "most";
  readonly run: (context: BenchContext) => Promise<readonly Row[]>;
}

/** What was measured with. */
export interface Versions {
  readonly colo: string;
  readonly deno: string;
  /** Null where no QEMU takes part. */
  readonly qemu: string | null;
}

/** What was measured on. */
export interface HostFacts {
  readonly cores: number;
  readonly cpu: string;
  readonly memoryGiB: number;
  readonly kernel: string;
}

/** What an area came to: the object of `bench --json`. */
export interface AreaResult {
  readonly area: AreaName;
  readonly versions: Versions;
  readonly host: HostFacts;
  readonly rows: readonly Row[];
}
