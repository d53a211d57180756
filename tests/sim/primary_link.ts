/**
 * A primary's dealings with its secondary: it is looked for, guarded for, seeded, and lost again.
 *
 * @module
 */

import type { PeerState } from "../../engine/failover/arbitration.ts";
import type { HeldEpoch, Message } from "../../engine/link/mod.ts";
import { sleep, start, type Task } from "./actor.ts";
import { Beats } from "./beats.ts";
import { Feed } from "./feed.ts";
import type { Host } from "./host.ts";
import type { LinkEnd, LinkUser, Role } from "./network.ts";
import { SimPackets } from "./packets.ts";
import type { PrimaryEngine } from "./primary_engine.ts";

const RECONNECT_MS = 200;
const ASK_PEER_MS = 1000;
const TAKEN_OVER_MS = 5000;
const ANSWER_MS = 10_000;
const POLL_MS = 20;

/** The way to whoever stands by. */
export class PrimaryLink implements LinkUser {
  /** The secondary has said that it cannot take over. */
  gaveUp = false;
  readonly #engine: PrimaryEngine;
  readonly #host: Host;
  #end: LinkEnd | undefined;
  feed: Feed | undefined;
  #beats: Beats | undefined;
  #reason = "";
  #isBegun = false;
  #served: () => void = () => {};
  #lastWordHeard: (() => void) | undefined;
  #owedSinceMs: number | undefined;

  constructor(engine: PrimaryEngine, host: Host) {
    this.#engine = engine;
    this.#host = host;
  }

  /** The secondary may have gone on without us, so that what it has said vouches for nothing. */
  get isUnheard(): boolean {
    return this.#beats?.isUnheard ?? false;
  }

  get actor() {
    return this.#engine.actor;
  }

  start(): void {
    start(this.actor, this.#connectAgainAndAgain());
    this.#watchAnswers();
  }

  close(): void {
    this.#end?.close();
  }

  tell(message: Message): void {
    this.#end?.send("control", message);
  }

  /** When nothing is being sent any more. */
  *settled(): Task<void> {
    if (this.feed !== undefined) yield* this.feed.settled();
  }

  /** Whether the VM runs at the peer, which may be the only one to know. */
  *askPeer(): Task<PeerState> {
    const answer = yield* this.#connect(ASK_PEER_MS);
    if (answer.type === "connected") answer.end.close();
    if (answer.type === "connected") return { type: "idle" };
    if (answer.type !== "refused") return { type: "silent" };
    return { type: answer.generation > 0 ? "runs" : "busy", reason: "it refuses" };
  }

  /** Until the secondary has acted on what it was told last, or is gone. */
  *lastWord(): Task<void> {
    if (!this.#end?.isOpen) return;
    yield (resume) => {
      this.#lastWordHeard = () => resume(undefined);
      this.actor.after(TAKEN_OVER_MS, () => this.#heardLastWord());
    };
  }

  #heardLastWord(): void {
    const heard = this.#lastWordHeard;
    this.#lastWordHeard = undefined;
    heard?.();
  }

  #connect(timeoutMs?: number) {
    const { arbitration } = this.#engine;
    const introduction = this.#host.world.introductionOf(arbitration);
    return this.#host.world.network.connect(
      this.actor,
      this.#host.index,
      introduction,
      timeoutMs,
    );
  }

  *#connectAgainAndAgain(): Task<void> {
    const { rules } = this.#host.world;
    const { arbitration } = this.#engine;
    while (!this.#engine.isDone) {
      const mayShare = rules.sharesWhileClaiming || !arbitration.isClaiming;
      if (mayShare && !rules.neverReconnects) {
        const { generation } = arbitration;
        const answer = yield* this.#connect();
        if (answer.type === "connected") {
          // What is granted meanwhile, or about to be, the standby has not been told of.
          const isOld = arbitration.isClaiming || generation !== arbitration.generation;
          if (this.#engine.isDone || (isOld && !rules.sharesWhileClaiming)) answer.end.close();
          else yield* this.#serve(answer.end);
        } else if (answer.type === "refused" && answer.generation > 0) {
          if (answer.generation >= arbitration.generation && !rules.ignoresStale) {
            return this.#engine.step({ type: "stale", reason: "the peer runs the VM" });
          }
        }
      }
      yield* sleep(this.actor, RECONNECT_MS);
    }
  }

  /** Work with one secondary, until it is lost. */
  *#serve(end: LinkEnd): Task<void> {
    this.#end = end;
    this.#reason = "the link to the secondary broke";
    this.gaveUp = false;
    this.#isBegun = false;
    const lose = (reason: string) => {
      this.#reason = reason;
      end.close();
    };
    this.#beats = new Beats(
      this.actor,
      end,
      () => lose("the secondary is silent"),
      () => lose("this engine stood still"),
    );
    yield (resume) => {
      this.#served = () => resume(undefined);
      end.attach(this);
    };
    this.#beats.stop();
    this.feed?.cancel();
    yield* this.settled();
    this.#end = undefined;
    this.feed = undefined;
    this.#beats = undefined;
    this.#engine.step({ type: "replica-lost", reason: this.#reason });
  }

  closed(): void {
    this.#heardLastWord();
    this.#served();
  }

  received(_role: Role, message: Message): void {
    const engine = this.#engine;
    switch (message.type) {
      case "heartbeat":
        return this.#beats?.heard();
      case "takenOver":
      case "goodbye":
        return this.#heardLastWord();
      case "frames":
        if (engine.packets?.received(message) === false) this.close();
        return;
      case "replicaFailed":
        this.gaveUp = true;
        this.#reason = message.reason;
        return this.close();
      case "replicaReady":
        if (this.#isBegun) return this.close();
        this.#isBegun = true;
        return start(this.actor, this.#begin(this.#end!, message.held));
      case "committed":
      case "loaded":
        this.#owedSinceMs = undefined;
        return engine.step({ type: message.type, epoch: message.epoch });
    }
  }

  /** The secondary waits to be seeded: do so as soon as there is something to seed from. */
  *#begin(end: LinkEnd, held: HeldEpoch | undefined): Task<void> {
    const engine = this.#engine;
    const { world } = this.#host;
    const isOver = () => engine.isDone || this.#end !== end;
    const isAlone = () => engine.machine.phase === "alone";
    do {
      while (!isAlone()) {
        yield* sleep(this.actor, POLL_MS);
        if (isOver()) return;
      }
      if (held !== undefined && !engine.mirror!.canResume(held)) {
        this.#isBegun = false;
        return end.send("bulk", { type: "seedAnew" });
      }
      const packets = engine.packets ??= new SimPackets({
        world,
        actor: this.actor,
        qemu: engine.qemu!,
        demand: () => engine.step({ type: "demand" }),
        mayLeave: () => !this.isUnheard && engine.maySpeak,
        generation: () => engine.arbitration.generation,
      });
      yield (resume) => packets.guard(end, () => resume(undefined));
    } while (!isAlone() && !isOver());
    if (isOver()) {
      const isOurs = engine.packets?.isGuardedFor(end) || world.rules.opensForOthers;
      return isOurs ? engine.packets?.runAlone() : undefined;
    }
    this.feed = new Feed(this.actor, engine.mirror!, end, held !== undefined, world.rules);
    if (held !== undefined) world.resumes++;
    engine.step({ type: "replica-ready" });
  }

  /** Give up a link on which nothing moves though an answer is owed. */
  #watchAnswers(): void {
    if (this.#engine.isDone) return;
    const { nowMs } = this.actor;
    if (this.#engine.machine.awaitsCommit) this.#owedSinceMs ??= nowMs;
    else this.#owedSinceMs = undefined;
    if (this.#owedSinceMs !== undefined && nowMs - this.#owedSinceMs > ANSWER_MS) this.close();
    this.actor.after(ANSWER_MS / 10, () => this.#watchAnswers());
  }
}
