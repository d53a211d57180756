/**
 * A program in QEMU's place: the monitor and the migration streams of either side of COLO, over a guest
 * of 72 pages. It lets the hosts be tested in milliseconds, and does on demand what a real QEMU seldom
 * does: the environment variable FAKE_QEMU names a fault.
 *
 * - `break`: the first stream makes no sense in the middle of its second checkpoint
 * - `leave`: the first stream is closed when it was accepted, before COLO is entered
 * - `standby`: no fault; an incoming stream is a plain migration, and the VM runs when it ends
 * - `end`: the VM is shut down as soon as its tenth checkpoint has been written
 * - `disk`: a replica of its disk fails from the tenth checkpoint on, from the twentieth the disk itself
 * - `slow`: a secondary takes its time until it runs on its own
 * - `large`: the guest writes nearly all of its memory between two checkpoints
 *
 * SIGUSR1 ends a primary as a large one ends that was killed: its streams break at once, and it takes a
 * second until it has ended. Of a secondary it breaks the migration stream alone.
 *
 * @module
 */

import { TextLineStream } from "@std/streams/mod.js";
import { writeAll } from "../../engine/host/capture_port.ts";
import { type ReturnPathEvent, ReturnPathReader } from "../../engine/stream/return_path.ts";
import { StreamReader } from "../../engine/stream/reader.ts";
import { ReferenceKernels } from "../../wasm/mod.ts";
import { ModelSecondary } from "../failover/model_secondary.ts";
import { checkpointStream, device, initialStream, type SamplePage } from "../stream/sample.ts";

const fault = Deno.env.get("FAKE_QEMU") ?? "";
const requestAfterMs = 10;
const slowMs = 6000;

interface Command {
  readonly execute: string;
  readonly arguments?: Readonly<Record<string, unknown>>;
  readonly id: number;
}

/** Thrown where a stream ends that the monitor was told to end. */
class Ended extends Error {}

class FakeQemu {
  #monitor: Deno.UnixConn | undefined;
  #colo = "none";
  #migration = "none";
  #streams = 0;
  #stream: Deno.UnixConn | undefined;
  #lingers = false;

  constructor(readonly incoming: boolean) {}

  async serveMonitor(path: string): Promise<void> {
    const listener = Deno.listen({ transport: "unix", path });
    this.#monitor = await listener.accept();
    const version = { qemu: { major: 11, minor: 1, micro: 3 }, package: "fake" };
    this.#say({ QMP: { version, capabilities: [] } });
    const lines: ReadableStream<string> = this.#monitor.readable
      .pipeThrough(new TextDecoderStream()).pipeThrough(new TextLineStream());
    try {
      for await (const line of lines) {
        const command = JSON.parse(line) as Command;
        this.#say({ return: this.#execute(command), id: command.id });
      }
      Deno.exit(0);
    } catch (error) {
      if (!this.#lingers) throw error;
    }
  }

  #say(message: unknown): void {
    this.#monitor!.write(new TextEncoder().encode(JSON.stringify(message) + "\n"));
  }

  event(event: string, data: Readonly<Record<string, unknown>> = {}): void {
    const now = performance.timeOrigin + performance.now();
    const seconds = Math.floor(now / 1000);
    const timestamp = { seconds, microseconds: Math.floor((now - 1000 * seconds) * 1000) };
    this.#say({ event, data, timestamp });
  }

  #execute({ execute, arguments: args }: Command): unknown {
    switch (execute) {
      case "migrate":
        this.#serve(this.#beginPrimary(String(args?.uri)));
        return {};
      case "migrate-incoming":
        this.#serve(this.#beginSecondary(String(args?.uri)));
        return {};
      case "query-migrate":
        return { status: this.#migration };
      case "query-yank":
        return [];
      case "query-colo-status":
        return { mode: this.#colo, "last-mode": "none", reason: "none" };
      case "query-status":
        return { status: "running", running: true };
      case "human-monitor-command":
        return "";
      case "x-colo-lost-heartbeat":
        if (fault === "slow") setTimeout(() => this.#leaveColo(), slowMs);
        else this.#leaveColo();
        return {};
      case "quit":
        this.event("SHUTDOWN", { guest: false, reason: "host-qmp-quit" });
        setTimeout(() => Deno.exit(0), 20);
        return {};
      default:
        return {};
    }
  }

  #leaveColo(): void {
    this.#colo = "none";
    this.#migration = "completed";
    this.event("RESUME");
    this.#stream?.close();
  }

  breakOff(): void {
    this.#stream?.close();
    if (this.incoming) return;
    this.#lingers = true;
    this.#monitor?.close();
    setTimeout(() => Deno.exit(1), 1000);
  }

  /** A stream that breaks leaves the guest as it is; anything else is a fault of this program. */
  #serve(work: Promise<void>): void {
    work.catch((error) => {
      const ended = error instanceof Ended || error instanceof Deno.errors.BadResource ||
        error instanceof Deno.errors.BrokenPipe || error instanceof Deno.errors.ConnectionReset ||
        error instanceof Deno.errors.Interrupted;
      if (!ended) {
        console.error(error);
        Deno.exit(3);
      }
      if (this.#migration === "active") this.#migration = "failed";
    });
  }

  async #beginPrimary(uri: string): Promise<void> {
    const connection = await Deno.connect({ transport: "unix", path: uri.replace("unix:", "") });
    this.#stream = connection;
    this.#migration = "active";
    const stream = ++this.#streams;
    const answers = answersOf(connection);
    await writeAll(connection, initialStream([...pages(0), ...rom()]));
    await expect(answers, "shut");
    if (fault === "leave" && stream === 1) {
      connection.close();
      throw new Ended();
    }
    this.#migration = "colo";
    this.#colo = "primary";
    this.event("MIGRATION", { status: "colo" });
    await expect(answers, "checkpoint-ready");
    for (let epoch = 1;; epoch++) {
      await new Promise((resolve) => setTimeout(resolve, requestAfterMs));
      const bytes = checkpointStream(pages(epoch), device(Uint8Array.of(epoch % 256)));
      await writeAll(connection, bytes.subarray(0, 4));
      await expect(answers, "checkpoint-reply");
      this.event("STOP");
      const broken = fault === "break" && stream === 1 && epoch === 2;
      await writeAll(connection, broken ? bytes.slice(4, 5000).fill(0xee, 12) : bytes.subarray(4));
      if (fault === "end" && epoch === 10) {
        connection.close();
        this.event("SHUTDOWN", { guest: false, reason: "host-qmp-quit" });
        setTimeout(() => Deno.exit(0), 50);
        throw new Ended();
      }
      await expect(answers, "vmstate-received");
      await expect(answers, "vmstate-loaded");
      this.event("RESUME");
      if (fault === "disk" && epoch >= 10) {
        const node = epoch < 20 ? "colo-disk0-replica" : "disk0";
        const where = { "sector-num": 0, "sectors-count": 1 };
        this.event("QUORUM_REPORT_BAD", {
          type: "write",
          error: "I/O error",
          "node-name": node,
          ...where,
        });
      }
    }
  }

  async #beginSecondary(uri: string): Promise<void> {
    const listener = Deno.listen({ transport: "unix", path: uri.replace("unix:", "") });
    const connection = await listener.accept();
    this.#stream = connection;
    if (fault === "standby") return await this.#standBy(connection);
    this.#colo = "secondary";
    const model = new ModelSecondary();
    const buffer = new Uint8Array(64 * 1024);
    for (let count; (count = await connection.read(buffer)) !== null;) {
      model.write(buffer.subarray(0, count));
      await writeAll(connection, model.read(1000));
    }
  }

  async #standBy(connection: Deno.UnixConn): Promise<void> {
    const reader = new StreamReader(new ReferenceKernels());
    const buffer = new Uint8Array(64 * 1024);
    for (let count; (count = await connection.read(buffer)) !== null;) {
      const events = [...reader.push(buffer.subarray(0, count)), ...reader.finishInitial()];
      if (events.some(({ type }) => type === "device-state")) return this.event("RESUME");
    }
    // As QEMU does when its migration breaks.
    Deno.exit(1);
  }
}

/** The pages that the guest has written since the checkpoint before. */
function pages(epoch: number): SamplePage[] {
  const count = fault === "large" ? 60 : 3;
  return Array.from({ length: count }, (_, index) => ({
    block: 0,
    page: (epoch * 3 + index) % 64,
    fill: fault === "large" ? 5 + 2 * (epoch % 8) : (epoch + index) % 5,
  }));
}

function rom(): SamplePage[] {
  return Array.from({ length: 8 }, (_, page) => ({ block: 1, page, fill: 3 }));
}

async function* answersOf(connection: Deno.UnixConn): AsyncGenerator<ReturnPathEvent, void> {
  const reader = new ReturnPathReader();
  const buffer = new Uint8Array(1024);
  for (let count; (count = await connection.read(buffer)) !== null;) {
    yield* reader.push(buffer.subarray(0, count));
  }
}

async function expect(answers: AsyncGenerator<ReturnPathEvent, void>, what: string): Promise<void> {
  const { value, done } = await answers.next();
  if (done) throw new Ended();
  const said = value.type === "colo" ? value.message : value.type;
  if (said !== what) throw new Error(`The engine said ${said}, not ${what}`);
}

if (import.meta.main) {
  const monitor = Deno.args.find((arg) => arg.includes("id=qmp"));
  const path = /path=([^,]+)/.exec(monitor ?? "")?.[1];
  if (path === undefined) throw new Error("no monitor");
  const qemu = new FakeQemu(Deno.args.includes("-incoming"));
  Deno.addSignalListener("SIGUSR1", () => qemu.breakOff());
  await qemu.serveMonitor(path);
}
