import { assertEquals } from "@std/assert/mod.js";
import { passFrames } from "../../engine/host/packet_filters.ts";
import { SecondaryPackets } from "../../engine/host/secondary_packets.ts";
import { concat, record, tcp, TCP_FLAG, udp } from "../proxy/packets.ts";
import { readRecords } from "../proxy/rig.ts";
import { FakeChardevs, withPacketLink } from "./fake_chardevs.ts";

for (const vnetHeader of [false, true]) {
  const framed = (frame: Uint8Array) =>
    vnetHeader ? concat([Uint8Array.of(0, 0, 0, frame.length, 0, 0, 0, 0), frame]) : record(frame);

  Deno.test(`a VM that takes over says its last TCP segments again, vnet header ${vnetHeader}`, async () => {
    const directory = Deno.makeTempDirSync();
    const qemu = new FakeChardevs();
    try {
      const nic = { id: "nic0", vnetHeader };
      const notices: string[] = [];
      const packets = await SecondaryPackets.install(
        qemu.monitor,
        [nic],
        directory,
        (text) => notices.push(text),
      );
      const say = (...frames: readonly Uint8Array[]) =>
        qemu.chardev("out").write(concat(frames.map(framed)));
      await say(tcp({ data: "said by a life that a load has ended" }));
      packets.stopped(7);
      packets.loaded(7);
      const segments = [
        tcp({ seq: 1, data: "a" }),
        tcp({ seq: 2, data: "b" }),
        tcp({ version: 6 }),
      ];
      await say(segments[0]!, udp({ data: "once is enough" }), segments[1]!);
      await say(tcp({ flags: TCP_FLAG.RST }), segments[2]!);
      await packets.release();
      assertEquals(readRecords(await qemu.chardev("late").received, vnetHeader), segments);
      assertEquals([qemu.filters, notices], [["colo-nic0-rewrite"], []]);
    } finally {
      Deno.removeSync(directory, { recursive: true });
    }
  });
}

Deno.test("a VM that takes over receives what was kept from it, or is given", async () => {
  const directory = Deno.makeTempDirSync();
  const qemu = new FakeChardevs();
  try {
    const nic = { id: "nic0", vnetHeader: false };
    const packets = await SecondaryPackets.install(qemu.monitor, [nic], directory, () => {});
    const frames = Array.from({ length: 4 }, (_, i) => tcp({ seq: i, data: 1000 }));
    packets.loaded(7);
    await withPacketLink(async (near, far) => {
      packets.connect(near);
      for (const [index, frame] of frames.entries()) {
        await far.send({ type: "frames", epoch: 7 + index, nic: 0, records: record(frame) });
      }
      await far.flush();
      packets.connect(undefined);
    });
    await packets.release();
    const received = [
      ...readRecords(await qemu.chardev("in").received),
      ...readRecords(await qemu.chardev("late").received),
    ];
    assertEquals(received, frames);
    await passFrames(qemu.monitor, nic, "guest", frames.map(record), directory);
    assertEquals(readRecords(await qemu.chardev("late").received), frames);
    assertEquals(qemu.filters, ["colo-nic0-rewrite"]);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("what was said long ago is not said again at a takeover, nor more than a socket takes", async () => {
  const directory = Deno.makeTempDirSync();
  const qemu = new FakeChardevs();
  try {
    const nic = { id: "nic0", vnetHeader: false };
    const packets = await SecondaryPackets.install(qemu.monitor, [nic], directory, () => {});
    const say = (frame: Uint8Array) => qemu.chardev("out").write(record(frame));
    await say(tcp({ seq: 1, data: "old" }));
    await new Promise((resolve) => setTimeout(resolve, 300));
    for (let i = 0; i < 200; i++) await say(tcp({ seq: 2 + i, data: 1000 }));
    await packets.release();
    const frames = readRecords(await qemu.chardev("late").received);
    const first = 200 - frames.length;
    assertEquals(frames, Array.from(frames, (_, i) => tcp({ seq: 2 + first + i, data: 1000 })));
    assertEquals(frames.length > 50 && frames.length < 125, true, `${frames.length}`);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});
