import { assert, assertEquals } from "@std/assert/mod.js";
import { DiskKeeper, type FromDisks } from "../../engine/block/disk_keeper.ts";
import { NBD_COMMAND, NBD_OPTION, nbdClientFlags, nbdOption } from "../../engine/block/nbd.ts";
import { ReferenceKernels } from "../../wasm/mod.ts";
import { MemoryFiles, type ProcessFiles } from "../image/_memory_files.ts";
import { assertContent, concat, pattern, said } from "./_nbd.ts";

const SIZE_BYTES = 8192;

/** A keeper of one disk, and a client of it. */
class Rig {
  readonly answers: FromDisks[] = [];
  readonly keeper: DiskKeeper;

  constructor(readonly files: MemoryFiles, view: ProcessFiles = files.open()) {
    const target = view.open("image")!;
    const disks = [{ name: "disk0", target }];
    const answer = (answer: FromDisks) => this.answers.push(answer);
    this.keeper = new DiskKeeper(view, new ReferenceKernels(), disks, answer);
  }

  static withDisk(): Rig {
    const files = new MemoryFiles();
    files.entries.set("image", { bytes: new Uint8Array(SIZE_BYTES) });
    return new Rig(files);
  }

  connect(): void {
    this.keeper.tell({ type: "disks-begin" });
    const name = new TextEncoder().encode("disk0");
    this.say(0, nbdClientFlags(3), nbdOption(NBD_OPTION.EXPORT_NAME, name));
  }

  say(epoch: number, ...bytes: Uint8Array[]): void {
    this.keeper.tell({ type: "disk-bytes", disk: 0, epoch, bytes: concat(...bytes) });
  }

  write(epoch: number, seed: number): void {
    this.say(epoch, said({ command: NBD_COMMAND.WRITE }, "simple", pattern(seed, 512)));
  }

  assertHas(seed: number): void {
    const { bytes } = this.files.entries.get("image")!;
    assertContent(bytes.subarray(0, 512), pattern(seed, 512));
  }
}

Deno.test("DiskKeeper makes a disk equal at once, and then changes it with each checkpoint alone", () => {
  const rig = Rig.withDisk();
  assert(rig.keeper.isEqual, "nobody has begun to change it");
  rig.connect();
  rig.write(0, 1);
  rig.assertHas(1);
  rig.keeper.committed(5);
  assert(!rig.keeper.isEqual, "a seed is older than its disks");
  rig.say(6);
  rig.write(6, 2);
  rig.keeper.committed(6);
  assert(rig.keeper.isEqual);
  rig.assertHas(1);
  rig.say(7);
  rig.write(7, 3);
  rig.keeper.committed(7);
  rig.assertHas(2);
  rig.keeper.drop();
  rig.assertHas(2);
  assertEquals(rig.answers.filter(({ type }) => type === "disk-failed"), []);
});

Deno.test("DiskKeeper brings a disk to the checkpoint that is held, whenever its process ended", () => {
  const rig = Rig.withDisk();
  rig.connect();
  rig.write(0, 1);
  rig.say(6);
  rig.keeper.committed(6);
  rig.write(6, 2);
  // The memory of 7 is committed, and the process ends before the disk has its writes.
  rig.say(7);
  rig.write(7, 3);
  const after = new Rig(rig.files);
  assert(after.keeper.isEqual);
  after.keeper.recover(7);
  after.assertHas(2);
  // One that ends while a disk is being made equal holds nothing.
  after.connect();
  assert(!new Rig(rig.files).keeper.isEqual);
});

Deno.test("DiskKeeper has one client a disk, and another only when it begins anew", () => {
  const rig = Rig.withDisk();
  rig.connect();
  rig.keeper.drop();
  rig.write(0, 9);
  assertContent(rig.files.entries.get("image")!.bytes, new Uint8Array(SIZE_BYTES));
  rig.connect();
  rig.write(0, 4);
  rig.assertHas(4);
});

Deno.test("DiskKeeper gives large writes back when it has them whole", () => {
  const rig = new Rig(new MemoryFiles(), largeDisk());
  rig.connect();
  const write = said({ command: NBD_COMMAND.WRITE }, "simple", pattern(1, 100_000));
  const [first, second] = [write.slice(0, 70_000), write.slice(70_000)];
  for (const [bytes, epoch] of [[first, 0], [second, 0], [write, 0]] as const) {
    rig.keeper.tell({ type: "disk-bytes", disk: 0, epoch, bytes });
  }
  assertEquals([first, write].map(({ length }) => length), [70_000, 0]);
});

function largeDisk(): ProcessFiles {
  const files = new MemoryFiles();
  files.entries.set("image", { bytes: new Uint8Array(1024 * 1024) });
  return files.open();
}
