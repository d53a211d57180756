/**
 * IP datagrams that come in fragments are put together, so that they are compared as what they say,
 * however each side has cut them. The whole datagram becomes a frame of its own, in memory of its own,
 * behind a plain IP header; the fragments keep their place and leave when it does.
 *
 * Bounded: so many datagrams at once, so many fragments each. Fragments that overlap make a datagram
 * that is never whole (RFC 5722).
 *
 * @module
 */

import { FRAME, FRAME_IPV6 } from "../../wasm/mod.ts";
import {
  PACKET_FRAGMENTS_MAX,
  PACKET_REASSEMBLIES_MAX,
  PACKET_SEGMENT_BYTES,
  PACKET_SEGMENT_FRAMES,
} from "../limits.ts";
import { type FrameStore, LINK, NONE, type SegmentPool } from "./frame_store.ts";

/** Scratch memory that a {@linkcode Reassembler} needs: what the kernel says of a scan. */
export const REASSEMBLER_BYTES = 16;

const [IPV4_HEADER_BYTES, IPV6_HEADER_BYTES] = [20, 40];
const IP_BYTES_MAX = 65535;
const LENGTH_BYTES = 4;

/** A datagram that is not whole yet. */
interface Datagram {
  /** In the order of their offsets; no two overlap. */
  readonly fragments: number[];
  bytes: number;
  /** Known once the last fragment has come. */
  totalBytes: number | undefined;
}

/** What a {@linkcode Reassembler} must know. */
export interface ReassemblerOptions {
  /** Seed of the flow hash. */
  readonly seed: number;
  /** Whether records carry a vnet header. */
  readonly vnetHeader: boolean;
  /** What becomes of a fragment whose datagram will not be whole. */
  readonly abandon: (fragment: number) => void;
}

/** The fragments of one side. */
export class Reassembler {
  readonly #store: FrameStore;
  readonly #pool: SegmentPool;
  readonly #options: ReassemblerOptions;
  readonly #scan: number;
  readonly #datagrams = new Map<string, Datagram>();
  #segment: number;
  #entries = 0;
  #usedBytes = 0;

  constructor(store: FrameStore, pool: SegmentPool, options: ReassemblerOptions) {
    this.#store = store;
    this.#pool = pool;
    this.#options = options;
    this.#scan = store.scratch(REASSEMBLER_BYTES);
    this.#segment = pool.take();
  }

  /**
   * A fragment has come.
   *
   * @returns The whole datagram when this was what it lacked, its fragments as {@linkcode LINK.PARTS};
   * or NONE
   */
  add(fragment: number): number {
    const key = this.#keyOf(fragment);
    const datagram = this.#datagrams.get(key) ?? this.#begin(key);
    if (!this.#insert(datagram, fragment)) {
      this.#datagrams.delete(key);
      for (const other of [...datagram.fragments, fragment]) this.#options.abandon(other);
      return NONE;
    }
    if (datagram.bytes !== datagram.totalBytes) return NONE;
    this.#datagrams.delete(key);
    const frame = this.#build(datagram, datagram.totalBytes);
    if (frame !== NONE) this.#link(frame, datagram, fragment);
    else datagram.fragments.forEach(this.#options.abandon);
    return frame;
  }

  /** Forget what is not whole; the fragments are still their owner's. */
  forget(): void {
    this.#datagrams.clear();
  }

  /** Forget what is not whole, and all that was made is out of use. */
  dropFrames(): void {
    this.#datagrams.clear();
    this.#store.dropPool(this.#pool, this.#segment);
  }

  #begin(key: string): Datagram {
    if (this.#datagrams.size >= PACKET_REASSEMBLIES_MAX) {
      const [oldest] = this.#datagrams;
      if (oldest !== undefined) {
        this.#datagrams.delete(oldest[0]);
        oldest[1].fragments.forEach(this.#options.abandon);
      }
    }
    const datagram: Datagram = { fragments: [], bytes: 0, totalBytes: undefined };
    this.#datagrams.set(key, datagram);
    return datagram;
  }

  /** @returns False when the fragments contradict each other or are too many */
  #insert(datagram: Datagram, fragment: number): boolean {
    const { entries } = this.#store;
    const start = entries[fragment + FRAME.SEQUENCE]!;
    const length = entries[fragment + FRAME.LENGTH]!;
    const end = start + length;
    if (entries[fragment + FRAME.FLAGS] === 0) {
      if (datagram.totalBytes !== undefined && datagram.totalBytes !== end) return false;
      datagram.totalBytes = end;
    }
    const { fragments } = datagram;
    const index = fragments.findLastIndex((other) => entries[other + FRAME.SEQUENCE]! <= start);
    const before = fragments[index];
    const behind = fragments[index + 1];
    const overlaps = before !== undefined && this.#endOf(before) > start ||
      behind !== undefined && entries[behind + FRAME.SEQUENCE]! < end;
    if (overlaps || fragments.length === PACKET_FRAGMENTS_MAX) return false;
    fragments.splice(index + 1, 0, fragment);
    datagram.bytes += length;
    return datagram.totalBytes === undefined ||
      this.#endOf(fragments.at(-1)!) <= datagram.totalBytes;
  }

  #endOf(fragment: number): number {
    const { entries } = this.#store;
    return entries[fragment + FRAME.SEQUENCE]! + entries[fragment + FRAME.LENGTH]!;
  }

  #build({ fragments }: Datagram, payloadBytes: number): number {
    const { entries, kernels } = this.#store;
    const first = fragments[0]!;
    const link = this.#linkAddress(first);
    const linkBytes = entries[first + FRAME.NETWORK]! - link;
    const isVersion6 = (entries[first + FRAME.PROTOCOL]! & FRAME_IPV6) !== 0;
    const headerBytes = isVersion6 ? IPV6_HEADER_BYTES : IPV4_HEADER_BYTES;
    if (payloadBytes + (isVersion6 ? 0 : headerBytes) > IP_BYTES_MAX) return NONE;
    const frameBytes = linkBytes + headerBytes + payloadBytes;
    const record = this.#place(LENGTH_BYTES + frameBytes);
    if (record === NONE) return NONE;
    const view = new DataView(kernels.bytes.buffer);
    view.setUint32(record, frameBytes);
    const network = record + LENGTH_BYTES + linkBytes;
    kernels.copy(record + LENGTH_BYTES, link, linkBytes);
    // The header of the first fragment, its fragment field and options taken out.
    kernels.copy(network, entries[first + FRAME.NETWORK]!, headerBytes);
    if (isVersion6) {
      view.setUint16(network + 4, payloadBytes);
      view.setUint8(network + 6, entries[first + FRAME.PROTOCOL]! & 0xff);
    } else {
      view.setUint8(network, 0x45);
      view.setUint16(network + 2, headerBytes + payloadBytes);
      view.setUint16(network + 6, 0);
    }
    for (const fragment of fragments) {
      kernels.copy(
        network + headerBytes + entries[fragment + FRAME.SEQUENCE]!,
        entries[fragment + FRAME.PAYLOAD]!,
        entries[fragment + FRAME.LENGTH]!,
      );
    }
    return this.#describe(record, LENGTH_BYTES + frameBytes);
  }

  /** @param last The fragment that came last, which tells when the datagram came */
  #link(frame: number, { fragments }: Datagram, last: number): void {
    const { links } = this.#store;
    this.#store.begin(frame, links[last + LINK.EPOCH]!, links[last + LINK.ARRIVAL]!);
    for (const [index, fragment] of fragments.entries()) {
      links[fragment + LINK.NEXT] = fragments[index + 1] ?? NONE;
    }
    links[frame + LINK.PARTS] = fragments[0]!;
  }

  /** @returns An address with room for so many bytes; NONE when all memory is in use */
  #place(sizeBytes: number): number {
    const isFull = this.#usedBytes + sizeBytes > PACKET_SEGMENT_BYTES ||
      this.#entries === PACKET_SEGMENT_FRAMES;
    if (isFull) {
      const segment = this.#pool.take();
      if (segment === NONE) return NONE;
      this.#store.leave(this.#segment);
      this.#segment = segment;
      this.#entries = 0;
      this.#usedBytes = 0;
    }
    const address = this.#store.addressOf(this.#segment) + this.#usedBytes;
    this.#usedBytes += sizeBytes;
    return address;
  }

  #describe(record: number, sizeBytes: number): number {
    const frame = this.#store.frameAt(this.#segment, this.#entries++);
    this.#store.kernels.scanFrames(
      record,
      record + sizeBytes,
      0,
      this.#options.seed,
      this.#store.entryAddress(frame),
      1,
      this.#scan,
    );
    this.#store.use(this.#segment, 1);
    return frame;
  }

  /** Where a frame's Ethernet header is. */
  #linkAddress(frame: number): number {
    const { entries, kernels } = this.#store;
    const start = entries[frame + FRAME.START]!;
    if (!this.#options.vnetHeader) return start + LENGTH_BYTES;
    return start + 2 * LENGTH_BYTES +
      new DataView(kernels.bytes.buffer).getUint32(start + LENGTH_BYTES);
  }

  #keyOf(fragment: number): string {
    const { entries, kernels } = this.#store;
    const addresses = entries[fragment + FRAME.ADDRESSES]!;
    const protocol = entries[fragment + FRAME.PROTOCOL]!;
    const addressBytes = (protocol & FRAME_IPV6) !== 0 ? 32 : 8;
    return [
      ...kernels.bytes.subarray(addresses, addresses + addressBytes),
      protocol,
      entries[fragment + FRAME.VLAN],
      entries[fragment + FRAME.ACKNOWLEDGMENT],
    ].join();
  }
}
