import { assert, assertEquals } from "@std/assert/mod.js";
import { InboundBuffer } from "../../engine/host/inbound_buffer.ts";
import type { FilterMonitor } from "../../engine/host/packet_filters.ts";

const NICS = ["nic0", "nic1"].map((id) => ({ id, vnetHeader: false }));

/** A QEMU with objects, which answers at once, when it is let, or never. */
class FakeMonitor implements FilterMonitor {
  readonly objects = new Set<string>();
  readonly switched: string[] = [];
  answers: Promise<unknown> = Promise.resolve();

  readonly execute = ((name: string, args: Readonly<Record<string, string>>) => {
    const id = args.id ?? "";
    if (name === "qom-list") return Promise.resolve([...this.objects].map((name) => ({ name })));
    if (name === "object-add") {
      assert(!this.objects.has(id), `${id} is there already`);
      this.objects.add(id);
    }
    if (name === "object-del") assert(this.objects.delete(id), `${id} is not there`);
    if (name === "qom-set") this.switched.push(`${args.path} ${args.value}`);
    return this.answers;
  }) as FilterMonitor["execute"];
}

Deno.test("each card has a buffer, and what an engine before has left is replaced", async () => {
  const monitor = new FakeMonitor();
  await InboundBuffer.install(monitor, NICS);
  await InboundBuffer.install(monitor, NICS);
  assertEquals([...monitor.objects], ["colo-nic0-buffer", "colo-nic1-buffer"]);
});

Deno.test("QEMU is told to hold before it is told to let go, however long that takes", async () => {
  const monitor = new FakeMonitor();
  const buffer = await InboundBuffer.install(monitor, NICS.slice(0, 1));
  buffer.release();
  assertEquals(monitor.switched, [], "it holds nothing");
  const slow = Promise.withResolvers<void>();
  monitor.answers = slow.promise;
  const held = buffer.hold();
  buffer.release();
  slow.resolve();
  await held;
  buffer.release();
  assertEquals(monitor.switched, ["on", "off"].map((to) => `/objects/colo-nic0-buffer ${to}`));
});

Deno.test("a QEMU that does not answer keeps nobody from going on", async () => {
  const monitor = new FakeMonitor();
  const buffer = await InboundBuffer.install(monitor, NICS);
  monitor.answers = Promise.reject(new Error("the monitor is closed"));
  await buffer.hold();
  buffer.release();
});
