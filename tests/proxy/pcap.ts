/**
 * Reads captures of Ethernet frames as tcpdump writes them.
 *
 * Source: draft-ietf-opsawg-pcap.
 *
 * @module
 */

type Bytes = Uint8Array<ArrayBuffer>;

const [FILE_HEADER_BYTES, RECORD_HEADER_BYTES] = [24, 16];
const LINKTYPE_ETHERNET = 1;
/** Times in microseconds, or in nanoseconds. */
const MAGICS: readonly number[] = [0xa1b2c3d4, 0xa1b23c4d];

/**
 * The frames of a capture, as far as it holds them.
 *
 * @throws {Error} when it is no capture of Ethernet frames; a last record that is cut off is left out
 */
export function readPcap(file: Bytes): readonly Bytes[] {
  const view = new DataView(file.buffer, file.byteOffset, file.length);
  const littleEndian = MAGICS.includes(view.getUint32(0, true));
  if (!littleEndian && !MAGICS.includes(view.getUint32(0))) throw new Error("no capture");
  const u32 = (at: number) => view.getUint32(at, littleEndian);
  if ((u32(20) & 0xfffffff) !== LINKTYPE_ETHERNET) throw new Error("not of Ethernet frames");
  const frames: Bytes[] = [];
  for (let at = FILE_HEADER_BYTES; at + RECORD_HEADER_BYTES <= file.length;) {
    const captured = u32(at + 8);
    at += RECORD_HEADER_BYTES;
    if (at + captured > file.length) break;
    if (captured > 0) frames.push(file.slice(at, at + captured));
    at += captured;
  }
  return frames;
}
