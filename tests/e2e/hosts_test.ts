import { assert, assertEquals } from "@std/assert/mod.js";
import type { LoadResult } from "../../bench/rig/closed_loop.ts";
import { GUEST, Hosts } from "../../bench/rig/hosts.ts";
import { Load, PORTS } from "../../bench/rig/load.ts";
import type { LoadOptions } from "../../bench/rig/load_client.ts";
import { Ping } from "../../bench/rig/ping.ts";
import { qemuArgs } from "../../engine/vm/command_line.ts";
import { prepareDemoGuest } from "../../engine/vm/demo_guest.ts";
import { findQemu } from "../../engine/vm/find.ts";
import { startQemu } from "../../engine/vm/process.ts";
import { run } from "../../engine/vm/run.ts";

const DOWNLOAD_BYTES = 8 * 1024 * 1024;

const BOOT_TIMEOUT_MS = 60_000;

const whyNot = await Hosts.whyNot();
if (whyNot !== undefined) console.log(`not tested: hosts in namespaces: ${whyNot}`);

/** A plain QEMU on host A, and nothing of it left afterwards. */
async function withGuest(work: (hosts: Hosts) => Promise<void>): Promise<void> {
  const qemu = await findQemu({ role: "primary", progress: console.log });
  const guest = await prepareDemoGuest({ progress: console.log });
  const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
  const hosts = await Hosts.create();
  const names = [hosts.a, hosts.b, hosts.client].map(({ prefix }) => prefix.at(-1)!);
  try {
    await hosts.plug(hosts.a);
    const qmpPath = `${directory}/qmp`;
    const args = qemuArgs({
      name: "demo",
      machine: "pc",
      accel: qemu.accel,
      memoryMiB: 128,
      cpus: 1,
      ...guest,
      append: `${guest.append} ${GUEST.parameters}`,
      disks: [],
      nics: [{
        id: "nic0",
        mac: GUEST.mac,
        netdev: GUEST.netdev,
        model: "virtio-net-pci",
        vnetHdr: false,
      }],
      qmpPath,
      incoming: false,
      extraArgs: [],
    });
    const command = [...hosts.a.prefix, ...qemu.command];
    const process = await startQemu({
      qemu: { ...qemu, command },
      args,
      name: "demo",
      readyPath: qmpPath,
    });
    try {
      await work(hosts);
    } finally {
      await process.stop();
    }
  } finally {
    await hosts.close();
    await Deno.remove(directory, { recursive: true });
  }
  const left = await run("ip", ["netns", "list"]);
  assertEquals(names.filter((name) => left.includes(name)), []);
}

/** Start a client of the guest's web server, if nothing else is said. */
function loadFrom(
  hosts: Hosts,
  options: Pick<LoadOptions, "load"> & Partial<LoadOptions>,
): Load {
  const port = options.load.kind === "count" ? PORTS.counting : PORTS.web;
  return new Load(hosts.client, {
    server: { address: GUEST.address, port },
    connections: 1,
    durationMs: 1500,
    ...options,
  });
}

/** Wait until the guest's servers answer; those of IPv6 are the last to listen. */
async function guestAnswers(hosts: Hosts): Promise<void> {
  const client = loadFrom(hosts, {
    server: { address: GUEST.address6, port: PORTS.counting },
    load: { kind: "count" },
    durationMs: BOOT_TIMEOUT_MS,
    answerTimeoutMs: 2000,
  });
  await client.connected;
  await client.stop();
}

/** Load from the client, which must be answered without an error. */
async function load(
  hosts: Hosts,
  options: Pick<LoadOptions, "load"> & Partial<LoadOptions>,
): Promise<LoadResult> {
  const result = await loadFrom(hosts, options).result;
  assertEquals([result.errorCount, result.errors], [0, []], JSON.stringify(options));
  assert(result.answers > 0, JSON.stringify(options));
  return result;
}

Deno.test({
  name: "a guest on a host is reached by the client, and says what it must to the last byte",
  ignore: whyNot !== undefined,
  fn: () =>
    withGuest(async (hosts) => {
      await guestAnswers(hosts);
      const families = [
        { guest: GUEST.address, client: hosts.client.address },
        { guest: GUEST.address6, client: hosts.client.address6 },
      ];
      for (const { guest, client } of families) {
        const server = { address: guest, port: PORTS.web };
        const own = { address: client, port: 0 };
        const page = { kind: "page", sizeBytes: 4096 } as const;
        const download = { kind: "page", sizeBytes: DOWNLOAD_BYTES } as const;
        const { answers } = await load(hosts, {
          server,
          load: download,
          requestsMax: 1,
          durationMs: 30_000,
        });
        assertEquals(answers, 1);
        await load(hosts, { server, load: page, connections: 4 });
        await load(hosts, { server, load: { ...page, once: true }, connections: 2 });
        await load(hosts, { server, load: { kind: "random", sizeBytes: 4096 } });
        await load(hosts, { server: { ...server, port: PORTS.counting }, load: { kind: "count" } });
        await load(hosts, { server, load: { kind: "dial", own }, connections: 2 });
        await load(hosts, { server, load: { kind: "connect", own } });
        await load(hosts, { server, load: { kind: "syn", own } });
      }
    }),
});

Deno.test({
  name: "a host without its cable is out of reach, and its connections go on when it has it again",
  ignore: whyNot !== undefined,
  fn: () =>
    withGuest(async (hosts) => {
      await guestAnswers(hosts);
      const load = { kind: "count" } as const;
      const client = loadFrom(hosts, { load, connections: 4, durationMs: 20_000 });
      const { busyboxPath } = await prepareDemoGuest();
      const ping = new Ping(hosts.client, busyboxPath, GUEST.address);
      await client.connected;
      await ping.answered;
      await hosts.cut(hosts.a);
      await new Promise((resolve) => setTimeout(resolve, 1000));
      await hosts.heal(hosts.a);
      await new Promise((resolve) => setTimeout(resolve, 5000));
      const { errors, longestGapMs, answers } = await client.stop();
      assertEquals(errors, []);
      assert(longestGapMs >= 1000 && longestGapMs < 4500, `${longestGapMs} ms without an answer`);
      assert(answers > 100, `${answers} answers`);
      const { lost, replies } = await ping.stop();
      assert(lost >= 5 && replies > 20, `${lost} pings lost, ${replies} answered`);
    }),
});
