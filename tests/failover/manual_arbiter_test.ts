import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import fc from "fast-check";
import {
  type Claim,
  decodeOwner,
  encodeOwner,
  judgeClaim,
  judgeRenewal,
  type LossEvidence,
  type Ownership,
} from "../../engine/failover/arbiter.ts";
import { type GenerationFile, ManualArbiter } from "../../engine/failover/manual_arbiter.ts";

/** A file in memory that can fail. */
class MemoryFile implements GenerationFile {
  fails: "no" | "load" | "store" | "after store" = "no";
  constructor(public text?: string) {}

  // deno-lint-ignore require-await
  async load(): Promise<Ownership | undefined> {
    if (this.fails === "load") throw new Error("input/output error");
    return this.text === undefined ? undefined : decodeOwner(this.text);
  }

  // deno-lint-ignore require-await
  async store(owner: Ownership): Promise<void> {
    if (this.fails === "store") throw new Error("no space left");
    this.text = encodeOwner(owner);
    if (this.fails === "after store") throw new Error("no space left");
  }
}

function arbiterWith(owner?: Ownership) {
  const file = new MemoryFile(owner && encodeOwner(owner));
  return { file, arbiter: new ManualArbiter(file) };
}

const PAIR = { generation: 7, holder: "A" };

/** What B, the secondary of that pair, claims. */
function claimOf(evidence: LossEvidence, changes: Partial<Claim> = {}): Claim {
  return { generation: 7, holder: "B", standing: "pair", evidence, ...changes };
}

Deno.test("without a third party a loss that is certain grants, and silence asks the operator", async () => {
  for (const evidence of ["reported", "fenced", "ordered"] as const) {
    const { file, arbiter } = arbiterWith(PAIR);
    const granted = { type: "granted", generation: 8, renewedMs: undefined } as const;
    assertEquals(await arbiter.claim(claimOf(evidence)), granted);
    assertEquals(file.text, '{"generation":8,"holder":"B"}');
    // It is granted again to the same one, whatever is known by then.
    assertEquals(await arbiter.claim(claimOf("silent")), granted);
  }
  const { file, arbiter } = arbiterWith(PAIR);
  const answer = await arbiter.claim(claimOf("silent"));
  assert(answer.type === "ask");
  assertStringIncludes(answer.reason, "the other host is silent");
  assertEquals(file.text, encodeOwner(PAIR));
});

Deno.test("without a third party the first one that runs a VM needs to be certain of nothing", async () => {
  const { file, arbiter } = arbiterWith();
  assertEquals(await arbiter.prepare(), { type: "owner", owner: undefined });
  const first = claimOf("silent", { generation: 0, holder: "A" });
  assertEquals((await arbiter.claim(first)).type, "granted");
  assertEquals(file.text, '{"generation":1,"holder":"A"}');
});

Deno.test("without a third party one who had no share in what ran needs the fence or an order", async () => {
  for (
    const [evidence, type] of [["reported", "ask"], ["silent", "ask"], [
      "fenced",
      "granted",
    ]] as const
  ) {
    const { arbiter } = arbiterWith(PAIR);
    const answer = await arbiter.claim(claimOf(evidence, { standing: "outside" }));
    assertEquals(answer.type, type);
    if (answer.type === "ask") assertStringIncludes(answer.reason, "no share in what ran last");
  }
});

Deno.test("one that hears of a newer generation is stale, also when it cannot be stored", async () => {
  for (const fails of ["no", "store"] as const) {
    const { file, arbiter } = arbiterWith(PAIR);
    assertEquals((await arbiter.renew(PAIR)).type, "renewed");
    file.fails = fails;
    await arbiter.learn({ generation: 8, holder: "B" });
    file.fails = "no";
    const stale = { type: "stale", generation: 8, holder: "B" } as const;
    assertEquals(await arbiter.renew(PAIR), stale);
    assertEquals(await arbiter.claim(claimOf("ordered", { holder: "A" })), stale);
  }
});

Deno.test("what this host had of a VM by itself does not count beside what its peer runs", async () => {
  // It ran the VM twice more while the peer did not stand by for it, and ended it; the peer has not.
  for (const generation of [8, 9]) {
    const { file, arbiter } = arbiterWith({ generation, holder: "B" });
    await arbiter.learn(PAIR);
    assertEquals(file.text, encodeOwner(PAIR));
    assertEquals((await arbiter.claim(claimOf("silent"))).type, "ask");
    assertEquals((await arbiter.claim(claimOf("reported"))).type, "granted");
  }
});

Deno.test("a grant that was stored for somebody else's loss is none on silence", async () => {
  const { arbiter } = arbiterWith({ generation: 8, holder: "B" });
  assertEquals((await arbiter.claim(claimOf("silent"))).type, "ask");
});

Deno.test("what was granted to the same one after that is no grant of an older generation", () => {
  const owner = { generation: 9, holder: "B" };
  assertEquals(judgeClaim(owner, { generation: 7, holder: "B" }), { type: "stale", ...owner });
  assertEquals(judgeClaim(owner, { generation: 8, holder: "B" }), { type: "ours" });
  assertEquals(judgeClaim(owner, { generation: 9, holder: "B" }), { type: "free" });
  assertEquals(judgeClaim(owner, { generation: 8, holder: "A" }), { type: "stale", ...owner });
  assertEquals(judgeRenewal(owner, { generation: 8, holder: "B" }), { type: "stale", ...owner });
  assertEquals(judgeRenewal(owner, { generation: 9, holder: "A" }), { type: "stale", ...owner });
  assertEquals(judgeRenewal(owner, owner), { type: "ours" });
});

Deno.test("a host whose file is behind takes the claimer's word for the generation", async () => {
  const { file, arbiter } = arbiterWith({ generation: 3, holder: "C" });
  const answer = await arbiter.claim(claimOf("reported"));
  assertEquals(answer, { type: "granted", generation: 8, renewedMs: undefined });
  assertEquals(file.text, '{"generation":8,"holder":"B"}');
});

Deno.test("nothing is granted that cannot be stored", async () => {
  const { file, arbiter } = arbiterWith(PAIR);
  for (const fails of ["load", "store", "after store"] as const) {
    file.fails = fails;
    const answer = await arbiter.claim(claimOf("reported"));
    assert(answer.type === "unreachable");
    assertStringIncludes(answer.reason, "Cannot use the file with the generation");
  }
  // The last one has got through after all.
  file.fails = "no";
  assertEquals((await arbiter.claim(claimOf("silent"))).type, "granted");
});

Deno.test("of claims at the same time on one host one is granted", async () => {
  const { arbiter } = arbiterWith(PAIR);
  const holders = ["B", "C", "D"];
  const answers = await Promise.all(
    holders.map((holder) => arbiter.claim(claimOf("ordered", { holder }))),
  );
  assertEquals(answers.map(({ type }) => type), ["granted", "stale", "stale"]);
});

Deno.test("a record is read as it was written, and anything else is none", () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1 }),
      fc.string({ minLength: 1, maxLength: 40 }),
      (generation, holder) => {
        assertEquals(decodeOwner(encodeOwner({ generation, holder })), { generation, holder });
      },
    ),
  );
  fc.assert(fc.property(fc.string(), (text) => {
    const owner = decodeOwner(text);
    assert(owner === undefined || owner.generation > 0);
  }));
  fc.assert(fc.property(fc.json(), (text) => void decodeOwner(text)));
  for (
    const text of [
      '{"generation":0,"holder":"A"}',
      '{"generation":1.5,"holder":"A"}',
      '{"generation":"1","holder":"A"}',
      '{"generation":1,"holder":""}',
      `{"generation":1,"holder":"${"x".repeat(256)}"}`,
      "[]",
      "null",
      "",
    ]
  ) assertEquals(decodeOwner(text), undefined);
});
