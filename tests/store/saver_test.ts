import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import { Mirror } from "../../engine/checkpoint/mirror.ts";
import { PageEncoder } from "../../engine/checkpoint/page_encoder.ts";
import { StoreError } from "../../engine/errors.ts";
import { PAGE_BYTES } from "../../engine/limits.ts";
import { placeBlocks } from "../../engine/store/metadata.ts";
import { CheckpointStore, DirectoryFiles, Saver } from "../../engine/store/mod.ts";
import { PAGE_ENTRY_BYTES, WasmKernels } from "../../wasm/mod.ts";
import { assertHolds, BLOCKS, Guest, MACHINE } from "./_guest.ts";

/** A guest whose memory is a mirror of several shards, as an engine keeps it. */
class MirroredGuest {
  readonly guest = new Guest();
  readonly mirror: Mirror;
  readonly #kernels = WasmKernels.create();
  readonly #encoder: PageEncoder;
  readonly #table: number;
  readonly #contents: number;
  frozen = 0;
  released = 0;

  constructor() {
    this.#table = this.#kernels.alloc(16 * PAGE_ENTRY_BYTES);
    this.#contents = this.#kernels.alloc(16 * PAGE_BYTES);
    this.mirror = new Mirror(placeBlocks(BLOCKS), this.#kernels, {
      createKernels: () => WasmKernels.create(),
      firstShardBytes: 5 * PAGE_BYTES,
      shardBytes: 130 * PAGE_BYTES,
    });
    this.#encoder = new PageEncoder(this.mirror.kernels, this.mirror.addEncoder());
  }

  /** A checkpoint arrives in which the guest has written a page. */
  write(page: number, kind: "bytes" | "whole" | "zero", seed: number): void {
    this.guest.write(page, kind, seed);
    this.guest.run(seed);
    const content = this.guest.ram.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
    this.#kernels.bytes.set(content, this.#contents);
    new DataView(this.#kernels.bytes.buffer, this.#table).setUint32(0, page, true);
    new DataView(this.#kernels.bytes.buffer, this.#table).setUint32(4, this.#contents, true);
    const pages = { kernels: this.#kernels, table: this.#table, pageCount: 1 };
    // Without a secondary, and on its way to one.
    if (page % 2 === 0) return this.mirror.absorb(pages);
    this.mirror.markMissing(pages);
    for (const job of this.mirror.deltaJobs(pages)) for (const _ of this.#encoder.encode(job));
  }

  /** @param before What happens while it is being saved */
  source(before: () => void = () => {}) {
    let freezes = 0;
    return {
      mirror: this.mirror,
      machine: MACHINE,
      freeze: () => {
        if (freezes++ === 1) before();
        this.frozen++;
        const { epoch, deviceState } = this.guest;
        const release = () => void this.released++;
        return Promise.resolve({ epoch, deviceState, savedAtMs: 1_700_000_000_000, release });
      },
    };
  }
}

async function inStore(work: (directory: string, store: CheckpointStore) => Promise<void>) {
  const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
  try {
    const files = new DirectoryFiles(directory);
    await work(directory, new CheckpointStore(files, () => WasmKernels.create()));
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("a worker saves what the mirror holds when it is frozen, whatever changed before", async () => {
  await inStore(async (directory, store) => {
    const guest = new MirroredGuest();
    const saver = new Saver(directory, "tested");
    for (let page = 0; page < 312; page += 3) guest.write(page, "whole", page);
    const one = await saver.save("one", guest.source());
    const first = guest.guest.state();
    assertEquals(one.checkpoint.metadata.parent, undefined);
    const two = await saver.save(
      "two",
      guest.source(() => {
        guest.write(0, "zero", 1);
        guest.write(200, "bytes", 2);
        guest.write(311, "whole", 3);
      }),
    );
    assertEquals(two.checkpoint.metadata.pages, 3);
    assertEquals([guest.frozen, guest.released], [4, 4]);
    assertHolds(store, "one", first);
    assertHolds(store, "two", guest.guest.state());
    saver.close();
  });
});

Deno.test("the retention rule is followed after each save", async () => {
  await inStore(async (directory, store) => {
    const guest = new MirroredGuest();
    const saver = new Saver(directory, "tested", 2);
    const retired: string[] = [];
    for (const name of ["one", "two", "three", "four"]) {
      guest.write(name.length, "whole", name.charCodeAt(1));
      retired.push(...(await saver.save(name, guest.source())).retired);
    }
    assertEquals(retired, ["one", "two"]);
    assertEquals(store.list().map(({ name }) => name), ["three", "four"]);
    assertHolds(store, "four", guest.guest.state());
    saver.close();
  });
});

Deno.test("a save that is refused leaves the saver as it was", async () => {
  await inStore(async (directory) => {
    const guest = new MirroredGuest();
    const saver = new Saver(directory, "tested");
    guest.write(100, "whole", 1);
    await saver.save("one", guest.source());
    await assertRejects(() => saver.save("one", guest.source()), StoreError, "there is one");
    await assertRejects(() => saver.save("a/b", guest.source()), StoreError, "as the name");
    guest.write(101, "whole", 1);
    assertEquals((await saver.save("two", guest.source())).checkpoint.metadata.pages, 1);
    const saving = saver.save("three", guest.source());
    await assertRejects(() => saver.save("four", guest.source()), StoreError, "under way");
    await saving;
    saver.close();
  });
});

Deno.test("a save that is broken off has never been, and the store is free again", async () => {
  await inStore(async (directory, store) => {
    const guest = new MirroredGuest();
    const saver = new Saver(directory, "tested");
    guest.write(100, "whole", 1);
    const lost = () => {
      throw new StoreError("Cannot save: the guest is not captured any more");
    };
    await assertRejects(() => saver.save("one", guest.source(lost)), StoreError, "any more");
    assertEquals(store.list(), []);
    assertEquals((await saver.save("one", guest.source())).checkpoint.name, "one");
    const closed = saver.save("two", guest.source(() => saver.close()));
    await assertRejects(() => closed, StoreError, "it was closed");
    assertEquals(store.list().map(({ name }) => name), ["one"]);
    const other = new Saver(directory, "tested");
    guest.write(7, "whole", 2);
    assertEquals((await other.save("two", guest.source())).checkpoint.metadata.pages, 1);
    assertHolds(store, "two", guest.guest.state());
    other.close();
  });
});

Deno.test("a store that cannot be written is said in one sentence", async () => {
  const saver = new Saver("/proc/nowhere", "tested");
  const error = await assertRejects(
    () => saver.save("one", new MirroredGuest().source()),
    StoreError,
  );
  assert(error.message.startsWith("Cannot make the store /proc/nowhere: "), error.message);
  saver.close();
});
