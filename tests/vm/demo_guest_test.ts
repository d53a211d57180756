import { assert, assertEquals } from "@std/assert/mod.js";
import initScript from "../../engine/vm/demo_guest/init.sh" with { type: "text" };
import counterScript from "../../engine/vm/demo_guest/counter.sh" with { type: "text" };

for (const [name, text] of [["init.sh", initScript], ["counter.sh", counterScript]] as const) {
  Deno.test(`${name} is a shell script without mistakes of syntax`, async () => {
    const child = new Deno.Command("sh", { args: ["-n"], stdin: "piped", stderr: "piped" }).spawn();
    const writer = child.stdin.getWriter();
    await writer.write(new TextEncoder().encode(text));
    await writer.close();
    const { success, stderr } = await child.output();
    assert(success, new TextDecoder().decode(stderr));
  });
}

Deno.test("init.sh documents every kernel parameter that it reads", () => {
  const [comment = "", code = ""] = initScript.split(/\n\n(?=\/bin\/busybox)/);
  const read = [...code.matchAll(/(colo\.\w+)=\*\)/g)].map((match) => match[1]);
  const documented = [...comment.matchAll(/^#\s+(colo\.\w+)=/gm)].map((match) => match[1]);
  assert(read.length > 0);
  assertEquals(documented.toSorted(), read.toSorted());
});
