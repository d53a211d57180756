import { assertEquals } from "@std/assert/mod.js";
import type { PageCounts } from "../../engine/checkpoint/page_encoder.ts";
import { CheckpointLog } from "../../engine/host/checkpoint_log.ts";
import type { CheckpointReport, Report } from "../../engine/host/report.ts";

const PAGES: PageCounts = { unchanged: 1, zero: 2, xbzrle: 3, whole: 4 };

function newLog() {
  const reports: Omit<CheckpointReport, "atMs">[] = [];
  const log = new CheckpointLog((report: Report) => {
    if (report.event !== "checkpoint") throw new Error(`it reported ${report.event}`);
    const { atMs: _, ...rest } = report;
    reports.push(rest);
  });
  return { log, reports };
}

/** What is known of one checkpoint, in the order in which it usually becomes known. */
function facts(log: CheckpointLog, epoch: number) {
  return {
    paused: () => {
      log.stopped(1000 * epoch);
      log.captured(epoch, 10 * epoch);
      log.resumed(1000 * epoch + epoch);
    },
    sent: () => log.sent(epoch, PAGES, 100 * epoch, epoch % 3 === 0),
    committed: () => log.committed(epoch),
  };
}

const replicated = (epoch: number): Omit<CheckpointReport, "atMs"> => ({
  event: "checkpoint",
  epoch,
  pauseMs: epoch,
  dirtyPages: 10 * epoch,
  ramBytes: 40960 * epoch,
  wireBytes: 100 * epoch,
  pages: PAGES,
  replicated: true,
  micro: epoch % 3 === 0,
  cause: "periodic",
});

Deno.test("CheckpointLog reports a checkpoint once, when the last of it is known", () => {
  const orders = [[0, 1, 2], [0, 2, 1]] as const;
  for (const order of orders) {
    const { log, reports } = newLog();
    const steps = Object.values(facts(log, 7));
    order.forEach((step, index) => {
      assertEquals(reports.length, 0, `before step ${index}`);
      steps[step]!();
    });
    assertEquals(reports, [replicated(7)]);
    steps.forEach((step) => step());
  }
});

Deno.test("CheckpointLog waits for the pause to end even when the secondary is faster", () => {
  const { log, reports } = newLog();
  log.stopped(1000);
  log.captured(1, 10);
  log.sent(1, PAGES, 100, false);
  log.committed(1);
  assertEquals(reports, []);
  log.resumed(1001);
  assertEquals(reports, [replicated(1)]);
});

Deno.test("CheckpointLog says of a checkpoint without a secondary that it is not replicated", () => {
  const { log, reports } = newLog();
  log.stopped(5);
  log.captured(3, 2);
  log.absorbed(3);
  log.resumed(6.5);
  assertEquals(reports, [{
    event: "checkpoint",
    epoch: 3,
    pauseMs: 1.5,
    dirtyPages: 2,
    ramBytes: 8192,
    wireBytes: 0,
    pages: { unchanged: 0, zero: 0, xbzrle: 0, whole: 0 },
    replicated: false,
    micro: false,
    cause: "periodic",
  }]);
});

Deno.test("CheckpointLog says which checkpoints are micro-checkpoints", () => {
  const { log, reports } = newLog();
  for (const epoch of [2, 3, 4]) Object.values(facts(log, epoch)).forEach((step) => step());
  assertEquals(reports.map(({ micro }) => micro), [false, true, false]);
});

Deno.test("CheckpointLog gives each checkpoint its own pause", () => {
  const { log, reports } = newLog();
  const first = facts(log, 1);
  const second = facts(log, 2);
  first.paused();
  second.paused();
  second.sent();
  first.sent();
  first.committed();
  second.committed();
  assertEquals(reports, [replicated(1), replicated(2)]);
});

Deno.test("CheckpointLog passes over pauses that belong to no checkpoint", () => {
  const { log, reports } = newLog();
  log.stopped(1);
  log.resumed(2);
  log.resumed(3);
  const { paused, sent, committed } = facts(log, 4);
  paused();
  log.stopped(9000);
  log.resumed(9999);
  sent();
  committed();
  assertEquals(reports, [replicated(4)]);
});

Deno.test("CheckpointLog gives up a checkpoint whose secondary was lost, and knows the next", () => {
  const { log, reports } = newLog();
  facts(log, 1).paused();
  for (let epoch = 2; epoch <= 40; epoch++) {
    facts(log, epoch).paused();
    log.absorbed(epoch);
  }
  assertEquals(reports.map(({ epoch }) => epoch), Array.from({ length: 39 }, (_, at) => at + 2));
  assertEquals(reports.every(({ epoch, pauseMs }) => pauseMs === epoch), true);
});

Deno.test("CheckpointLog knows a checkpoint from one of the same number in an earlier capture", () => {
  const { log, reports } = newLog();
  // Checkpoints 1 and 2 were never committed: the capture broke, and the numbers begin anew.
  facts(log, 1).paused();
  log.stopped(2000);
  log.captured(2, 20);
  log.resumed(2999);
  const again = facts(log, 1);
  again.paused();
  again.sent();
  again.committed();
  assertEquals(reports, [replicated(1)]);
  const next = facts(log, 2);
  next.paused();
  next.sent();
  next.committed();
  assertEquals(reports, [replicated(1), replicated(2)]);
});
