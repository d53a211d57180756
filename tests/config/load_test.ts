import { assertEquals, assertRejects } from "@std/assert/mod.js";
import { join } from "@std/path/mod.js";
import { loadVmConfig } from "../../engine/config/mod.ts";
import { ConfigError } from "../../engine/errors.ts";

const SMALLEST = '[vm]\nname = "web1"\nmemory = 256\nkernel = "vmlinuz"\n';

/** Runs with a directory that holds a kernel and a `vm.toml` of this text. */
async function withConfig(text: string, run: (directory: string, path: string) => Promise<void>) {
  const directory = await Deno.makeTempDir({ prefix: "colo-config-" });
  try {
    const path = join(directory, "vm.toml");
    await Deno.writeTextFile(join(directory, "vmlinuz"), "");
    await Deno.writeTextFile(path, text);
    await run(directory, path);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("loadVmConfig reads a file whose kernel is there", async () => {
  await withConfig(SMALLEST, async (directory, path) => {
    const config = await loadVmConfig(path);
    assertEquals(config.path, path);
    assertEquals(config.vm.kernel, join(directory, "vmlinuz"));
  });
});

Deno.test("loadVmConfig says that there is no such file", async () => {
  const { message } = await assertRejects(() => loadVmConfig("/nowhere/vm.toml"), ConfigError);
  assertEquals(message, "Cannot read /nowhere/vm.toml: there is no such file");
});

Deno.test("loadVmConfig names the key whose file is missing", async () => {
  const missing: Readonly<Record<string, string>> = {
    'initrd = "x"': "vm.initrd",
    '[[vm.disks]]\npath = "x"\nformat = "raw"': "vm.disks[0].path",
    '[qemu]\npath = "x"': "qemu.path",
  };
  for (const [text, key] of Object.entries(missing)) {
    await withConfig(SMALLEST + text, async (directory, path) => {
      const { message } = await assertRejects(() => loadVmConfig(path), ConfigError);
      assertEquals(message, `Cannot use ${path}: ${key} names ${directory}/x, which is no file`);
    });
  }
});

Deno.test("loadVmConfig refuses a directory in place of a kernel", async () => {
  await withConfig(SMALLEST, async (directory, path) => {
    await Deno.remove(join(directory, "vmlinuz"));
    await Deno.mkdir(join(directory, "vmlinuz"));
    await assertRejects(() => loadVmConfig(path), ConfigError, "vm.kernel names");
  });
});

Deno.test("loadVmConfig says that the console's directory is missing", async () => {
  await withConfig(`${SMALLEST}console = "log/console"`, async (directory, path) => {
    const { message } = await assertRejects(() => loadVmConfig(path), ConfigError);
    assertEquals(
      message,
      `Cannot use ${path}: vm.console is to be in ${directory}/log, which is no directory`,
    );
    await Deno.mkdir(join(directory, "log"));
    assertEquals((await loadVmConfig(path)).vm.console, join(directory, "log", "console"));
  });
});
