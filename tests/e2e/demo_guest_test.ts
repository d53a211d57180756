import { assert, assertEquals } from "@std/assert/mod.js";
import { join } from "@std/path/mod.js";
import { qemuArgs } from "../../engine/vm/command_line.ts";
import { ConsoleVerifier, type Tick } from "../../engine/vm/console_verifier.ts";
import { prepareDemoGuest } from "../../engine/vm/demo_guest.ts";
import { findQemu, qemuTool, resolveMachine } from "../../engine/vm/find.ts";
import { type QemuProcess, startQemu } from "../../engine/vm/process.ts";
import { run } from "../../engine/vm/run.ts";

interface RunningGuest {
  readonly process: QemuProcess;
  readonly url: string;
  /** Waits until the console has shown so many ticks, and gives all of them */
  ticks(count: number): Promise<readonly Tick[]>;
}

const BOOT_TIMEOUT_MS = 60_000;

/** Boot the demo guest, run a test on it, and leave nothing of it behind. */
async function withGuest(
  parameters: string,
  test: (guest: RunningGuest) => Promise<void>,
): Promise<void> {
  const qemu = await findQemu({ role: "primary", progress: console.log });
  const guest = await prepareDemoGuest({ progress: console.log });
  const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
  const port = freePort();
  const consolePath = join(directory, "console");
  const qmpPath = join(directory, "qmp");
  const args = qemuArgs({
    name: "demo",
    machine: "pc",
    accel: qemu.accel,
    memoryMiB: 128,
    cpus: 1,
    ...guest,
    append: `${guest.append} ${parameters}`,
    disks: [],
    nics: [{
      id: "hn0",
      mac: "52:54:00:12:34:56",
      netdev: `user,hostfwd=tcp:127.0.0.1:${port}-:80`,
      model: "virtio-net-pci",
    }],
    consolePath,
    qmpPath,
    incoming: false,
    extraArgs: [],
  });
  try {
    const process = await startQemu({ qemu, args, name: "demo", readyPath: qmpPath });
    try {
      const ticks = (count: number) => process.whileAlive(readTicks(consolePath, count));
      await test({ process, url: `http://127.0.0.1:${port}`, ticks });
    } finally {
      await process.stop();
    }
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

async function readTicks(consolePath: string, count: number): Promise<readonly Tick[]> {
  const deadline = performance.now() + BOOT_TIMEOUT_MS;
  for (;;) {
    const ticks = new ConsoleVerifier().push(await Deno.readTextFile(consolePath));
    if (ticks.length >= count) return ticks;
    assert(performance.now() < deadline, `${ticks.length} of ${count} ticks in time`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

async function get(url: string): Promise<string> {
  return (await (await fetch(url)).text()).trim();
}

Deno.test("the demo guest ticks twice a second, and counts requests", () =>
  withGuest("", async ({ process, url, ticks }) => {
    const seen = await ticks(6);
    assert(seen.every(({ chainOk, fileOk }) => chainOk && fileOk), JSON.stringify(seen));
    assertEquals(seen.map(({ n }) => n), seen.map((_, index) => index + 1));
    const [first, last] = [seen[0], seen.at(-1)];
    assert(first !== undefined && last !== undefined);
    const perSecond = (last.n - first.n) / (last.uptimeSeconds - first.uptimeSeconds);
    assert(perSecond > 1.6 && perSecond < 2.4, `${perSecond} ticks per second`);

    const count = Number(await get(`${url}/cgi-bin/counter`));
    assertEquals(Number(await get(`${url}/cgi-bin/counter`)), count + 1);
    assert((await get(`${url}/`)).includes("colo demo guest"));

    const commandLine = await Deno.readTextFile(`/proc/${process.pid}/cmdline`);
    assert(commandLine.includes("guest=demo"), "the pid is QEMU's own");
  }));

Deno.test("the demo guest keeps ticking under each load", async () => {
  for (const load of ["small-writes", "random"]) {
    const parameters = `colo.load=${load} colo.load_pages=64 colo.load_ms=200 colo.file_kib=64`;
    await withGuest(parameters, async ({ url, ticks }) => {
      const seen = await ticks(4);
      assert(seen.every(({ chainOk, fileOk }) => chainOk && fileOk), JSON.stringify(seen));
      const file = await (await fetch(`${url}/file`)).arrayBuffer();
      assertEquals(file.byteLength, 64 * 1024);
    });
  }
});

Deno.test("QEMU takes every part of its command line, whatever the paths", async () => {
  const qemu = await findQemu({ role: "secondary" });
  const directory = await Deno.makeTempDir({ prefix: "colo, test-" });
  const qmpPath = join(directory, "qmp");
  try {
    const disks = [
      { path: join(directory, "one, raw"), format: "raw" },
      { path: join(directory, "two.qcow2"), format: "qcow2" },
    ] as const;
    for (const { path, format } of disks) {
      const [program = "", ...args] = [...qemuTool("qemu-img", qemu), "create", "-q"];
      await run(program, [...args, "-f", format, path, "1M"], { env: qemu.env });
    }
    const args = qemuArgs({
      name: "web, second",
      machine: await resolveMachine(qemu, "pc"),
      accel: qemu.accel,
      memoryMiB: 64,
      cpus: 2,
      disks,
      nics: [{ id: "hn0", mac: "52:54:00:12:34:56", netdev: "user", model: "virtio-net-pci" }],
      consolePath: join(directory, "console"),
      qmpPath,
      incoming: true,
      extraArgs: [],
    });
    const process = await startQemu({ qemu, args, name: "secondary", readyPath: qmpPath });
    try {
      // The greeting comes when the machine is made.
      using monitor = await Deno.connect({ transport: "unix", path: qmpPath });
      const bytes = new Uint8Array(4096);
      const count = await process.whileAlive(monitor.read(bytes));
      assert(new TextDecoder().decode(bytes.subarray(0, count ?? 0)).startsWith('{"QMP"'));
    } finally {
      await process.stop();
    }
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
});
