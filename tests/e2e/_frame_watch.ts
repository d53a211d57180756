/**
 * Who says something in the guest's name: watches the ports of the switch, as a process in its network.
 *
 * @module
 */

import { TextLineStream } from "@std/streams/mod.js";
import type { Hosts } from "../../bench/rig/hosts.ts";

/** Frames that came from one port before any came from another. */
export interface FrameRun {
  /** The host that the port leads to. */
  readonly port: string;
  readonly frames: number;
  /** On the clock of `performance.timeOrigin`. */
  readonly firstMs: number;
  readonly lastMs: number;
}

const LIBC = {
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  setsockopt: { parameters: ["i32", "i32", "i32", "buffer", "u32"], result: "i32" },
  if_nametoindex: { parameters: ["buffer"], result: "u32" },
  // Waits, in a thread of its own.
  recv: { parameters: ["i32", "buffer", "usize", "i32"], result: "isize", nonblocking: true },
} as const;

const [AF_PACKET, SOCK_RAW] = [17, 3];
const [SOL_SOCKET, SO_RCVBUFFORCE] = [1, 33];
const [SOL_PACKET, PACKET_IGNORE_OUTGOING] = [263, 23];

/** ETH_P_ALL, in network byte order. */
const ALL_PROTOCOLS = 0x0300;

const RECEIVE_BUFFER_BYTES = 8 * 1024 * 1024;
const SOURCE_AT = 6;
const ETHERTYPE_AT = 12;
const IPV4 = 0x0800;

/** Between two lines of what goes on and on. */
const LINE_MS = 100;

/** Watches until it is stopped. */
export class FrameWatch {
  readonly #child: Deno.ChildProcess;
  readonly #runs: Promise<FrameRun[]>;

  /** @param mac Of the guest */
  constructor(hosts: Hosts, mac: string) {
    const main = new URL(import.meta.url).pathname;
    const ports = [hosts.a.role, hosts.b.role];
    const command = [...hosts.switch.prefix, Deno.execPath(), "run", "-A", main, mac, ...ports];
    const [program = "", ...args] = command;
    this.#child = new Deno.Command(program, { args, stdin: "null", stdout: "piped" }).spawn();
    this.#runs = this.#read();
  }

  /** IP packets that the guest has sent, or somebody in its name, in the order in which they came. */
  async stop(): Promise<readonly FrameRun[]> {
    // For what is under way in it.
    await new Promise((resolve) => setTimeout(resolve, 2 * LINE_MS));
    this.#child.kill("SIGKILL");
    const runs = await this.#runs;
    await this.#child.status;
    return runs;
  }

  async #read(): Promise<FrameRun[]> {
    const lines: ReadableStream<string> = this.#child.stdout.pipeThrough(new TextDecoderStream())
      .pipeThrough(new TextLineStream());
    const runs: FrameRun[] = [];
    for await (const line of lines) {
      const next = JSON.parse(line) as FrameRun;
      const last = runs.at(-1);
      if (last?.port !== next.port) runs.push(next);
      else {
        const frames = last.frames + next.frames;
        runs[runs.length - 1] = { ...last, frames, lastMs: next.lastMs };
      }
    }
    return runs;
  }
}

async function watch(mac: string, ports: readonly string[]): Promise<void> {
  const libc = Deno.dlopen("libc.so.6", LIBC).symbols;
  const source = mac.split(":").map((digits) => parseInt(digits, 16));
  let run: FrameRun | undefined;
  const say = () => {
    if (run !== undefined) console.log(JSON.stringify(run));
    run = undefined;
  };
  setInterval(say, LINE_MS);
  const follow = async (port: string) => {
    const fd = libc.socket(AF_PACKET, SOCK_RAW, 0);
    const size = new Uint8Array(new Int32Array([RECEIVE_BUFFER_BYTES]).buffer);
    libc.setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, size, size.length);
    const on = new Uint8Array(new Int32Array([1]).buffer);
    if (libc.setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, on, on.length) !== 0) {
      throw new Error("the kernel does not tell what comes from what goes");
    }
    const address = new Uint8Array(20);
    const view = new DataView(address.buffer);
    view.setUint16(0, AF_PACKET, true);
    view.setUint16(2, ALL_PROTOCOLS, true);
    view.setInt32(4, libc.if_nametoindex(new TextEncoder().encode(`${port}\0`)), true);
    if (libc.bind(fd, address, address.length) !== 0) throw new Error(`there is no port ${port}`);
    const frame = new Uint8Array(64);
    while (Number(await libc.recv(fd, frame, BigInt(frame.length), 0)) > 0) {
      const isIp = (frame[ETHERTYPE_AT]! << 8 | frame[ETHERTYPE_AT + 1]!) === IPV4;
      if (!isIp || source.some((byte, at) => frame[SOURCE_AT + at] !== byte)) continue;
      const nowMs = performance.timeOrigin + performance.now();
      if (run?.port !== port) say();
      run = { port, frames: (run?.frames ?? 0) + 1, firstMs: run?.firstMs ?? nowMs, lastMs: nowMs };
    }
  };
  await Promise.all(ports.map(follow));
}

if (import.meta.main) {
  const [mac = "", ...ports] = Deno.args;
  await watch(mac, ports);
}
