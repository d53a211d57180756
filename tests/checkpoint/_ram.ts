import { assert } from "@std/assert/mod.js";
import type { PlacedBlock } from "../../engine/stream/format.ts";
import { RamRecords } from "../../engine/stream/ram_section.ts";
import { ReferenceKernels } from "../../wasm/mod.ts";

/** Apply a chunk of RAM records to the guest's RAM, an array of pages, as QEMU would. */
export function applyRecords(
  ram: Uint8Array[],
  blocks: readonly PlacedBlock[],
  chunk: Uint8Array,
): void {
  const records = new RamRecords(blocks);
  const kernels = new ReferenceKernels();
  const [source, target] = [kernels.alloc(8192), kernels.alloc(4096)];
  const copy = chunk.slice();
  for (let at = 0; at < copy.length;) {
    const record = records.read(new DataView(copy.buffer, at));
    assert(record?.type === "page" || record?.type === "xbzrle", "not a whole record");
    if (record.type === "xbzrle") {
      kernels.bytes.set(copy.subarray(at + record.at, at + record.at + record.length), source);
      kernels.bytes.set(ram[record.page]!, target);
      assert(kernels.xbzrleDecode(source, record.length, target, 4096) > 0, "malformed XBZRLE");
      ram[record.page] = kernels.bytes.slice(target, target + 4096);
    } else if (record.at === 0) {
      ram[record.page] = new Uint8Array(4096);
    } else {
      ram[record.page] = copy.slice(at + record.at, at + record.at + 4096);
    }
    at += record.recordBytes;
  }
}
