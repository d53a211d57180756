import { assert, assertEquals, assertRejects } from "@std/assert/mod.js";
import { ArbiterError } from "../../engine/errors.ts";
import type {
  Arbiter,
  Claim,
  ClaimAnswer,
  OwnerAnswer,
  Ownership,
  RenewAnswer,
} from "../../engine/failover/arbiter.ts";
import { Fence } from "../../engine/failover/fence.ts";
import {
  Arbitration,
  type ArbitrationOptions,
  type LeaseEvents,
  volatileArbiter,
} from "../../engine/host/arbitration.ts";

/** An arbiter whose every answer the test decides. */
class ScriptedArbiter implements Arbiter {
  readonly claims: Claim[] = [];
  renewals = 0;
  released = 0;
  owner: Ownership | undefined;
  answers: (ClaimAnswer | undefined)[] = [];
  renewal: RenewAnswer | undefined;

  prepare(): Promise<OwnerAnswer> {
    return Promise.resolve({ type: "owner", owner: this.owner });
  }

  claim(claim: Claim): Promise<ClaimAnswer> {
    this.claims.push(claim);
    const granted = {
      type: "granted",
      generation: claim.generation + 1,
      renewedMs: performance.now(),
    } as const;
    return Promise.resolve(this.answers.shift() ?? granted);
  }

  renew(): Promise<RenewAnswer> {
    this.renewals++;
    return Promise.resolve(this.renewal ?? { type: "renewed", renewedMs: performance.now() });
  }

  release(): Promise<void> {
    this.released++;
    return Promise.resolve();
  }

  learn(): Promise<void> {
    return Promise.resolve();
  }
}

function setUp(options: Partial<ArbitrationOptions> = {}) {
  const arbiter = new ScriptedArbiter();
  const said: string[] = [];
  const arbitration = new Arbitration({
    arbiter,
    holder: "host-a",
    leaseMs: 400,
    hasThirdParty: true,
    notice: (text) => said.push(text),
    ...options,
  });
  const events: string[] = [];
  const lease: LeaseEvents = {
    pause: () => events.push("pause"),
    resume: () => events.push("resume"),
    stale: (reason) => events.push(`stale: ${reason}`),
  };
  return { arbiter, arbitration, said, events, lease };
}

/** A peer that does not answer. */
const nobody = () => Promise.resolve({ type: "silent" } as const);

async function until(holds: () => boolean): Promise<void> {
  for (const deadline = performance.now() + 5000; !holds();) {
    assert(performance.now() < deadline, "it takes too long");
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

Deno.test("Arbitration begins a generation behind the one that is known", async () => {
  const { arbiter, arbitration, lease } = setUp();
  arbiter.owner = { generation: 6, holder: "host-b" };
  await arbitration.begin(lease, false, nobody);
  assertEquals(arbitration.generation, 7);
  assertEquals(arbiter.claims, [
    { generation: 6, holder: "host-a", standing: "outside", evidence: "ordered" },
  ]);
  await arbitration.close();
  await arbitration.close();
  assertEquals(arbiter.released, 1);
});

Deno.test("Arbitration does not begin what somebody else runs, or nobody can decide about", async () => {
  const answers: readonly [ClaimAnswer, string][] = [
    [{ type: "held", generation: 3, holder: "host-b" }, "host-b runs it"],
    [{ type: "stale", generation: 3, holder: "host-b" }, "host-b runs it"],
    [{ type: "unreachable", reason: "etcd is down" }, "etcd is down"],
    [{ type: "ask", reason: "decide yourself" }, "decide yourself"],
  ];
  for (const [answer, message] of answers) {
    const { arbiter, arbitration, lease } = setUp();
    arbiter.answers = [answer];
    await assertRejects(() => arbitration.begin(lease, false, nobody), ArbiterError, message);
    await arbitration.close();
    assertEquals(arbiter.released, 0);
  }
  // A VM that was left running may not go on when it is another's by now.
  const { arbiter, arbitration, lease } = setUp();
  arbiter.owner = { generation: 8, holder: "host-b" };
  await assertRejects(
    () => arbitration.begin(lease, true, nobody),
    ArbiterError,
    "host-b's by now",
  );
  assertEquals(arbiter.claims, []);
});

Deno.test("Arbitration claims until that is decided, and says once what is in the way", async () => {
  const { arbiter, arbitration, said, lease } = setUp();
  await arbitration.share(4, "host-b");
  const down = { type: "unreachable", reason: "etcd is down" } as const;
  arbiter.answers = [down, down];
  assertEquals(await arbitration.claim("silent", "pair", lease), { type: "granted" });
  assertEquals(arbitration.generation, 5);
  assertEquals(arbiter.claims.map(({ generation }) => generation), [4, 4, 4]);
  assertEquals(said, ["etcd is down; trying again"]);
  await arbitration.close();
});

Deno.test("Arbitration ends a claim that is stale, and one that only an operator can decide", async () => {
  const { arbiter, arbitration, lease } = setUp();
  await arbitration.share(4, "host-b");
  arbiter.answers = [{ type: "stale", generation: 5, holder: "host-b" }];
  const stale = await arbitration.claim("silent", "pair", lease);
  assert(stale.type === "stale" && stale.reason.includes("generation 5"), JSON.stringify(stale));
  arbiter.answers = [{ type: "ask", reason: "see for yourself" }];
  const undecided = await arbitration.claim("silent", "pair", lease);
  assertEquals(undecided, { type: "undecided", reason: "see for yourself" });
  await arbitration.close();
});

Deno.test("Arbitration gives back what is granted when the VM is gone that it was claimed for", async () => {
  const { arbiter, arbitration, lease } = setUp();
  await arbitration.share(4, "host-b");
  let isWanted = true;
  const verdict = arbitration.claim("reported", "pair", lease, () => isWanted);
  isWanted = false;
  assertEquals((await verdict).type, "undecided");
  assertEquals([arbiter.claims.length, arbiter.released, arbitration.generation], [1, 1, 0]);
  await arbitration.close();
  assertEquals(arbiter.released, 1);
});

/** A fence that takes its time, and counts. */
function countingFence() {
  const counted = { offs: 0 };
  const fence = new Fence({ command: ["fence"], plug: "b" }, async () => {
    await new Promise((resolve) => setTimeout(resolve, 5));
    counted.offs++;
    return { type: "exited", code: 0, complaint: "" };
  });
  return { fence, counted };
}

Deno.test("Arbitration without a third party has the other host switched off before it claims on its silence", async () => {
  const { fence, counted } = countingFence();
  const { arbiter, arbitration, lease } = setUp({ fence, hasThirdParty: false });
  await arbitration.share(4, "host-b");
  // Both sides do so, or one would go on while it is being switched off.
  assertEquals(arbitration.evidenceOfPrimary, "silent");
  await arbitration.claim("silent", "pair", lease);
  assertEquals([counted.offs, arbiter.claims.at(-1)?.evidence], [1, "fenced"]);
  await arbitration.close();
  const other = setUp({ fence, hasThirdParty: false });
  await other.arbitration.share(4, "host-b");
  await other.arbitration.claim("reported", "pair", other.lease);
  assertEquals([counted.offs, other.arbiter.claims.at(-1)?.evidence], [1, "reported"]);
  await other.arbitration.close();
});

Deno.test("Arbitration has the host switched off that has lost the VM, and never the one that has it", async () => {
  const { fence, counted } = countingFence();
  const winner = setUp({ fence });
  await winner.arbitration.share(4, "host-b");
  assertEquals(await winner.arbitration.claim("silent", "pair", winner.lease), { type: "granted" });
  assertEquals([counted.offs, winner.arbiter.claims.at(-1)?.evidence], [0, "silent"]);
  await until(() => counted.offs === 1);
  await winner.arbitration.close();
  const loser = setUp({ fence });
  await loser.arbitration.share(4, "host-b");
  loser.arbiter.answers = [{ type: "stale", generation: 5, holder: "host-b" }];
  assertEquals((await loser.arbitration.claim("silent", "pair", loser.lease)).type, "stale");
  await new Promise((resolve) => setTimeout(resolve, 50));
  assertEquals(counted.offs, 1);
  await loser.arbitration.close();
});

Deno.test("Arbitration keeps its lease, and says before it ends, when it is back, and when it is another's", async () => {
  const { arbiter, arbitration, events, lease } = setUp();
  await arbitration.begin(lease, false, nobody);
  await until(() => arbiter.renewals >= 2);
  assertEquals(events, []);
  assertEquals(arbitration.holds, true);
  arbiter.renewal = { type: "unreachable", reason: "down" };
  await until(() => events.length === 1);
  assertEquals(arbitration.holds, false);
  arbiter.renewal = undefined;
  await until(() => events.length === 2);
  assertEquals(events, ["pause", "resume"]);
  arbiter.renewal = { type: "stale", generation: 9, holder: "host-b" };
  await until(() => events.length === 3);
  assert(events[2]!.includes("host-b"), events[2]);
  await arbitration.close();
});

Deno.test("Arbitration without a third party grants a primary what it asks for, and silence nothing", async () => {
  const { arbitration, lease } = setUp({ arbiter: volatileArbiter(), hasThirdParty: false });
  await arbitration.begin(lease, false, nobody);
  assertEquals(arbitration.generation, 1);
  assertEquals(arbitration.evidenceOfPrimary, "ordered");
  assertEquals(await arbitration.claim("ordered", "pair", lease), { type: "granted" });
  assertEquals(arbitration.generation, 2);
  await arbitration.close();
  const secondary = setUp({ arbiter: volatileArbiter(), hasThirdParty: false });
  await secondary.arbitration.share(2, "host-b");
  const silent = await secondary.arbitration.claim("silent", "pair", secondary.lease);
  assertEquals(silent.type, "undecided");
  const reported = await secondary.arbitration.claim("reported", "pair", secondary.lease);
  assertEquals(reported, { type: "granted" });
  await secondary.arbitration.close();
});
