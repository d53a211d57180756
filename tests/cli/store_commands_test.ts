import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import { EXIT } from "../../cli/exit_codes.ts";
import { ControlServer } from "../../engine/control/mod.ts";
import { StoreError } from "../../engine/errors.ts";
import { CheckpointStore, DirectoryFiles } from "../../engine/store/mod.ts";
import { StreamInspector } from "../../engine/stream/inspect.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import { Guest } from "../store/_guest.ts";
import { colo } from "./_colo.ts";

const VM = '[vm]\nname = "a"\nmemory = 64\nkernel = "vm.toml"\n';

/** A directory with a store of two checkpoints, and a config that names it. */
async function withStore(test: (directory: string, store: string) => Promise<void>): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "colo-test-" });
  try {
    const store = `${directory}/store`;
    const files = new DirectoryFiles(store);
    const stored = new CheckpointStore(files, () => WasmKernels.create());
    const guest = new Guest();
    for (const [round, name] of ["one", "two"].entries()) {
      guest.write(20 + round, "whole", round);
      guest.run(round);
      // No devices at all: what a stream ends with then.
      guest.deviceState = Uint8Array.of(0);
      guest.save(stored, name);
    }
    await Deno.writeTextFile(`${directory}/plain.toml`, VM);
    await Deno.writeTextFile(
      `${directory}/vm.toml`,
      `${VM}[store]\ndirectory = "store"\nimages = "images"\n[control]\nsocket = "vm.sock"\n`,
    );
    await test(directory, store);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

Deno.test("stored checkpoints are listed, shown, verified and deleted", async () => {
  await withStore(async (directory, store) => {
    const config = ["--config", `${directory}/vm.toml`];
    const list = await colo(["checkpoint", "list", ...config]);
    assertEquals(list.code, EXIT.OK);
    const rows = list.stdout.trimEnd().split("\n").map((line) => line.split(/ {2,}/));
    assertEquals(rows.map(([name, , , kind]) => [name, kind]), [
      ["NAME", "KIND"],
      ["one", "full"],
      ["two", "difference"],
    ]);
    const json = await colo(["checkpoint", "list", "--store", store, "--json"]);
    const names = json.stdout.trimEnd().split("\n").map((line) => JSON.parse(line).name);
    assertEquals(names, ["one", "two"]);
    const show = await colo(["checkpoint", "show", "two", ...config]);
    assertStringIncludes(show.stdout, "difference from one");
    assertStringIncludes(show.stdout, "machine  pc-i440fx-11.1");
    const verify = await colo(["checkpoint", "verify", ...config]);
    assertEquals(verify.stdout, "one is whole\ntwo is whole\n");
    assertEquals((await colo(["checkpoint", "delete", "one", ...config])).code, EXIT.OK);
    assertEquals(
      (await colo(["checkpoint", "verify", "two", ...config])).stdout,
      "two is whole\n",
    );
  });
});

Deno.test("a damaged checkpoint is named, and the others are still verified", async () => {
  await withStore(async (_, store) => {
    const path = `${store}/two.colo`;
    const bytes = await Deno.readFile(path);
    bytes[40]! ^= 1;
    await Deno.writeFile(path, bytes);
    const { code, stdout, stderr } = await colo(["checkpoint", "verify", "--store", store]);
    assertEquals({ code, stdout }, { code: EXIT.FAILED, stdout: "one is whole\n" });
    assertSentence(stderr);
    assertStringIncludes(stderr, "checkpoint two: bytes 0 to ");
    await Deno.truncate(path, 100);
    const list = await colo(["checkpoint", "list", "--store", store]);
    assert(/^two +damaged/m.test(list.stdout), list.stdout);
  });
});

Deno.test("an exported checkpoint is a migration stream, and appears as a whole or not at all", async () => {
  await withStore(async (directory, store) => {
    const path = `${directory}/two.mig`;
    assertEquals((await colo(["export", "two", path, "--store", store])).code, EXIT.OK);
    const inspector = new StreamInspector();
    inspector.push(await Deno.readFile(path));
    const { machine, blocks } = inspector.finish();
    assertEquals([machine, blocks.length], ["pc-i440fx-11.1", 3]);
    const damaged = `${store}/one.colo`;
    const bytes = await Deno.readFile(damaged);
    bytes[bytes.length >> 1]! ^= 1;
    await Deno.writeFile(damaged, bytes);
    const { code, stderr } = await colo([
      "export",
      "two",
      `${directory}/three.mig`,
      "--store",
      store,
    ]);
    assertEquals(code, EXIT.FAILED);
    assertSentence(stderr);
    const left = [...Deno.readDirSync(directory)].map(({ name }) => name)
      .filter((name) => name.startsWith("three"));
    assertEquals(left, []);
  });
});

Deno.test("a RAM image is made, and goes with its checkpoint", async () => {
  await withStore(async (directory) => {
    const config = ["--config", `${directory}/vm.toml`];
    assertEquals((await colo(["checkpoint", "prepare", "two", ...config])).code, EXIT.OK);
    const images = () =>
      [...Deno.readDirSync(`${directory}/images`)].map(({ name }) => name).sort();
    assertEquals(images(), ["two.instant", "two.ram"]);
    assertEquals((await Deno.stat(`${directory}/images/two.ram`)).size, 300 * 4096);
    assertEquals((await colo(["checkpoint", "delete", "two", ...config])).code, EXIT.OK);
    assertEquals(images(), []);
  });
});

Deno.test("colo checkpoint save says what the engine answers", async () => {
  await withStore(async (directory) => {
    const server = await ControlServer.listen(`${directory}/vm.sock`, {
      "colo-checkpoint-save": {
        arguments: { name: "string" },
        run: ({ name }) => {
          if (name === "taken") throw new StoreError("Cannot save checkpoint taken: there is one");
          return {
            name,
            full: false,
            pages: 7,
            bytes: 2000,
            epoch: 3,
            "duration-ms": 12.4,
            "frozen-ms": 1,
            retired: ["old"],
          };
        },
      },
    });
    const config = ["--config", `${directory}/vm.toml`];
    assertEquals(await colo(["checkpoint", "save", "new", ...config]), {
      code: EXIT.OK,
      stdout: "checkpoint 3 saved as new: what changed, 7 pages, 2.0 kB, in 12 ms\n" +
        "old is no longer kept\n",
      stderr: "",
    });
    const { code, stderr } = await colo(["checkpoint", "save", "taken", ...config]);
    assertEquals([code, stderr], [
      EXIT.FAILED,
      "colo: Cannot save checkpoint taken: there is one\n",
    ]);
    server.close();
  });
});

Deno.test("commands on checkpoints refuse what they cannot do with one sentence", async () => {
  await withStore(async (directory, store) => {
    const config = ["--config", `${directory}/vm.toml`];
    const plain = ["--config", `${directory}/plain.toml`];
    const cases: readonly [readonly string[], number, string][] = [
      [["checkpoint", "list"], EXIT.USAGE, "give --store DIR or --config vm.toml"],
      [["checkpoint", "list", ...plain], EXIT.USAGE, "store.directory is missing"],
      [["checkpoint", "save", "x"], EXIT.USAGE, "give --config vm.toml or --socket PATH"],
      [["checkpoint", "save", "x", ...config], EXIT.FAILED, "does its engine run?"],
      [["checkpoint", "show", "three", "--store", store], EXIT.FAILED, "Cannot find checkpoint"],
      [["checkpoint", "delete", "../a", "--store", store], EXIT.FAILED, "as the name"],
      [["checkpoint", "prepare", "three", ...config], EXIT.FAILED, "Cannot find checkpoint three"],
      [["export", "three", "/dev/null", "--store", store], EXIT.FAILED, "Cannot find"],
      [["export", "two", "/proc/x/y", "--store", store], EXIT.FAILED, "Cannot write /proc/x/y"],
      [["restore", "three", ...config], EXIT.FAILED, "Cannot find checkpoint three"],
      [["restore", "two", ...config], EXIT.USAGE, "vm.memory is 64 MiB"],
    ];
    for (const [args, expected, message] of cases) {
      const { code, stdout, stderr } = await colo(args);
      assertEquals({ args, code, stdout }, { args, code: expected, stdout: "" });
      assertSentence(stderr);
      assertStringIncludes(stderr, message);
    }
  });
});

/** One line for a person, and no stack trace. */
function assertSentence(stderr: string): void {
  const lines = stderr.trimEnd().split("\n");
  assertEquals(lines.length, 1, stderr);
  assert(/^colo: Cannot \w+ .*[^.]$/.test(lines[0]!), stderr);
}
