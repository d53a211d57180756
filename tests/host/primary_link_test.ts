import { assert, assertEquals } from "@std/assert/mod.js";
import { parseVmConfig } from "../../engine/config/mod.ts";
import { QmpError } from "../../engine/errors.ts";
import { CheckpointLog } from "../../engine/host/checkpoint_log.ts";
import { PrimaryDisks } from "../../engine/host/primary_disks.ts";
import { PrimaryLink } from "../../engine/host/primary_link.ts";
import { acceptLinks, listenLink } from "../../engine/link/mod.ts";
import { ENGINE_VERSION } from "../../engine/version.ts";

Deno.test("a primary that cannot begin with its secondary says so once, and tries ever more seldom", async () => {
  const directory = Deno.makeTempDirSync({ prefix: "colo-link-" });
  const config = parseVmConfig(
    `[vm]
    name = "vm"
    memory = 16
    kernel = "none"
    [replication]
    peer = "unix:${directory}/link.sock"`,
    `${directory}/vm.toml`,
  );
  const listener = await listenLink({ transport: "unix", path: `${directory}/link.sock` });
  const beginnings: number[] = [];
  const secondary = (async () => {
    for await (const link of acceptLinks(listener, ENGINE_VERSION, () => undefined)) {
      await link.bulk.send({ type: "replicaReady" });
    }
  })();
  const said: string[] = [];
  let isDone = false;
  let unguarded = 0;
  const report = (event: { readonly event: string; readonly text?: string }) => {
    said.push(event.text ?? event.event);
  };
  const link = new PrimaryLink({
    config,
    arbitration: { generation: 1, holder: "a", isClaiming: false, peerIsBack: () => {} },
    disks: new PrimaryDisks({
      count: 0,
      directory,
      undisturbed: (work) => work(),
      demand() {},
      report,
    }),
    log: new CheckpointLog(report),
    report,
  }, {
    isDone: () => isDone,
    phase: () => "alone",
    monitor: () => undefined,
    awaitsCommit: () => false,
    step: ({ type }) => said.push(type),
    source: () => {
      throw new Error("nothing was begun");
    },
    guard: () => {
      beginnings.push(performance.now());
      return Promise.reject(new QmpError("Vhost is not supported"));
    },
    unguard: () => unguarded++,
    captureAnew() {},
  });
  try {
    const connecting = link.connectAgainAndAgain();
    const deadline = performance.now() + 10_000;
    while (beginnings.length < 3) {
      assert(performance.now() < deadline, "it takes too long");
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    isDone = true;
    await connecting;
    const pauses = beginnings.slice(1).map((atMs, index) => atMs - beginnings[index]!);
    for (const [index, pauseMs] of pauses.entries()) {
      assert(pauseMs >= 400 * 2 ** index, `${pauses}`);
    }
    assertEquals(said, ["Vhost is not supported; trying again"]);
    assertEquals(unguarded, 3);
  } finally {
    listener.close();
    await secondary;
    Deno.removeSync(directory, { recursive: true });
  }
});
