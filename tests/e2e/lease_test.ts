import { assert, assertEquals } from "@std/assert/mod.js";
import { EtcdCluster, etcdOfBookworm } from "../../bench/rig/etcd.ts";
import { Commands } from "./_commands.ts";
import { sleep, until } from "./_pair.ts";

/** Until etcd is missed, and the lease has nearly ended. */
const WAIT_MS = 20_000;

/** The VM is captured anew meanwhile. */
const WATCHED_MS = 3000;

const command = await etcdOfBookworm().catch((error) => `${error}`);
if (typeof command === "string" && Deno.env.get("CI")) throw new Error(command);

Deno.test({
  name:
    "a VM whose lease ends is paused, and stays so when QEMU lets it run, until there is a lease",
  ignore: typeof command === "string",
  fn: async () => {
    await using cluster = await EtcdCluster.start(command as readonly string[]);
    await using pair = new Commands();
    const endpoints = JSON.stringify(cluster.endpoints);
    await pair.start({
      replication: ['mode = "continuous"', "period = 100"],
      rest: () => ["[failover]", 'arbiter = "etcd"', `endpoints = ${endpoints}`, "lease = 3000"],
    });
    await pair.phase("primary", "protected");
    const protectedAt = pair.side("primary").reports.length;
    await pair.side("standby").stop();
    await pair.phase("primary", "alone", protectedAt);
    const monitor = await pair.monitor("primary");
    const runs = async () => (await monitor.execute("query-status")).running;
    await until(runs, WAIT_MS, "the VM runs");
    await cluster.members[0]!.kill();
    const isPaused = ({ text }: { readonly text: string }) => text.includes("the VM is paused");
    await pair.side("primary").waitFor("notice", isPaused, WAIT_MS);
    await until(async () => !(await runs()), WAIT_MS, "the VM is paused");

    let resumed = 0;
    monitor.on("RESUME", () => resumed++);
    // At the end of COLO, and when it has begun anew, QEMU lets the VM run.
    await monitor.execute("x-colo-lost-heartbeat");
    let running = 0;
    const beganMs = performance.now();
    let looks = 0;
    for (; performance.now() - beganMs < WATCHED_MS; looks++) {
      if (await runs()) running++;
      await sleep(5);
    }
    console.log(`QEMU let the VM run ${resumed} times; seen to run ${running} of ${looks} times`);
    assert(resumed > 0, "QEMU has let nothing run");
    assert(running <= looks / 20, "it ran on");
    assertEquals(await runs(), false);

    await cluster.restart();
    await until(runs, WAIT_MS, "the VM runs");
    await monitor.close();

    // It was captured while it stood still: who takes over from that runs all the same.
    const told = pair.side("primary").reports.length;
    pair.restart("standby");
    await pair.phase("primary", "protected", told);
    Deno.kill(pair.qemuPid("primary"), "SIGKILL");
    await pair.side("standby").waitFor("running", () => true, WAIT_MS);
    const before = pair.console("primary");
    before.poll();
    const survivor = pair.console("standby");
    survivor.bootedAs(before.boot!);
    await until(() => survivor.poll().length > 0, WAIT_MS, "the guest says something");
  },
});
