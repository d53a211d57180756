/**
 * Our comparator behind three sockets, in a worker whose name is their directory: `out` of the primary and of the
 * secondary are read, `in` of the primary is written.
 *
 * @module
 */

/// <reference lib="webworker" />

import { type FrameInput, OutboundProxy } from "../../engine/proxy/mod.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import { SOCKETS } from "./comparer.ts";

const proxy = new OutboundProxy(WasmKernels.create());
proxy.protect("compare", 1);
proxy.loaded(1, performance.now());

async function read(
  connection: Deno.Conn,
  input: FrameInput,
  received: (count: number, now: number) => void,
): Promise<void> {
  while (true) {
    const count = await connection.read(input.space());
    if (count === null) return;
    received(count, performance.now());
    write();
  }
}

let isWriting = false;

async function write(): Promise<void> {
  if (isWriting) return;
  isWriting = true;
  while (proxy.output.bytes > 0) proxy.output.sent(await output!.write(proxy.output.peek()));
  isWriting = false;
}

const listeners = [SOCKETS.primary, SOCKETS.secondary, SOCKETS.output].map((name) =>
  Deno.listen({ transport: "unix", path: `${self.name}/${name}` })
);
const [primary, secondary, output] = await Promise.all(listeners.map((one) => one.accept()));
await Promise.all([
  read(primary!, proxy.primary, (count, now) => proxy.primaryReceived(count, now)),
  read(secondary!, proxy.secondary, (count, now) => proxy.secondaryReceived(count, now)),
]);
