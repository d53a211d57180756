import { assert, assertEquals } from "@std/assert/mod.js";
import { parseVmConfig } from "../../engine/config/mod.ts";
import { PrimaryHost, type Report, SecondaryHost } from "../../engine/host/mod.ts";
import type { Qemu } from "../../engine/vm/mod.ts";

const FAKE_QEMU = new URL("fake_qemu.ts", import.meta.url).pathname;

/** The first time a worker is started its types are checked. */
const TIMEOUT_MS = 60_000;

/** Two hosts in mode `continuous` over fake QEMUs. */
class Rig implements AsyncDisposable {
  readonly directory = Deno.makeTempDirSync({ prefix: "colo-host-" });
  readonly stateDirectory = `${this.directory}/state`;
  readonly reports = { primary: [] as Report[], secondary: [] as Report[] };
  readonly primary: PrimaryHost;
  readonly secondary: SecondaryHost;
  readonly ended: readonly Promise<unknown>[];

  constructor(secondaryMode: "colo" | "continuous" = "continuous") {
    const options = (side: "primary" | "secondary", fault: string, mode: string) => ({
      config: parseVmConfig(
        `[vm]
        name = "vm"
        memory = 16
        kernel = "none"
        [replication]
        mode = "${mode}"
        period = 30
        stateDirectory = "${this.stateDirectory}"
        sharedMemory = ${side === "primary"}
        peer = "unix:${this.directory}/link.sock"
        listen = "unix:${this.directory}/link.sock"
        [control]
        socket = "control.sock"`,
        `${this.directory}/vm.toml`,
      ),
      qemu: {
        command: [Deno.execPath(), "run", "-A", "--no-check", FAKE_QEMU],
        env: { FAKE_QEMU: fault },
        version: "11.1.3",
        accel: "kvm",
        source: "option",
        capabilities: ["return-path", "x-colo"],
      } satisfies Qemu,
      directory: Deno.makeTempDirSync({ dir: this.directory }),
      report: (report: Report) => {
        this.reports[side].push(report);
      },
    });
    const fault = secondaryMode === "continuous" ? "standby" : "";
    this.secondary = new SecondaryHost(options("secondary", fault, secondaryMode));
    this.primary = new PrimaryHost(options("primary", "", "continuous"));
    this.ended = [this.secondary.run(), this.primary.run()];
    for (const ended of this.ended) ended.catch(() => {});
  }

  async until(what: string, holds: () => boolean): Promise<void> {
    const deadline = performance.now() + TIMEOUT_MS;
    while (!holds()) {
      if (performance.now() > deadline) throw new Error(`It takes too long until ${what}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  phases(side: "primary" | "secondary"): string[] {
    return this.reports[side].flatMap((report) => "phase" in report ? [report.phase] : []);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.primary.stop("the test is over");
    this.secondary.stop();
    await Promise.allSettled(this.ended);
    const left = [...Deno.readDirSync("/proc")].filter(({ name }) => {
      try {
        return Deno.readTextFileSync(`/proc/${name}/cmdline`).includes(this.directory);
      } catch {
        return false;
      }
    });
    assertEquals(left, [], "processes were left behind");
    await Deno.remove(this.directory, { recursive: true });
  }
}

Deno.test("hosts in mode continuous protect a guest, and one takes it over", async () => {
  await using rig = new Rig();
  await rig.until("it is protected", () => rig.phases("primary").includes("protected"));
  const { primary, secondary } = rig.reports;
  const replicated = () =>
    primary.flatMap((report) =>
      report.event === "checkpoint" && report.replicated ? [report.epoch] : []
    );
  await rig.until("checkpoints are replicated", () => replicated().length >= 3);
  const started = primary.find((report) => report.event === "qemu-started");
  Deno.kill(started!.pid, "SIGKILL");
  await rig.until("it runs", () => secondary.some(({ event }) => event === "running"));
  const running = secondary.find((report) => report.event === "running")!;
  assert(running.epoch >= replicated().at(-1)!);
  assertEquals(rig.phases("secondary").slice(-2), ["taking-over", "promoted"]);
  const left = [...Deno.readDirSync(rig.stateDirectory)].map(({ name }) => name).sort();
  assertEquals(left, ["lock", "taken-1"]);
});

Deno.test("hosts in mode continuous end in good order, and leave nothing behind", async () => {
  await using rig = new Rig();
  await rig.until("it is protected", () => rig.phases("primary").includes("protected"));
  await rig.primary.stop("the operator ended it");
  assertEquals(await Promise.all(rig.ended), ["guest-ended", "stopped"]);
  assertEquals([...Deno.readDirSync(rig.directory)].some(({ name }) => name === "state"), false);
});

Deno.test("a primary whose mode is not the standby's is told so", async () => {
  await using rig = new Rig("colo");
  const notice = () => rig.reports.primary.find((report) => report.event === "notice");
  await rig.until("it is refused", () => notice() !== undefined);
  assertEquals(
    notice()?.text,
    'Cannot join the standby: its replication.mode is "colo", the primary\'s "continuous": ' +
      "make them the same; trying again",
  );
});
