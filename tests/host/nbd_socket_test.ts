import { assertEquals } from "@std/assert/mod.js";
import { NbdSocket } from "../../engine/host/nbd_socket.ts";

Deno.test("pieces may be changed when they are written, and not before", async () => {
  const directory = Deno.makeTempDirSync({ prefix: "colo-test-" });
  const path = `${directory}/socket`;
  const listener = Deno.listen({ transport: "unix", path });
  const [near, far] = await Promise.all([
    Deno.connect({ transport: "unix", path }),
    listener.accept(),
  ]);
  const socket = new NbdSocket(near);
  const sizes = [28, 256 * 1024, 100, 28, 5, 300 * 1024, 28];
  let [expected, written] = [0, 0];
  for (const [value, size] of sizes.entries()) {
    const piece = new Uint8Array(size).fill(value + 1);
    expected += size * (value + 1);
    socket.write([Uint8Array.of(0), piece], () => {
      written++;
      piece.fill(99);
    });
  }
  const total = sizes.reduce((sum, size) => sum + size + 1, 0);
  let [count, sum] = [0, 0];
  const buffer = new Uint8Array(64 * 1024);
  while (count < total) {
    const more = (await far.read(buffer))!;
    for (const byte of buffer.subarray(0, more)) sum += byte;
    count += more;
  }
  assertEquals({ sum, written }, { sum: expected, written: sizes.length });
  socket.close();
  far.close();
  listener.close();
  Deno.removeSync(directory, { recursive: true });
});
