/**
 * The guest: a counter. Each step is a number and a hash over all steps before it, so that whoever sees
 * one knows what must have gone before. What it says is its step, in a frame; its memory is the last
 * steps, a page each, so that a state that is put together from two can be told from one that was.
 *
 * @module
 */

import { ByteWriter } from "../../engine/stream/byte_writer.ts";
import { RAM_FLAG } from "../../engine/stream/format.ts";

/** What the guest has come to. */
export interface Moment {
  readonly step: number;
  readonly hash: number;
  readonly before: Moment | undefined;
  /** A checkpoint behind it was wholly held by a secondary. */
  isHeld: boolean;
  /** A secondary VM has said it. */
  isSaid: boolean;
}

/** Pages of the guest's memory. */
export const PAGES = 4;

export const BLOCK = "r";
export const MACHINE = "model";

/** Where a guest begins; `boot` tells one life from another. */
export function bootMoment(boot: number): Moment {
  return {
    step: 0,
    hash: mixed(boot, 0x1234_5678),
    before: undefined,
    isHeld: false,
    isSaid: false,
  };
}

/** What comes next: the same for two VMs that see the same, which is when the noise is the same. */
export function nextMoment(before: Moment, noise: number): Moment {
  const step = before.step + 1;
  return { step, hash: mixed(before.hash, step + noise), before, isHeld: false, isSaid: false };
}

function mixed(hash: number, value: number): number {
  let bits = Math.imul(hash ^ value, 0x85eb_ca6b);
  bits = Math.imul(bits ^ bits >>> 13, 0xc2b2_ae35);
  return (bits ^ bits >>> 16) >>> 0;
}

/** Whether all of `earlier` is in the history of `later`. */
export function isWithin(earlier: Moment, later: Moment): boolean {
  let at: Moment | undefined = later;
  while (at !== undefined && at.step > earlier.step) at = at.before;
  return at?.step === earlier.step && at.hash === earlier.hash;
}

/** Whether one of them is in the history of the other. */
export function areOneHistory(a: Moment, b: Moment): boolean {
  return a.step <= b.step ? isWithin(a, b) : isWithin(b, a);
}

/** What the pages hold at a moment: each its last step's hash. */
export function pagesAt(moment: Moment): number[] {
  const pages = new Array<number>(PAGES).fill(0);
  let at: Moment | undefined = moment;
  for (let count = 0; count < PAGES && at !== undefined; count++, at = at.before) {
    pages[at.step % PAGES] = at.hash;
  }
  return pages;
}

/** Pages that a guest has written from one moment to another. */
export function dirtyPages(from: Moment, to: Moment): number[] {
  const count = to.step - from.step;
  if (count >= PAGES) return Array.from({ length: PAGES }, (_, page) => page);
  return Array.from({ length: count }, (_, index) => (from.step + 1 + index) % PAGES);
}

/** A chunk with one page: a RAM record as the engine takes it. */
export function chunkOf(page: number, content: number): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u64(page * 4096 + RAM_FLAG.XBZRLE).name(BLOCK)
    .u8(1).u16(4).u32(content).finish();
}

/** The page of a chunk, and what it holds. */
export function readChunk(chunk: Uint8Array): readonly [page: number, content: number] {
  const view = new DataView(chunk.buffer, chunk.byteOffset);
  return [Math.floor(view.getUint32(4) / 4096), view.getUint32(chunk.length - 4)];
}

/** The device state says which moment it is of. */
export function deviceStateOf({ hash }: Moment): Uint8Array<ArrayBuffer> {
  return new ByteWriter().u32(hash).finish();
}

export function readHash(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(0);
}

/** Where the step is in a record: behind its length, Ethernet, IP and UDP. */
const PAYLOAD_AT = 4 + 14 + 20 + 8;
const RECORD_BYTES = PAYLOAD_AT + 18;

/** A datagram's headers, the same for all. */
const TEMPLATE = new ByteWriter()
  .u32(RECORD_BYTES - 4)
  .bytes(Uint8Array.of(2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1)).u16(0x0800)
  .u16(0x4500).u16(46).u32(0).u16(0x4011).u16(0)
  .bytes(Uint8Array.of(10, 0, 0, 1, 10, 0, 0, 2))
  .u16(7000).u16(7000).u16(26).u16(0)
  .bytes(new Uint8Array(18))
  .finish();

/** The record of a chardev in which a guest says where it is. */
export function recordOf({ hash }: Moment): Uint8Array<ArrayBuffer> {
  const record = TEMPLATE.slice();
  new DataView(record.buffer).setUint32(PAYLOAD_AT, hash);
  return record;
}

/** The hashes that whole records say. */
export function readRecords(bytes: Uint8Array): number[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const hashes: number[] = [];
  for (let at = 0; at < bytes.length; at += RECORD_BYTES) {
    hashes.push(view.getUint32(at + PAYLOAD_AT));
  }
  return hashes;
}
