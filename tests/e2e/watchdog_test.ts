import { assert, assertStringIncludes } from "@std/assert/mod.js";
import { ConsoleTail } from "../../cli/demo/console_tail.ts";
import { freePort } from "../../cli/demo/session.ts";
import { parseVmConfig } from "../../engine/config/mod.ts";
import { PrimaryHost, type Report } from "../../engine/host/mod.ts";
import { findQemu, prepareDemoGuest } from "../../engine/vm/mod.ts";
import { sleep } from "./_pair.ts";

const REPLY = Uint8Array.of(0, 0, 0, 2);

/** Replies after which the next bytes of the primary are spoilt: by then the guest has booted. */
const REPLIES_BEFORE = 40;

/**
 * Stands between a primary QEMU and the engine, and spoils the head of one checkpoint: after the reply
 * the guest stands still, and what comes next is a COLO message.
 */
class SpoilingProxy {
  spoiltMs = 0;
  #replies = 0;
  readonly #listener: Deno.UnixListener;
  readonly #connections: Deno.Conn[] = [];

  constructor(path: string, readonly target: string) {
    this.#listener = Deno.listen({ transport: "unix", path });
    this.#accept().catch(() => {});
  }

  async #accept(): Promise<void> {
    for await (const qemu of this.#listener) {
      const engine = await Deno.connect({ transport: "unix", path: this.target });
      this.#connections.push(qemu, engine);
      this.#pump(qemu, engine, (bytes) => this.#spoil(bytes));
      this.#pump(engine, qemu, (bytes) => {
        if (bytes.length === 4 && bytes.every((byte, at) => byte === REPLY[at])) this.#replies++;
      });
    }
  }

  #spoil(bytes: Uint8Array): void {
    if (this.#replies < REPLIES_BEFORE || this.spoiltMs !== 0) return;
    bytes[0] = 0xff;
    this.spoiltMs = performance.now();
  }

  async #pump(from: Deno.Conn, to: Deno.Conn, look: (bytes: Uint8Array) => void): Promise<void> {
    const buffer = new Uint8Array(256 * 1024);
    try {
      for (let count; (count = await from.read(buffer)) !== null;) {
        const bytes = buffer.subarray(0, count);
        look(bytes);
        for (let at = 0; at < count;) at += await to.write(bytes.subarray(at));
      }
      to.close();
    } catch {
      // One side broke off: so does the other.
      for (const side of [from, to]) {
        try {
          side.close();
        } catch {
          // Closed already.
        }
      }
    }
  }

  close(): void {
    this.#listener.close();
    for (const connection of this.#connections) {
      try {
        connection.close();
      } catch {
        // Closed already.
      }
    }
  }
}

Deno.test("the guest runs on when its stream breaks in a checkpoint, and is captured anew", async () => {
  const qemu = await findQemu({ role: "primary" });
  const guest = await prepareDemoGuest();
  const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
  const config = parseVmConfig(
    [
      "[vm]",
      'name = "watched"',
      "memory = 128",
      `kernel = ${JSON.stringify(guest.kernelPath)}`,
      `initrd = ${JSON.stringify(guest.initrdPath)}`,
      `append = ${JSON.stringify(guest.append)}`,
      'console = "console.log"',
      "[replication]",
      "period = 100",
      `peer = "127.0.0.1:${freePort()}"`,
    ].join("\n"),
    `${directory}/vm.toml`,
  );
  const reports: Report[] = [];
  const host = new PrimaryHost({
    config,
    qemu,
    directory,
    report: (report) => reports.push(report),
  });
  // QEMU finds the proxy where it looks for the engine.
  await Deno.rename(`${directory}/capture.sock`, `${directory}/engine.sock`);
  const proxy = new SpoilingProxy(`${directory}/capture.sock`, `${directory}/engine.sock`);
  const running = host.run();
  const tail = new ConsoleTail(`${directory}/console.log`);
  const until = async (what: string, condition: () => boolean, timeoutMs: number) => {
    const deadline = performance.now() + timeoutMs;
    while (!condition()) {
      assert(performance.now() < deadline, `not within ${timeoutMs} ms: ${what}`);
      tail.poll();
      await sleep(10);
    }
  };
  const phases = () => reports.flatMap((report) => report.event === "primary" ? [report] : []);
  try {
    await until("the stream is spoilt", () => proxy.spoiltMs !== 0, 60_000);
    const ticks = tail.ticks.length;
    assert(ticks >= 1, "the guest had not booted");
    await until("unattended", () => phases().some(({ phase }) => phase === "unattended"), 2000);
    assertStringIncludes(phases().at(-1)!.reason, "COLO message");
    await until("the guest ticks again", () => tail.ticks.length > ticks, 2000);
    await until("captured anew", () => phases().at(-1)?.phase === "alone", 10_000);
    const checkpoints = () => reports.filter(({ event }) => event === "checkpoint").length;
    const before = checkpoints();
    await until("checkpoints go on", () => checkpoints() >= before + 5, 10_000);
    assert(tail.ticks.every(({ chainOk, fileOk }) => chainOk && fileOk), "the guest was harmed");
  } finally {
    await host.stop("the test is over");
    await running;
    proxy.close();
    await Deno.remove(directory, { recursive: true });
  }
});
