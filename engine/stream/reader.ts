/**
 * Reads what a primary QEMU says: the initial migration stream, then COLO's checkpoints.
 *
 * Bytes may come in any pieces. Those that carry pages stay where they were read to
 * ({@linkcode Staging}, in kernel memory); the reader only notes where each page lies.
 *
 * ```text
 *  header -> configuration -> (command | ram START | ram PART | ram END)* -> device state
 *         -> VM description -> message*
 *  message: checkpoint-request
 *         | vmstate-send -> (command | ram PART | ram END)* -> EOF -> vmstate-size -> device state
 * ```
 *
 * Source: QEMU `migration/savevm.c`, `migration/ram.c`, `migration/colo.c`.
 *
 * @module
 */

import { type KernelSet, SCAN } from "../../wasm/mod.ts";
import { StreamError } from "../errors.ts";
import { CONFIGURATION_BYTES_MAX, DEVICE_STATE_BYTES_MAX } from "../limits.ts";
import { GrowingBytes, InitialDeviceStateCollector } from "./device_state.ts";
import {
  CAPABILITIES_SUBSECTION,
  COLO_MESSAGES,
  type ColoMessage,
  coloMessageNumber,
  IGNORE_SHARED,
  type PlacedBlock,
  RAM_SECTION_VERSION,
  SECTION,
  STREAM_MAGIC,
  STREAM_VERSION,
} from "./format.ts";
import { BlockList, RamRecords } from "./ram_section.ts";
import { Staging, type StagingOptions } from "./staging.ts";

/** What a stream consists of, in its order. */
export type StreamEvent =
  | { readonly type: "configuration"; readonly machine: string; readonly capabilities: string[] }
  | { readonly type: "command"; readonly command: number; readonly payload: Uint8Array }
  | {
    readonly type: "section";
    readonly kind: "start" | "part" | "end";
    readonly sectionId: number;
  }
  | { readonly type: "blocks"; readonly blocks: readonly PlacedBlock[] }
  /** Entries `from .. from + count` of the page table are new. */
  | { readonly type: "pages"; readonly from: number; readonly count: number }
  | { readonly type: "xbzrle"; readonly page: number; readonly body: Uint8Array }
  /** Take the pages away, release them, and call {@linkcode StreamReader.resume}. */
  | { readonly type: "staging-full" }
  | { readonly type: "device-state"; readonly deviceState: Uint8Array<ArrayBuffer> }
  | { readonly type: "vm-description"; readonly json: string }
  /** `offset` is where the message begins. */
  | { readonly type: "colo"; readonly message: ColoMessage; readonly offset: number };

type State =
  | "header"
  | "configuration"
  | "subsection"
  | "section"
  | "blocks"
  | "ram"
  | "footer"
  | "initial-device-state"
  | "message"
  | "vmstate-size"
  | "device-state";

/**
 * The reader of one stream, from its first byte on.
 *
 * Either read into {@linkcode Staging.space} and tell {@linkcode StreamReader.received}, which keeps
 * the pages until they are released; or {@linkcode StreamReader.push} chunks, where a page is only
 * valid until the iteration goes on.
 *
 * @example
 * ```ts
 * import { WasmKernels } from "../../wasm/mod.ts";
 * import { StreamReader } from "./reader.ts";
 * import * as write from "./writer.ts";
 *
 * const reader = new StreamReader(WasmKernels.create());
 * const bytes = [...write.header(), ...write.configuration("pc-i440fx-11.1"), ...write.openReturnPath()];
 * const events = [...reader.push(Uint8Array.from(bytes))];
 * if (!(events[0]?.type === "configuration" && events[0].machine === "pc-i440fx-11.1")) throw new Error("not as expected");
 * ```
 */
export class StreamReader {
  readonly staging: Staging;
  readonly #kernels: KernelSet;
  readonly #scanResult: number;
  #events: StreamEvent[] = [];
  #state: State = "header";
  /** Stream offset of the staging position. */
  #offset = 0;
  #initial = true;
  #requested = false;
  #capabilities: string[] = [];
  #ramSectionId: number | undefined;
  #blocks = new BlockList();
  #records: RamRecords | undefined;
  #initialState: InitialDeviceStateCollector | undefined;
  #deviceState = new GrowingBytes();
  #deviceStateBytes = 0;

  constructor(kernels: KernelSet, options: StagingOptions = {}) {
    this.#kernels = kernels;
    this.staging = new Staging(kernels, options);
    this.#scanResult = kernels.alloc(8);
  }

  /** Bytes read and understood so far. */
  get offset(): number {
    return this.#offset;
  }

  /** True where a stream may end: behind the initial stream, between two messages. */
  get atMessageBoundary(): boolean {
    return this.#state === "message" && this.staging.unread === 0;
  }

  /**
   * `count` bytes have been written to what {@linkcode Staging.space} gave.
   *
   * @throws {StreamError} when the bytes are no migration stream; the reader is of no further use
   */
  received(count: number): StreamEvent[] {
    this.staging.filled(count);
    return this.resume();
  }

  /** Read on after a `staging-full` event, when the pages have been released. */
  resume(): StreamEvent[] {
    while (this.#step());
    const events = this.#events;
    this.#events = [];
    if (this.staging.full && events.at(-1)?.type !== "staging-full") {
      events.push({ type: "staging-full" });
    }
    return events;
  }

  /**
   * Read a chunk that lies elsewhere. The pages of an event are released when the iteration goes on.
   *
   * @throws {StreamError} as {@linkcode StreamReader.received}
   */
  *push(chunk: Uint8Array): Generator<StreamEvent, void> {
    let rest = chunk;
    while (rest.length > 0) {
      const space = this.staging.space();
      const piece = rest.subarray(0, space.length);
      space.set(piece);
      rest = rest.subarray(piece.length);
      let events = this.received(piece.length);
      while (true) {
        yield* events;
        this.staging.releasePages();
        if (events.at(-1)?.type !== "staging-full") break;
        events = this.resume();
      }
    }
  }

  /** One step; false when it needs more bytes or more room. */
  #step(): boolean {
    switch (this.#state) {
      case "header":
        return this.#header();
      case "configuration":
      case "section":
        return this.#section();
      case "subsection":
        return this.#subsection();
      case "blocks":
        return this.#blockEntry();
      case "ram":
        return this.#ram();
      case "footer":
        return this.#footer();
      case "initial-device-state":
        return this.#initialDeviceState();
      case "message":
        return this.#message();
      case "vmstate-size":
        return this.#vmstateSize();
      case "device-state":
        return this.#checkpointDeviceState();
    }
  }

  #header(): boolean {
    const view = this.#peek(8);
    if (view === undefined) return false;
    if (view.getUint32(0) !== STREAM_MAGIC) {
      this.#fail("the magic is wrong: this is no migration stream");
    }
    if (view.getUint32(4) !== STREAM_VERSION) {
      this.#fail(`version ${view.getUint32(4)} is not known`, 4);
    }
    this.#consume(8);
    this.#state = "configuration";
    return true;
  }

  #section(): boolean {
    const type = this.#peek(1)?.getUint8(0);
    if (type === undefined) return false;
    if (this.#state === "configuration" && type !== SECTION.CONFIGURATION) {
      this.#fail(`section type ${type} came in place of the configuration`);
    }
    switch (type) {
      case SECTION.CONFIGURATION:
        if (this.#state === "configuration") return this.#configuration();
        break;
      case SECTION.COMMAND:
        return this.#command();
      case SECTION.START:
        if (this.#initial && this.#ramSectionId === undefined) return this.#sectionStart();
        break;
      case SECTION.PART:
      case SECTION.END:
        return this.#sectionGoesOn(type === SECTION.PART ? "part" : "end");
      case SECTION.FULL:
      case SECTION.EOF:
        if (this.#initial && this.#records !== undefined) {
          this.#initialState = new InitialDeviceStateCollector(this.#offset);
          this.#state = "initial-device-state";
          return true;
        }
        if (this.#initial || type === SECTION.FULL) break;
        this.#consume(1);
        this.#state = "vmstate-size";
        return true;
    }
    this.#fail(`section type ${type} is not expected here`);
  }

  #configuration(): boolean {
    const length = this.#peek(5)?.getUint32(1);
    if (length === undefined) return false;
    if (length > CONFIGURATION_BYTES_MAX) this.#fail(`a machine name of ${length} bytes`, 1);
    const view = this.#peek(5 + length);
    if (view === undefined) return false;
    this.#events.push({
      type: "configuration",
      machine: this.#text(view, 5, length),
      capabilities: this.#capabilities,
    });
    this.#consume(5 + length);
    this.#state = "subsection";
    return true;
  }

  /** The capability list, `05 name be32 version be32 count name*`, where there is one. */
  #subsection(): boolean {
    const type = this.#peek(1)?.getUint8(0);
    if (type === undefined) return false;
    this.#state = "section";
    if (type !== SECTION.SUBSECTION) return true;
    const length = this.#subsectionLength();
    if (length === undefined) {
      this.#state = "subsection";
      return false;
    }
    this.#consume(length);
    return true;
  }

  #subsectionLength(): number | undefined {
    const name = this.#name(1);
    if (name === undefined) return undefined;
    if (name.text !== CAPABILITIES_SUBSECTION) this.#fail(`subsection "${name.text}" is not known`);
    const count = this.#peek(name.end + 8)?.getUint32(name.end + 4);
    if (count === undefined) return undefined;
    if (count > 64) this.#fail(`a list of ${count} capabilities`, name.end + 4);
    const capabilities: string[] = [];
    let at = name.end + 8;
    while (capabilities.length < count) {
      const capability = this.#name(at);
      if (capability === undefined) return undefined;
      capabilities.push(capability.text);
      at = capability.end;
    }
    this.#capabilities.push(...capabilities);
    return at;
  }

  #command(): boolean {
    const view = this.#peek(5);
    if (view === undefined) return false;
    const length = view.getUint16(3);
    if (length > CONFIGURATION_BYTES_MAX) this.#fail(`a command of ${length} bytes`, 3);
    const whole = this.#peek(5 + length);
    if (whole === undefined) return false;
    const payload = new Uint8Array(whole.buffer, whole.byteOffset + 5, length).slice();
    this.#events.push({ type: "command", command: whole.getUint16(1), payload });
    this.#consume(5 + length);
    return true;
  }

  #sectionStart(): boolean {
    const name = this.#name(5);
    if (name === undefined) return false;
    const view = this.#peek(name.end + 8);
    if (view === undefined) return false;
    const version = view.getUint32(name.end + 4);
    if (name.text !== "ram" || version !== RAM_SECTION_VERSION) {
      this.#fail(`section "${name.text}" version ${version} is not known`);
    }
    this.#ramSectionId = view.getUint32(1);
    this.#events.push({ type: "section", kind: "start", sectionId: this.#ramSectionId });
    this.#consume(name.end + 8);
    this.#blocks = new BlockList(this.#capabilities.includes(IGNORE_SHARED));
    this.#state = "blocks";
    return true;
  }

  #sectionGoesOn(kind: "part" | "end"): boolean {
    const view = this.#peek(5);
    if (view === undefined) return false;
    const sectionId = view.getUint32(1);
    if (this.#records === undefined || sectionId !== this.#ramSectionId) {
      this.#fail(`section ${sectionId} was never started`, 1);
    }
    this.#events.push({ type: "section", kind, sectionId });
    this.#consume(5);
    this.#state = "ram";
    return true;
  }

  #blockEntry(): boolean {
    const view = this.#peek(this.staging.unread);
    if (view === undefined) return false;
    const result = this.#blocks.read(view);
    if (typeof result === "string") this.#fail(result);
    if (result === 0) return false;
    this.#consume(result);
    if (!this.#blocks.complete) return true;
    this.#records = new RamRecords(this.#blocks.blocks);
    this.#events.push({ type: "blocks", blocks: this.#blocks.blocks });
    this.#state = "ram";
    return true;
  }

  #ram(): boolean {
    const records = this.#records!;
    const status = records.current === undefined ? SCAN.OTHER : this.#scan(records.current);
    if (status === SCAN.BAD_ADDRESS) this.#fail("a page lies outside its RAM block");
    if (status === SCAN.FULL) return this.#full();
    if (status === SCAN.MORE) return false;
    return this.#ramRecord(records);
  }

  /** Have the kernel take all the records it knows; returns why it stopped. */
  #scan(block: PlacedBlock): number {
    const staging = this.staging;
    const from = staging.pageCount;
    const start = staging.position;
    const status = this.#kernels.scanRam(
      start,
      staging.end,
      block.firstPage,
      block.pages,
      staging.table,
      from,
      staging.pagesMax,
      this.#scanResult,
    );
    const result = new DataView(this.#kernels.bytes.buffer, this.#scanResult, 8);
    this.#consume(result.getUint32(0, true) - start);
    staging.pageCount = result.getUint32(4, true);
    if (staging.pageCount > from) {
      this.#events.push({ type: "pages", from, count: staging.pageCount - from });
    }
    return status;
  }

  /** A record that the kernel leaves to us: the first of a block, XBZRLE, the end of the section. */
  #ramRecord(records: RamRecords): boolean {
    const staging = this.staging;
    const view = this.#peek(staging.unread);
    if (view === undefined) return false;
    const record = records.read(view);
    if (record === undefined) return false;
    switch (record.type) {
      case "malformed":
        return this.#fail(record.detail);
      case "end":
        this.#state = "footer";
        break;
      case "page":
        if (staging.pageCount >= staging.pagesMax) return this.#full();
        this.#events.push({ type: "pages", from: staging.pageCount, count: 1 });
        staging.addPage(record.page, record.at === 0 ? 0 : staging.position + record.at);
        break;
      case "xbzrle": {
        const { page, at, length } = record;
        const body = new Uint8Array(view.buffer, view.byteOffset + at, length).slice();
        this.#events.push({ type: "xbzrle", page, body });
        break;
      }
      case "none":
        break;
    }
    this.#consume(record.recordBytes);
    return true;
  }

  #full(): false {
    this.#events.push({ type: "staging-full" });
    return false;
  }

  #footer(): boolean {
    const view = this.#peek(5);
    if (view === undefined) return false;
    if (view.getUint8(0) !== SECTION.FOOTER || view.getUint32(1) !== this.#ramSectionId) {
      this.#fail("the footer of the ram section is wrong");
    }
    this.#consume(5);
    this.#state = "section";
    return true;
  }

  #initialDeviceState(): boolean {
    const { position, end, unread } = this.staging;
    if (unread === 0) return false;
    const found = this.#initialState!.push(this.#kernels.bytes.subarray(position, end));
    this.#consume(found?.consumed ?? unread);
    if (found === undefined) return false;
    this.#endInitial(found.deviceState);
    const { vmDescription: json } = found;
    if (json !== undefined) this.#events.push({ type: "vm-description", json });
    return true;
  }

  #endInitial(deviceState: Uint8Array<ArrayBuffer>): void {
    this.#events.push({ type: "device-state", deviceState });
    this.#initial = false;
    this.#initialState = undefined;
    this.#state = "message";
  }

  /**
   * QEMU has said elsewhere that its initial stream is out, and all of that has been read: only a stream
   * without a VM description needs to be told.
   *
   * @returns The end of the stream; nothing where what has come does not look like one
   */
  finishInitial(): StreamEvent[] {
    const deviceState = this.#initialState?.finish();
    if (deviceState !== undefined) this.#endInitial(deviceState);
    return this.resume();
  }

  #message(): boolean {
    const number = this.#peek(4)?.getUint32(0);
    if (number === undefined) return false;
    const message = COLO_MESSAGES[number];
    if (message === "vmstate-send" && this.#requested) {
      this.#state = "section";
    } else if (message !== "checkpoint-request" || this.#requested) {
      this.#fail(`COLO message ${number} (${message ?? "not known"}) is not expected here`);
    }
    this.#requested = message === "checkpoint-request";
    this.#events.push({ type: "colo", message, offset: this.#offset });
    this.#consume(4);
    return true;
  }

  #vmstateSize(): boolean {
    const view = this.#peek(12);
    if (view === undefined) return false;
    const number = view.getUint32(0);
    if (number !== coloMessageNumber("vmstate-size")) {
      this.#fail(`COLO message ${number} came in place of the device state's size`);
    }
    const sizeBytes = view.getUint32(4) * 2 ** 32 + view.getUint32(8);
    if (sizeBytes === 0 || sizeBytes > DEVICE_STATE_BYTES_MAX) {
      this.#fail(`a device state of ${sizeBytes} bytes (1 to ${DEVICE_STATE_BYTES_MAX})`, 4);
    }
    this.#consume(12);
    this.#deviceState = new GrowingBytes();
    this.#deviceStateBytes = sizeBytes;
    this.#state = "device-state";
    return true;
  }

  #checkpointDeviceState(): boolean {
    const { position, end } = this.staging;
    const wanted = this.#deviceStateBytes - this.#deviceState.length;
    const piece = this.#kernels.bytes.subarray(position, Math.min(end, position + wanted));
    if (piece.length === 0) return false;
    this.#deviceState.append(piece);
    this.#consume(piece.length);
    if (this.#deviceState.length < this.#deviceStateBytes) return false;
    this.#events.push({ type: "device-state", deviceState: this.#deviceState.view().slice() });
    this.#state = "message";
    return true;
  }

  /** The next `count` bytes, or nothing while they have not all arrived. */
  #peek(count: number): DataView | undefined {
    if (this.staging.unread < count || count === 0) return undefined;
    return new DataView(this.#kernels.bytes.buffer, this.staging.position, count);
  }

  /** An id with its length byte, `at` bytes behind the position. */
  #name(at: number): { readonly text: string; readonly end: number } | undefined {
    const length = this.#peek(at + 1)?.getUint8(at);
    if (length === undefined) return undefined;
    const view = this.#peek(at + 1 + length);
    if (view === undefined) return undefined;
    return { text: this.#text(view, at + 1, length), end: at + 1 + length };
  }

  #text(view: DataView, at: number, length: number): string {
    return new TextDecoder().decode(new Uint8Array(view.buffer, view.byteOffset + at, length));
  }

  #consume(count: number): void {
    this.staging.position += count;
    this.#offset += count;
  }

  #fail(detail: string, ahead = 0): never {
    throw new StreamError(`Cannot read migration stream: ${detail}`, this.#offset + ahead);
  }
}
