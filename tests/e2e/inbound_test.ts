import { assert } from "@std/assert/mod.js";
import { DiskPair } from "./_disk_pair.ts";

/** What QEMU's own network has sent in vain it sends again after a second or more. */
const RESENT_MS = 700;

/** Of some sixty one has lost a frame. */
const CHECKPOINTS = 150;

Deno.test("no frame for the guest gets lost where a checkpoint stops it", async () => {
  await using pair = await DiskPair.start({ starts: false, periodMs: 20 });
  const { a } = pair;
  a.start("run");
  const clients = await Promise.all([a.client(), a.client()]);
  const checkpoints = () => a.engine.reports.filter(({ event }) => event === "checkpoint").length;
  const enough = checkpoints() + CHECKPOINTS;
  let [questions, longestMs] = [0, 0];
  await Promise.all(clients.map(async (client) => {
    while (checkpoints() < enough) {
      const askedMs = performance.now();
      await client.ask("sectors 0");
      questions++;
      longestMs = Math.max(longestMs, performance.now() - askedMs);
    }
    client.close();
  }));
  console.log(`the longest of ${questions} answers took ${longestMs.toFixed(0)} ms`);
  assert(longestMs < RESENT_MS, `an answer took ${longestMs} ms`);
});
