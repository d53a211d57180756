import { assert } from "@std/assert/mod.js";
import { decodeMessage, FrameDecoder, type SeedBeginPayload } from "../../engine/link/mod.ts";
import { PAGE_BYTES } from "../../engine/limits.ts";
import type { PlacedBlock } from "../../engine/stream/format.ts";
import { RamRecords } from "../../engine/stream/ram_section.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import type { PassingFrame } from "./_link_relay.ts";
import { memoryOf, until, withRelayedPair } from "./_pair.ts";

const GUEST_MIB = 1024;
const MIB = 1024 * 1024;

/** What the engine may have beyond the mirror of the guest's memory. */
const BEYOND_MIB_MAX = 300;

/** The guest's own writes: a file of random bytes in its memory, which is written anew all the time. */
const WRITTEN_MIB = 384;

/** The peak is taken after so many checkpoints, each with so many pages that are sent whole. */
const LARGE_CHECKPOINTS = 3;
const PAGES_MIN = 128 * MIB / PAGE_BYTES;

const TIMEOUT_MS = 120_000;

/** Knows every page that was sent with a content: the mirror holds those, and no others. */
class SentPages {
  readonly pages = new Set<number>();
  readonly #decoder = new FrameDecoder(WasmKernels.create());
  #records: RamRecords | undefined;

  /** Take a frame of the bulk connection. */
  take({ bytes }: PassingFrame): void {
    for (const frame of this.#decoder.push(bytes)) {
      const message = decodeMessage(frame);
      if (message.type === "seedBegin") this.#records = new RamRecords(placed(message.blocks));
      if (message.type === "pages") this.#count(message.records);
    }
  }

  get mib(): number {
    return this.pages.size * PAGE_BYTES / MIB;
  }

  #count(chunk: Uint8Array): void {
    for (let at = 0; at < chunk.length;) {
      const record = this.#records!.read(
        new DataView(chunk.buffer, chunk.byteOffset + at, chunk.length - at),
      );
      assert(record?.type === "page" || record?.type === "xbzrle");
      if (record.at > 0) this.pages.add(record.page);
      at += record.recordBytes;
    }
  }
}

function placed(blocks: SeedBeginPayload["blocks"]): PlacedBlock[] {
  let firstPage = 0;
  return blocks.map(({ name, sizeBytes }) => {
    const pages = sizeBytes / PAGE_BYTES;
    const block = { name, sizeBytes, firstPage, pages };
    firstPage += pages;
    return block;
  });
}

Deno.test(`the engine of a ${GUEST_MIB} MiB guest needs little memory beyond the mirror`, async () => {
  const options = {
    memoryMiB: GUEST_MIB,
    periodMs: 5000,
    append: `colo.load=random colo.load_pages=${WRITTEN_MIB * MIB / PAGE_BYTES}`,
  };
  await withRelayedPair(options, async (session, relay) => {
    const sent = new SentPages();
    relay.onFrame = (frame) => {
      if (frame.role === "bulk") sent.take(frame);
    };
    await session.protected();
    await until(() => sent.mib > WRITTEN_MIB, TIMEOUT_MS, "the guest has written its memory");
    const from = session.checkpoints.length;
    const large = () =>
      session.checkpoints.slice(from).filter(({ pages }) => pages.whole > PAGES_MIN);
    await until(() => large().length >= LARGE_CHECKPOINTS, TIMEOUT_MS, "checkpoints of many pages");
    // What was never written is not resident in the mirror, and what was written was sent: the pages
    // that were sent with a content are what the mirror takes.
    const mirrorMiB = Math.min(GUEST_MIB, sent.mib);
    const { peakMiB } = memoryOf(session.primary.pid);
    console.log(
      `checkpoints of ${
        large().map(({ dirtyPages }) => dirtyPages)
      } pages; the primary's engine had ` +
        `${peakMiB.toFixed(0)} MiB at the most, ${(peakMiB - mirrorMiB).toFixed(0)} MiB beyond ` +
        `${mirrorMiB.toFixed(0)} MiB of pages in the mirror; the standby's ` +
        `${memoryOf(session.standby.pid).peakMiB.toFixed(0)} MiB`,
    );
    assert(
      peakMiB - mirrorMiB <= BEYOND_MIB_MAX,
      `${(peakMiB - mirrorMiB).toFixed(0)} MiB beyond the mirror`,
    );
  });
});
