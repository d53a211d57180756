/**
 * Our comparator behind three sockets in a directory, as a process: `deno run -A compare_process.ts DIRECTORY`.
 * `out` of the primary and of the secondary are read, `in` of the primary is written, by the engine's own means.
 *
 * @module
 */

import { SocketPoller, UnixSocket } from "../../engine/host/unix_socket.ts";
import { type FrameInput, OutboundProxy } from "../../engine/proxy/mod.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import { SOCKETS } from "./comparer.ts";

const proxy = new OutboundProxy(WasmKernels.create());
proxy.protect("compare", 1);
proxy.loaded(1, performance.now());

const [directory] = Deno.args;
const poller = new SocketPoller();
const [primary, secondary, output] = [SOCKETS.primary, SOCKETS.secondary, SOCKETS.output].map(
  (name) => new UnixSocket(`${directory}/${name}`),
) as [UnixSocket, UnixSocket, UnixSocket];

function read(
  socket: UnixSocket,
  input: FrameInput,
  received: (count: number, now: number) => void,
): void {
  const readable = () => {
    for (let count; (count = socket.receive(input.space())) > 0;) {
      received(count, performance.now());
      write();
    }
  };
  poller.watch(socket, { readable, writable() {}, closed() {} });
}

function write(): void {
  while (proxy.output.bytes > 0) {
    const count = output.send(proxy.output.peek());
    if (count === 0) return poller.awaitRoom(output);
    proxy.output.sent(count);
  }
}

read(primary, proxy.primary, (count, now) => proxy.primaryReceived(count, now));
read(secondary, proxy.secondary, (count, now) => proxy.secondaryReceived(count, now));
poller.watch(output, { writable: write, closed() {} });
