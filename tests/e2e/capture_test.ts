import { assert, assertEquals } from "@std/assert/mod.js";
import { Capture, type CaptureEvent } from "../../engine/checkpoint/capture.ts";
import {
  addCounts,
  NO_PAGES,
  type PageCounts,
  PageEncoder,
} from "../../engine/checkpoint/page_encoder.ts";
import { LiveReplica, type ReplicaEffect } from "../../engine/checkpoint/live_replica.ts";
import { parseVmConfig } from "../../engine/config/mod.ts";
import { CapturePort } from "../../engine/host/capture_port.ts";
import { beginPrimary, beginSecondary, forgetTranslations } from "../../engine/host/colo_qemu.ts";
import { ReplicaPort } from "../../engine/host/replica_port.ts";
import { startVm, type Vm } from "../../engine/host/start_vm.ts";
import { findQemu, prepareDemoGuest } from "../../engine/vm/mod.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import { processesOf, sleep } from "./_pair.ts";

const MEMORY_MIB = 128;
const PAGE = 4096;

/** Below 1 MiB the machine shows video memory and ROM in place of the RAM that lies there. */
const HIDDEN = { from: 0xa0, to: 0x100 };

/**
 * The secondary VM runs for a moment between its load and our `stop`, and handles a timer or two: a few
 * pages differ for that, more of them on a busy machine. A page that went wrong differs in every round.
 */
const WRITTEN_IN_A_ROUND_MAX = 256;
const WRITTEN_IN_EVERY_ROUND_MAX = 4;

/** Waits for the next of the things that happen, in their order. */
class Next<T> {
  readonly #arrived: T[] = [];
  readonly #waiting: ((item: T) => void)[] = [];

  readonly push = (item: T): void => {
    const waiting = this.#waiting.shift();
    if (waiting === undefined) this.#arrived.push(item);
    else waiting(item);
  };

  take(): Promise<T> {
    const item = this.#arrived.shift();
    if (item !== undefined) return Promise.resolve(item);
    return new Promise((resolve) => this.#waiting.push(resolve));
  }
}

/** A real primary and a real secondary, with capture and replica between them in this process. */
class Pair implements AsyncDisposable {
  readonly capture = new Capture(WasmKernels.create(), {
    createKernels: () => WasmKernels.create(),
  });
  readonly captured = new Next<CaptureEvent>();
  readonly loaded = new Next<number>();
  readonly #replica = new LiveReplica();
  #encoder: PageEncoder | undefined;
  /** How the pages of the last checkpoint were encoded. */
  counts: PageCounts = NO_PAGES;
  #tcg = false;
  #vms: Vm[] = [];
  #capturePort: CapturePort | undefined;
  #replicaPort: ReplicaPort | undefined;

  constructor(readonly directory: string) {}

  get secondary(): Vm {
    return this.#vms[1]!;
  }

  async start(append: string): Promise<void> {
    const { directory } = this;
    const qemu = await findQemu({ role: "primary" });
    this.#tcg = qemu.accel === "tcg";
    const guest = await prepareDemoGuest();
    const config = parseVmConfig(
      [
        "[vm]",
        'name = "pair"',
        `memory = ${MEMORY_MIB}`,
        `kernel = ${JSON.stringify(guest.kernelPath)}`,
        `initrd = ${JSON.stringify(guest.initrdPath)}`,
        `append = ${JSON.stringify(`${guest.append} ${append}`)}`,
      ].join("\n"),
      `${directory}/vm.toml`,
    );
    const report = () => {};
    for (const incoming of [false, true]) {
      const console = `${directory}/console-${incoming ? "secondary" : "primary"}`;
      const side = { ...config, vm: { ...config.vm, console } };
      this.#vms.push(await startVm({ config: side, qemu, directory, incoming, report }));
    }
    const [primary, secondary] = this.#vms as [Vm, Vm];
    await beginSecondary(secondary.qmp, qemu.capabilities, `${directory}/replica.sock`);
    const replicaPort = await ReplicaPort.connect(`${directory}/replica.sock`);
    this.#replicaPort = replicaPort;
    replicaPort.read((bytes) => this.#do(this.#replica.received(bytes))).catch(() => {});
    const port = new CapturePort(`${directory}/capture.sock`);
    this.#capturePort = port;
    const colo = primary.qmp.waitFor("MIGRATION", ({ data }) => data.status === "colo", {
      timeoutMs: 30_000,
    });
    await beginPrimary(primary.qmp, qemu.capabilities, port.path);
    port.serve(this.capture, this.captured.push).catch(() => {});
    assertEquals(await this.captured.take(), { type: "initial" });
    port.write([this.capture.accept()]);
    await colo;
    port.write([this.capture.ready()]);
  }

  /** Whether the guest has come so far that it does what it is told to do. */
  hasBooted(): boolean {
    return Deno.readTextFileSync(`${this.directory}/console-primary`).includes("colo-tick 2 ");
  }

  async seed(): Promise<void> {
    const { mirror, machine, blocks, deviceState } = this.capture;
    mirror.markAllMissing();
    this.#do(this.#replica.seedBegin(machine, blocks, 2));
    this.#encoder = new PageEncoder(mirror.kernels, mirror.addEncoder());
    for (const job of mirror.missingJobs(true)) {
      for (const chunk of this.#encoder.encode(job)) {
        this.#do(this.#replica.seedPages(chunk.slice()));
      }
    }
    this.#do(this.#replica.seedCommit(0, deviceState));
    assertEquals(await this.loaded.take(), 0);
  }

  /**
   * Have the primary take a checkpoint, and the secondary load it with all that it holds; the secondary
   * stands still then. A micro-checkpoint it only holds.
   */
  async checkpoint(afterMs: number, kind: "loaded" | "micro" = "loaded"): Promise<void> {
    const { capture } = this;
    assertEquals((await this.captured.take()).type, "request");
    await sleep(afterMs);
    this.#capturePort!.write([capture.reply()]);
    const whole = await this.captured.take();
    assert(whole.type === "whole");
    this.#capturePort!.write(capture.acknowledge());
    const chunks: Uint8Array[] = [];
    this.counts = NO_PAGES;
    for (const job of capture.mirror.deltaJobs(capture.beginDelta().pages)) {
      for (const chunk of this.#encoder!.encode(job)) chunks.push(chunk.slice());
      this.counts = addCounts(this.counts, this.#encoder!.counts(job));
    }
    capture.endDelta();
    const { epoch } = whole;
    const checkpoint = { epoch, chunks, deviceState: capture.deviceState };
    if (kind === "micro") {
      assertEquals(this.#replica.hold(checkpoint), []);
      return;
    }
    this.#do(this.#replica.load(checkpoint));
    assertEquals(await this.loaded.take(), epoch, "a load that was not asked for");
    await this.secondary.qmp.execute("stop");
  }

  /** Numbers of the pages of main memory in which the secondary differs from the mirror. */
  async differingPages(): Promise<number[]> {
    const filename = `${this.directory}/ram`;
    const size = MEMORY_MIB * 1024 * 1024;
    await this.secondary.qmp.executeRaw("pmemsave", { val: 0, size, filename }, {
      timeoutMs: 30_000,
    });
    const ram = await Deno.readFile(filename);
    const { blocks, mirror } = this.capture;
    const { firstPage, pages } = blocks.find(({ name }) => name === "pc.ram")!;
    const differing: number[] = [];
    for (let page = 0; page < pages; page++) {
      if (page >= HIDDEN.from && page < HIDDEN.to) continue;
      const held = new Uint32Array(mirror.page(firstPage + page).buffer);
      const loaded = new Uint32Array(ram.buffer, page * PAGE, held.length);
      if (held.some((word, index) => word !== loaded[index])) differing.push(page);
    }
    return differing;
  }

  #do(effects: readonly ReplicaEffect[]): void {
    for (const effect of effects) {
      if (effect.type === "write") {
        this.#replicaPort!.write(effect.bytes, (error) => console.error(error));
      } else if (effect.type === "prepare") {
        const prepare = this.#tcg ? forgetTranslations(this.secondary.qmp) : Promise.resolve();
        prepare.then(() => this.#do(this.#replica.prepared()));
      } else {
        this.loaded.push(effect.epoch);
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const vm of this.#vms) vm.process.kill();
    for (const vm of this.#vms) await vm.stop();
    this.#capturePort?.close();
    this.#replicaPort?.close();
    const left = processesOf(this.directory);
    await Deno.remove(this.directory, { recursive: true });
    assertEquals(left, []);
  }
}

Deno.test("after each load the secondary's memory is the mirror's, page by page", async () => {
  await using pair = new Pair(await Deno.makeTempDir({ prefix: "colo-test-" }));
  await pair.start("colo.load=small-writes colo.load_pages=400 colo.load_ms=200");
  await pair.seed();
  const sent = { whole: 0, zero: 0, xbzrle: 0, unchanged: 0 };
  const checkpoint = async (afterMs: number, kind?: "micro") => {
    await pair.checkpoint(afterMs, kind);
    const { counts } = pair;
    for (const kind of ["whole", "zero", "xbzrle", "unchanged"] as const) {
      sent[kind] += counts[kind];
    }
    return counts;
  };
  // A guest that boots writes faster than it can be stopped. A page that goes wrong here stays wrong.
  for (let round = 0; !pair.hasBooted(); round++) {
    assert(round < 60, "the guest does not boot");
    await checkpoint(200);
    await pair.secondary.qmp.execute("cont");
  }
  let always: number[] | undefined;
  for (let round = 0; round < 8; round++) {
    // In every other round the load is of four checkpoints that have each changed the same pages again.
    for (let micros = 0; round % 2 === 1 && micros < 3; micros++) {
      const { xbzrle } = await checkpoint(300, "micro");
      assert(xbzrle > 100, "the guest writes too little to prove anything");
    }
    const counts = await checkpoint(500);
    const differing = await pair.differingPages();
    console.log(`${JSON.stringify(counts)}: ${differing.length} pages differ`);
    assert(counts.xbzrle > 100, "the guest writes too little to prove anything");
    assert(differing.length <= WRITTEN_IN_A_ROUND_MAX, `${differing.length} pages differ`);
    always = differing.filter((page) => always?.includes(page) ?? true);
    await pair.secondary.qmp.execute("cont");
  }
  assert(always!.length <= WRITTEN_IN_EVERY_ROUND_MAX, `pages ${always} differ in every round`);
  const enough = sent.whole > 500 && sent.zero > 10 && sent.unchanged > 100;
  assert(enough, `too little was sent to prove anything: ${JSON.stringify(sent)}`);
});
