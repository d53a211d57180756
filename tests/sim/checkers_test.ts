import { assert, assertEquals } from "@std/assert/mod.js";
import { type Property, Violation } from "./checkers.ts";
import { type Rules, SOUND } from "./rules.ts";
import { simulate, type World } from "./world.ts";

/** So many seeds are tried at the most until one finds out. */
const SEEDS_MAX = 2000;

/** What goes wrong, where hardly a seed comes upon it. */
type Script = (world: World) => void;

type Mutation = readonly [rule: keyof Rules, property: Property, script?: Script];

/** What a host gets wrong, and what it is found out by in one seed or another. */
const MUTATIONS: readonly Mutation[] = [
  ["releasesBeforeCommit", "output commit"],
  ["skipsClaim", "one side speaks"],
  ["skipsClaim", "output commit"],
  ["trustsSeed", "nothing seen is lost"],
  ["ignoresStale", "nothing seen is lost"],
  ["ignoresStale", "one side speaks"],
  ["ignoresLease", "output commit"],
  ["loadsPartial", "whole checkpoints"],
  ["neverTakesOver", "survival"],
  ["neverTakesOver", "recovery"],
  ["diesUnheard", "survival"],
  ["reportsProtected", "true protection"],
  ["neverReconnects", "recovery"],
  ["sharesWhileClaiming", "true protection"],
  ["claimsForOthers", "output commit", claimOutlivesCopy],
  ["claimsForDead", "survival", vmAndLinkDie],
  ["opensForOthers", "output commit"],
  ["forgetsPause", "recovery"],
  ["trustsSilence", "one side speaks"],
  ["adoptsUnasked", "nothing seen is lost"],
  ["forgetsSent", "whole checkpoints", linkBreaksAgain],
  ["believesOldWords", "one side speaks"],
];

for (const [rule, property, script] of MUTATIONS) {
  Deno.test(`a host that ${wordsOf(rule)} is found out by: ${property}`, () => {
    for (let seed = 1; seed <= SEEDS_MAX; seed++) {
      const { error } = simulate(seed, { rules: { [rule]: true }, ...(script && { script }) });
      if (error === undefined) continue;
      assert(error instanceof Violation, error.stack);
      if (error.property === property) return;
    }
    throw new Error(`not found out in ${SEEDS_MAX} seeds`);
  });
}

Deno.test("whatever a simulated host can get wrong is found out", () => {
  assertEquals(new Set(MUTATIONS.map(([rule]) => rule as string)), new Set(Object.keys(SOUND)));
});

/** A secondary loses its copy while it claims, and its next primary before it is answered. */
function claimOutlivesCopy({ sim, etcd, hosts: [a, b] }: World): void {
  sim.after(1000, () => etcd.isCutOff[1] = true);
  sim.after(1100, () => a!.lose());
  sim.after(2500, () => b!.standbys.forEach((qemu) => qemu.kill()));
  sim.after(2600, () => a!.powerOn());
  sim.after(8000, () => etcd.isCutOff[1] = false);
}

/** The link breaks in the moment in which the VM dies. */
function vmAndLinkDie({ sim, checkers, network, hosts: [a] }: World): void {
  sim.after(1000, () => {
    checkers.losing(a!, true);
    a!.vm?.kill();
    network.reset();
  });
}

/** The link breaks while a standby that is back is sent what has changed. */
function linkBreaksAgain({ sim, network }: World): void {
  for (let atMs = 1000; atMs < 5000; atMs += 231) sim.after(atMs, () => network.reset());
}

/** `releasesBeforeCommit` as words. */
function wordsOf(rule: string): string {
  return rule.replaceAll(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
}
