import { assertEquals } from "@std/assert/mod.js";
import { type FilterMonitor, passFrames } from "../../engine/host/packet_filters.ts";
import { SecondaryPackets } from "../../engine/host/secondary_packets.ts";
import { concat, record, tcp, TCP_FLAG, udp } from "../proxy/packets.ts";
import { readRecords } from "../proxy/rig.ts";

/** What is looked at of a command's arguments. */
interface Arguments {
  readonly id?: string;
  readonly backend?: {
    readonly data: { readonly addr: { readonly data: { readonly path: string } } };
  };
}

/** A QEMU as far as chardevs and filters go: a chardev is a socket that it listens at. */
class FakeQemu {
  readonly filters: string[] = [];
  readonly #chardevs = new Map<string, Chardev>();

  readonly monitor: FilterMonitor = {
    execute:
      ((name, args = {}) => this.#execute(name, args as Arguments)) as FilterMonitor["execute"],
  };

  chardev(port: string): Chardev {
    return this.#chardevs.get(`colo-nic0-${port}-socket`)!;
  }

  #execute(command: string, { id = "", backend }: Arguments): Promise<unknown> {
    switch (command) {
      case "chardev-add":
        this.#chardevs.set(id, new Chardev(backend!.data.addr.data.path));
        break;
      case "chardev-remove":
        this.#chardevs.get(id)!.close();
        break;
      case "object-add":
        this.filters.push(id);
        break;
      case "object-del":
        this.filters.splice(this.filters.indexOf(id), 1);
        break;
    }
    return Promise.resolve({});
  }
}

/** Reads until the other side closes. */
class Chardev {
  readonly received: Promise<Uint8Array<ArrayBuffer>>;
  readonly #listener: Deno.UnixListener;
  readonly #connection: Promise<Deno.UnixConn>;

  constructor(path: string) {
    this.#listener = Deno.listen({ transport: "unix", path });
    this.#connection = this.#listener.accept();
    this.received = this.#read();
  }

  async write(bytes: Uint8Array): Promise<void> {
    await (await this.#connection).write(bytes);
  }

  close(): void {
    this.#listener.close();
    this.#connection.then((connection) => connection.close());
  }

  async #read(): Promise<Uint8Array<ArrayBuffer>> {
    const connection = await this.#connection;
    const pieces: Uint8Array[] = [];
    const space = new Uint8Array(4096);
    const read = () => connection.read(space).catch(() => null);
    for (let count; (count = await read()) !== null;) {
      pieces.push(space.slice(0, count));
      // As a busy QEMU, which forgets what it has not read when the other side hangs up.
      await new Promise((resolve) => setTimeout(resolve, 5));
      const isThere = await connection.write(Uint8Array.of(0)).then(() => true, () => false);
      if (!isThere) break;
    }
    return concat(pieces);
  }
}

for (const vnetHeader of [false, true]) {
  const framed = (frame: Uint8Array) =>
    vnetHeader ? concat([Uint8Array.of(0, 0, 0, frame.length, 0, 0, 0, 0), frame]) : record(frame);

  Deno.test(`a VM that takes over says its last TCP segments again, vnet header ${vnetHeader}`, async () => {
    const directory = Deno.makeTempDirSync();
    const qemu = new FakeQemu();
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
  const qemu = new FakeQemu();
  try {
    const nic = { id: "nic0", vnetHeader: false };
    const packets = await SecondaryPackets.install(qemu.monitor, [nic], directory, () => {});
    const frames = Array.from({ length: 4 }, (_, i) => tcp({ seq: i, data: 1000 }));
    packets.loaded(7);
    for (const [index, frame] of frames.entries()) {
      packets.received({ type: "frames", epoch: 7 + index, nic: 0, records: record(frame) });
    }
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
  const qemu = new FakeQemu();
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
