import { assertEquals } from "@std/assert/mod.js";
import { formatBytes, formatReport, type Report } from "../../engine/host/report.ts";

Deno.test("formatReport says every report in one line", () => {
  const pages = { unchanged: 1, zero: 0, xbzrle: 2, whole: 3 };
  const checkpoint = {
    event: "checkpoint",
    atMs: 1,
    epoch: 4,
    pauseMs: 2.345,
    dirtyPages: 6,
    ramBytes: 24576,
    wireBytes: 1234,
    pages,
    replicated: true,
    micro: false,
    cause: "periodic",
  } as const;
  const lines: [Report, string][] = [
    [
      {
        event: "qemu-started",
        atMs: 1,
        pid: 77,
        version: "11.1.0",
        accel: "tcg",
        source: "fetched",
      },
      "QEMU 11.1.0 (tcg, fetched) runs as process 77",
    ],
    [
      { event: "primary", atMs: 1, phase: "alone", reason: "no secondary is connected" },
      "primary is alone: no secondary is connected",
    ],
    [
      { event: "secondary", atMs: 1, phase: "waiting", reason: "the standby QEMU is up" },
      "secondary is waiting: the standby QEMU is up",
    ],
    [
      { event: "seeded", atMs: 1, durationMs: 638.4, wireBytes: 42_800_000, resumed: false },
      "seeded in 638 ms with 42.8 MB",
    ],
    [checkpoint, "checkpoint 4: 6 pages, 1.2 kB sent, paused 2.3 ms"],
    [
      { ...checkpoint, replicated: false, wireBytes: 0 },
      "checkpoint 4: 6 pages, not replicated, paused 2.3 ms",
    ],
    [{ ...checkpoint, micro: true }, "micro-checkpoint 4: 6 pages, 1.2 kB sent, paused 2.3 ms"],
    [{ event: "loaded", atMs: 1, epoch: 4 }, "checkpoint 4 loaded"],
    [
      { event: "running", atMs: 1, epoch: 4, reason: "killed" },
      "the VM runs here from checkpoint 4 on: killed",
    ],
    [{ event: "notice", atMs: 1, text: "as it is" }, "as it is"],
  ];
  for (const [report, line] of lines) assertEquals(formatReport(report), line);
});

Deno.test("formatBytes keeps three digits or so", () => {
  const cases: [number, string][] = [
    [0, "0 B"],
    [999, "999 B"],
    [1000, "1.0 kB"],
    [1_234_567, "1.2 MB"],
    [999_949, "999.9 kB"],
    [999_950, "1.0 MB"],
    [5e12, "5000.0 GB"],
  ];
  for (const [bytes, text] of cases) assertEquals(formatBytes(bytes), text);
});
