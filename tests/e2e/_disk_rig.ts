/**
 * What the tests of disks share: a QEMU without a machine, a guest that writes to its disk, and what
 * stands between a primary's NBD client and its server.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert/mod.js";
import type { DiskReplica, DiskReplicaEffect } from "../../engine/block/disk_replica.ts";
import { EarlyAnswers } from "../../engine/block/early_answers.ts";
import { DiskGate, type GateEffect } from "../../engine/block/gate.ts";
import { startExports } from "../../engine/block/secondary.ts";
import { QmpClient } from "../../engine/qmp/mod.ts";
import { qemuArgs } from "../../engine/vm/command_line.ts";
import { writeCpio } from "../../engine/vm/cpio.ts";
import { findQemu, prepareDemoGuest, type Qemu, startQemu } from "../../engine/vm/mod.ts";
import type { QemuProcess } from "../../engine/vm/process.ts";
import { processesOf, until } from "./_pair.ts";

export const DISK_BYTES = 64 * 1024 * 1024;

/** A directory, and all that is put into it, until the end of a test. */
export class Place implements AsyncDisposable {
  readonly directory = Deno.makeTempDirSync({ prefix: "colo-test-" });
  readonly #stack = new AsyncDisposableStack();

  path(name: string): string {
    return `${this.directory}/${name}`;
  }

  use<T extends AsyncDisposable>(resource: T): T {
    return this.#stack.use(resource);
  }

  /** A raw disk image full of zeros. */
  async disk(name: string, sizeBytes: number): Promise<string> {
    await Deno.writeFile(this.path(name), new Uint8Array(0));
    await Deno.truncate(this.path(name), sizeBytes);
    return this.path(name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
    const left = processesOf(this.directory);
    await Deno.remove(this.directory, { recursive: true });
    assertEquals(left, []);
  }
}

/** A QEMU and its monitor. */
export class MonitoredQemu implements AsyncDisposable {
  constructor(readonly process: QemuProcess, readonly client: QmpClient) {}

  /** Start one with these arguments, `-qmp` left out. */
  static async start(qemu: Qemu, qmpPath: string, args: readonly string[]): Promise<MonitoredQemu> {
    const process = await startQemu({ qemu, args, name: "tested", readyPath: qmpPath });
    const client = await process.whileAlive(QmpClient.connect(qmpPath, { retryForMs: 10_000 }));
    return new MonitoredQemu(process, client);
  }

  /** One without a machine. */
  static async bare(place: Place, name: string): Promise<MonitoredQemu> {
    const qmpPath = place.path(`${name}.qmp`);
    const machine = ["-machine", "none", "-nodefaults", "-display", "none"];
    const qmp = ["-qmp", `unix:${qmpPath},server=on,wait=off`];
    const qemu = await findQemu({ role: "primary" });
    return place.use(await MonitoredQemu.start(qemu, qmpPath, [...machine, ...qmp]));
  }

  /** Have a node read or written, as qemu-io would. */
  async io(node: string, command: string): Promise<void> {
    const line = `qemu-io ${node} "${command}"`;
    const args = { "command-line": line };
    const text = String(await this.client.executeRaw("human-monitor-command", args));
    assert(!/error|failed|not found/i.test(text), `${command}: ${text}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.client.close();
    await this.process.stop();
  }
}

/** A raw disk in a QEMU without a machine, as node `disk0`, and its NBD server. */
export async function exportedDisk(place: Place, name: string, sizeBytes = DISK_BYTES) {
  const path = await place.disk(name, sizeBytes);
  const qemu = await MonitoredQemu.bare(place, name);
  const file = { driver: "file", filename: path };
  await qemu.client.execute("blockdev-add", { driver: "raw", "node-name": "disk0", file });
  const socketPath = place.path(`${name}.nbd`);
  await startExports(qemu.client, socketPath, [{ node: "disk0" }]);
  return { path, qemu, socketPath };
}

/** What both files hold must be the same. */
export async function assertSame(one: string, other: string): Promise<void> {
  assertSameBytes(await Deno.readFile(one), await Deno.readFile(other));
}

/** As `assertEquals`, which takes minutes for so many. */
export function assertSameBytes(
  one: Uint8Array<ArrayBuffer>,
  other: Uint8Array<ArrayBuffer>,
  what = "it",
): void {
  assertEquals(one.length, other.length);
  const [a, b] = [one, other].map(({ buffer }) => new Uint32Array(buffer));
  let at = 0;
  while (at < a!.length && a![at] === b![at]) at++;
  assertEquals(at, a!.length, `${what} differs at byte ${at * 4}`);
}

const SCRIPT = `#!/bin/busybox sh
# disk?write,BLOCK,VALUE  writes a block of 4 KiB, and waits until the disk has it
# disk?start              writes one number after another, each to a block of its own, and so on
# disk?last               the last number that the disk has for certain
# disk?stop               no more of them: the last one
printf 'Content-Type: text/plain\\r\\n\\r\\n'
put() { yes "$2" | head -c 4096 | dd of=/dev/vda bs=4096 seek="$1" conv=notrunc,fsync 2>/dev/null; }
case $QUERY_STRING in
  write,*)
    set -- $(echo "$QUERY_STRING" | tr , ' ')
    put "$2" "$3" && echo "ok $3" ;;
  start)
    echo 0 >/run/last
    (n=0
     while [ ! -e /run/stop ]; do
       n=$((n + 1))
       put $((n % 512)) "$n" || break
       echo "$n" >/run/last
     done
     touch /run/stopped) >/dev/null 2>&1 </dev/null &
    echo ok ;;
  stop)
    touch /run/stop
    while [ ! -e /run/stopped ]; do usleep 10000; done
    cat /run/last ;;
  last) cat /run/last ;;
esac
`;

/** A demo guest with a disk. */
export class DiskGuest implements AsyncDisposable {
  /** Of its disk. */
  readonly disk = { node: "disk0", device: "disk0-device" };
  readonly #qemu: MonitoredQemu;
  readonly #url: string;

  constructor(qemu: MonitoredQemu, port: number) {
    this.#qemu = qemu;
    this.#url = `http://127.0.0.1:${port}/cgi-bin/disk`;
  }

  get client(): QmpClient {
    return this.#qemu.client;
  }

  /** Boot one. */
  static async boot(place: Place, diskPath: string): Promise<DiskGuest> {
    const guest = await DiskGuest.start(place, "guest", diskPath, false);
    await guest.isUp();
    return guest;
  }

  /** Start one, or a QEMU that waits for one to be migrated to it. */
  static async start(
    place: Place,
    name: string,
    diskPath: string,
    incoming: boolean,
  ): Promise<DiskGuest> {
    const guest = await prepareDemoGuest();
    const archive = writeCpio([{
      type: "file",
      path: "www/cgi-bin/disk",
      mode: 0o755,
      content: new TextEncoder().encode(SCRIPT),
    }]);
    // Linux takes several archives one after another.
    const initrdPath = place.path(`${name}.initrd`);
    await Deno.copyFile(guest.initrdPath, initrdPath);
    await Deno.writeFile(initrdPath, archive, { append: true });
    const qemu = await findQemu({ role: "primary" });
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const { port } = listener.addr;
    listener.close();
    const qmpPath = place.path(`${name}.qmp`);
    const args = qemuArgs({
      name: "disks",
      machine: "pc",
      accel: qemu.accel,
      memoryMiB: 128,
      cpus: 1,
      kernelPath: guest.kernelPath,
      initrdPath,
      append: `${guest.append} colo.load=idle`,
      disks: [{ path: diskPath, format: "raw" }],
      nics: [{
        id: "hn0",
        mac: "52:54:00:12:34:56",
        netdev: `user,hostfwd=tcp:127.0.0.1:${port}-:80`,
        model: "virtio-net-pci",
      }],
      qmpPath,
      incoming,
      extraArgs: [],
    });
    return place.use(new DiskGuest(await MonitoredQemu.start(qemu, qmpPath, args), port));
  }

  /** Wait until it writes to its disk. */
  async isUp(): Promise<void> {
    const isUp = async () => await this.#ask("write,0,boot").catch(() => "") === "ok boot";
    await until(isUp, 60_000, "the guest writes to its disk");
  }

  /** End its QEMU at once. */
  kill(): void {
    this.#qemu.process.kill();
  }

  /** Write a block, and wait until the disk has it. */
  async write(block: number, value: string): Promise<void> {
    assertEquals(await this.#ask(`write,${block},${value}`), `ok ${value}`);
  }

  /** Write on and on. */
  async startWriting(): Promise<void> {
    assertEquals(await this.#ask("start"), "ok");
  }

  /** The last number that it has written. */
  async lastWritten(): Promise<number> {
    return Number(await this.#ask("last"));
  }

  /** Have it write no more; returns the last number. */
  async stopWriting(): Promise<number> {
    return Number(await this.#ask("stop"));
  }

  /** Wait until it has written `count` numbers more. */
  async writesOn(count: number, timeoutMs = 20_000): Promise<void> {
    const from = await this.lastWritten();
    const what = `the guest writes on behind ${from}`;
    await until(async () => await this.lastWritten() >= from + count, timeoutMs, what);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#qemu[Symbol.asyncDispose]();
  }

  async #ask(query: string): Promise<string> {
    const signal = AbortSignal.timeout(20_000);
    return (await (await fetch(`${this.#url}?${query}`, { signal })).text()).trim();
  }
}

/** A socket that NBD clients connect to. */
abstract class NbdSocket implements AsyncDisposable {
  readonly #listener: Deno.UnixListener;
  readonly #connections = new Set<Deno.Conn>();
  readonly #running: Promise<void>;

  constructor(path: string) {
    this.#listener = Deno.listen({ transport: "unix", path });
    this.#running = this.#accept();
  }

  protected abstract serve(client: Deno.Conn): Promise<void>;

  protected keep(connection: Deno.Conn): void {
    this.#connections.add(connection);
  }

  /** End all connections. */
  disconnect(): void {
    for (const connection of this.#connections) closeQuietly(connection);
    this.#connections.clear();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#listener.close();
    this.disconnect();
    await this.#running;
  }

  async #accept(): Promise<void> {
    const serving: Promise<void>[] = [];
    try {
      for await (const client of this.#listener) {
        this.keep(client);
        serving.push(this.serve(client).catch(() => {}).finally(() => closeQuietly(client)));
      }
    } catch {
      // The listener was closed.
    }
    await Promise.all(serving);
  }
}

/** Passes a client's connections on to a server, through a gate, and answers early. */
export class GateRelay extends NbdSocket {
  /** That of the last connection. */
  gate: DiskGate | undefined;
  /** What the gate said. */
  readonly said: GateEffect[] = [];
  /** All bytes that came from either side, and all that were passed on. */
  readonly bytes = { fromClient: 0, toServer: 0, fromServer: 0, toClient: 0 };
  /** Is given all bytes, as they come and as they go. */
  onBytes: (way: keyof GateRelay["bytes"], bytes: Uint8Array) => void = () => {};
  readonly #serverPath: string;
  #isExpecting = true;
  #early: EarlyAnswers | undefined;
  #writing = Promise.resolve();
  #client: Deno.Conn | undefined;
  #server: Deno.Conn | undefined;

  constructor(path: string, serverPath: string) {
    super(path);
    this.#serverPath = serverPath;
  }

  checkpoint(epoch: number): void {
    this.gate!.checkpoint(epoch);
  }

  loaded(epoch: number): void {
    this.#do(this.gate!.loaded(epoch));
  }

  /** Let the next client in: QEMU connects again whenever it finds its connection gone. */
  expect(): void {
    this.#isExpecting = true;
  }

  /** As an engine does when it gives the secondary up. */
  cut(): void {
    this.gate?.cut();
    this.disconnect();
  }

  protected override async serve(client: Deno.Conn): Promise<void> {
    if (!this.#isExpecting) return;
    this.#isExpecting = false;
    const server = await Deno.connect({ transport: "unix", path: this.#serverPath });
    this.keep(server);
    this.#client = client;
    this.#server = server;
    const gate = new DiskGate();
    this.gate = gate;
    const early = this.#early = new EarlyAnswers();
    const pump = async (
      from: Deno.Conn,
      way: "fromClient" | "fromServer",
      take: (bytes: Uint8Array) => GateEffect[],
    ) => {
      for await (const bytes of chunksOf(from)) {
        this.#count(way, bytes);
        this.#do(take(bytes.slice()));
        await this.#writing;
      }
    };
    const ended = () => {
      closeQuietly(client);
      closeQuietly(server);
    };
    await Promise.allSettled([
      pump(client, "fromClient", (bytes) => {
        for (const answer of early.fromClient(bytes)) this.#write(client, answer);
        return gate.fromClient(bytes);
      }).finally(ended),
      pump(server, "fromServer", (bytes) => gate.fromServer(bytes)).finally(ended),
    ]);
  }

  #do(effects: readonly GateEffect[]): void {
    for (const effect of effects) {
      if (!("bytes" in effect)) {
        this.said.push(effect);
        continue;
      }
      const isToServer = effect.type === "to-server";
      const [target, bytes] = [isToServer ? this.#server! : this.#client!, effect.bytes];
      this.#count(isToServer ? "toServer" : "toClient", bytes);
      if (!isToServer) this.#early!.fromServer(bytes);
      this.#write(target, bytes);
    }
  }

  #write(target: Deno.Conn, bytes: Uint8Array): void {
    this.#writing = this.#writing.then(() => writeAll(target, bytes)).catch(() => {});
  }

  #count(way: keyof GateRelay["bytes"], bytes: Uint8Array): void {
    this.bytes[way] += bytes.length;
    this.onBytes(way, bytes);
  }
}

/** Has a replica of ours serve a client. */
export class ReplicaSocket extends NbdSocket {
  readonly #replica: DiskReplica;
  readonly failures: string[] = [];
  readonly #early = new EarlyAnswers();
  #writing = Promise.resolve();
  #client: Deno.Conn | undefined;

  constructor(path: string, replica: DiskReplica) {
    super(path);
    this.#replica = replica;
  }

  /** Carry out what the replica said. */
  do(effects: readonly DiskReplicaEffect[]): void {
    for (const effect of effects) {
      const client = this.#client;
      if (effect.type === "failed") this.failures.push(effect.reason);
      if (client === undefined) continue;
      if (effect.type === "send") {
        this.#early.fromServer(effect.bytes);
        this.#write(client, effect.bytes.slice());
      }
      if (effect.type === "close") this.#writing = this.#writing.then(() => closeQuietly(client));
    }
  }

  #write(client: Deno.Conn, bytes: Uint8Array): void {
    this.#writing = this.#writing.then(() => writeAll(client, bytes)).catch(() => {});
  }

  protected override async serve(client: Deno.Conn): Promise<void> {
    const effects = this.#replica.connect();
    if (effects === undefined) return;
    this.#client = client;
    this.do(effects);
    for await (const bytes of chunksOf(client)) {
      for (const answer of this.#early.fromClient(bytes)) this.#write(client, answer);
      this.do(this.#replica.fromClient(bytes.slice()));
      await this.#writing;
    }
  }
}

async function* chunksOf(connection: Deno.Conn): AsyncGenerator<Uint8Array> {
  const buffer = new Uint8Array(256 * 1024);
  for (;;) {
    const count = await connection.read(buffer);
    if (count === null) return;
    yield buffer.subarray(0, count);
  }
}

async function writeAll(connection: Deno.Conn, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) at += await connection.write(bytes.subarray(at));
}

function closeQuietly(connection: Deno.Conn): void {
  try {
    connection.close();
  } catch {
    // Closed already.
  }
}
