/**
 * When a TCP connection is asked for: what listens is told only when there is one.
 *
 * @module
 */

import { ColoError } from "../../engine/errors.ts";

const LIBC = {
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  // Waits, in a thread of its own.
  recv: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize", nonblocking: true },
  close: { parameters: ["i32"], result: "i32" },
} as const;

const [AF_PACKET, SOCK_DGRAM] = [17, 2];

/** ETH_P_ALL, in network byte order. */
const ALL_PROTOCOLS = 0x0300;

const TCP = 6;
const IPV6_HEADER_BYTES = 40;
const [SYN, ACK] = [0x02, 0x10];

/** Whether an IP packet asks for a connection to a port. */
export function isSynTo(packet: Uint8Array, port: number): boolean {
  const version = (packet[0] ?? 0) >> 4;
  const protocol = version === 4 ? packet[9] : version === 6 ? packet[6] : undefined;
  if (protocol !== TCP) return false;
  const at = version === 4 ? (packet[0]! & 15) * 4 : IPV6_HEADER_BYTES;
  if (packet.length < at + 14) return false;
  const flags = packet[at + 13]!;
  return (packet[at + 2]! << 8 | packet[at + 3]!) === port && (flags & (SYN | ACK)) === SYN;
}

/** Watches all network interfaces of this namespace, as root. */
export class SynWatch {
  readonly #port: number;
  #waiting: ((atMs: number) => void)[] = [];

  /**
   * @param port Where somebody listens
   * @throws {ColoError} when the kernel does not let it
   */
  constructor(port: number) {
    this.#port = port;
    const libc = Deno.dlopen("libc.so.6", LIBC).symbols;
    const fd = libc.socket(AF_PACKET, SOCK_DGRAM, ALL_PROTOCOLS);
    if (fd < 0) throw new ColoError("Cannot watch the network: no packet socket");
    this.#watch((buffer) => libc.recv(fd, buffer, BigInt(buffer.length), 0)).finally(() =>
      libc.close(fd)
    );
  }

  /** When the next connection is asked for, on the clock of `performance.now()`. */
  next(): Promise<number> {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  async #watch(receive: (buffer: Uint8Array<ArrayBuffer>) => Promise<bigint>): Promise<void> {
    const buffer = new Uint8Array(128);
    for (let count; (count = Number(await receive(buffer))) >= 0;) {
      if (!isSynTo(buffer.subarray(0, count), this.#port)) continue;
      const atMs = performance.now();
      for (const resolve of this.#waiting.splice(0)) resolve(atMs);
    }
  }
}
