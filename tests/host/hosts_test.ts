import type { Arbiter } from "../../engine/failover/arbiter.ts";
import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import { parseVmConfig, type VmConfig } from "../../engine/config/mod.ts";
import { ColoError, LinkError, QemuError } from "../../engine/errors.ts";
import { PrimaryHost, type Report, SecondaryHost } from "../../engine/host/mod.ts";
import { LINK_ROLES, LinkConnection, type LinkRole } from "../../engine/link/mod.ts";
import { writeAll } from "../../engine/host/capture_port.ts";
import { StreamInspector } from "../../engine/stream/inspect.ts";
import { ENGINE_VERSION } from "../../engine/version.ts";
import type { Qemu } from "../../engine/vm/mod.ts";

/** One side at work, with what it reported. */
interface Side<End> {
  readonly reports: Report[];
  readonly ended: Promise<End>;
  readonly directory: string;
}

type Wanted<Event extends Report["event"]> = Extract<Report, { event: Event }>;

/** So much that some 60 checkpoints of a guest that writes all of its memory fill it. */
const HELD_BYTES_MAX = 16 * 1024 * 1024;

/** Two hosts over fake QEMUs. Everything ends with the rig. */
class Rig {
  readonly directory = Deno.makeTempDirSync({ prefix: "colo-host-" });
  primary: (Side<string> & { readonly host: PrimaryHost }) | undefined;
  secondary: (Side<string> & { readonly host: SecondaryHost }) | undefined;
  readonly #sides: { stop(): unknown; ended: Promise<unknown> }[] = [];

  constructor(readonly periodMs = 100) {}

  /** Where the secondary listens. */
  get listen(): string {
    return `${this.directory}/link.sock`;
  }

  /** Where the primary connects to. */
  peer = this.listen;

  #config(): VmConfig {
    return parseVmConfig(
      `[vm]
      name = "vm"
      memory = 16
      kernel = "none"
      [replication]
      period = ${this.periodMs}
      minInterval = 10
      pauseShare = 100
      peer = "unix:${this.peer}"
      listen = "unix:${this.listen}"
      [control]
      socket = "control.sock"`,
      `${this.directory}/vm.toml`,
    );
  }

  startPrimary(
    fault = "",
    recordPath?: string,
    answerMs?: number,
    arbiter?: Arbiter,
  ): PrimaryHost {
    const { side, options } = this.#side(fault);
    const host = new PrimaryHost({ ...options, recordPath, answerMs, arbiter });
    const ended = host.run();
    ended.catch(() => {});
    this.primary = { ...side, host, ended };
    this.#sides.push({ stop: () => host.stop("the test is over"), ended });
    return host;
  }

  startSecondary(fault = ""): SecondaryHost {
    const { side, options } = this.#side(fault);
    const host = new SecondaryHost({ ...options, heldBytesMax: HELD_BYTES_MAX });
    const ended = host.run();
    ended.catch(() => {});
    this.secondary = { ...side, host, ended };
    this.#sides.push({ stop: () => host.stop(), ended });
    return host;
  }

  #side(fault: string) {
    const reports: Report[] = [];
    const directory = Deno.makeTempDirSync({ dir: this.directory });
    const qemu: Qemu = {
      command: [Deno.execPath(), "run", "-A", "--no-check", FAKE_QEMU],
      env: { FAKE_QEMU: fault },
      version: "11.1.3",
      accel: "kvm",
      source: "option",
      capabilities: ["return-path", "x-colo"],
    };
    const report = (report: Report) => {
      reports.push(report);
    };
    return {
      side: { reports, directory },
      options: { config: this.#config(), qemu, directory, report },
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const side of this.#sides) await side.stop();
    for (const side of this.#sides) await side.ended.catch(() => {});
    const left = pidsOf(this.directory);
    for (const pid of left) Deno.kill(pid, "SIGKILL");
    await Deno.remove(this.directory, { recursive: true });
    assertEquals(left, [], "processes were left behind");
  }
}

const FAKE_QEMU = new URL("fake_qemu.ts", import.meta.url).pathname;

/** Processes whose command line names this directory. */
function pidsOf(directory: string): number[] {
  return [...Deno.readDirSync("/proc")].filter(({ name }) => /^\d+$/.test(name)).filter(
    ({ name }) => {
      try {
        return Deno.readTextFileSync(`/proc/${name}/cmdline`).includes(directory);
      } catch {
        return false;
      }
    },
  ).map(({ name }) => Number(name));
}

async function until<T>(what: string, find: () => T | undefined, timeoutMs = 5000): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  while (true) {
    const found = find();
    if (found !== undefined) return found;
    if (performance.now() > deadline) throw new Error(`It takes too long until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** The first report behind the `after` first ones that matches. */
function reported<Event extends Report["event"]>(
  side: Side<unknown> | undefined,
  event: Event,
  matches: (report: Wanted<Event>) => boolean = () => true,
  after = 0,
): Promise<Wanted<Event>> {
  const isWanted = (report: Report): report is Wanted<Event> =>
    report.event === event && matches(report as Wanted<Event>);
  return until(`${event} is reported`, () => side?.reports.slice(after).find(isWanted));
}

function phase(wanted: string): (report: { readonly phase: string }) => boolean {
  return ({ phase }) => phase === wanted;
}

function qemuPid(side: Side<unknown> | undefined): number {
  const started = side?.reports.findLast((report) => report.event === "qemu-started");
  assert(started !== undefined);
  return started.pid;
}

async function protectedRig(periodMs?: number, fault = "", secondaryFault = ""): Promise<Rig> {
  const rig = new Rig(periodMs);
  rig.startSecondary(secondaryFault);
  rig.startPrimary(fault);
  await reported(rig.primary, "primary", phase("protected"));
  return rig;
}

Deno.test("PrimaryHost and SecondaryHost protect a guest, and the secondary takes it over", async () => {
  await using rig = await protectedRig(50);
  const { epoch } = await reported(rig.primary, "checkpoint", (report) => report.replicated);
  await reported(rig.secondary, "loaded", (report) => report.epoch >= epoch);
  Deno.kill(qemuPid(rig.primary), "SIGKILL");
  const running = await reported(rig.secondary, "running");
  assert(running.epoch >= epoch);
  assert(running.reason.includes("SIGKILL"), running.reason);
  assertEquals(await rig.primary!.ended, "qemu-lost");
  const phases = rig.secondary!.reports.flatMap((report) =>
    report.event === "secondary" ? [report.phase] : []
  );
  assertEquals(phases, ["waiting", "seeding", "protecting", "deciding", "taking-over", "promoted"]);
  Deno.kill(qemuPid(rig.secondary), "SIGKILL");
  assertEquals(await rig.secondary!.ended, "qemu-lost");
});

Deno.test("SecondaryHost takes over from a primary QEMU whose end is known late", async () => {
  await using rig = await protectedRig(50);
  Deno.kill(qemuPid(rig.primary), "SIGUSR1");
  const running = await reported(rig.secondary, "running");
  assert(running.reason.includes("exit code 1"), running.reason);
  assertEquals(await rig.primary!.ended, "qemu-lost");
});

Deno.test("SecondaryHost waits for a takeover that takes long, and says so", async () => {
  await using rig = await protectedRig(50, "", "slow");
  Deno.kill(qemuPid(rig.primary), "SIGKILL");
  const isRunning = () => rig.secondary!.reports.find(({ event }) => event === "running");
  await until("it runs", isRunning, 10_000);
  const notices = rig.secondary!.reports.flatMap((report) =>
    report.event === "notice" && report.text.includes("takes long") ? [report.text] : []
  );
  assertEquals(notices.length, 1);
});

Deno.test("SecondaryHost replaces a QEMU that breaks its stream and lives on", async () => {
  // No checkpoint will come that would bring it to light.
  await using rig = await protectedRig(600_000);
  const before = rig.primary!.reports.length;
  Deno.kill(qemuPid(rig.secondary), "SIGUSR1");
  await reported(rig.primary, "primary", phase("alone"), before);
  await reported(rig.primary, "primary", phase("protected"), before);
});

Deno.test("a primary whose own disk fails is ended for its secondary, and not for that of a replica", async () => {
  await using rig = await protectedRig(20, "disk");
  const { epoch } = await reported(rig.secondary, "running");
  assert(epoch >= 15, `it was ended at ${epoch}, when the replica failed`);
  const notice = await reported(rig.primary, "notice");
  assertEquals(notice.text, "disk0 of the primary fails: I/O error");
});

Deno.test("PrimaryHost says how many bytes each checkpoint took on the link", async () => {
  await using rig = await protectedRig(50);
  await until("checkpoints are reported", () => {
    const replicated = rig.primary!.reports.filter((report) =>
      report.event === "checkpoint" && report.replicated
    );
    return replicated.length > 5 ? true : undefined;
  });
  const wireBytes = rig.primary!.reports.flatMap((report) =>
    report.event === "checkpoint" && report.replicated ? [report.wireBytes] : []
  );
  // Device state and commit alone are more.
  assert(wireBytes.every((bytes) => bytes > 64), wireBytes.join());
});

Deno.test("PrimaryHost says at once that its guest is alone when the secondary QEMU dies", async () => {
  // No checkpoint will come that would bring it to light.
  await using rig = await protectedRig(600_000);
  const before = rig.primary!.reports.length;
  Deno.kill(qemuPid(rig.secondary), "SIGKILL");
  const alone = await reported(rig.primary, "primary", phase("alone"), before);
  assert(alone.reason.includes("SIGKILL"), alone.reason);
  await reported(rig.primary, "primary", phase("protected"), before);
});

Deno.test("PrimaryHost drops a secondary that says ready twice", async () => {
  await using rig = new Rig(600_000);
  const standby = new FakeStandby(rig.peer);
  rig.startPrimary();
  const first = await standby.accept();
  await first.send({ type: "replicaReady" });
  await reported(rig.primary, "primary", phase("seeding"));
  await first.send({ type: "replicaReady" });
  await reported(rig.primary, "primary", phase("alone"), 3);
  // It is asked again, and this time all is well.
  const second = await standby.accept();
  await second.send({ type: "replicaReady" });
  await reported(rig.primary, "primary", phase("seeding"), rig.primary!.reports.length);
  standby.close();
});

Deno.test("PrimaryHost gives up a secondary that was sent everything and says nothing", async () => {
  await using rig = new Rig(600_000);
  const standby = new FakeStandby(rig.peer);
  rig.startPrimary("", undefined, 300);
  const first = await standby.accept();
  const taken = (async () => {
    for await (const _ of first.receive());
  })();
  await first.send({ type: "replicaReady" });
  await reported(rig.primary, "primary", phase("joining"));
  const alone = await reported(rig.primary, "primary", phase("alone"), 3);
  assert(alone.reason.includes("has not answered for 300 ms"), alone.reason);
  await taken;
  standby.close();
});

Deno.test("PrimaryHost survives a secondary that talks nonsense", async () => {
  await using rig = new Rig(50);
  const standby = new FakeStandby(rig.peer);
  rig.startPrimary();
  const links = ["nonsense", "nonsense again", "n".repeat(100_000)];
  for (const text of links) {
    const bulk = await standby.accept();
    await bulk.send({ type: "replicaReady" });
    await standby.sayRaw(text);
    bulk.close();
  }
  standby.close();
  rig.startSecondary();
  await reported(rig.primary, "primary", phase("protected"));
});

Deno.test("PrimaryHost lets the guest run and captures it anew when its stream makes no sense", async () => {
  await using rig = await protectedRig(50, "break");
  const unattended = await reported(rig.primary, "primary", phase("unattended"));
  assert(unattended.reason.includes("Cannot read migration stream"), unattended.reason);
  const at = rig.primary!.reports.indexOf(unattended);
  await reported(rig.primary, "primary", phase("protected"), at);
  const { reports } = rig.primary!;
  const again = reports.findIndex((report, index) =>
    index > at && report.event === "primary" && report.phase === "protected"
  );
  await reported(rig.primary, "checkpoint", (report) => report.replicated, again);
  Deno.kill(qemuPid(rig.primary), "SIGKILL");
  await reported(rig.secondary, "running");
});

Deno.test("PrimaryHost captures anew a QEMU that leaves before it has entered COLO", async () => {
  await using rig = await protectedRig(50, "leave");
  const phases = rig.primary!.reports.flatMap((report) =>
    report.event === "primary" ? [report.phase] : []
  );
  assertEquals(phases, ["unattended", "alone", "seeding", "joining", "protected"]);
});

Deno.test("PrimaryHost tells its secondary goodbye when it is stopped", async () => {
  await using rig = await protectedRig();
  await rig.primary!.host.stop("the operator ended it");
  assertEquals(await rig.primary!.ended, "stopped");
  assertEquals(await rig.secondary!.ended, "guest-ended");
  const ended = await reported(rig.secondary, "secondary", phase("ended"));
  assertEquals(ended.reason, "the operator ended it");
});

Deno.test("PrimaryHost says goodbye before the link is gone, however late that arrives", async () => {
  await using rig = new Rig();
  rig.peer = `${rig.directory}/slow.sock`;
  using _slow = new SlowControl(rig.peer, rig.listen);
  rig.startSecondary();
  rig.startPrimary();
  await reported(rig.primary, "primary", phase("protected"));
  await rig.primary!.host.stop("the operator ended it");
  assertEquals(await rig.primary!.ended, "stopped");
  const timer = setTimeout(() => rig.secondary!.host.stop(), 3000);
  assertEquals(await rig.secondary!.ended, "guest-ended");
  clearTimeout(timer);
});

Deno.test("PrimaryHost leaves no link behind when it is stopped while it connects", async () => {
  await using rig = new Rig();
  const listener = Deno.listen({ transport: "unix", path: rig.peer });
  const host = rig.startPrimary();
  const taken: LinkConnection[] = [];
  for (const role of LINK_ROLES) {
    const connection = new LinkConnection(await listener.accept());
    await connection.next(5000);
    taken.push(connection);
    if (role === LINK_ROLES.at(-1)) {
      await host.stop("the operator ended it");
      assertEquals(await rig.primary!.ended, "stopped");
    }
    await connection.send({ type: "welcome", engineVersion: ENGINE_VERSION });
  }
  const error = await assertRejects(() => taken.at(-1)!.next(2000), LinkError);
  assert(!error.message.includes("no answer"), error.message);
  for (const connection of taken) connection.close();
  listener.close();
});

Deno.test("SecondaryHost leaves no QEMU behind when it is stopped while one is started", async () => {
  // A QEMU that died young is replaced after 500 ms.
  for (const delayMs of [0, 500, 515, 530, 560, 600]) {
    const rig = await protectedRig();
    const before = rig.secondary!.reports.length;
    Deno.kill(qemuPid(rig.secondary), "SIGKILL");
    await reported(rig.secondary, "secondary", phase("starting"), before);
    await new Promise((resolve) => setTimeout(resolve, delayMs));
    rig.secondary!.host.stop();
    assertEquals(await rig.secondary!.ended, "stopped");
    // Long enough for one to appear that was being started.
    await new Promise((resolve) => setTimeout(resolve, 200));
    const { directory } = rig.secondary!;
    assertEquals(pidsOf(directory), [], `stopped ${delayMs} ms later`);
    await rig[Symbol.asyncDispose]();
  }
});

Deno.test("SecondaryHost takes no more than it can hold from a primary while its QEMU hangs", async () => {
  await using rig = await protectedRig(10, "large");
  const count = () => rig.primary!.reports.filter(({ event }) => event === "checkpoint").length;
  const pid = qemuPid(rig.secondary);
  Deno.kill(pid, "SIGSTOP");
  try {
    const standstill = async () => {
      const before = count();
      await new Promise((resolve) => setTimeout(resolve, 400));
      return count() === before;
    };
    for (let round = 0; !await standstill(); round++) {
      assert(round < 40, `${count()} checkpoints wait, and more are taken`);
    }
  } finally {
    Deno.kill(pid, "SIGCONT");
  }
  // Nothing is lost: they are loaded now, and others follow.
  const before = count();
  await until("checkpoints go on", () => count() > before + 100 ? true : undefined, 10_000);
  Deno.kill(qemuPid(rig.primary), "SIGKILL");
  await reported(rig.secondary, "running");
});

Deno.test("PrimaryHost says goodbye though a checkpoint is being encoded when its guest ends", async () => {
  await using rig = new Rig(20);
  rig.startSecondary();
  rig.startPrimary("end");
  const { reason } = await reported(rig.secondary, "secondary", phase("ended"));
  assertEquals(reason, "the guest was shut down");
  assertEquals(await rig.primary!.ended, "guest-ended");
});

Deno.test("SecondaryHost refuses a primary of another VM, and a second one", async () => {
  await using rig = await protectedRig();
  const hello = {
    session: "s",
    vmName: "vm",
    memoryMiB: 16,
    mode: "colo",
    nics: 0,
    disks: [],
    generation: 1,
    holder: "h",
    engineVersion: ENGINE_VERSION,
  } as const;
  const cases = [
    [hello, "another primary"],
    [{ ...hello, vmName: "other" }, "another primary"],
  ] as const;
  for (const [introduction, reason] of cases) {
    const connection = new LinkConnection(
      await Deno.connect({ transport: "unix", path: rig.peer }),
    );
    await connection.send({ type: "hello", role: "control", ...introduction });
    const answer = await connection.next(5000);
    assert(answer.type === "refuse" && answer.reason.includes(reason), JSON.stringify(answer));
    connection.close();
  }
});

Deno.test("PrimaryHost is stopped at once while its arbiter does not answer, and has started nothing", async () => {
  await using rig = new Rig();
  const never = () => new Promise<never>(() => {});
  const arbiter = { prepare: never, claim: never, renew: never, release: never, learn: never };
  const host = rig.startPrimary("", undefined, undefined, arbiter);
  await new Promise((resolve) => setTimeout(resolve, 50));
  await host.stop("the operator ended it");
  assertEquals(await rig.primary!.ended, "stopped");
  assertEquals(rig.primary!.reports.some(({ event }) => event === "qemu-started"), false);
});

Deno.test("SecondaryHost gives up a QEMU that dies again and again", async () => {
  await using rig = new Rig();
  const host = rig.startSecondary();
  let killed = 0;
  while (killed < 5) {
    await until("another QEMU is up", () => {
      const ups = rig.secondary!.reports.filter((report) =>
        report.event === "secondary" && report.phase === "waiting"
      );
      return ups.length > killed ? true : undefined;
    });
    Deno.kill(qemuPid(rig.secondary), "SIGKILL");
    killed++;
  }
  const error = await assertRejects(() => rig.secondary!.ended, QemuError);
  assert(error.message.includes("died 5 times in a row"), error.message);
  host.stop();
});

Deno.test("PrimaryHost protects its guest though a recording cannot go on, and says so", async () => {
  await using rig = new Rig(50);
  rig.startSecondary();
  // Every write to it fails, as on a disk that is full.
  rig.startPrimary("", "/dev/full");
  await reported(rig.primary, "primary", phase("protected"));
  const notice = await reported(rig.primary, "notice");
  assert(notice.text.startsWith("Cannot record on to /dev/full: "), notice.text);
});

Deno.test("PrimaryHost records the first stream of a guest that is captured anew", async () => {
  await using rig = new Rig(50);
  rig.startSecondary();
  const path = `${rig.directory}/record`;
  rig.startPrimary("leave", path);
  await reported(rig.primary, "primary", phase("protected"));
  const inspector = new StreamInspector();
  inspector.push(await Deno.readFile(path));
  const { complete, checkpoints } = inspector.finish();
  assertEquals({ complete, checkpoints }, { complete: true, checkpoints: [] });
});

Deno.test("PrimaryHost ends with one sentence when it cannot record", async () => {
  await using rig = new Rig();
  rig.startPrimary("", `${rig.directory}/no/such/directory/file`);
  const error = await assertRejects(() => rig.primary!.ended, ColoError);
  assert(error.message.startsWith("Cannot record to "), error.message);
});

/** A standby whose every word the test decides. */
class FakeStandby {
  readonly #listener: Deno.UnixListener;
  #bulk: Deno.UnixConn | undefined;

  constructor(path: string) {
    this.#listener = Deno.listen({ transport: "unix", path });
  }

  /** Welcome the next primary; returns its bulk connection. */
  async accept(): Promise<LinkConnection> {
    const connections = new Map<LinkRole, LinkConnection>();
    while (connections.size < LINK_ROLES.length) {
      const socket = await this.#listener.accept();
      const connection = new LinkConnection(socket);
      const hello = await connection.next(5000);
      assert(hello.type === "hello");
      if (hello.generation === 0) {
        // It asks whether the VM runs here.
        await connection.send({ type: "refuse", reason: "it does not run here", generation: 0 });
        connection.close();
        continue;
      }
      await connection.send({ type: "welcome", engineVersion: ENGINE_VERSION });
      connections.set(hello.role, connection);
      if (hello.role === "bulk") this.#bulk = socket;
    }
    return connections.get("bulk")!;
  }

  /** Bytes that are no message. */
  async sayRaw(text: string): Promise<void> {
    await this.#bulk!.write(new TextEncoder().encode(text)).catch(() => {});
  }

  close(): void {
    this.#listener.close();
  }
}

/** Between two engines: what the primary says over its control connection, its end too, comes late. */
class SlowControl {
  readonly #listener: Deno.UnixListener;

  constructor(path: string, readonly target: string) {
    this.#listener = Deno.listen({ transport: "unix", path });
    this.#accept();
  }

  async #accept(): Promise<void> {
    while (true) {
      const near = await this.#listener.accept().catch(() => undefined);
      if (near === undefined) return;
      try {
        const far = await Deno.connect({ transport: "unix", path: this.target });
        pipe(near, far, (hello) => hello.includes('"control"') ? 100 : 0);
        pipe(far, near, () => 0);
      } catch {
        // It does not listen yet, and the primary tries again.
        near.close();
      }
    }
  }

  [Symbol.dispose](): void {
    this.#listener.close();
  }
}

/** @param delay How long everything waits, by what is said first */
async function pipe(
  from: Deno.Conn,
  to: Deno.Conn,
  delay: (first: string) => number,
): Promise<void> {
  const buffer = new Uint8Array(64 * 1024);
  let delayMs: number | undefined;
  try {
    for (let count; (count = await from.read(buffer)) !== null;) {
      delayMs ??= delay(new TextDecoder().decode(buffer.subarray(0, count)));
      await new Promise((resolve) => setTimeout(resolve, delayMs));
      await writeAll(to, buffer.subarray(0, count));
    }
  } catch {
    // It ends with either of them.
  }
  for (const connection of [from, to]) {
    try {
      connection.close();
    } catch {
      // Closed already.
    }
  }
}
