import { assertEquals } from "@std/assert/mod.js";
import { parseVmConfig } from "../../engine/config/mod.ts";
import { DiskCopyName } from "../../engine/host/disk_copy.ts";

Deno.test("DiskCopyName outlives its process, and not the images that it is about", async () => {
  const directory = await Deno.makeTempDir();
  const path = `${directory}/disk.raw`;
  await Deno.writeTextFile(path, "content");
  const toml = `[vm]\nname = "a"\nmemory = 16\n[[vm.disks]]\npath = "${path}"\nformat = "raw"`;
  const config = parseVmConfig(toml, `${directory}/a.toml`);
  const name = new DiskCopyName(config);
  try {
    assertEquals(name.load(), "");
    name.store("first");
    assertEquals(new DiskCopyName(config).load(), "first");
    name.store("second");
    assertEquals(name.load(), "second");
    await Deno.rename(path, `${path}.old`);
    assertEquals(name.load(), "", "it is not there");
    await Deno.writeTextFile(path, "another");
    assertEquals(name.load(), "", "another is in its place");
    await Deno.rename(`${path}.old`, path);
    assertEquals(name.load(), "second");
    name.store("");
    assertEquals(name.load(), "");
  } finally {
    name.store("");
    await Deno.remove(directory, { recursive: true });
  }
});
