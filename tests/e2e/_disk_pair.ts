/**
 * A guest with two disks on two hosts that stand by for each other, and a client to which its writes are
 * acknowledged over the network.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert/mod.js";
import { DISK_PORT, DiskClient, makeDisk, prepareDiskGuest } from "../../bench/rig/disk_guest.ts";
import { EngineProcess } from "../../cli/demo/engine_process.ts";
import { freePort } from "../../cli/demo/session.ts";
import { parseVmConfig } from "../../engine/config/mod.ts";
import { DiskCopyName } from "../../engine/host/disk_copy.ts";
import { type DemoGuest, findQemu, qemuTool } from "../../engine/vm/mod.ts";
import { processesOf, sleep, until } from "./_pair.ts";

const DISK_BYTES = 48 * 1024 * 1024;
const DISKS = 2;

/** Sectors that are written again and again. */
const SECTORS = 256;

const PROTECT_MS = 60_000;
const TAKEOVER_MS = 20_000;

/** How the pair is to be. */
export interface DiskPairOptions {
  readonly mode?: "colo" | "continuous";
  readonly format?: "raw" | "qcow2";
  /** Between checkpoints that nothing else asks for; 200. */
  readonly periodMs?: number;
  /** More lines of `[replication]`. */
  readonly replication?: readonly string[];
  /** Whether their engines are started. */
  readonly starts?: boolean;
  /** Called when the images are there, before anything runs on them. */
  readonly prepare?: (pair: DiskPair) => Promise<void>;
}

/** One of the two hosts. */
export class DiskHost {
  engine!: EngineProcess;

  constructor(
    readonly directory: string,
    readonly name: "a" | "b",
    /** Of this machine, which leads to the guest when it runs here. */
    readonly port: number,
    readonly format: "raw" | "qcow2",
  ) {}

  imagePath(disk: number): string {
    return `${this.directory}/${this.name}-${disk}.${this.format}`;
  }

  get tomlPath(): string {
    return `${this.directory}/${this.name}.toml`;
  }

  start(command: "run" | "standby"): void {
    const log = `${this.directory}/${this.name}-${command}-${Date.now()}.log`;
    this.engine = new EngineProcess(
      [command, this.tomlPath],
      () => {},
      log,
    );
  }

  get qemuPid(): number {
    const started = this.engine.reports.findLast(({ event }) => event === "qemu-started");
    assert(started?.event === "qemu-started", `host ${this.name} has no QEMU`);
    return started.pid;
  }

  async protects(): Promise<void> {
    await this.engine.waitFor("primary", ({ phase }) => phase === "protected", PROTECT_MS);
  }

  /** @returns When the VM ran here, in milliseconds since the epoch */
  async takesOver(): Promise<number> {
    return (await this.engine.waitFor("running", () => true, TAKEOVER_MS)).atMs;
  }

  /** Connect as soon as the guest's server answers. */
  async client(timeoutMs = 60_000): Promise<DiskClient> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      const client = await DiskClient.connect(this.port).catch(() => undefined);
      try {
        await client?.ask("sectors 0", 5000);
        if (client !== undefined) return client;
      } catch {
        client?.close();
      }
      assert(performance.now() < deadline, `no answer of the guest's within ${timeoutMs} ms`);
      await sleep(200);
    }
  }

  /** Have the guest written to by two clients. */
  async load(): Promise<DiskLoad> {
    return new DiskLoad(await this.client(), await this.client());
  }
}

/** Two hosts; the VM begins on the first. */
export class DiskPair implements AsyncDisposable {
  readonly directory = Deno.makeTempDirSync({ prefix: "colo-test-" });
  readonly a: DiskHost;
  readonly b: DiskHost;

  private constructor({ format = "raw" }: DiskPairOptions) {
    this.a = new DiskHost(this.directory, "a", freePort(), format);
    this.b = new DiskHost(this.directory, "b", freePort(), format);
  }

  /** Start both. */
  static async start(options: DiskPairOptions = {}): Promise<DiskPair> {
    const pair = new DiskPair(options);
    const guest = await prepareDiskGuest(pair.directory);
    const [first, second] = [freePort(), freePort()];
    await pair.#configure(pair.a, guest, options, first, second);
    await pair.#configure(pair.b, guest, options, second, first);
    await options.prepare?.(pair);
    if (options.starts === false) return pair;
    pair.b.start("standby");
    pair.a.start("run");
    return pair;
  }

  async #configure(
    host: DiskHost,
    guest: DemoGuest,
    { mode = "colo", periodMs = 200, replication = [] }: DiskPairOptions,
    listen: number,
    peer: number,
  ): Promise<void> {
    const disks = Array.from({ length: DISKS }, (_, disk) => host.imagePath(disk));
    for (const path of disks) await this.#makeImage(path, host.format);
    const lines = [
      "[vm]",
      'name = "disks"',
      "memory = 128",
      `kernel = ${JSON.stringify(guest.kernelPath)}`,
      `initrd = ${JSON.stringify(guest.initrdPath)}`,
      `append = ${JSON.stringify(`${guest.append} colo.load=idle`)}`,
      `console = "${host.name}-console.log"`,
      ...disks.flatMap((path) => [
        "[[vm.disks]]",
        `path = "${path}"`,
        `format = "${host.format}"`,
      ]),
      "[[vm.nics]]",
      'mac = "52:54:00:c0:10:01"',
      `netdev = "user,restrict=on,hostfwd=tcp:127.0.0.1:${host.port}-:${DISK_PORT}"`,
      "[replication]",
      `mode = "${mode}"`,
      `period = ${periodMs}`,
      `listen = "127.0.0.1:${listen}"`,
      `peer = "127.0.0.1:${peer}"`,
      ...replication,
      "[control]",
      `socket = "${host.name}.sock"`,
    ];
    await Deno.writeTextFile(host.tomlPath, lines.join("\n"));
  }

  async #makeImage(path: string, format: "raw" | "qcow2"): Promise<void> {
    if (format === "raw") return await makeDisk(path, DISK_BYTES);
    await imageTool(["create", "-q", "-f", "qcow2", path, String(DISK_BYTES)]);
  }

  /** What both hosts' images hold must be the same as soon as nothing is under way. */
  async assertSameImages(): Promise<void> {
    for (let disk = 0; disk < DISKS; disk++) {
      const isSame = async () => {
        if (this.a.format === "qcow2") {
          const paths = [this.a, this.b].map((host) => host.imagePath(disk));
          return (await imageTool(["compare", "-q", "-U", ...paths], [0, 1])) === 0;
        }
        const [one, other] = await Promise.all(
          [this.a, this.b].map((host) => Deno.readFile(host.imagePath(disk))),
        );
        const [words, others] = [one!, other!].map(({ buffer }) => new BigUint64Array(buffer));
        return words!.every((word, at) => word === others![at]);
      };
      await until(isSame, 10_000, `the images of disk ${disk} are the same`);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.a, this.b].map(({ engine }) => engine?.stop()));
    for (const { tomlPath } of [this.a, this.b]) {
      // It would be found by the next standby.
      new DiskCopyName(parseVmConfig(Deno.readTextFileSync(tomlPath), tomlPath)).store("");
    }
    const left = processesOf(this.directory);
    await Deno.remove(this.directory, { recursive: true });
    assertEquals(left, []);
  }
}

/** Run QEMU's tool for images; returns its exit code, which must be one of these. */
async function imageTool(args: readonly string[], codes: readonly number[] = [0]): Promise<number> {
  const qemu = await findQemu({ role: "primary" });
  const [command = "", ...leading] = qemuTool("qemu-img", qemu);
  const options = { args: [...leading, ...args], env: qemu.env };
  const { code, stderr } = await new Deno.Command(command, options).output();
  assert(codes.includes(code), new TextDecoder().decode(stderr));
  return code;
}

/** Writes on and on, and remembers what was acknowledged. */
export class DiskLoad {
  /** Tokens of the rows, by the numbers that the guest gave them. */
  readonly rows = new Map<number, string>();
  /** The last value of each sector. */
  readonly sectors = new Map<number, number>();
  /** The longest that a sector took, in milliseconds. */
  longestMs = 0;
  #value: number;
  #acknowledged: number;
  /** Values that were asked for and not acknowledged, by their sectors. */
  readonly #unanswered: Map<number, number> = new Map();
  #over = false;
  readonly #running: Promise<unknown>;

  /** @param before What was written before, by another client */
  constructor(rows: DiskClient, sectors: DiskClient, before?: DiskLoad) {
    this.#value = before === undefined ? 0 : before.#value;
    for (const [number, token] of before?.rows ?? []) this.rows.set(number, token);
    for (const [sector, value] of before?.sectors ?? []) this.sectors.set(sector, value);
    if (before !== undefined) this.#unanswered = new Map(before.#unanswered);
    this.#acknowledged = before === undefined ? 0 : before.#acknowledged;
    this.#running = Promise.all([this.#writeRows(rows), this.#writeSectors(sectors)]);
    // Whoever waits for its end is told.
    this.#running.catch(() => {});
  }

  /** What was acknowledged so far. */
  get acknowledged(): readonly [rows: number, sectors: number] {
    return [this.rows.size, this.#acknowledged];
  }

  /** Rejected when something was wrong; fulfilled when the guest is gone, or {@linkcode stop} was called. */
  async ended(): Promise<void> {
    await this.#running;
  }

  async stop(): Promise<void> {
    this.#over = true;
    await this.ended();
  }

  async #writeRows(client: DiskClient): Promise<void> {
    await this.#onAndOn(client, async () => {
      const token = crypto.randomUUID();
      const number = Number(await client.ask(`row ${token}`, 20_000));
      assert(!this.rows.has(number), `row ${number} was acknowledged twice`);
      this.rows.set(number, token);
    });
  }

  async #writeSectors(client: DiskClient): Promise<void> {
    await this.#onAndOn(client, async () => {
      const value = ++this.#value;
      const sector = value % SECTORS;
      const beganMs = performance.now();
      this.#unanswered.set(sector, value);
      assertEquals(await client.ask(`sector ${sector} ${value}`, 20_000), String(value));
      this.#unanswered.delete(sector);
      this.#acknowledged++;
      this.longestMs = Math.max(this.longestMs, performance.now() - beganMs);
      this.sectors.set(sector, value);
    });
  }

  async #onAndOn(client: DiskClient, write: () => Promise<void>): Promise<void> {
    try {
      while (!this.#over) await write();
    } catch (error) {
      // The guest that it spoke to may be gone; what it says may not be wrong.
      if (/ERROR|Assertion/.test(String(error))) throw error;
    } finally {
      client.close();
    }
  }

  /** Everything that was acknowledged must be on the guest's disks, once, and sound. */
  async verify(client: DiskClient): Promise<void> {
    const [, list = ""] = /^\d+ rows ?(.*)$/.exec(await client.ask("rows")) ?? [];
    const held = new Map(
      list.split(",").map((row) => {
        const [number, token] = row.split(":");
        return [Number(number), token];
      }),
    );
    const lost = [...this.rows].filter(([number, token]) => held.get(number) !== token);
    assertEquals(lost, [], "rows that were acknowledged and are not there");
    assertEquals(new Set(held.values()).size, held.size, "a row that is there twice");
    const values = (await client.ask(`sectors ${SECTORS}`)).split(",");
    const wrong = [...this.sectors].filter(([sector, value]) =>
      // One that was not acknowledged any more, at this kill or another, may be there as well.
      ![value, this.#unanswered.get(sector)].some((known) => values[sector] === String(known))
    );
    assertEquals(wrong.map(([sector, value]) => `${values[sector]} in place of ${value}`), []);
  }
}
