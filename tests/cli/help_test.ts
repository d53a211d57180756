import { assertEquals } from "@std/assert/mod.js";
import { colo } from "./_colo.ts";

const GOLDEN = new URL("../golden/help/", import.meta.url);

// After a change that is meant: COLO_UPDATE_GOLDEN=1 deno test -A tests/cli/help_test.ts
const UPDATE = Deno.env.get("COLO_UPDATE_GOLDEN") === "1";

const COMMANDS = [
  ...["", "demo", "run", "standby", "doctor", "inspect", "restore", "export", "checkpoint"],
  ...["status", "bypass", "reprotect", "take-over"],
  ...["save", "list", "show", "verify", "prepare", "delete"].map((word) => `checkpoint ${word}`),
];

for (const command of COMMANDS) {
  const words = [...command.split(" ").filter((word) => word !== ""), "--help"];
  Deno.test(`colo ${words.join(" ")} prints the help that is kept as golden`, async () => {
    const { code, stdout, stderr } = await colo(words);
    assertEquals({ code, stderr }, { code: 0, stderr: "" });
    const path = new URL(`${command.replace(" ", "-") || "colo"}.txt`, GOLDEN);
    if (UPDATE) await Deno.writeTextFile(path, stdout);
    assertEquals(stdout, await Deno.readTextFile(path));
  });
}

Deno.test("colo --version prints the version that deno.json has", async () => {
  const { version } = JSON.parse(
    await Deno.readTextFile(new URL("../../deno.json", import.meta.url)),
  );
  assertEquals(await colo(["--version"]), { code: 0, stdout: `${version}\n`, stderr: "" });
});
