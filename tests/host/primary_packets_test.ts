import { assert, assertEquals, assertThrows } from "@std/assert/mod.js";
import { LocalProtocolError } from "../../engine/errors.ts";
import { PacketThread } from "../../engine/host/packet_thread.ts";
import { PrimaryPackets } from "../../engine/host/primary_packets.ts";
import type { PrimaryCards } from "../../engine/host/primary_cards.ts";
import { SecondaryPackets } from "../../engine/host/secondary_packets.ts";
import type { LinkConnection, Message } from "../../engine/link/mod.ts";
import type { CheckpointReason } from "../../engine/proxy/mod.ts";
import { concat, record, tcp, udp } from "../proxy/packets.ts";
import { readRecords } from "../proxy/rig.ts";
import { FakeChardevs, withPacketLink } from "./fake_chardevs.ts";

/** A primary's network between chardevs and a link. */
interface Rig {
  readonly packets: PrimaryPackets;
  readonly qemu: FakeChardevs;
  readonly near: LinkConnection;
  readonly far: LinkConnection;
  /** Until when anything may leave. */
  permittedUntilMs: number;
  readonly demands: CheckpointReason[];
}

async function withPrimary(
  transport: "tcp" | "unix",
  work: (rig: Rig) => Promise<void>,
  notice = (text: string): void => {
    throw new Error(text);
  },
): Promise<void> {
  const directory = Deno.makeTempDirSync();
  const qemu = new FakeChardevs();
  try {
    await withPacketLink(async (near, far) => {
      const demands: CheckpointReason[] = [];
      const packets = await PrimaryPackets.install({
        monitor: qemu.monitor,
        nics: [{ id: "nic0", vnetHeader: false }],
        mode: "colo",
        timeoutMs: 50,
        excluded: [],
        directory,
        mayLeaveUntilMs: () => rig.permittedUntilMs,
        demand: ({ reason }) => demands.push(reason),
        notice,
      });
      const rig: Rig = { packets, qemu, near, far, permittedUntilMs: Infinity, demands };
      try {
        await packets.guard(near, 0);
        await work(rig);
      } finally {
        packets.close();
      }
    }, transport === "unix" ? directory : undefined);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}

/** What has left by now. */
async function left(qemu: FakeChardevs, count: number): Promise<Uint8Array[]> {
  const { arrived } = qemu.chardev("in");
  for (const deadline = performance.now() + 5000;;) {
    const frames = readRecords(concat(arrived));
    if (frames.length >= count) return frames;
    assert(performance.now() < deadline, `${frames.length} of ${count} frames have left`);
    await pause(1);
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

for (const transport of ["tcp", "unix"] as const) {
  Deno.test(`what both VMs say leaves, and what only one says when it is committed, over ${transport}`, async () => {
    await withPrimary(transport, async ({ packets, qemu, near, far, demands }) => {
      const heard: Message[] = [];
      const hearing = (async () => {
        for await (const message of far.receive()) heard.push(message);
      })().catch(() => {});
      packets.stopped(1);
      packets.begin(1);
      const [both, one] = [tcp({ seq: 1, data: "both" }), udp({ data: "one" })];
      await qemu.chardev("out").write(concat([both, one].map(record)));
      await far.send({ type: "frames", epoch: 1, nic: 0, records: record(both) });
      assertEquals(await left(qemu, 1), [both]);
      for (const deadline = performance.now() + 5000; demands.length === 0;) {
        assert(performance.now() < deadline, "no checkpoint is asked for");
        await pause(1);
      }
      assertEquals([demands.length, packets.statistics[0]!.held], [1, 1]);
      packets.stopped(2);
      packets.begin(2);
      packets.committed(2);
      assertEquals(await left(qemu, 2), [both, one]);
      const received = tcp({ seq: 7, data: "for the guest" });
      await qemu.chardev("mirror").write(record(received));
      for (const deadline = performance.now() + 5000; heard.length === 0;) {
        assert(performance.now() < deadline, "the secondary is told nothing");
        await pause(1);
      }
      assertEquals(heard, [{ type: "frames", epoch: 2, nic: 0, records: record(received) }]);
      packets.runAlone();
      near.close();
      await hearing;
    });
  });
}

Deno.test("nothing leaves later than it may, until it may again", async () => {
  await withPrimary("tcp", async (rig) => {
    const { packets, qemu } = rig;
    rig.permittedUntilMs = performance.now() - 1;
    packets.permit();
    const frame = tcp({ data: "said before anything is held back" });
    await qemu.chardev("out").write(record(frame));
    await pause(50);
    assertEquals(await left(qemu, 0), []);
    rig.permittedUntilMs = Infinity;
    assertEquals(await left(qemu, 1), [frame]);
  });
});

Deno.test("the link lasts until it is closed, though the VM is gone", async () => {
  await withPrimary("tcp", async ({ packets, near, far }) => {
    packets.close();
    let isOver = false;
    const hearing = (async () => {
      for await (const _ of far.receive());
    })().catch(() => {}).finally(() => isOver = true);
    await pause(30);
    assertEquals(isOver, false);
    near.close();
    await hearing;
  });
});

for (const transport of ["tcp", "unix"] as const) {
  Deno.test(`a link whose peer is gone is closed, over ${transport}`, async () => {
    await withPrimary(transport, async ({ near, far }) => {
      far.close();
      assert((await near.closed).message.includes("the peer closed it"));
    });
  });
}

Deno.test("a link whose peer says what makes no sense is closed, and that is said", async () => {
  const notices: string[] = [];
  await withPrimary("tcp", async ({ packets, near, far }) => {
    packets.stopped(1);
    packets.begin(1);
    await far.send({ type: "frames", epoch: 9, nic: 0, records: new Uint8Array(0) });
    assert((await near.closed).message.includes("bytes were wrong"));
  }, (text) => notices.push(text));
  assertEquals(notices.map((text) => text.includes("epoch 9: it has not begun")), [true]);
});

Deno.test("a link is given from one VM's network to the next one's", async () => {
  await withPrimary("tcp", async ({ packets, near, far }) => {
    const directory = Deno.makeTempDirSync();
    const qemu = new FakeChardevs();
    const nic = { id: "nic0", vnetHeader: false };
    const next = await SecondaryPackets.install(qemu.monitor, [nic], directory, () => {});
    try {
      next.connect(near);
      packets.close();
      next.loaded(7);
      const frame = tcp({ data: "for the guest" });
      await far.send({ type: "frames", epoch: 7, nic: 0, records: record(frame) });
      assertEquals(await left(qemu, 1), [frame]);
    } finally {
      next.close();
      Deno.removeSync(directory, { recursive: true });
    }
  });
});

Deno.test("PacketThread says what went wrong with a call, and is of use afterwards", async () => {
  const thread = await PacketThread.start<PrimaryCards>(
    { side: "primary", options: { cards: [], mode: "colo", timeoutMs: 50, excluded: [] } },
    {},
    "/no/such/directory",
  );
  assertThrows(() => thread.call("nothing" as "release"), Error);
  assertEquals(thread.call("statistics"), []);
  thread.close();
  thread.close();
  assertThrows(() => thread.call("statistics"), LocalProtocolError, "was closed");
});
