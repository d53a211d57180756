import { assertEquals, assertRejects } from "@std/assert/mod.js";
import { untilItRuns } from "../../engine/host/vm_end.ts";
import type { QemuExit, QemuProcess } from "../../engine/vm/mod.ts";

Deno.test("untilItRuns() gives a VM up when it has ended, and not when its monitor breaks", async () => {
  const exited = Promise.withResolvers<QemuExit>();
  const process = { exited: exited.promise } as QemuProcess;
  let [isGivenUp, isLate] = [false, false];
  const running = Promise.reject(new Error("the monitor broke"));
  const waiting = untilItRuns({ process }, running, () => isLate = true, 10)
    .finally(() => isGivenUp = true);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assertEquals([isGivenUp, isLate], [false, true]);
  exited.resolve({ code: 1, signal: null, stderrTail: "" });
  await assertRejects(() => waiting, Error, "the monitor broke");
});

Deno.test("untilItRuns() says nothing of a VM that runs in time", async () => {
  const process = { exited: new Promise<never>(() => {}) } as unknown as QemuProcess;
  let isLate = false;
  assertEquals(await untilItRuns({ process }, Promise.resolve(7), () => isLate = true, 10), 7);
  await new Promise((resolve) => setTimeout(resolve, 30));
  assertEquals(isLate, false);
});
