/**
 * Sums up a captured stream: what `colo inspect` prints.
 *
 * @module
 */

import { PAGE_ENTRY_BYTES, WasmKernels } from "../../wasm/mod.ts";
import { COMMAND, type PlacedBlock } from "./format.ts";
import { type StreamEvent, StreamReader } from "./reader.ts";

/** Pages by the record that carried them. */
export interface PageKinds {
  readonly whole: number;
  readonly zero: number;
  readonly xbzrle: number;
}

/** A RAM block and what came for it. */
export interface InspectedBlock {
  readonly name: string;
  readonly sizeBytes: number;
  readonly pages: PageKinds;
}

/** A device, as the VM description names it. */
export interface InspectedDevice {
  readonly name: string;
  readonly instanceId: number;
  readonly version: number;
}

/** A checkpoint behind the initial stream. */
export interface InspectedCheckpoint {
  /** Offset of its request, in bytes. */
  readonly offset: number;
  readonly pages: PageKinds;
  readonly deviceStateBytes: number;
  /** False where the stream ends in the middle of it. */
  readonly whole: boolean;
}

/** What is in a stream. */
export interface Inspection {
  readonly bytes: number;
  readonly machine: string;
  readonly capabilities: readonly string[];
  readonly commands: readonly string[];
  readonly blocks: readonly InspectedBlock[];
  /** `ram` sections by kind, in the initial stream and all checkpoints. */
  readonly ramSections: { readonly start: number; readonly part: number; readonly end: number };
  readonly initialPages: PageKinds;
  /** Device state of the initial stream. */
  readonly deviceStateBytes: number;
  readonly devices: readonly InspectedDevice[];
  readonly checkpoints: readonly InspectedCheckpoint[];
  /** Whether the stream ends where one may end. */
  readonly complete: boolean;
}

type Counts = { whole: number; zero: number; xbzrle: number };

const noPages = (): Counts => ({ whole: 0, zero: 0, xbzrle: 0 });

/**
 * Reads a stream and counts.
 *
 * @example
 * ```ts
 * import { StreamInspector } from "./inspect.ts";
 * import * as write from "./writer.ts";
 *
 * const inspector = new StreamInspector();
 * inspector.push(write.header());
 * inspector.push(write.configuration("pc-i440fx-11.1"));
 * if (inspector.finish().machine !== "pc-i440fx-11.1") throw new Error("not as expected");
 * ```
 */
export class StreamInspector {
  readonly #kernels = WasmKernels.create();
  readonly #reader = new StreamReader(this.#kernels);
  #bytes = 0;
  #machine = "";
  #capabilities: readonly string[] = [];
  readonly #commands: string[] = [];
  #blocks: readonly PlacedBlock[] = [];
  #blockPages: Counts[] = [];
  readonly #sections = { start: 0, part: 0, end: 0 };
  readonly #initialPages = noPages();
  #deviceStateBytes = 0;
  #devices: InspectedDevice[] = [];
  readonly #checkpoints: {
    offset: number;
    pages: Counts;
    deviceStateBytes: number;
    whole: boolean;
  }[] = [];

  /** @throws {StreamError} when the bytes are no migration stream, with the offset of the first wrong one */
  push(chunk: Uint8Array): void {
    this.#bytes += chunk.length;
    for (const event of this.#reader.push(chunk)) this.#take(event);
  }

  #take(event: StreamEvent): void {
    const checkpoint = this.#checkpoints.at(-1);
    switch (event.type) {
      case "configuration":
        this.#machine = event.machine;
        this.#capabilities = event.capabilities;
        break;
      case "command":
        this.#commands.push(commandName(event.command));
        break;
      case "section":
        this.#sections[event.kind]++;
        break;
      case "blocks":
        this.#blocks = event.blocks;
        this.#blockPages = event.blocks.map(noPages);
        break;
      case "pages":
        this.#countPages(event.from, event.count);
        break;
      case "xbzrle":
        this.#count(event.page, "xbzrle");
        break;
      case "device-state":
        if (checkpoint === undefined) this.#deviceStateBytes = event.deviceState.length;
        else {
          checkpoint.deviceStateBytes = event.deviceState.length;
          checkpoint.whole = true;
        }
        break;
      case "vm-description":
        this.#devices = devicesOf(event.json);
        break;
      case "colo":
        if (event.message === "checkpoint-request") {
          const { offset } = event;
          this.#checkpoints.push({ offset, pages: noPages(), deviceStateBytes: 0, whole: false });
        }
        break;
    }
  }

  #countPages(from: number, count: number): void {
    const { table } = this.#reader.staging;
    const view = new DataView(this.#kernels.bytes.buffer);
    for (let index = from; index < from + count; index++) {
      const entry = table + index * PAGE_ENTRY_BYTES;
      const kind = view.getUint32(entry + 4, true) === 0 ? "zero" : "whole";
      this.#count(view.getUint32(entry, true), kind);
    }
  }

  #count(page: number, kind: keyof Counts): void {
    const block = this.#blocks.findIndex(({ firstPage, pages }) =>
      page >= firstPage && page < firstPage + pages
    );
    this.#blockPages[block]![kind]++;
    (this.#checkpoints.at(-1)?.pages ?? this.#initialPages)[kind]++;
  }

  /** What has been read so far. */
  finish(): Inspection {
    return {
      bytes: this.#bytes,
      machine: this.#machine,
      capabilities: this.#capabilities,
      commands: this.#commands,
      blocks: this.#blocks.map(({ name, sizeBytes }, index) => ({
        name,
        sizeBytes,
        pages: this.#blockPages[index]!,
      })),
      ramSections: this.#sections,
      initialPages: this.#initialPages,
      deviceStateBytes: this.#deviceStateBytes,
      devices: this.#devices,
      checkpoints: this.#checkpoints,
      complete: this.#reader.atMessageBoundary,
    };
  }
}

function commandName(number: number): string {
  const known = Object.entries(COMMAND).find(([, value]) => value === number);
  return known?.[0].toLowerCase().replaceAll("_", "-") ?? `command ${number}`;
}

/** The devices that a VM description lists; it is QEMU's own text and is taken as far as it goes. */
function devicesOf(json: string): InspectedDevice[] {
  const { devices } = JSON.parse(json) as { devices?: unknown };
  if (!Array.isArray(devices)) return [];
  return devices.flatMap((device: Partial<Record<string, unknown>> | null) =>
    typeof device?.name !== "string" ? [] : [{
      name: device.name,
      instanceId: Number(device.instance_id ?? 0),
      version: Number(device.version ?? 0),
    }]
  );
}

/** The inspection as a table for people. */
export function formatInspection(inspection: Inspection): string {
  const { machine, bytes, capabilities, blocks, devices, checkpoints, ramSections } = inspection;
  const kinds = ({ whole, zero, xbzrle }: PageKinds) =>
    [whole, zero, xbzrle].map((count) => String(count).padStart(8)).join(" ");
  const names = devices.map(({ name }) => name);
  return [
    `${bytes} bytes, machine ${machine}${inspection.complete ? "" : ", cut off"}`,
    ...(capabilities.length > 0 ? [`capabilities: ${capabilities.join(", ")}`] : []),
    `commands: ${inspection.commands.join(", ")}`,
    `ram sections: ${ramSections.start} start, ${ramSections.part} part, ${ramSections.end} end`,
    `devices: ${
      names.length > 0 ? names.join(", ") : "none"
    } (${inspection.deviceStateBytes} bytes)`,
    "",
    "block                              bytes    whole     zero   xbzrle",
    ...blocks.map(({ name, sizeBytes, pages }) =>
      `${name.padEnd(28)} ${String(sizeBytes).padStart(11)} ${kinds(pages)}`
    ),
    ...(checkpoints.length === 0 ? [] : [
      "",
      "checkpoint      offset  device state    whole     zero   xbzrle",
      ...checkpoints.map(({ offset, deviceStateBytes, pages, whole }, index) =>
        `${String(index + 1).padStart(10)} ${String(offset).padStart(11)} ` +
        `${String(deviceStateBytes).padStart(13)} ${kinds(pages)}${whole ? "" : "  cut off"}`
      ),
    ]),
  ].join("\n");
}
