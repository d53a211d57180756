/** Hosts that know each other by the registry alone. */

import { assert, assertEquals } from "@std/assert/mod.js";
import { ArbitratedPair, whyNoArbitratedPair } from "./_arbitrated_pair.ts";
import { sleep } from "./_pair.ts";

const WAIT_MS = 30_000;

const whyNot = await whyNoArbitratedPair();
if (whyNot !== undefined && Deno.env.get("CI")) throw new Error(`CI needs etcd: ${whyNot}`);
if (whyNot !== undefined) console.log(`tests with a registry are skipped: ${whyNot}`);

for (const mode of ["colo", "continuous"] as const) {
  Deno.test({
    name: `a survivor finds another standby by itself, and connections live on, mode ${mode}`,
    ignore: whyNot !== undefined,
    fn: async () => {
      await using world = await ArbitratedPair.start({ mode, third: true });
      const { pair } = world;
      const load = pair.load({ kind: "count" }, {
        connections: 1,
        durationMs: 120_000,
        intervalMs: 2,
      });
      await load.connected;
      pair.standBy("third");
      const third = pair.third!;
      await third.waitFor("secondary", ({ phase }) => phase === "waiting", WAIT_MS);
      await sleep(500);

      // The host of the first generation is lost, and does not come back.
      let killedMs = performance.timeOrigin + performance.now();
      for (const pid of [pair.primary.pid, pair.qemuPid("primary")]) Deno.kill(pid, "SIGKILL");
      const second = await pair.standby.waitFor("running", () => true, WAIT_MS);
      const again = await pair.standby.waitFor(
        "primary",
        ({ phase }) => phase === "protected",
        WAIT_MS,
      );
      console.log(
        `running after ${
          (second.atMs - killedMs).toFixed(0)
        } ms, protected by the third host after ` +
          `${(again.atMs - killedMs).toFixed(0)} ms`,
      );
      assertEquals((await pair.status("standby")).protected, true);
      await sleep(500);

      killedMs = performance.timeOrigin + performance.now();
      for (const pid of [pair.standby.pid, pair.qemuPid("standby")]) Deno.kill(pid, "SIGKILL");
      const last = await third.waitFor("running", () => true, WAIT_MS);
      console.log(`running on the third host after ${(last.atMs - killedMs).toFixed(0)} ms`);
      await third.waitFor("primary", ({ phase }) => phase === "alone", WAIT_MS);
      assertEquals((await pair.status("third")).protected, false);
      await sleep(1500);
      const result = await load.stop();
      assertEquals(result.errors, []);
      assert(result.answers > 100);
      console.log(
        `${result.answers} answers on one connection, longest gap ` +
          `${result.longestGapMs.toFixed(0)} ms`,
      );
    },
  });
}
