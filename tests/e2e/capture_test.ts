import { assert, assertEquals } from "@std/assert/mod.js";
import { Capture, type CaptureEvent } from "../../engine/checkpoint/capture.ts";
import type { PageTable } from "../../engine/checkpoint/mirror.ts";
import {
  addCounts,
  NO_PAGES,
  type PageCounts,
  PageEncoder,
} from "../../engine/checkpoint/page_encoder.ts";
import { LiveReplica } from "../../engine/checkpoint/live_replica.ts";
import type { ReplicaEffect, WholeCheckpoint } from "../../engine/checkpoint/replica.ts";
import { parseVmConfig } from "../../engine/config/mod.ts";
import { CapturePort, initialTaken } from "../../engine/host/capture_port.ts";
import { beginPrimary, beginSecondary, forgetTranslations } from "../../engine/host/colo_qemu.ts";
import { ReplicaPort } from "../../engine/host/replica_port.ts";
import { startVm, type Vm } from "../../engine/host/start_vm.ts";
import { findQemu, prepareDemoGuest } from "../../engine/vm/mod.ts";
import { type KernelSet, PAGE_ENTRY_BYTES, WasmKernels } from "../../wasm/mod.ts";
import { processesOf, randomFrom, sleep, testSeed, until } from "./_pair.ts";

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

/** What the config of a side says of the guest, line by line. */
type GuestLines = (side: "primary" | "secondary") => readonly string[];

async function demoGuest(append: string): Promise<GuestLines> {
  const guest = await prepareDemoGuest();
  return () => [
    `kernel = ${JSON.stringify(guest.kernelPath)}`,
    `initrd = ${JSON.stringify(guest.initrdPath)}`,
    `append = ${JSON.stringify(`${guest.append} ${append}`)}`,
  ];
}

/**
 * A guest that says `H` and halts for good: its memory stays as it is. Its disks are made in the
 * directory, one a side.
 */
function haltedGuest(directory: string): GuestLines {
  const disk = new Uint8Array(1024 * 1024);
  // mov dx, 0x3f8; mov al, 'H'; out dx, al; cli; hlt; jmp to the hlt
  disk.set([0xba, 0xf8, 0x03, 0xb0, 0x48, 0xee, 0xfa, 0xf4, 0xeb, 0xfd]);
  disk.set([0x55, 0xaa], 510);
  return (side) => {
    const path = `${directory}/disk-${side}`;
    Deno.writeFileSync(path, disk);
    return ["[[vm.disks]]", `path = "${path}"`, 'format = "raw"'];
  };
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
  /** Checkpoints that no guest took: none of the guest's has so large a number. */
  #written = 1_000_000;
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

  /** @param guest What each side's config says of the guest, besides its memory */
  async start(guest: GuestLines): Promise<void> {
    const { directory } = this;
    const qemu = await findQemu({ role: "primary" });
    this.#tcg = qemu.accel === "tcg";
    const report = () => {};
    for (const side of ["primary", "secondary"] as const) {
      const config = parseVmConfig(
        [
          "[vm]",
          'name = "pair"',
          `memory = ${MEMORY_MIB}`,
          `console = "console-${side}"`,
          ...guest(side),
        ].join("\n"),
        `${directory}/vm.toml`,
      );
      const incoming = side === "secondary";
      this.#vms.push(await startVm({ config, qemu, directory, incoming, report }));
    }
    const [primary, secondary] = this.#vms as [Vm, Vm];
    await beginSecondary(secondary.qmp, qemu.capabilities, `${directory}/replica.sock`);
    const replicaPort = new ReplicaPort(`${directory}/replica.sock`);
    this.#replicaPort = replicaPort;
    replicaPort.read((bytes) => this.#do(this.#replica.received(bytes))).catch(() => {});
    const port = new CapturePort(`${directory}/capture.sock`);
    this.#capturePort = port;
    const colo = primary.qmp.waitFor("MIGRATION", ({ data }) => data.status === "colo", {
      timeoutMs: 30_000,
    });
    await beginPrimary(primary.qmp, qemu.capabilities, port.path);
    port.serve(this.capture, this.captured.push).catch(() => {});
    await colo;
    await initialTaken(this.capture, () => true);
    port.write([this.capture.ready()]);
  }

  /** Whether the guest has come so far that it shows this on the primary. */
  hasShown(text: string): boolean {
    return Deno.readTextFileSync(`${this.directory}/console-primary`).includes(text);
  }

  async seed(): Promise<void> {
    const { mirror, machine, blocks, deviceState } = this.capture;
    mirror.markAllMissing();
    this.#do(this.#replica.seedBegin({ lineage: "l", machine, blocks, ramSectionId: 2 }));
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
    assertEquals((await this.captured.take()).type, "stopped");
    const whole = await this.captured.take();
    assert(whole.type === "whole");
    this.#capturePort!.write(capture.acknowledge());
    const chunks = this.#encode(capture.beginDelta().pages);
    capture.endDelta();
    const { epoch } = whole;
    const checkpoint = { epoch, chunks, deviceState: capture.deviceState };
    if (kind === "micro") {
      assertEquals(this.#replica.hold(checkpoint), []);
      return;
    }
    await this.#load(checkpoint);
  }

  /**
   * Change pages in the secondary, as a checkpoint in which the guest has written them. They are encoded
   * as the change from what the mirror holds, which takes them in.
   */
  async write(pages: ReadonlyMap<number, Uint8Array>): Promise<void> {
    const chunks = this.#encode(this.#tableOf(pages));
    await this.#load({ epoch: ++this.#written, chunks, deviceState: this.capture.deviceState });
  }

  /** As {@linkcode write}, of one page that is changed by this record. */
  async writeRecord(page: number, content: Uint8Array, record: Uint8Array): Promise<void> {
    this.capture.mirror.absorb(this.#tableOf(new Map([[page, content]])));
    const { deviceState } = this.capture;
    await this.#load({ epoch: ++this.#written, chunks: [record], deviceState });
  }

  async #load(checkpoint: WholeCheckpoint): Promise<void> {
    this.#do(this.#replica.load(checkpoint));
    assertEquals(await this.loaded.take(), checkpoint.epoch, "a load that was not asked for");
    await this.secondary.qmp.execute("stop");
  }

  #encode(pages: PageTable): Uint8Array[] {
    const chunks: Uint8Array[] = [];
    this.counts = NO_PAGES;
    for (const job of this.capture.mirror.deltaJobs(pages)) {
      for (const chunk of this.#encoder!.encode(job)) chunks.push(chunk.slice());
      this.counts = addCounts(this.counts, this.#encoder!.counts(job));
    }
    return chunks;
  }

  #tableOf(pages: ReadonlyMap<number, Uint8Array>): PageTable {
    const kernels = this.capture.mirror.kernels[0]!;
    const table = kernels.alloc(pages.size * PAGE_ENTRY_BYTES);
    const contents = kernels.alloc(pages.size * PAGE);
    for (const [index, [page, content]] of [...pages].entries()) {
      const at = contents + index * PAGE;
      kernels.bytes.set(content, at);
      const entry = new DataView(kernels.bytes.buffer, table + index * PAGE_ENTRY_BYTES);
      entry.setUint32(0, page, true);
      entry.setUint32(4, at, true);
    }
    return { kernels, table, pageCount: pages.size };
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
      } else if (effect.type === "settle") {
        this.#do(this.#replica.disksSettled());
      } else if (effect.type === "loaded") {
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
  await pair.start(await demoGuest("colo.load=small-writes colo.load_pages=400 colo.load_ms=200"));
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
  for (let round = 0; !pair.hasShown("colo-tick 2 "); round++) {
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

/** Where the halted guest has nothing: pages from 16 MiB on. */
const FREE_PAGE = 4096;

/** A page before and after, and whether the change is so large that the page travels whole. */
interface Change {
  readonly what: string;
  readonly before: Uint8Array;
  readonly after: Uint8Array;
  readonly whole?: boolean;
}

/** Changes of all kinds in pages of random bytes; in every byte that is named, and no other. */
function changes(random: () => number): Change[] {
  const page = () => Uint8Array.from({ length: PAGE }, () => Math.floor(random() * 256));
  const changed = (what: string, bytes: readonly number[], whole = false): Change => {
    const before = page();
    const after = before.slice();
    for (const at of bytes) after[at]! ^= 1 + Math.floor(random() * 255);
    return { what, before, after, whole };
  };
  const run = (from: number, length: number) => Array.from({ length }, (_, index) => from + index);
  const every = (step: number, count: number, from = 0) =>
    Array.from({ length: count }, (_, index) => from + index * step);
  const lengths = [1, 2, 126, 127, 128, 129, 255, 256, 2000, 3068];
  return [
    ...[0, 1, 2047, 4094, 4095].map((at) => changed(`byte ${at}`, [at])),
    changed("the first and the last byte", [0, PAGE - 1]),
    // One length byte says up to 127, two say the rest: of what changed...
    ...lengths.map((length) => changed(`the first ${length}`, run(0, length))),
    ...lengths.map((length) => changed(`the last ${length}`, run(PAGE - length, length))),
    // ...and of what did not, up to the longest that there is.
    ...[1, 126, 127, 128, 129, 3999, 4000, 4001, 4094].map((gap) =>
      changed(`two bytes with ${gap} between them`, [0, gap + 1])
    ),
    // A run of n bytes takes 3 more for its lengths, and 3072 are worth it.
    changed("3069 bytes in one", run(100, 3069)),
    changed("3070 bytes in one", run(100, 3070), true),
    changed("all of it", run(0, PAGE), true),
    // A byte that changed between two that did not takes 3 bytes.
    ...[0, 1].map((from) => changed(`1023 alternating from ${from}`, every(2, 1023, from))),
    ...[0, 1].map((from) => changed(`1024 alternating from ${from}`, every(2, 1024, from))),
    changed("1025 alternating", [...every(2, 1024), PAGE - 1], true),
    ...Array.from({ length: 64 }, (_, index) => {
      const bytes = run(0, PAGE).filter(() => random() < index / 256);
      return changed(`${bytes.length} anywhere`, [...bytes, Math.floor(random() * PAGE)]);
    }),
    { what: "a page of zeros, but one byte", before: new Uint8Array(PAGE), after: oneByte() },
    { what: "one byte back to zero", before: oneByte(), after: new Uint8Array(PAGE) },
  ];
}

function oneByte(): Uint8Array {
  const page = new Uint8Array(PAGE);
  page[4095] = 1;
  return page;
}

/** An XBZRLE record of main memory, as long as it has to be. */
function xbzrleRecord(kernels: KernelSet, page: number, { before, after }: Change): Uint8Array {
  const address = kernels.alloc(3 * PAGE);
  kernels.bytes.set(before, address);
  kernels.bytes.set(after, address + PAGE);
  const body = address + 2 * PAGE;
  const length = kernels.xbzrleEncode(address, address + PAGE, PAGE, body, PAGE);
  assert(length > 0, "the change does not fit a record");
  const name = new TextEncoder().encode("pc.ram");
  const record = new Uint8Array(8 + 1 + name.length + 3 + length);
  const view = new DataView(record.buffer);
  view.setBigUint64(0, BigInt(page * PAGE + 0x40));
  view.setUint8(8, name.length);
  record.set(name, 9);
  view.setUint8(9 + name.length, 0x01);
  view.setUint16(10 + name.length, length);
  record.set(kernels.bytes.subarray(body, body + length), 12 + name.length);
  return record;
}

Deno.test("QEMU reads what the kernels encode: runs of every kind and length", async () => {
  const random = randomFrom(testSeed());
  await using pair = new Pair(await Deno.makeTempDir({ prefix: "colo-test-" }));
  await pair.start(haltedGuest(pair.directory));
  await pair.seed();
  await until(() => pair.hasShown("H"), 20_000, "the guest halts");
  await pair.checkpoint(0);
  assertEquals(await pair.differingPages(), [], "the guest stands still");

  const all = changes(random);
  const pagesOf = (state: "before" | "after") =>
    new Map(all.map((change, index) => [FREE_PAGE + index, change[state]]));
  for (const state of ["before", "after"] as const) {
    await pair.secondary.qmp.execute("cont");
    await pair.write(pagesOf(state));
    const wrong = (await pair.differingPages()).map((page) => all[page - FREE_PAGE]?.what ?? page);
    assertEquals(wrong, [], `${state}: pages differ`);
  }
  console.log(JSON.stringify(pair.counts));
  const whole = all.filter((change) => change.whole).length;
  assertEquals(pair.counts, { unchanged: 0, zero: 1, xbzrle: all.length - whole - 1, whole });

  // Longer than we ever send, and as long as QEMU takes.
  const kernels = pair.capture.mirror.kernels[0]!;
  for (const length of [3070, 4000, 4093]) {
    const page = FREE_PAGE + all.length;
    const [before, after] = [pair.capture.mirror.page(page), pair.capture.mirror.page(page)];
    for (let at = PAGE - length; at < PAGE; at++) after[at]! ^= 1 + Math.floor(random() * 255);
    const change = { what: `the last ${length}`, before, after };
    await pair.secondary.qmp.execute("cont");
    await pair.writeRecord(page, after, xbzrleRecord(kernels, page, change));
    assertEquals(await pair.differingPages(), [], change.what);
  }
});
