import { assert, assertEquals, assertStringIncludes } from "@std/assert/mod.js";
import type { DemoSession } from "../../cli/demo/session.ts";
import { FRAME_HEADER_BYTES } from "../../engine/link/mod.ts";
import { LENGTH_AT, type LinkRelay, type PassingFrame } from "./_link_relay.ts";
import { randomFrom, testSeed, until, within, withRelayedPair } from "./_pair.ts";

/** Where the checksum is in a frame: `engine/link/wire.ts`. */
const CHECKSUM_AT = 24;

/** A part of the next frame whose type begins so. */
interface Spot {
  readonly type: "pages" | "deviceState" | "commit";
  readonly part: keyof typeof PARTS;
}

const EVERY_BIT = [0, 1, 2, 3, 4, 5, 6, 7];

/** Where a bit is flipped: from and to which byte, and which bits of it. */
const PARTS = {
  /** All of the header before the length. */
  header: { from: 0, to: LENGTH_AT, bits: EVERY_BIT },
  /** So that the frame seems to be 256 or 512 KiB longer: more than follows, and not too long. */
  length: { from: LENGTH_AT + 1, to: LENGTH_AT + 2, bits: [2, 3] },
  checksum: { from: CHECKSUM_AT, to: FRAME_HEADER_BYTES, bits: EVERY_BIT },
  payload: { from: FRAME_HEADER_BYTES, to: Infinity, bits: EVERY_BIT },
} as const;

/** What is spoilt until the pair is protected again: first of a checkpoint, then of the new seeds. */
const ROUNDS: readonly (readonly Spot[])[] = [
  [{ type: "pages", part: "payload" }],
  [{ type: "deviceState", part: "payload" }],
  [{ type: "commit", part: "payload" }],
  [{ type: "pages", part: "header" }],
  [{ type: "deviceState", part: "header" }],
  [{ type: "commit", part: "checksum" }],
  [
    { type: "pages", part: "payload" },
    { type: "pages", part: "payload" },
    { type: "commit", part: "payload" },
  ],
];

const SENT_MS = 10_000;
const REFUSED_MS = 5000;

/** The primary waits 10 s for an answer. */
const UNANSWERED_MS = 15_000;
const REPROTECTED_MS = 20_000;

/** How the standby says that a frame is not what was sent. */
const REFUSAL = /^Cannot read (the frame|from the link): /;

/** Flips bits of frames, and keeps account of the checkpoints that passed as they were sent. */
class Spoiler {
  /** Numbers of the checkpoints of which the standby was sent all, and all of it good. */
  readonly whole = new Set<number>();
  readonly #spoilt = new Set<number>();
  #flip: ((frame: PassingFrame) => boolean) | undefined;

  constructor(relay: LinkRelay, readonly random: () => number) {
    relay.onFrame = (frame) => {
      if (this.#spoilt.has(frame.connection)) return;
      if (this.#flip?.(frame)) this.#spoilt.add(frame.connection);
      else if (frame.type === "commit") this.whole.add(frame.epoch);
    };
  }

  /** Flip one bit there; settled with the number of the checkpoint when that is done. */
  flip({ type, part }: Spot): Promise<number> {
    const { promise, resolve } = Promise.withResolvers<number>();
    this.#flip = (frame) => {
      if (frame.role !== "bulk" || !frame.type.startsWith(type)) return false;
      this.#flip = undefined;
      const { bytes, epoch } = frame;
      const { from, to, bits } = PARTS[part];
      const at = from + Math.floor(this.random() * (Math.min(to, bytes.length) - from));
      const bit = bits[Math.floor(this.random() * bits.length)]!;
      console.log(`${frame.type} of ${epoch}: bit ${bit} of byte ${at} of ${bytes.length}`);
      bytes[at]! ^= 1 << bit;
      resolve(epoch);
      return true;
    };
    return promise;
  }
}

/** Spoil a frame; returns when the standby has refused it, and says which checkpoint it was of. */
async function refused(session: DemoSession, spoiler: Spoiler, spot: Spot): Promise<number> {
  const { reports } = session.standby;
  const from = reports.length;
  const fromPrimary = session.primary.reports.length;
  const epoch = await within(spoiler.flip(spot), SENT_MS, `the ${spot.type} of a checkpoint`);
  if (spot.part === "length") {
    // The standby waits for bytes that nobody sends, and the primary for an answer, in vain.
    await until(
      () =>
        session.primary.reports.slice(fromPrimary).some((report) =>
          report.event === "primary" && report.reason.includes("has not answered")
        ),
      UNANSWERED_MS,
      "the primary gives the link up",
    );
    return epoch;
  }
  const refusal = () =>
    reports.slice(from).find((report) => "reason" in report && REFUSAL.test(report.reason));
  await until(() => refusal() !== undefined, REFUSED_MS, "the standby refuses the frame");
  const { reason } = refusal() as { readonly reason: string };
  console.log(`  ${reason}`);
  // What is wrong in a header is seen before its frame is there.
  if (spot.part !== "header") assertStringIncludes(reason, "checksum");
  return epoch;
}

/** Numbers of the checkpoints that the secondary VM was made to run from. */
function loadedEpochs(session: DemoSession, from = 0, to = Infinity): number[] {
  return session.standby.reports.slice(from, to).flatMap((report) =>
    report.event === "loaded" ? [report.epoch] : []
  );
}

/** Spoil frames of a pair, round after round, and kill its primary in the end. */
async function survive(rounds: readonly (readonly Spot[])[]): Promise<void> {
  const random = randomFrom(testSeed());
  const options = { append: "colo.load=small-writes colo.load_pages=400" };
  await withRelayedPair(options, async (session, relay) => {
    const spoiler = new Spoiler(relay, random);
    await session.protected();
    const { primary, standby } = session;
    for (const spots of rounds) {
      const [fromPrimary, fromStandby] = [primary.reports.length, standby.reports.length];
      const startMs = performance.now();
      const epochs: number[] = [];
      for (const spot of spots) epochs.push(await refused(session, spoiler, spot));
      const phases = () =>
        primary.reports.slice(fromPrimary).flatMap((r) => r.event === "primary" ? [r.phase] : []);
      await until(
        () => phases().at(-1) === "protected",
        REPROTECTED_MS,
        "the guest is protected again",
      );
      console.log(
        `  protected again after ${(performance.now() - startMs).toFixed(0)} ms: ${phases()}`,
      );
      assert(phases().includes("alone") && phases().includes("seeding"));
      // Until the new seed begins nothing is loaded but what had been whole before.
      const seeding = standby.reports.findIndex((report, index) =>
        index >= fromStandby && report.event === "secondary" && report.phase === "seeding"
      );
      const loaded = loadedEpochs(session, fromStandby, seeding);
      assertEquals(loaded.filter((epoch) => epoch >= epochs[0]!), [], "damaged, and loaded");
      await session.checkpointed(session.checkpoints.length + 2, 5000);
    }
    const loaded = loadedEpochs(session);
    assertEquals(loaded.filter((epoch) => !spoiler.whole.has(epoch)), [], "loaded, but not whole");
    const takeover = await session.killPrimary();
    assert(takeover.chainVerified, "the hash chain is broken");
    assert(takeover.memoryVerified, "the guest's file is damaged");
  });
}

Deno.test("a checkpoint that was damaged on the way is refused, and the pair seeds itself anew", async () => {
  await survive(ROUNDS);
});

Deno.test("the pair seeds itself anew when a frame says that more follows than does", async () => {
  await survive([[{ type: "pages", part: "length" }]]);
});
