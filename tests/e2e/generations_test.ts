import { assert, assertEquals } from "@std/assert/mod.js";
import { Hosts } from "../../bench/rig/hosts.ts";
import type { ReplicationMode } from "../../engine/config/mod.ts";
import { NetworkPair } from "./_network_pair.ts";
import { sleep } from "./_pair.ts";

const GENERATIONS = 3;
const WAIT_MS = 30_000;

const whyNot = await Hosts.whyNot();
if (whyNot !== undefined && Deno.env.get("CI")) throw new Error(`CI needs a network: ${whyNot}`);
if (whyNot !== undefined) console.log(`tests of generations are skipped: ${whyNot}`);

for (const mode of ["colo", "continuous"] as const satisfies readonly ReplicationMode[]) {
  Deno.test({
    name: `connections survive ${GENERATIONS} takeovers in a row, mode ${mode}`,
    ignore: whyNot !== undefined,
    fn: async () => {
      await using pair = await NetworkPair.start({ mode, bothWays: true });
      await pair.protected();
      const load = pair.load({ kind: "count" }, {
        connections: 4,
        durationMs: 120_000,
        intervalMs: 2,
      });
      await load.connected;
      let runs: "primary" | "standby" = "primary";
      for (let generation = 1; generation <= GENERATIONS; generation++) {
        await sleep(700);
        const other: "primary" | "standby" = runs === "primary" ? "standby" : "primary";
        const [from, to] = [pair[runs], pair[other]];
        const killedMs = performance.timeOrigin + performance.now();
        Deno.kill(pair.qemuPid(runs), "SIGKILL");
        const { atMs } = await to.waitFor("running", ({ atMs }) => atMs > killedMs - 1, WAIT_MS);
        await from.exited();
        const after = to.reports.length;
        // The host that was lost stands by for the one that has taken over.
        pair.standBy(runs);
        const isNew = (report: object) => to.reports.findIndex((one) => one === report) >= after;
        await to.waitFor(
          "primary",
          (report) => report.phase === "protected" && isNew(report),
          WAIT_MS,
        );
        console.log(
          `takeover ${generation}: ${(atMs - killedMs).toFixed(1)} ms, protected again after ` +
            `${(performance.timeOrigin + performance.now() - killedMs).toFixed(0)} ms`,
        );
        runs = other;
      }
      await sleep(700);
      const result = await load.stop();
      assertEquals(result.errors, []);
      assert(result.answers > 100);
      console.log(`${result.answers} answers, longest gap ${result.longestGapMs.toFixed(0)} ms`);
    },
  });
}
