/**
 * Durable checkpoints: what a save costs and how soon a VM runs again.
 *
 * @module
 */

import { EngineProcess } from "../cli/demo/engine_process.ts";
import { parseVmConfig } from "../engine/config/mod.ts";
import { ColoError } from "../engine/errors.ts";
import {
  type Report,
  type RestoreSource,
  restoreVm,
  type SavedOverControl,
} from "../engine/host/mod.ts";
import { startVm } from "../engine/host/start_vm.ts";
import { PAGE_BYTES } from "../engine/limits.ts";
import { QmpClient } from "../engine/qmp/mod.ts";
import {
  type Chain,
  CheckpointStore,
  DirectoryFiles,
  exportStream,
  prepareRamImage,
  takeRamImage,
} from "../engine/store/mod.ts";
import { WasmKernels } from "../wasm/mod.ts";
import type { Area, BenchContext } from "./area.ts";
import { BenchGuest } from "./rig/guest.ts";
import { freshDirectory, openRig, pause, type Rig } from "./rig/rig.ts";
import { costRow, figure, type Row } from "./row.ts";

const MEMORY_MIB = 1024;
const RAM_BYTES = MEMORY_MIB * 2 ** 20;

/** Of guest time between two saves. */
const BETWEEN_MS = 1000;
const TIMEOUT_MS = 120_000;

/** The bars: stored bytes per byte of RAM, and milliseconds. */
const DELTA_SHARE_MAX = 0.01;
const INSTANT_MS_MAX = 100;

/** RAM images are memory: where there is tmpfs, that is where they belong. */
const TMPFS = "/dev/shm";

async function benchStore(context: BenchContext): Promise<Row[]> {
  const rig = await openRig(context);
  const rounds = context.quick ? 3 : 9;
  const idle = await BenchGuest.boot(rig, {
    memoryMiB: MEMORY_MIB,
    parameters: "colo.load=idle colo.file_kib=262144",
  });
  const directory = await freshDirectory(rig);
  const saves = await benchSaves(rig, idle, directory, rounds);
  const native = await nativeSave(rig, idle);
  const store = new CheckpointStore(
    new DirectoryFiles(`${directory}/store`),
    () => WasmKernels.create(),
  );
  const { instantMs, streamMs } = await benchRestores(rig, idle, store, rounds);
  const [full, ...deltas] = saves;
  if (full === undefined) throw new ColoError("Cannot tell what a save costs: there was none");
  const name = "1 GiB, 256 MiB of random data, idle";
  const rate = ({ pages, "duration-ms": ms }: SavedOverControl) => pages * PAGE_BYTES / 1000 / ms;
  return [
    costRow({
      case: `what changed in ${BETWEEN_MS} ms: ${name}`,
      unit: "bytes",
      ours: deltas.map(({ bytes }) => bytes),
      peer: [RAM_BYTES],
      peerName: "its RAM",
      bar: DELTA_SHARE_MAX,
    }),
    figure(`its save: ${name}`, "ms", deltas.map((saved) => saved["duration-ms"])),
    figure(`no checkpoint begins: ${name}`, "ms", deltas.map((saved) => saved["frozen-ms"])),
    {
      ...figure(`first save: ${name}`, "MB/s of pages that are not zero", [rate(full)]),
      peer: full.pages * PAGE_BYTES / 1000 / native.durationMs,
      peerName: "migrate to a file, guest stopped",
      ratio: rate(full) * native.durationMs * 1000 / (full.pages * PAGE_BYTES),
    },
    figure(`instant restore, first byte to RESUME: ${name}`, "ms", instantMs, INSTANT_MS_MAX),
    costRow({
      case: `restore, first byte to RESUME: ${name}`,
      unit: "ms",
      ours: instantMs,
      peer: streamMs,
      peerName: "the whole stream",
    }),
  ];
}

/** Save a running guest again and again; the first is a full one. */
async function benchSaves(
  rig: Rig,
  guest: BenchGuest,
  directory: string,
  deltas: number,
): Promise<SavedOverControl[]> {
  const path = `${directory}/vm.toml`;
  const rest = [
    "[replication]",
    "period = 500",
    // Nobody listens there: it is about saves alone.
    'peer = "unix:nobody.sock"',
    "[store]",
    'directory = "store"',
    "[control]",
    'socket = "vm.sock"',
  ].join("\n");
  await Deno.writeTextFile(path, guest.toml({ side: "primary", rest }));
  const run = new EngineProcess(["run", path]);
  try {
    await run.waitFor("primary", ({ phase }) => phase === "alone", TIMEOUT_MS);
    await using control = await QmpClient.connect(`${directory}/vm.sock`);
    const saves: SavedOverControl[] = [];
    for (let count = 0; count <= deltas; count++) {
      rig.progress(`save ${count + 1} of ${deltas + 1}`);
      await pause(BETWEEN_MS, rig.signal);
      const options = { timeoutMs: TIMEOUT_MS };
      const saved = await control.executeRaw(
        "colo-checkpoint-save",
        { name: `c${count}` },
        options,
      );
      saves.push(saved as SavedOverControl);
    }
    return saves;
  } finally {
    await run.stop();
  }
}

/** QEMU's own way to save the same guest. */
async function nativeSave(rig: Rig, guest: BenchGuest): Promise<{ readonly durationMs: number }> {
  rig.progress("QEMU saves the same guest");
  const directory = await freshDirectory(rig);
  const { qemu } = rig;
  const config = guest.config({ side: "primary" }, directory);
  const vm = await startVm({ config, qemu, directory, incoming: false, report: () => {} });
  try {
    await vm.qmp.execute("stop");
    await vm.qmp.execute("migrate-set-capabilities", {
      capabilities: [{ capability: "events", state: true }],
    });
    await vm.qmp.execute("migrate-set-parameters", { "max-bandwidth": 10_000_000_000 });
    const completed = vm.qmp.waitFor("MIGRATION", ({ data }) => data.status === "completed", {
      timeoutMs: TIMEOUT_MS,
    });
    const startMs = performance.now();
    await vm.qmp.execute("migrate", { uri: `file:${directory}/saved.mig` });
    await completed;
    using file = await Deno.open(`${directory}/saved.mig`);
    await file.sync();
    return { durationMs: performance.now() - startMs };
  } finally {
    await vm.stop();
  }
}

async function benchRestores(
  rig: Rig,
  guest: BenchGuest,
  store: CheckpointStore,
  rounds: number,
): Promise<{ readonly instantMs: number[]; readonly streamMs: number[] }> {
  const { name } = store.list().at(-1)!;
  const images = await Deno.makeTempDir({ dir: await hasTmpfs() ? TMPFS : rig.directory });
  const [instantMs, streamMs]: [number[], number[]] = [[], []];
  try {
    for (let round = 1; round <= rounds; round++) {
      rig.progress(`restore ${round} of ${rounds}`);
      for (const [sourceOf, figures] of [[instant, instantMs], [whole, streamMs]] as const) {
        // Pages can be read once.
        const chain = store.open(name);
        try {
          figures.push(await restoreMs(rig, guest, sourceOf(chain, images)));
        } finally {
          chain.close();
        }
      }
    }
  } finally {
    await Deno.remove(images, { recursive: true });
  }
  return { instantMs, streamMs };
}

async function hasTmpfs(): Promise<boolean> {
  return await Deno.stat(TMPFS).then(({ isDirectory }) => isDirectory, () => false);
}

function whole(chain: Chain): RestoreSource {
  const { name, metadata: { epoch, machine } } = chain;
  const stream = exportStream(chain, WasmKernels.create(), false);
  return { name, epoch, machine, stream, release: () => {} };
}

function instant(chain: Chain, images: string): RestoreSource {
  const { name, metadata: { epoch, machine } } = chain;
  prepareRamImage(chain, images);
  const image = takeRamImage(chain, images);
  if (image === undefined) throw new ColoError(`Cannot make a RAM image in ${images}`);
  const { path, stream, release } = image;
  return { name, epoch, machine, memoryPath: path, stream: [stream], release };
}

/** Restore a VM, and end it. */
async function restoreMs(rig: Rig, guest: BenchGuest, source: RestoreSource): Promise<number> {
  const directory = await freshDirectory(rig);
  const path = `${directory}/vm.toml`;
  const config = parseVmConfig(guest.toml({ side: "secondary" }), path);
  let restored: Extract<Report, { event: "restored" }> | undefined;
  const report = (report: Report) => {
    if (report.event === "restored") restored = report;
  };
  const vm = await restoreVm({ config, qemu: rig.qemu, directory, report, source });
  await vm.stop();
  if (restored === undefined) throw new ColoError("Cannot tell how long a restore took");
  return restored.feedMs;
}

/** The area `store`. */
export const STORE: Area = {
  name: "store",
  about:
    "Saves of a running guest through its control socket, each with all that a loss of power needs " +
    "(fsync), and restores of the last one. An instant restore finds its RAM image made; the clock " +
    "runs from the first byte for a QEMU that is up until its RESUME, as for the whole stream, which " +
    "is put together from the chain meanwhile.",
  bar: "most",
  run: benchStore,
};
