import { assert, assertEquals } from "@std/assert/mod.js";
import { NBD_COMMAND } from "../../engine/block/nbd.ts";
import { NbdServerReader } from "../../engine/block/nbd_reader.ts";
import { DiskTunnel } from "../../engine/host/disk_tunnel.ts";
import { concat, handshake, pattern, said } from "../block/_nbd.ts";

/** A tunnel with a client that was let in, and what was passed on. */
class Rig implements AsyncDisposable {
  readonly passed: Uint8Array[] = [];
  /** When there is room for more. */
  room = Promise.resolve();
  readonly tunnel: DiskTunnel;
  readonly #directory: string;
  readonly #reader = new NbdServerReader();
  #client!: Deno.Conn;

  private constructor() {
    this.#directory = Deno.makeTempDirSync({ prefix: "colo-test-" });
    this.tunnel = new DiskTunnel(this.path, (bytes) => {
      if (bytes.length > 0) this.passed.push(bytes.slice());
      return this.room;
    });
  }

  get path(): string {
    return `${this.#directory}/socket`;
  }

  static async connected(): Promise<Rig> {
    const rig = new Rig();
    rig.#client = await Deno.connect({ transport: "unix", path: rig.path });
    for (const { side, bytes } of handshake("extended")) {
      if (side === "C") {
        await rig.say(bytes);
        await rig.#has(() => rig.passed.length > 0);
        rig.passed.length = 0;
      } else {
        // It listens when somebody is there.
        await sleep(1);
        rig.tunnel.answered(bytes);
        while (rig.#reader.form === undefined && (await rig.#hear()) < bytes.length);
      }
    }
    return rig;
  }

  async say(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length;) at += await this.#client.write(bytes.subarray(at));
  }

  /** @returns What the client was told last, in bytes */
  async #hear(): Promise<number> {
    const buffer = new Uint8Array(4096);
    const count = (await this.#client.read(buffer)) ?? 0;
    this.#reader.push(buffer.subarray(0, count));
    return count;
  }

  async write(seed: number, length: number): Promise<Uint8Array> {
    const request = { command: NBD_COMMAND.WRITE, handle: 7n };
    const bytes = said(request, "extended", pattern(seed, length));
    const raw = new Uint8Array(0);
    const whole = { flags: 0, offset: 0, length, ...request };
    this.#reader.said({ type: "request", raw, request: whole });
    await this.say(bytes);
    return bytes;
  }

  async isAnswered(): Promise<void> {
    while (this.#reader.requests.size > 0) await this.#hear();
  }

  async #has(condition: () => boolean): Promise<void> {
    for (let turn = 0; !condition(); turn++) {
      assert(turn < 1000);
      await sleep(1);
    }
  }

  /** Fulfilled when so many bytes were passed on. */
  async passes(count: number): Promise<Uint8Array> {
    await this.#has(() => concat(...this.passed).length >= count);
    return concat(...this.passed);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.tunnel.close();
    this.#client.close();
    await sleep(1);
    await Deno.remove(this.#directory, { recursive: true });
  }
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

Deno.test("DiskTunnel answers small writes at once, and passes them on together", async () => {
  await using rig = await Rig.connected();
  const written: Uint8Array[] = [];
  for (let seed = 0; seed < 5; seed++) {
    written.push(await rig.write(seed, 512));
    await rig.isAnswered();
  }
  const passed = await rig.passes(concat(...written).length);
  assertEquals(passed, concat(...written));
  assert(rig.passed.length < 5, `${rig.passed.length} times`);
});

Deno.test("DiskTunnel passes on what it has when a mark is to come behind it", async () => {
  await using rig = await Rig.connected();
  const written = await rig.write(1, 512);
  await rig.isAnswered();
  rig.tunnel.flush();
  assertEquals(concat(...rig.passed), written);
});

Deno.test("DiskTunnel passes a large write on as one, whatever it came in", async () => {
  await using rig = await Rig.connected();
  const written = await rig.write(3, 256 * 1024);
  await rig.isAnswered();
  assertEquals(rig.passed.length, 1);
  assertEquals(rig.passed[0]!.length, written.length);
});

Deno.test("DiskTunnel reads no more of a client than the secondary has room for", async () => {
  await using rig = await Rig.connected();
  const { promise, resolve } = Promise.withResolvers<void>();
  rig.room = promise;
  let writtenBytes = 0;
  for (let turn = 0; turn < 40; turn++) {
    // Small ones, which are passed on by the clock alone.
    writtenBytes += (await rig.write(1, 1024)).length;
    await sleep(3);
  }
  const held = concat(...rig.passed).length;
  assert(held < writtenBytes / 2, `${held} of ${writtenBytes} bytes were passed on without room`);
  rig.room = Promise.resolve();
  resolve();
  await rig.isAnswered();
  assertEquals((await rig.passes(writtenBytes)).length, writtenBytes);
});
