/**
 * Our comparator behind three sockets in a directory, as a process: `deno run -A compare_process.ts DIRECTORY`.
 * `out` of the primary and of the secondary are read, `in` of the primary is written, by the engine's own means.
 *
 * @module
 */

import { SocketLoop, StreamSocket } from "../../engine/host/stream_socket.ts";
import { type FrameInput, OutboundProxy } from "../../engine/proxy/mod.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import { SOCKETS } from "./comparer.ts";

const proxy = new OutboundProxy(WasmKernels.create());
proxy.protect("compare", 1);
proxy.loaded(1, performance.now());

const [directory] = Deno.args;
const loop = new SocketLoop();
const [primary, secondary, output] = [SOCKETS.primary, SOCKETS.secondary, SOCKETS.output].map(
  (name) => StreamSocket.connect(`${directory}/${name}`),
) as [StreamSocket, StreamSocket, StreamSocket];

function read(
  socket: StreamSocket,
  input: FrameInput,
  received: (count: number, now: number) => void,
): void {
  const readable = () => {
    for (let count; (count = socket.receive(input.space())) > 0;) {
      received(count, performance.now());
      write();
    }
  };
  loop.watch(socket, { readable, closed() {} });
}

function write(): void {
  while (proxy.output.bytes > 0) {
    const count = output.send(proxy.output.peek());
    if (count === 0) return loop.awaitRoom(output);
    proxy.output.sent(count);
  }
}

read(primary, proxy.primary, (count, now) => proxy.primaryReceived(count, now));
read(secondary, proxy.secondary, (count, now) => proxy.secondaryReceived(count, now));
loop.watch(output, { writable: write, closed() {} });
loop.run();
