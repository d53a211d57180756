/**
 * Everything that may die or stand still, at every moment that matters, in each mode: exactly one VM goes
 * on, with nothing lost that a client has been told, and is protected again.
 *
 * `COLO_TEST_MATRIX=all` tries all cells, `COLO_TEST_MATRIX=3-5` or `=3` some of them by their numbers;
 * else each run draws some others of each mode.
 */

import { assert, assertEquals } from "@std/assert/mod.js";
import { GUEST } from "../../bench/rig/hosts.ts";
import type { EngineProcess } from "../../cli/demo/engine_process.ts";
import type { ReplicationMode } from "../../engine/config/mod.ts";
import type { Report } from "../../engine/host/mod.ts";
import { eventTimeMs, QmpClient } from "../../engine/qmp/mod.ts";
import { ConsoleVerifier } from "../../engine/vm/mod.ts";
import { ArbitratedPair, whyNoArbitratedPair } from "./_arbitrated_pair.ts";
import { FrameWatch } from "./_frame_watch.ts";
import { type Cell, CELLS, CUT_MS, STOP_MS, type Target } from "./_kill_matrix.ts";
import { LinkRelay } from "./_link_relay.ts";
import type { Side as AnySide } from "./_network_pair.ts";
import { isAlive, processesOf, randomFrom, sleep, until, within } from "./_pair.ts";

/** So many cells of each mode in every run. */
const SAMPLED = 2;

/** An aim is as good as the time in which one is told that a guest stands still. */
const ATTEMPTS = 5;

/** The relay is in this process, which must not be taken for dead when the machine is busy. */
const TIMEOUT_MS = 1000;

const AIM_MS = 10_000;
const SETTLE_MS = 40_000;
const TAKEOVER_MS = 10_000;

/** A seed is under way: much of it has gone over, and much has not. */
const SEED_FRAMES = 5;

/** Behind a load: nothing is under way, and the next checkpoint is some time off. */
const BETWEEN_MS = 100;

/** A checkpoint has come as a whole, and is being applied. */
const APPLY_MS = 1;

const RESTART_MS = 100;

/** Of each engine, where something went wrong. */
const REPORTS_SHOWN = 12;

const MODES: readonly ReplicationMode[] = ["colo", "continuous"];

type Side = Exclude<AnySide, "third">;
const SIDES: readonly Side[] = ["primary", "standby"];

const whyNot = await whyNoArbitratedPair();
if (whyNot !== undefined && Deno.env.get("CI")) throw new Error(`CI needs etcd: ${whyNot}`);
if (whyNot !== undefined) console.log(`the kill matrix is left out: ${whyNot}`);

/** How an engine takes part, by what it said last. */
function role(engine: EngineProcess): string {
  if (!isAlive(engine.pid)) return "none";
  const said = engine.reports.findLast(({ event }) => event === "primary" || event === "secondary");
  return said !== undefined && "phase" in said ? `${said.event} ${said.phase}` : "none";
}

/** A pair, with somebody on each host who starts engines that have ended. */
class Stage implements AsyncDisposable {
  readonly console: ConsoleVerifier[] = [];
  #over = false;

  private constructor(
    readonly directory: string,
    readonly relays: Readonly<Record<Side, LinkRelay>>,
    readonly world: ArbitratedPair,
    readonly frames: FrameWatch,
    readonly monitors: Readonly<Record<Side, QmpClient>>,
  ) {
    for (const side of SIDES) this.#keep(side, side === "primary" ? "run" : "standby");
  }

  static async start(mode: ReplicationMode): Promise<Stage> {
    const directory = await Deno.makeTempDir({ prefix: "colo-matrix-" });
    const relay = (side: Side) =>
      new LinkRelay({ path: `${directory}/${side}.sock` }, {
        path: `${directory}/to-${side}.sock`,
      });
    const relays = { primary: relay("primary"), standby: relay("standby") };
    const world = await ArbitratedPair.start({
      mode,
      bothWays: true,
      address: (listener, by) =>
        `unix:${directory}/${listener === by ? "" : "to-"}${listener}.sock`,
      append: "colo.load=sweep colo.load_pages=1024 colo.load_ms=200",
      replication: ["period = 400", "revive = true"],
      vm: (side) => [
        `extraArgs = ["-qmp", "unix:${directory}/${side}-monitor.sock,server=on,wait=off"]`,
      ],
    }, TIMEOUT_MS);
    const monitor = (side: Side) => QmpClient.connect(`${directory}/${side}-monitor.sock`);
    const [primary, standby] = await Promise.all(SIDES.map(monitor));
    const frames = new FrameWatch(world.pair.hosts, GUEST.mac);
    return new Stage(directory, relays, world, frames, { primary: primary!, standby: standby! });
  }

  get pair() {
    return this.world.pair;
  }

  /** As a service manager does: one that was killed is started again, one that has lost its VM stands by. */
  async #keep(side: Side, command: "run" | "standby"): Promise<void> {
    const code = await this.pair[side].exited();
    await sleep(RESTART_MS);
    if (this.#over) return;
    const next = code > 128 ? command : "standby";
    if (next === "run") this.pair.run(side);
    else this.pair.standBy(side);
    this.#keep(side, next);
  }

  /** The side that runs the VM and the one that protects it, when everything is as it should be. */
  get settled(): { readonly owner: Side; readonly other: Side } | undefined {
    const [primary, standby] = SIDES.map((side) => role(this.pair[side]));
    if (primary === "primary protected" && standby === "secondary protecting") {
      return { owner: "primary", other: "standby" };
    }
    if (standby === "primary protected" && primary === "secondary protecting") {
      return { owner: "standby", other: "primary" };
    }
    return undefined;
  }

  /** Whether a side has a QEMU, which something can happen to. */
  hasQemu(side: Side): boolean {
    try {
      return isAlive(this.pair.qemuPid(side));
    } catch {
      return false;
    }
  }

  /** Processes that something happens to. */
  pids(target: Target): readonly number[] {
    const { pair } = this;
    switch (target) {
      case "primary QEMU":
        return [pair.qemuPid("primary")];
      case "secondary QEMU":
        return [pair.qemuPid("standby")];
      case "primary engine":
        return [pair.primary.pid];
      case "secondary engine":
        return [pair.standby.pid];
      case "both engines":
        return [pair.primary.pid, pair.standby.pid];
      case "link":
        return [];
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#over = true;
    for (const side of SIDES) {
      this.relays[side].heal();
      await this.monitors[side].close();
    }
    await this.world[Symbol.asyncDispose]();
    for (const side of SIDES) this.relays[side].close();
    await Deno.remove(this.directory, { recursive: true });
  }
}

/**
 * Act at a moment.
 *
 * @returns When it was, in milliseconds since the epoch, and whether that was in time
 */
async function actAt(stage: Stage, { mode, moment }: Cell, act: () => void) {
  const { pair, relays, monitors } = stage;
  const acted = Promise.withResolvers<number>();
  /** When the moment was over. */
  let overMs = () => Infinity;
  let isDone = false;
  const actNow = () => {
    if (isDone) return;
    isDone = true;
    act();
    acted.resolve(performance.timeOrigin + performance.now());
  };
  switch (moment) {
    case "seeding": {
      let frames = 0;
      const hold = relays.standby.hold(({ role, type }) => {
        if (role !== "bulk") return false;
        if (type === "seedBegin") frames = 1;
        else if (type === "commit") frames = 0;
        else if (frames > 0 && type === "pages") frames++;
        return frames > SEED_FRAMES;
      });
      // An image needs no other seed when its QEMU is lost.
      const ended = mode === "colo" ? pair.qemuPid("standby") : pair.standby.pid;
      Deno.kill(ended, "SIGKILL");
      await within(hold.frame, AIM_MS, "a seed is under way");
      await until(() => stage.hasQemu("standby"), AIM_MS, "there is a QEMU");
      actNow();
      hold.release();
      break;
    }
    case "while the standby applies": {
      const { reports } = pair.standby;
      const relay = relays.standby;
      relay.onFrame = ({ role, type, epoch }) => {
        if (role !== "bulk" || type !== "commit") return;
        relay.onFrame = () => {};
        const isApplied = (report: Report) => report.event === "loaded" && report.epoch === epoch;
        overMs = () => reports.find(isApplied)?.atMs ?? Infinity;
        setTimeout(actNow, APPLY_MS);
      };
      break;
    }
    case "between checkpoints": {
      const { reports } = pair.standby;
      const from = reports.length;
      await until(
        () => reports.slice(from).some(({ event }) => event === "loaded"),
        AIM_MS,
        "a checkpoint is loaded",
      );
      await sleep(BETWEEN_MS);
      actNow();
      break;
    }
    default: {
      const monitor = monitors[moment === "in a checkpoint" ? "primary" : "standby"];
      /** When the QEMU stood still that is aimed at, and when it did not any more. */
      let [stoppedMs, resumedMs] = [Infinity, Infinity];
      overMs = () => resumedMs;
      monitor.on("STOP", (event) => {
        if (!isDone) stoppedMs = eventTimeMs(event);
        actNow();
      });
      monitor.on("RESUME", (event) => {
        const atMs = eventTimeMs(event);
        if (atMs > stoppedMs) resumedMs = Math.min(resumedMs, atMs);
      });
    }
  }
  const timer = setTimeout(() => acted.reject(new Error(`never ${moment}`)), AIM_MS);
  const atMs = await acted.promise.finally(() => clearTimeout(timer));
  await sleep(BETWEEN_MS);
  return { atMs, inTime: overMs() > atMs };
}

/** Do it, and undo it after a while where that is part of it. */
async function happen(stage: Stage, cell: Cell) {
  const { target, action } = cell;
  const { relays } = stage;
  let pids: readonly number[] = [];
  const { atMs, inTime } = await actAt(stage, cell, () => {
    pids = stage.pids(target);
    if (action === "cut") { for (const side of SIDES) relays[side].cut(); }
    else for (const pid of pids) Deno.kill(pid, action === "kill" ? "SIGKILL" : "SIGSTOP");
  });
  if (action === "kill") return { atMs, inTime };
  if (inTime) await sleep(action === "cut" ? CUT_MS : STOP_MS);
  for (const side of SIDES) relays[side].heal();
  for (const pid of pids) {
    try {
      Deno.kill(pid, "SIGCONT");
    } catch {
      // It has been taken for dead, and is.
    }
  }
  return { atMs, inTime };
}

/** What the tick lines of both consoles prove. */
function verify(stage: Stage, boot: ConsoleVerifier): number {
  const ticks = SIDES.flatMap((side) => {
    const text = Deno.readTextFileSync(`${stage.pair.directory}/${side}-console.log`);
    return new ConsoleVerifier(boot.boot).push(text);
  });
  assert(ticks.every(({ chainOk }) => chainOk), "the hash chain is broken");
  assert(ticks.every(({ fileOk }) => fileOk), "the guest's file is damaged");
  return Math.max(...ticks.map(({ n }) => n));
}

/** @returns One line about it, or nothing when the moment was missed */
async function tryCell(cell: Cell): Promise<string | undefined> {
  await using stage = await Stage.start(cell.mode);
  try {
    return await playCell(stage, cell);
  } catch (error) {
    for (const side of SIDES) {
      const said = stage.pair[side].reports.filter(({ event }) =>
        event !== "checkpoint" && event !== "loaded"
      );
      console.log(side, said.slice(-REPORTS_SHOWN).map((report) => JSON.stringify(report)));
    }
    throw error;
  }
}

async function playCell(stage: Stage, cell: Cell): Promise<string | undefined> {
  const { pair } = stage;
  const load = pair.load({ kind: "count" }, {
    connections: 4,
    durationMs: 120_000,
    intervalMs: 5,
    answerTimeoutMs: 15_000,
  });
  await load.connected;
  await until(() => stage.settled !== undefined, SETTLE_MS, "the pair is protected");
  await sleep(500);
  const boot = new ConsoleVerifier();
  boot.push(Deno.readTextFileSync(`${pair.directory}/primary-console.log`));
  const ticksBefore = verify(stage, boot);
  const engines = [pair.primary, pair.standby];
  const from = engines.map(({ reports }) => reports.length);
  const { atMs, inTime } = await happen(stage, cell);
  if (!inTime) {
    // Nothing is left behind by engines that are there.
    await until(() => stage.settled !== undefined, SETTLE_MS, "the pair is protected again");
    await load.stop();
    await stage.frames.stop();
    return undefined;
  }

  await until(() => stage.settled !== undefined, SETTLE_MS, "the pair is protected again");
  // What is to change yet, does.
  await sleep(1000);
  await until(() => stage.settled !== undefined, SETTLE_MS, "the pair stays protected");
  const settledMs = performance.timeOrigin + performance.now() - atMs;
  const { owner, other } = stage.settled!;
  const host = owner === "primary" ? "primary" : "secondary";
  if (cell.runs !== "either") assertEquals(host, cell.runs, "who goes on");
  const qemus = processesOf(pair.directory).filter((line) => line.includes("-qmp"));
  assertEquals(qemus.length, 2, `one VM and its secondary: ${qemus.join("\n")}`);
  const status = await pair.status(owner);
  assertEquals([status.phase, status.protected], ["protected", true]);
  const after = engines.flatMap(({ reports }, at) => reports.slice(from[at]));
  const wasUnprotected = host === "secondary" || pair.primary !== engines[0] ||
    after.some((report) => report.event === "primary" && report.phase !== "protected");
  if (cell.unprotected !== "either") {
    assertEquals(wasUnprotected, cell.unprotected === "yes", "what was said of the protection");
  }

  // It says that it is protected: so its end is survived.
  Deno.kill(pair.qemuPid(owner), "SIGKILL");
  const killedMs = performance.timeOrigin + performance.now();
  await pair[other].waitFor("running", (report) => report.atMs >= killedMs - 1, TAKEOVER_MS);
  await sleep(1500);
  const { errors, longestGapMs, answers } = await load.stop();
  const runs = await stage.frames.stop();
  if (!cell.forgets) assertEquals(errors, []);
  assert(verify(stage, boot) > ticksBefore, "the guest stands still");
  const expected = [
    ...(host === "primary" ? [] : ["host-a"]),
    host === "primary" ? "host-a" : "host-b",
  ];
  expected.push(owner === "primary" ? "host-b" : "host-a");
  const seen = runs.map(({ port }) => port);
  // Where a VM runs for a moment only, nobody may have asked it anything: a client asks at intervals.
  let said = 0;
  for (const port of expected) if (port === seen[said]) said++;
  assertEquals(seen.slice(said), [], `split brain: ${JSON.stringify(runs)}`);
  assertEquals(seen.at(-1), expected.at(-1), "who is heard last");
  assert(longestGapMs <= cell.gapMs, `a client waited ${longestGapMs.toFixed(0)} ms`);
  return `${host} runs, protected again after ${settledMs.toFixed(0)} ms, ${answers} answers, ` +
    `longest gap ${longestGapMs.toFixed(0)} ms`;
}

/** The seed of the cells that are drawn: `COLO_TEST_SEED`, or another one in every run, CI's as well. */
function drawingSeed(): number {
  const seed = Number(Deno.env.get("COLO_TEST_SEED") ?? Date.now() % 2 ** 31);
  console.log(`seed ${seed}: replay with COLO_TEST_SEED=${seed}`);
  return seed;
}

function chosen(): readonly number[] {
  const all = CELLS.map((_, at) => at);
  const wanted = Deno.env.get("COLO_TEST_MATRIX");
  if (wanted === "all") return all;
  const range = /^(\d+)(?:-(\d+))?$/.exec(wanted ?? "");
  if (range !== null) return all.slice(Number(range[1]), Number(range[2] ?? range[1]) + 1);
  const random = randomFrom(drawingSeed());
  const drawn = all.map((at) => ({ at, order: random() })).sort((a, b) => a.order - b.order);
  return MODES.flatMap((mode) =>
    drawn.filter(({ at }) => CELLS[at]!.mode === mode).slice(0, SAMPLED).map(({ at }) => at)
  );
}

for (const at of whyNot === undefined ? chosen() : []) {
  const cell = CELLS[at]!;
  const { mode, target, action, moment } = cell;
  Deno.test(`kill matrix ${at}: ${mode}, ${target}, ${action}, ${moment}`, async () => {
    for (let attempt = 1; attempt <= ATTEMPTS; attempt++) {
      const line = await tryCell(cell);
      if (line !== undefined) return console.log(line);
      console.log("the moment was missed");
    }
    throw new Error(`missed ${ATTEMPTS} times: ${moment}`);
  });
}
