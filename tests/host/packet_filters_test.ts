import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import { QmpError } from "../../engine/errors.ts";
import {
  addPrimaryFilters,
  addSecondaryFilters,
  type FilterMonitor,
} from "../../engine/host/packet_filters.ts";
import { within } from "../../engine/host/vm_end.ts";

/** Ends that QEMU's chardevs have, each of which hears when the other is closed. */
function refusingMonitor(ends: Promise<number | null>[]): FilterMonitor {
  const execute = (name: string, args: Readonly<Record<string, unknown>>) => {
    if (name === "object-add") return Promise.reject(new QmpError("Vhost is not supported"));
    if (name === "chardev-add") {
      const { path } = (args.backend as { data: { addr: { data: { path: string } } } }).data.addr
        .data;
      ends.push(heardEnd(Deno.listen({ transport: "unix", path })));
    }
    return Promise.resolve([]);
  };
  return { execute: execute as FilterMonitor["execute"] };
}

async function heardEnd(listener: Deno.UnixListener): Promise<number | null> {
  using connection = await listener.accept();
  listener.close();
  return await connection.read(new Uint8Array(1));
}

const ADDED = [
  ["a primary", addPrimaryFilters, 3],
  ["a secondary", addSecondaryFilters, 2],
] as const;

for (const [side, add, sockets] of ADDED) {
  Deno.test(`filters of ${side} that QEMU refuses leave no socket open`, async () => {
    const directory = Deno.makeTempDirSync({ prefix: "colo-filters-" });
    try {
      const ends: Promise<number | null>[] = [];
      const nic = { id: "nic0", vnetHeader: false };
      await assertRejects(() => add(refusingMonitor(ends), nic, directory), QmpError, "Vhost");
      assert(await within(5000, Promise.all(ends)), "a socket is still open");
      assertEquals(ends.length, sockets);
    } finally {
      Deno.removeSync(directory, { recursive: true });
    }
  });
}
