/**
 * A secondary QEMU as far as COLO is concerned: reads the stream that it is given with the same reader
 * that reads a primary's, answers as QEMU does, and loads RAM and device state.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert/mod.js";
import type { PlacedBlock } from "../../engine/stream/format.ts";
import { type StreamEvent, StreamReader } from "../../engine/stream/reader.ts";
import { pong, shut } from "../../engine/stream/return_path.ts";
import { coloMessage } from "../../engine/stream/writer.ts";
import { ReferenceKernels } from "../../wasm/mod.ts";
import { concat } from "../stream/sample.ts";

/** What QEMU runs from after a load. */
export interface Load {
  readonly deviceState: Uint8Array;
  /** Its pages, all RAM blocks one after another. */
  readonly ram: readonly Uint8Array[];
}

const SMALL_STAGING = { segmentBytes: 32 * 1024, segmentsMax: 4, pagesMax: 16 };

/** One secondary QEMU. */
export class ModelSecondary {
  readonly loads: Load[] = [];
  machine = "";
  readonly #kernels = new ReferenceKernels();
  readonly #reader = new StreamReader(this.#kernels, SMALL_STAGING);
  readonly #page = this.#kernels.alloc(4096);
  readonly #body = this.#kernels.alloc(4096);
  #blocks: readonly PlacedBlock[] = [];
  #ram: Uint8Array[] = [];
  /** As QEMU's colo_cache: pages of a checkpoint wait here until its device state has come. */
  #staged = new Map<number, Uint8Array>();
  #answers: Uint8Array[] = [];
  #mayRequest = false;
  #maySend = false;

  /** True between two loads, with every byte that it was given read. */
  get atRest(): boolean {
    return this.#reader.atMessageBoundary && this.#answers.length === 0;
  }

  /** Bytes for this QEMU; throws what {@linkcode StreamReader} throws. */
  write(bytes: Uint8Array): void {
    for (const event of this.#reader.push(bytes)) this.#take(event);
    // QEMU knows its devices, and so where their state ends.
    for (const event of this.#reader.finishInitial()) this.#take(event);
  }

  /** The next bytes of its answers, as many as `count`. */
  read(count: number): Uint8Array {
    const all = concat(...this.#answers);
    const taken = all.slice(0, count);
    this.#answers = all.length > count ? [all.slice(count)] : [];
    return taken;
  }

  get unreadBytes(): number {
    return this.#answers.reduce((sum, answer) => sum + answer.length, 0);
  }

  #take(event: StreamEvent): void {
    switch (event.type) {
      case "configuration":
        this.machine = event.machine;
        assertEquals(event.capabilities, []);
        break;
      case "command":
        if (event.command === 2) this.#answer(pong(1));
        break;
      case "blocks":
        this.#blocks = event.blocks;
        // Of a fresh VM the main memory is zero, and its ROM is not.
        this.#ram = event.blocks.flatMap(({ pages }, index) =>
          Array.from({ length: pages }, () => new Uint8Array(4096).fill(index === 0 ? 0 : 0xee))
        );
        break;
      case "pages":
        this.#takePages(event.from, event.count);
        break;
      case "xbzrle":
        this.#takeChange(event.page, event.body);
        break;
      case "device-state":
        for (const [page, content] of this.#staged) this.#ram[page] = content;
        this.#staged.clear();
        this.loads.push({ deviceState: event.deviceState, ram: this.#ram.slice() });
        if (this.loads.length > 1) {
          this.#answer(coloMessage("vmstate-received"), coloMessage("vmstate-loaded"));
        } else {
          this.#answer(shut(), coloMessage("checkpoint-ready"));
          this.#mayRequest = true;
        }
        break;
      case "vm-description":
        throw new Error("with suppress-vmdesc=on, QEMU takes it for a message");
      case "colo":
        this.#message(event.message);
        break;
    }
  }

  #message(message: string): void {
    if (message === "checkpoint-request") {
      assert(this.#mayRequest, "a request while a load is under way");
      assertEquals(this.unreadBytes, 0, "a request before the last answer was read");
      this.#mayRequest = false;
      this.#maySend = true;
      this.#answer(coloMessage("checkpoint-reply"));
    } else {
      assertEquals(message, "vmstate-send");
      assert(this.#maySend, "a checkpoint that was not asked for");
      assertEquals(this.unreadBytes, 0, "a checkpoint before the reply was read");
      this.#maySend = false;
      this.#mayRequest = true;
    }
  }

  #takePages(from: number, count: number): void {
    const { bytes } = this.#kernels;
    const view = new DataView(bytes.buffer);
    for (let index = from; index < from + count; index++) {
      const entry = this.#reader.staging.table + index * 8;
      const at = view.getUint32(entry + 4, true);
      const content = at === 0 ? new Uint8Array(4096) : bytes.slice(at, at + 4096);
      this.#staged.set(view.getUint32(entry, true), content);
    }
  }

  #takeChange(page: number, body: Uint8Array): void {
    assert(this.loads.length > 0, "QEMU takes no XBZRLE in the initial stream");
    const kernels = this.#kernels;
    kernels.bytes.set(this.#staged.get(page) ?? this.#ram[page]!, this.#page);
    kernels.bytes.set(body, this.#body);
    assert(kernels.xbzrleDecode(this.#body, body.length, this.#page, 4096) > 0, "malformed XBZRLE");
    this.#staged.set(page, kernels.bytes.slice(this.#page, this.#page + 4096));
  }

  #answer(...messages: readonly Uint8Array[]): void {
    this.#answers.push(...messages);
  }
}
