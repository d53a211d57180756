import { openRig } from "./bench/rig/rig.ts";
import { startNative, startOurs, startUnprotected } from "./bench/rig/disk_contenders.ts";
const dir = await Deno.makeTempDir({ prefix: "colo-prof-" });
const rig = await openRig(
  {
    quick: false,
    directory: dir,
    progress: (t: string) => console.log(t),
    signal: new AbortController().signal,
  } as any,
);
const what = Deno.args[0]!, n = Number(Deno.args[1] ?? 3);
const c = what === "native"
  ? await startNative(rig, 500)
  : what === "none"
  ? await startUnprotected(rig)
  : await startOurs(rig, what === "colo" ? 500 : 100, what as any);
const pids = () => {
  const o = new Deno.Command("pgrep", { args: ["-f", "cli/colo.ts (run|standby)"] }).outputSync();
  return new TextDecoder().decode(o.stdout).trim().split("\n").filter(Boolean).map(Number);
};
const cpu = () =>
  pids().map((p) => {
    const f = Deno.readTextFileSync(`/proc/${p}/stat`).split(") ")[1]!.split(" ");
    return (Number(f[11]) + Number(f[12])) * 10;
  });
let line = "";
await c.client.ask(`sequential ${1024 * 1024}`, 120000);
for (let i = 0; i < n; i++) {
  const t = performance.now();
  const c0 = cpu();
  await c.client.ask(`sequential ${1024 * 1024}`, 120000);
  const c1 = cpu();
  line += `${(1024 * 1024 * 1024 / 1e3 / (performance.now() - t)).toFixed(0)} MB/s (cpu ms ${
    c1.map((v, k) => v - c0[k]!)
  }) `;
}
console.log(what, line);
c.client.close();
await c.close();
await Deno.remove(dir, { recursive: true });
