/**
 * How fast frames are compared: without sockets, and through them next to QEMU's own `colo-compare`.
 *
 * @module
 */

import { OutboundProxy } from "../engine/proxy/mod.ts";
import { findQemu } from "../engine/vm/mod.ts";
import { WasmKernels } from "../wasm/mod.ts";
import type { Area, BenchContext } from "./area.ts";
import { row } from "./measure.ts";
import { Comparer } from "./rig/comparer.ts";
import { TcpStream } from "./rig/tcp_stream.ts";
import { costRow, median, type Row } from "./row.ts";

const PAYLOADS = [64, 512, 1460] as const;
const CONNECTIONS = [1, 100, 10_000] as const;
const BARS = { corePairsPerSecond: 1_000_000, ratio: 2, latencyRatio: 1 };

/** What a read of a socket gives at most. */
const READ_BYTES = 64 * 1024;

/** Before the runtime's compiler has done its work, figures are of something else. */
const WARM_UP_ROUNDS = 3;

/** In a recording. */
const CORE_PAIRS = 20_000;
const SOCKET_PAIRS = 60_000;

const LATENCY_PAIRS_PER_SECOND = 10_000;
const LATENCY_CONNECTIONS = 100;

/** A slow spell of the machine is longer than a round: of few rounds, p99 is chance. */
const LATENCY_ROUNDS = 25;

const PEER = "QEMU colo-compare";

async function benchCompare(context: BenchContext): Promise<Row[]> {
  const qemu = await findQemu({ role: "primary", progress: context.progress });
  const startOurs = () => Comparer.startOurs(context);
  const startPeer = () => Comparer.startQemu(context, qemu);
  const rows: Row[] = [];
  for (const payloadBytes of PAYLOADS) {
    for (const connections of CONNECTIONS) {
      const what = `${payloadBytes} B, ${connections} connections`;
      context.progress(`${what}, without sockets`);
      rows.push(row({
        case: `${what}, without sockets`,
        unit: "pairs/s",
        ours: benchCore(payloadBytes, connections, context.quick ? 9 : 25),
        bar: BARS.corePairsPerSecond,
      }));
    }
  }
  for (const payloadBytes of PAYLOADS) {
    for (const connections of CONNECTIONS) {
      const what = `${payloadBytes} B, ${connections} connections`;
      const stream = new TcpStream({ payloadBytes, connections, frames: SOCKET_PAIRS });
      context.progress(`${what}, through sockets`);
      const rounds = context.quick ? 3 : 9;
      const play = (comparer: Comparer, round: number) => comparer.play(stream, round < 0);
      const playAlike = (comparer: Comparer, round: number) =>
        comparer.play(stream, round < 0, Comparer.windows.qemu);
      const socketRow = async (name: string, how: typeof play, bar?: number) => {
        const starts = [startOurs, startPeer];
        const [ours, peer] = await inTurn(context, starts, rounds, how, () => stream.advance());
        rows.push(row({
          case: `${what}, ${name}`,
          unit: "pairs/s",
          ours: median(ours!),
          peer: median(peer!),
          peerName: PEER,
          bar,
        }));
      };
      await socketRow("through sockets", play, BARS.ratio);
      if (connections === LATENCY_CONNECTIONS) {
        await socketRow(`through sockets, ${Comparer.windows.qemu} outstanding`, playAlike);
      }
    }
  }
  for (const payloadBytes of PAYLOADS) {
    {
      rows.push(...await benchLatency(context, [startOurs, startPeer, startPeer], payloadBytes));
    }
  }
  return rows;
}

/** Pairs a second of one thread that has them in memory. */
function benchCore(payloadBytes: number, connections: number, rounds: number): number {
  const stream = new TcpStream({ payloadBytes, connections, frames: CORE_PAIRS });
  const kernels = WasmKernels.create();
  const recording = kernels.alloc(stream.bytes.length);
  const proxy = new OutboundProxy(kernels);
  proxy.protect("compare", 1);
  proxy.loaded(1, 0);
  // A socket's read would copy the bytes as well.
  const read = (from: number, size: number, space: Uint8Array) => {
    const count = Math.min(size, space.length);
    kernels.copy(space.byteOffset, recording + from, count);
    return count;
  };
  const play = () => {
    for (let from = 0; from < stream.bytes.length; from += READ_BYTES) {
      const end = Math.min(from + READ_BYTES, stream.bytes.length);
      for (let at = from; at < end;) {
        const count = read(at, end - at, proxy.primary.space());
        proxy.primaryReceived(count, 0);
        at += count;
      }
      for (let at = from; at < end;) {
        const count = read(at, end - at, proxy.secondary.space());
        proxy.secondaryReceived(count, 0);
        at += count;
      }
      while (proxy.output.bytes > 0) proxy.output.sent(proxy.output.peek().length);
    }
  };
  const rates: number[] = [];
  for (let round = -WARM_UP_ROUNDS; round < rounds; round++) {
    kernels.bytes.set(stream.bytes, recording);
    stream.advance();
    const startMs = performance.now();
    play();
    if (round >= 0) rates.push(CORE_PAIRS * 1000 / (performance.now() - startMs));
  }
  const { released } = proxy.statistics;
  if (released !== CORE_PAIRS * (rounds + WARM_UP_ROUNDS)) {
    throw new Error("not all pairs were equal");
  }
  return median(rates);
}

type Start = () => Promise<Comparer>;

/** Play the same to several, in turn. @returns What each round of each came to */
async function inTurn<T>(
  context: BenchContext,
  starts: readonly Start[],
  rounds: number,
  play: (comparer: Comparer, round: number) => T,
  next: () => void,
): Promise<T[][]> {
  const comparers: Comparer[] = [];
  try {
    for (const start of starts) comparers.push(await start());
    const results = starts.map((): T[] => []);
    for (let round = -WARM_UP_ROUNDS; round < rounds; round++) {
      for (const [index, comparer] of comparers.entries()) {
        const result = play(comparer, round);
        if (round >= 0) results[index]!.push(result);
      }
      next();
      // Playing holds up the thread: now is the time for what else there is, such as Ctrl-C.
      await new Promise((resolve) => setTimeout(resolve));
      context.signal.throwIfAborted();
    }
    return results;
  } finally {
    for (const comparer of comparers) await comparer.close();
  }
}

/** @param starts Ours, the peer, and the peer again: what it differs from itself by is noise */
async function benchLatency(
  context: BenchContext,
  starts: readonly Start[],
  payloadBytes: number,
): Promise<Row[]> {
  const stream = new TcpStream({
    payloadBytes,
    connections: LATENCY_CONNECTIONS,
    frames: LATENCY_PAIRS_PER_SECOND / 2,
  });
  context.progress(`${payloadBytes} B, latency`);
  const play = (comparer: Comparer) => comparer.playAt(stream, LATENCY_PAIRS_PER_SECOND);
  const rounds = context.quick ? 3 : LATENCY_ROUNDS;
  const results = await inTurn(context, starts, rounds, play, () => stream.advance());
  return [0.5, 0.99].flatMap((share) => {
    const [ours, peer, again] = results.map((latencies) =>
      latencies.map((latenciesUs) => latenciesUs[Math.floor(share * latenciesUs.length)]!)
    );
    const common = { unit: "us", peer: peer!, peerName: PEER };
    const name = `${payloadBytes} B, 10,000 pairs/s, p${share * 100}`;
    return [
      costRow({ ...common, case: name, ours: ours!, bar: BARS.latencyRatio }),
      costRow({ ...common, case: `${name}, noise: the peer and itself`, ours: again! }),
    ].map((row) => ({ ...row, sense: "most" as const }));
  });
}

/** The area `compare`. */
export const COMPARE: Area = {
  name: "compare",
  about:
    "Equal TCP frames of both sides, in order. Without sockets: one thread that has the frames in " +
    "memory. Through sockets: the same recording played to a process with our comparator and to " +
    "`colo-compare` in a QEMU without a machine, in turn, by one load generator; the warm-up compares " +
    "every byte that comes out with the recording. As many pairs are outstanding as each deals with " +
    `rightly: ${Comparer.windows.qemu} at \`colo-compare\`, which is the most before its output is out ` +
    `of order, and what it is fastest with; ${Comparer.windows.ours} at ours, which keeps in order what ` +
    "cannot be written yet. What both do with the former is shown as well. Latency is from when a pair was due " +
    "to when its frame came out; what the peer differs from itself by is noise.",
  bar: "least",
  run: benchCompare,
};
