/**
 * Two comparators behind the same three sockets, each a process of its own: QEMU's own `colo-compare`,
 * without a guest, and ours.
 *
 * @module
 */

import { ColoError } from "../../engine/errors.ts";
import type { Qemu } from "../../engine/vm/mod.ts";
import type { BenchContext } from "../area.ts";
import { RawListener, type RawSocket } from "./raw_socket.ts";
import { freshDirectory, until } from "./rig.ts";
import type { TcpStream } from "./tcp_stream.ts";

/** Names of the sockets, in their directory. */
export const SOCKETS = { primary: "pri", secondary: "sec", output: "out" } as const;

const START_TIMEOUT_MS = 20_000;
const STALL_TIMEOUT_MS = 10_000;

/** Pairs outstanding that a comparator deals with rightly, and is fastest with. */
const WINDOW_PAIRS = {
  /** Some more overflow the socket that it writes to, and from then on its output is out of order. */
  qemu: 64,
  /** What it cannot write yet it keeps, in order: any number will do, and more than this is no faster. */
  ours: 1024,
} as const;

/** A comparator under load. */
export class Comparer {
  /** See {@linkcode WINDOW_PAIRS}. */
  static readonly windows = WINDOW_PAIRS;
  readonly #primary: RawSocket;
  readonly #secondary: RawSocket;
  readonly #output: RawSocket;
  readonly #received = new Uint8Array(1 << 20);
  readonly #close: () => Promise<void>;

  /** @param window Pairs outstanding at most, when nothing else is said */
  private constructor(
    sockets: readonly RawSocket[],
    readonly window: number,
    close: () => Promise<void>,
  ) {
    [this.#primary, this.#secondary, this.#output] = sockets as [RawSocket, RawSocket, RawSocket];
    this.#close = close;
  }

  /** `colo-compare` in a QEMU without a machine. */
  static async startQemu(context: BenchContext, { command, env }: Qemu): Promise<Comparer> {
    return await Comparer.#start(context, WINDOW_PAIRS.qemu, (directory) => {
      const socket = (id: string, name: string) => [
        "-chardev",
        `socket,id=${id},path=${directory}/${name},server=off`,
      ];
      const [program = "", ...leading] = command;
      return endOf(
        new Deno.Command(program, {
          args: [
            ...leading,
            ...["-machine", "none", "-nodefaults", "-display", "none", "-S"],
            ...["-object", "iothread,id=iothread1"],
            ...socket("C1", SOCKETS.primary),
            ...socket("C2", SOCKETS.secondary),
            ...socket("C3", SOCKETS.output),
            "-object",
            "colo-compare,id=comp0,primary_in=C1,secondary_in=C2,outdev=C3,iothread=iothread1",
          ],
          env: { ...env },
          stdin: "null",
          stdout: "null",
          stderr: "null",
        }),
      );
    });
  }

  /** Ours. */
  static async startOurs(context: BenchContext): Promise<Comparer> {
    return await Comparer.#start(context, WINDOW_PAIRS.ours, (directory) => {
      const main = new URL("./compare_process.ts", import.meta.url).pathname;
      return endOf(
        new Deno.Command(Deno.execPath(), {
          args: ["run", "-A", main, directory],
          stdin: "null",
          stdout: "null",
          stderr: "inherit",
        }),
      );
    });
  }

  /** Listen, as QEMU's chardevs do, and start one who connects. */
  static async #start(
    context: BenchContext,
    window: number,
    start: (directory: string) => () => Promise<void>,
  ): Promise<Comparer> {
    const directory = await freshDirectory(context);
    const listeners = Object.values(SOCKETS).map((name) => new RawListener(`${directory}/${name}`));
    const sockets: RawSocket[] = [];
    const close = start(directory);
    try {
      for (const listener of listeners) {
        const accept = () => {
          const socket = listener.accept();
          if (socket !== undefined) sockets.push(socket);
          return socket !== undefined;
        };
        const { signal } = context;
        await until(accept, "the comparator does not connect", START_TIMEOUT_MS, signal);
      }
      return new Comparer(sockets, window, close);
    } catch (error) {
      for (const socket of sockets) socket.close();
      await close();
      throw error;
    } finally {
      for (const listener of listeners) listener.close();
    }
  }

  /**
   * Play a stream to both inputs, as fast as it is taken.
   *
   * @param isVerified Whether every byte that comes out is compared with the recording, which takes time
   * @param window Pairs outstanding at most
   * @returns Pairs a second
   * @throws {ColoError} when something else comes out, or nothing
   */
  play({ bytes, recordBytes }: TcpStream, isVerified = false, window = this.window): number {
    const pairs = bytes.length / recordBytes;
    let sent = 0;
    let receivedBytes = 0;
    const startMs = performance.now();
    while (receivedBytes < bytes.length) {
      const outstanding = sent - Math.floor(receivedBytes / recordBytes);
      if (sent < pairs && outstanding <= window / 2) {
        const next = Math.min(pairs, sent + window - outstanding);
        const piece = bytes.subarray(sent * recordBytes, next * recordBytes);
        this.#send(this.#primary, piece);
        this.#send(this.#secondary, piece);
        sent = next;
      }
      const count = this.#receive();
      if (isVerified) this.#verify(bytes, receivedBytes, count);
      receivedBytes += count;
    }
    return pairs * 1000 / (performance.now() - startMs);
  }

  #verify(bytes: Uint8Array, from: number, count: number): void {
    for (let i = 0; i < count; i++) {
      if (this.#received[i] === bytes[from + i]) continue;
      throw new ColoError(`Cannot go on: byte ${from + i} came out of a comparator as another one`);
    }
  }

  #send(socket: RawSocket, piece: Uint8Array<ArrayBuffer>): void {
    for (let at = 0; at < piece.length;) {
      const count = socket.send(piece.subarray(at));
      if (count === 0) socket.wait("write", STALL_TIMEOUT_MS);
      at += count;
    }
  }

  #receive(): number {
    const count = this.#output.receive(this.#received);
    if (count > 0) return count;
    this.#output.wait("read", STALL_TIMEOUT_MS);
    const late = this.#output.receive(this.#received);
    if (late === 0) throw new ColoError("Cannot go on: a comparator gives nothing back");
    return late;
  }

  /**
   * Play a stream at a steady pace.
   *
   * @returns Of each pair, the time from when it was due to when its frame came out, in us
   */
  playAt({ bytes, recordBytes }: TcpStream, pairsPerSecond: number): Float64Array {
    const pairs = bytes.length / recordBytes;
    const latenciesUs = new Float64Array(pairs);
    const intervalMs = 1000 / pairsPerSecond;
    const startMs = performance.now();
    let sent = 0;
    let received = 0;
    let receivedBytes = 0;
    while (received < pairs) {
      const nowMs = performance.now();
      if (sent < pairs && nowMs >= startMs + sent * intervalMs) {
        const piece = bytes.subarray(sent * recordBytes, (sent + 1) * recordBytes);
        this.#send(this.#primary, piece);
        this.#send(this.#secondary, piece);
        sent++;
      }
      receivedBytes += this.#output.receive(this.#received);
      for (; (received + 1) * recordBytes <= receivedBytes; received++) {
        latenciesUs[received] = (performance.now() - startMs - received * intervalMs) * 1000;
      }
      if (nowMs - startMs > pairs * intervalMs + STALL_TIMEOUT_MS) {
        throw new ColoError("Cannot go on: a comparator gives nothing back");
      }
    }
    return latenciesUs.sort();
  }

  async close(): Promise<void> {
    for (const socket of [this.#primary, this.#secondary, this.#output]) socket.close();
    await this.#close();
  }
}

/** Start a contender. @returns Ends it */
function endOf(command: Deno.Command): () => Promise<void> {
  const child = command.spawn();
  return async () => {
    child.kill("SIGKILL");
    await child.status;
  };
}
