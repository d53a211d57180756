import { assertEquals } from "@std/assert/mod.js";
import { formatStatus } from "../../cli/status.ts";
import { parseVmConfig } from "../../engine/config/mod.ts";
import { primaryCommands, type StatusOverControl } from "../../engine/host/primary_control.ts";
import { StatisticsCounter } from "../../engine/host/statistics.ts";
import type { QmpClient } from "../../engine/qmp/mod.ts";

const CONFIG = parseVmConfig('[vm]\nname = "web1"\nmemory = 16\nkernel = "none"', "/vm.toml");

function statusOf(
  phase: StatusOverControl["phase"],
  bypass: boolean,
  more: Partial<StatusOverControl> = {},
): StatusOverControl {
  const { statistics } = new StatisticsCounter();
  const commands = primaryCommands({
    status: () => ({ phase, epoch: 7, bypass, statistics, network: [], ...more }),
    qmp: {} as QmpClient,
    save: () => Promise.reject(new Error("not asked for")),
    bypass: () => Promise.resolve(),
    reprotect() {},
  }, CONFIG);
  return commands["query-colo-status"]!.run({}) as StatusOverControl;
}

for (
  const [phase, bypass, isProtected, words] of [
    ["protected", false, true, "protected"],
    ["protected", true, false, "not protected"],
    ["seeding", false, false, "seeding, not protected"],
    ["alone", true, false, "alone, not protected"],
  ] as const
) {
  Deno.test(`a VM that is ${phase}, its network ${bypass ? "open" : "led through"}, counts as ${words}`, () => {
    const status = statusOf(phase, bypass);
    assertEquals(status.protected, isProtected);
    assertEquals(formatStatus(status)[0], `vm           web1: ${words}`);
  });
}

Deno.test("status says how far the disks are copied, as long as they are", () => {
  const copying = { "done-bytes": 3 * 1024 * 1024, "total-bytes": 9 * 1024 * 1024 };
  const status = statusOf("alone", false, { "disks-copying": copying });
  assertEquals(status["disks-copying"], copying);
  assertEquals(formatStatus(status)[1], "disks        3.1 MB of 9.4 MB copied to the standby");
  const after = statusOf("alone", false);
  assertEquals("disks-copying" in after, false);
  assertEquals(formatStatus(after).some((line) => line.startsWith("disks")), false);
});
