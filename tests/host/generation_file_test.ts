import { assertEquals, assertRejects } from "@std/assert/mod.js";
import { ArbiterError } from "../../engine/errors.ts";
import { DiskGenerationFile } from "../../engine/host/generation_file.ts";

Deno.test("DiskGenerationFile keeps what was stored last, and takes rubbish for an error", async () => {
  const directory = Deno.makeTempDirSync();
  try {
    const path = `${directory}/state/colo/vm.json`;
    const file = new DiskGenerationFile(path);
    assertEquals(await file.load(), undefined);
    await file.store({ generation: 1, holder: "host-a" });
    await file.store({ generation: 2, holder: "host-b" });
    assertEquals(await new DiskGenerationFile(path).load(), { generation: 2, holder: "host-b" });
    assertEquals([...Deno.readDirSync(`${directory}/state/colo`)].length, 1);
    Deno.writeTextFileSync(path, '{"generation":');
    await assertRejects(() => file.load(), ArbiterError, "holds no generation");
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
});

Deno.test("DiskGenerationFile writes all of it, however little the system takes at once", async () => {
  const directory = Deno.makeTempDirSync();
  const { write } = Deno.FsFile.prototype;
  Deno.FsFile.prototype.write = function (bytes) {
    return write.call(this, bytes.subarray(0, 5));
  };
  try {
    const file = new DiskGenerationFile(`${directory}/vm.json`);
    await file.store({ generation: 7, holder: "host-a" });
    assertEquals(await file.load(), { generation: 7, holder: "host-a" });
  } finally {
    Deno.FsFile.prototype.write = write;
    Deno.removeSync(directory, { recursive: true });
  }
});
