import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import { join } from "@std/path/mod.js";
import { exists, makeOnce } from "../../engine/vm/cache.ts";
import { evaluate, inTemporaryDirectory } from "./_support.ts";

Deno.test("makeOnce() makes once when two want it at the same time", () =>
  inTemporaryDirectory(async (directory) => {
    const target = join(directory, "deep", "target");
    const told: string[] = [];
    let count = 0;
    const want = () =>
      makeOnce({
        target,
        what: "QEMU",
        progress: (line) => told.push(line),
        make: async (temporary) => {
          count += 1;
          await Deno.writeTextFile(join(temporary, "file"), "whole");
          await new Promise((resolve) => setTimeout(resolve, 50));
          assert(!await exists(target), "the target is not there before it is complete");
        },
      });
    await Promise.all([want(), want(), want()]);
    assertEquals(count, 1);
    assertEquals(told, Array(2).fill("waiting for another process that prepares QEMU"));
    assertEquals(await Deno.readTextFile(join(target, "file")), "whole");
    await want();
    assertEquals(count, 1, "what is there is not made again");
  }));

Deno.test("makeOnce() makes once when two processes want it at the same time", () =>
  inTemporaryDirectory(async (directory) => {
    const module = import.meta.resolve("../../engine/vm/cache.ts");
    const code = `
      import { makeOnce } from ${JSON.stringify(module)};
      await makeOnce({
        target: ${JSON.stringify(join(directory, "target"))},
        what: "QEMU",
        make: async (temporary) => {
          console.log("made");
          await new Promise((resolve) => setTimeout(resolve, 300));
        },
      });
      console.log("there");`;
    const outputs = await Promise.all([evaluate(code), evaluate(code)]);
    assertEquals(outputs.toSorted(), ["made\nthere\n", "there\n"]);
  }));

Deno.test("makeOnce() leaves nothing in place of what could not be made, and tries again", () =>
  inTemporaryDirectory(async (directory) => {
    const target = join(directory, "target");
    const fail = makeOnce({
      target,
      what: "QEMU",
      make: async (temporary) => {
        await Deno.writeTextFile(join(temporary, "half"), "");
        throw new Error("interrupted");
      },
    });
    await assertRejects(() => fail, Error, "interrupted");
    assert(!await exists(target));
    await makeOnce({
      target,
      what: "QEMU",
      make: async (temporary) => {
        assert(!await exists(join(temporary, "half")), "it starts with an empty directory");
        await Deno.writeTextFile(join(temporary, "whole"), "");
      },
    });
    assert(await exists(join(target, "whole")));
    assert(!await exists(join(target, "half")));
  }));

Deno.test("cacheDirectory() follows XDG_CACHE_HOME, then HOME", async () => {
  const module = import.meta.resolve("../../engine/vm/cache.ts");
  const code = `
    import { cacheDirectory } from ${JSON.stringify(module)};
    try { console.log(cacheDirectory()) } catch (error) { console.log(error.message) }`;
  const [xdg, home, neither] = await Promise.all([
    evaluate(code, { XDG_CACHE_HOME: "/var/tmp/c", HOME: "/home/user" }),
    evaluate(code, { XDG_CACHE_HOME: "", HOME: "/home/user" }),
    evaluate(code, { XDG_CACHE_HOME: "", HOME: "" }),
  ]);
  assertEquals(xdg, "/var/tmp/c/colo\n");
  assertEquals(home, "/home/user/.cache/colo\n");
  assertEquals(neither, "Cannot find the cache directory: set HOME or XDG_CACHE_HOME\n");
});
