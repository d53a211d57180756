import { assert, assertEquals } from "@std/assert/mod.js";
import { aptConfiguration } from "../../engine/vm/apt.ts";
import { which } from "../../engine/vm/run.ts";
import { inTemporaryDirectory } from "./_support.ts";

const hasApt = await which("apt-config") !== undefined;

Deno.test("aptConfiguration() names no path outside its directory", () => {
  const paths = aptConfiguration("/cache/apt").match(/"\/[^"]*"/g) ?? [];
  assert(paths.length > 5);
  assert(paths.every((path) => path.startsWith('"/cache/apt/')));
});

Deno.test({
  name: "aptConfiguration() moves all of apt's state into its directory",
  ignore: !hasApt,
  async fn() {
    await inTemporaryDirectory(async (directory) => {
      await Deno.writeTextFile(`${directory}/apt.conf`, aptConfiguration(directory));
      const names = [
        ...["Dir::State/d", "Dir::State::status/f", "Dir::State::lists/d"],
        ...["Dir::Cache::archives/d", "Dir::Etc::sourcelist/f", "Dir::Etc::sourceparts/d"],
        ...["Dir::Etc::preferences/f", "Dir::Etc::preferencesparts/d"],
      ];
      const { stdout } = await new Deno.Command("apt-config", {
        args: [
          "-c",
          `${directory}/apt.conf`,
          "shell",
          ...names.flatMap((name, i) => [`P${i}`, name]),
        ],
      }).output();
      const lines = new TextDecoder().decode(stdout).trim().split("\n");
      assertEquals(lines.length, names.length);
      for (const line of lines) assert(line.includes(`'${directory}/`), line);
    });
  },
});
