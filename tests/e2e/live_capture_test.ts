/** What a guest writes while its memory is being copied for the first time, on real QEMU. */

import { assertEquals } from "@std/assert/mod.js";
import { Capture, type CaptureEvent } from "../../engine/checkpoint/capture.ts";
import { parseVmConfig } from "../../engine/config/mod.ts";
import { CapturePort, initialTaken } from "../../engine/host/capture_port.ts";
import { beginPrimary, releasePrimary } from "../../engine/host/colo_qemu.ts";
import { startVm, type Vm } from "../../engine/host/start_vm.ts";
import { writeCpio } from "../../engine/vm/cpio.ts";
import { findQemu, prepareDemoGuest, type Qemu } from "../../engine/vm/mod.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import { processesOf, until } from "./_pair.ts";

const MEMORY_MIB = 128;
const PAGE = 4096;

/** Below 1 MiB the machine shows video memory and ROM in place of the RAM that lies there. */
const HIDDEN = { from: 0xa0, to: 0x100 };

const CAPTURES = 5;

/** What keeps the machine busy: each processor of the guest's has to wait for its turn again and again. */
const BUSY_PROCESSES = 3;

/**
 * Writes to some pages over and over without a pause, then leaves them alone for a long time and goes on
 * to the next ones: what is not noticed of that is not made good by anything that comes later.
 */
const PROGRAM = `
local ffi = require "ffi"
local PAGES, SETS, WORDS, TIMES = 64, 24, 1024, 40000
local memory = ffi.new("uint32_t[?]", SETS * PAGES * WORDS)
local value = 0
local console = io.open("/dev/ttyS0", "w")
console:write("writer writes\\n")
console:close()
while true do
  for set = 0, SETS - 1 do
    for _ = 1, TIMES do
      value = value + 1
      for page = 0, PAGES - 1 do memory[(set * PAGES + page) * WORDS] = value end
    end
  end
end
`;

/** `nopti`: entering the guest's kernel would have its processor forget which page is where. */
const APPEND = "nopti colo.load=idle rdinit=/init-writer";
const INIT = `#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
{ until [ -e /run/file ]; do /bin/busybox usleep 50000; done; exec luajit /writer.lua; } &
exec /init
`;

async function startGuest(qemu: Qemu, directory: string): Promise<Vm> {
  const guest = await prepareDemoGuest();
  const initrdPath = `${directory}/initrd`;
  const text = (content: string) => new TextEncoder().encode(content);
  const archive = writeCpio([
    { type: "file", path: "init-writer", mode: 0o755, content: text(INIT) },
    { type: "file", path: "writer.lua", mode: 0o644, content: text(PROGRAM) },
  ]);
  // Linux takes several archives one after another.
  await Deno.copyFile(guest.initrdPath, initrdPath);
  await Deno.writeFile(initrdPath, archive, { append: true });
  const lines = [
    "[vm]",
    'name = "writer"',
    `memory = ${MEMORY_MIB}`,
    'console = "console"',
    `kernel = ${JSON.stringify(guest.kernelPath)}`,
    `initrd = ${JSON.stringify(initrdPath)}`,
    `append = ${JSON.stringify(`${guest.append} ${APPEND}`)}`,
  ];
  const config = parseVmConfig(lines.join("\n"), `${directory}/vm.toml`);
  const vm = await startVm({ config, qemu, directory, incoming: false, report: () => {} });
  const console = `${directory}/console`;
  const isUp = () => Promise.resolve(Deno.readTextFileSync(console).includes("writer writes"));
  await until(isUp, 60_000, "the guest writes");
  return vm;
}

/** Capture a guest that runs. @returns Pages that differ when it stands still for its first checkpoint */
async function captureOnce({ qmp }: Vm, qemu: Qemu, directory: string): Promise<number[]> {
  const capture = new Capture(WasmKernels.create(), { createKernels: () => WasmKernels.create() });
  const port = new CapturePort(`${directory}/capture.sock`);
  const whole = Promise.withResolvers<void>();
  const take = ({ type }: CaptureEvent) => {
    if (type === "request") port.write([capture.reply()]);
    else if (type === "whole") whole.resolve();
  };
  try {
    const colo = qmp.waitFor("MIGRATION", ({ data }) => data.status === "colo", {
      timeoutMs: 30_000,
    });
    port.serve(capture, take).catch(whole.reject);
    await beginPrimary(qmp, qemu.capabilities, port.path);
    await colo;
    await initialTaken(capture, () => true);
    port.write([capture.ready()]);
    await whole.promise;
    capture.absorb();
    const filename = `${directory}/ram`;
    const size = MEMORY_MIB * 1024 * 1024;
    await qmp.executeRaw("pmemsave", { val: 0, size, filename }, { timeoutMs: 30_000 });
    return differingPages(capture, await Deno.readFile(filename));
  } finally {
    await releasePrimary(qmp);
    port.close();
  }
}

function differingPages({ blocks, mirror }: Capture, ram: Uint8Array<ArrayBuffer>): number[] {
  const { firstPage, pages } = blocks.find(({ name }) => name === "pc.ram")!;
  const differing: number[] = [];
  for (let page = 0; page < pages; page++) {
    if (page >= HIDDEN.from && page < HIDDEN.to) continue;
    const held = new Uint32Array(mirror.page(firstPage + page).buffer);
    const there = new Uint32Array(ram.buffer, page * PAGE, held.length);
    if (held.some((word, index) => word !== there[index])) differing.push(page);
  }
  return differing;
}

Deno.test("nothing is missing of what a guest writes while its memory is copied for the first time", async () => {
  const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
  const qemu = await findQemu({ role: "primary" });
  const vm = await startGuest(qemu, directory);
  const busy = Array.from(
    { length: BUSY_PROCESSES },
    () => new Deno.Command("sh", { args: ["-c", "while :; do :; done"] }).spawn(),
  );
  try {
    for (let count = 1; count <= CAPTURES; count++) {
      const differing = await captureOnce(vm, qemu, directory);
      assertEquals(differing, [], `${differing.length} pages of capture ${count}`);
    }
  } finally {
    for (const child of busy) child.kill("SIGKILL");
    await Promise.all(busy.map(({ status }) => status));
    await vm.stop();
    assertEquals(processesOf(directory), []);
    await Deno.remove(directory, { recursive: true });
  }
});
