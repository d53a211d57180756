import { assert, assertEquals } from "@std/assert/mod.js";
import { DeathWatch, parseThreadStat } from "../../engine/vm/death_watch.ts";

/** A process of several threads that holds some memory, and says when it does. */
async function start(memoryMiB: number): Promise<Deno.ChildProcess> {
  const program = `const held = new Uint8Array(${memoryMiB} * 2 ** 20).fill(1);
    console.log(held.length);
    setInterval(() => {}, 1000);`;
  const child = new Deno.Command(Deno.execPath(), {
    args: ["eval", program],
    stdin: "null",
    stdout: "piped",
  }).spawn();
  const reader = child.stdout.getReader();
  await reader.read();
  await reader.cancel();
  return child;
}

Deno.test("DeathWatch sees a kill before the process has ended, and nothing before the kill", async () => {
  const child = await start(512);
  using watch = new DeathWatch(child.pid);
  for (const signal of ["SIGSTOP", "SIGCONT"] as const) {
    child.kill(signal);
    await new Promise((resolve) => setTimeout(resolve, 20));
    assertEquals(watch.look(), undefined, signal);
  }
  child.kill("SIGKILL");
  let death;
  for (const deadline = performance.now() + 5000; performance.now() < deadline;) {
    if ((death = watch.look()) !== undefined) break;
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  assertEquals(death, { signal: "SIGKILL" });
  assertEquals((await child.status).signal, "SIGKILL");
  // It has been waited for: there is nothing to be seen any more.
  assertEquals(watch.look(), undefined);
});

Deno.test("DeathWatch says nothing of a process that does not exist", () => {
  using watch = new DeathWatch(2 ** 30);
  assertEquals(watch.look(), undefined);
});

Deno.test("parseThreadStat is not led astray by a process's name", () => {
  const fields = Array.from({ length: 50 }, (_, index) => String(index));
  const stat = (name: string, flags: number, exitCode: number) => {
    const all = [...fields];
    all[0] = "Z";
    all[6] = String(flags);
    all[49] = String(exitCode);
    return `4711 (${name}) ${all.join(" ")}\n`;
  };
  for (const name of ["qemu", "a b) R 1 2 3", ") ) (", ""]) {
    const facts = { isZombie: true, startTicks: 19 };
    const dying = parseThreadStat(stat(name, 0x40014c, 9));
    assertEquals(dying, { ...facts, exiting: true, exitCode: 9 });
    const alive = parseThreadStat(stat(name, 0x400140, 0));
    assertEquals(alive, { ...facts, exiting: false, exitCode: 0 });
  }
  assert(!parseThreadStat("").exiting);
});
