/**
 * A recorded packet stream: what both VMs of a pair send, as a chardev carries it. Pure.
 *
 * @module
 */

const [LENGTH_BYTES, LINK_BYTES, IP_BYTES, TCP_BYTES] = [4, 14, 20, 20];
const HEADER_BYTES = LENGTH_BYTES + LINK_BYTES + IP_BYTES + TCP_BYTES;

/** What a {@linkcode TcpStream} is made of. */
export interface TcpStreamOptions {
  /** Of each segment, in bytes. */
  readonly payloadBytes: number;
  /** They take turns. */
  readonly connections: number;
  /** In the recording. */
  readonly frames: number;
}

/** Records of TCP segments in order. */
export class TcpStream {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Of each record. */
  readonly recordBytes: number;
  readonly #options: TcpStreamOptions;
  readonly #next: Uint32Array;
  #turn = 0;

  constructor(options: TcpStreamOptions) {
    this.#options = options;
    this.recordBytes = HEADER_BYTES + options.payloadBytes;
    this.bytes = new Uint8Array(options.frames * this.recordBytes);
    this.#next = new Uint32Array(options.connections).fill(1_000_000);
    for (let i = 0; i < options.frames; i++) this.#write(i * this.recordBytes, i);
    this.advance();
  }

  /** The same once more, as it goes on: later sequence numbers, everything else as it was. */
  advance(): void {
    const { frames, payloadBytes, connections } = this.#options;
    const view = new DataView(this.bytes.buffer);
    for (let i = 0; i < frames; i++) {
      const connection = this.#turn++ % connections;
      const link = i * this.recordBytes + LENGTH_BYTES;
      view.setUint16(link + 32, connection >>> 12);
      view.setUint16(link + 36, 1024 + (connection & 0xfff));
      view.setUint32(link + 38, this.#next[connection]!);
      this.#next[connection] = this.#next[connection]! + payloadBytes;
    }
  }

  #write(at: number, seed: number): void {
    const { payloadBytes } = this.#options;
    const ipBytes = IP_BYTES + TCP_BYTES + payloadBytes;
    const view = new DataView(this.bytes.buffer, at);
    view.setUint32(0, LINK_BYTES + ipBytes);
    this.bytes.set([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0], at + 4);
    const ip = LENGTH_BYTES + LINK_BYTES;
    this.bytes.set([0x45, 0, ipBytes >>> 8, ipBytes, 0, 0, 0x40, 0, 64, 6, 0, 0], at + ip);
    this.bytes.set([10, 0, 0, 1, 10, 1, 0, 0], at + ip + 12);
    const tcp = ip + IP_BYTES;
    view.setUint16(tcp, 80);
    view.setUint32(tcp + 8, 5000);
    view.setUint8(tcp + 12, 0x50);
    view.setUint8(tcp + 13, 0x18);
    view.setUint16(tcp + 14, 0xffff);
    for (let i = 0; i < payloadBytes; i++) this.bytes[at + HEADER_BYTES + i] = seed + i;
  }
}
