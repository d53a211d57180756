/**
 * The floor under every engine: reads what a primary QEMU sends, finds the end of each checkpoint and
 * acknowledges it. Nothing is kept, nothing is sent on.
 *
 * @module
 */

import { writeAll } from "../../engine/host/capture_port.ts";
import { startVm, type Vm } from "../../engine/host/start_vm.ts";
import { shut, type StreamEvent, StreamReader, streamWriter } from "../../engine/stream/mod.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import { type Checkpoint, type Contender, QmpPrimary } from "./contender.ts";
import type { BenchGuest } from "./guest.ts";
import { freshDirectory } from "./rig.ts";

const { coloMessage } = streamWriter;

/** What is out is read within so long. */
const QUIET_MS = 5;

/** A primary QEMU with a reader in place of a secondary. */
export class Floor implements Contender {
  readonly #vm: Vm;
  readonly #listener: Deno.UnixListener;
  readonly #primary: QmpPrimary;
  readonly #periodMs: number;
  readonly #reader = new StreamReader(WasmKernels.create());
  #connection: Deno.UnixConn | undefined;
  #initial = true;
  #pages = 0;
  #lastPages = 0;

  private constructor(vm: Vm, primary: QmpPrimary, path: string, periodMs: number) {
    this.#vm = vm;
    this.#primary = primary;
    this.#periodMs = periodMs;
    this.#listener = Deno.listen({ transport: "unix", path });
    const colo = vm.qmp.waitFor("MIGRATION", ({ data }) => data.status === "colo", {
      timeoutMs: Infinity,
    });
    colo.then(() => this.#entered()).catch(() => {});
    this.#read().catch(() => {});
  }

  /** Start the primary; returns when it runs under COLO. */
  static async start(guest: BenchGuest, periodMs: number): Promise<Floor> {
    const { rig } = guest;
    const directory = await freshDirectory(rig);
    const config = guest.config({ side: "primary" }, directory);
    const vm = await startVm({
      config,
      qemu: rig.qemu,
      directory,
      incoming: false,
      report: () => {},
    });
    const path = `${directory}/floor`;
    const floor = new Floor(vm, new QmpPrimary(rig, vm.qmp), path, periodMs);
    try {
      await floor.#primary.migrate(`unix:${path}`);
      return floor;
    } catch (error) {
      await floor.close();
      throw error;
    }
  }

  take(count: number): Promise<Checkpoint[]> {
    return this.#primary.take(count, this.#periodMs, () => ({ pages: this.#lastPages }));
  }

  async close(): Promise<void> {
    this.#vm.process.kill();
    await this.#vm.stop();
    this.#listener.close();
    try {
      this.#connection?.close();
    } catch {
      // Closed already.
    }
  }

  async #read(): Promise<void> {
    const connection = await this.#listener.accept();
    this.#connection = connection;
    this.#answer(shut());
    const { staging } = this.#reader;
    for (let count; (count = await connection.read(staging.space())) !== null;) {
      let events = this.#reader.received(count);
      for (const event of events) this.#take(event);
      while (events.at(-1)?.type === "staging-full") {
        this.#drop();
        events = this.#reader.resume();
        for (const event of events) this.#take(event);
      }
      if (this.#initial) this.#drop();
    }
  }

  /** The primary has entered COLO: its initial stream is out, and what has not been read comes now. */
  async #entered(): Promise<void> {
    while (this.#initial) {
      await new Promise((resolve) => setTimeout(resolve, QUIET_MS));
      for (const event of this.#reader.finishInitial()) this.#take(event);
    }
    this.#answer(coloMessage("checkpoint-ready"));
  }

  #take(event: StreamEvent): void {
    if (event.type === "colo" && event.message === "checkpoint-request") {
      this.#answer(coloMessage("checkpoint-reply"));
    } else if (event.type === "device-state" && this.#initial) {
      this.#initial = false;
      this.#drop();
      this.#pages = 0;
    } else if (event.type === "device-state") {
      this.#answer(coloMessage("vmstate-received"), coloMessage("vmstate-loaded"));
      this.#drop();
      this.#lastPages = this.#pages;
      this.#pages = 0;
    }
  }

  #drop(): void {
    const { staging } = this.#reader;
    this.#pages += staging.pageCount;
    staging.releasePages();
  }

  #answer(...messages: readonly Uint8Array[]): void {
    const connection = this.#connection;
    if (connection === undefined) return;
    // A primary that is gone says so over QMP.
    writeAll(connection, Uint8Array.from(messages.flatMap((message) => [...message])))
      .catch(() => {});
  }
}
