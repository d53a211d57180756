/**
 * A primary's dealings with its secondary: it is looked for, seeded, sent checkpoints, and lost again.
 *
 * @module
 */

import type { BlockMonitor } from "../block/mod.ts";
import type { VmConfig } from "../config/mod.ts";
import { LinkError, messageOf, StateError } from "../errors.ts";
import type { PeerState } from "../failover/arbitration.ts";
import type { PrimaryEvent, PrimaryPhase } from "../failover/primary.ts";
import {
  closeLink,
  formatAddress,
  type HeldEpoch,
  type Introduction,
  type Link,
  type LinkAddress,
  type LinkConnection,
  type Message,
  openLink,
  RefusedError,
} from "../link/mod.ts";
import type { Arbitration } from "./arbitration.ts";
import type { CheckpointLog } from "./checkpoint_log.ts";
import { introductionOf } from "./introduction.ts";
import { LinkWatch } from "./link_watch.ts";
import type { PrimaryDisks } from "./primary_disks.ts";
import type { SeedSource } from "./primary_capture.ts";
import { ReplicaSender, type Seed } from "./replica_sender.ts";
import type { Reporter } from "./report.ts";
import { createStandbys, SecondaryFinder } from "./standby_registry.ts";
import { within } from "./vm_end.ts";

/** The primary, as far as it is needed here. */
export interface LinkedPrimary {
  /** Nothing more is to be started. */
  isDone(): boolean;
  phase(): PrimaryPhase;
  /** Of the VM that runs, if one does. */
  monitor(): BlockMonitor | undefined;
  /** The secondary has yet to commit something. */
  awaitsCommit(): boolean;
  step(event: PrimaryEvent): void;
  /** What a secondary is seeded from, once the primary is alone. */
  source(): SeedSource;
  /** Have the network of the VM led through this engine. */
  guard(packets: LinkConnection): Promise<void>;
  /** Undo {@linkcode guard}, unless it has been done for another connection. */
  unguard(packets: LinkConnection): void;
  /** The mirror is in doubt. */
  captureAnew(): void;
}

/** What a {@linkcode PrimaryLink} works with. */
export interface PrimaryLinkOptions {
  readonly config: VmConfig;
  readonly arbitration: Pick<Arbitration, "generation" | "holder" | "isClaiming" | "peerIsBack">;
  readonly disks: PrimaryDisks;
  readonly log: CheckpointLog;
  readonly report: Reporter;
  /** The longest that a secondary may owe an answer while nothing moves on the link; 10 s if left out. */
  readonly answerMs?: number | undefined;
}

/** Between two attempts to reach the secondary. */
const RECONNECT_MS = 200;

/** And at the most, when it is reached but this side cannot begin, which may be so for ever. */
const RECONNECT_MS_MAX = 5000;

/** Between two looks at whether there is something to seed from. */
const SEED_POLL_MS = 20;

/** A peer that takes longer to answer is asked when the VM runs. */
const ASK_PEER_MS = 1000;

/** A secondary that owes an answer is slow, not lost, for so long. */
const ANSWER_MS = 10_000;

/** The way to whoever stands by. */
export class PrimaryLink {
  readonly #options: PrimaryLinkOptions;
  readonly #primary: LinkedPrimary;
  readonly #finder: SecondaryFinder;
  #link: Link | undefined;
  #watch: LinkWatch | undefined;
  #sender: ReplicaSender | undefined;
  /** Fulfilled when the secondary has said its last word on the link that there is. */
  #lastWord: Promise<void> = Promise.resolve();
  /** What is being sent; settled before the loss of a link is acted upon. */
  #sending: Promise<void> = Promise.resolve();
  #gaveUp = false;
  #seed: Seed | undefined;
  #seedBeganMs = 0;
  #reconnectMs = RECONNECT_MS;

  constructor(options: PrimaryLinkOptions, primary: LinkedPrimary) {
    const { config, arbitration } = options;
    this.#options = options;
    this.#primary = primary;
    this.#finder = new SecondaryFinder(
      config.replication.peer,
      createStandbys(config),
      arbitration.holder,
    );
  }

  /** When the secondary may go on without us, unless it hears of us, so that what it has said vouches for nothing. */
  get unheardAtMs(): number {
    return this.#watch?.unheardAtMs ?? Infinity;
  }

  /** The last secondary has said that it cannot take over. */
  get gaveUp(): boolean {
    return this.#gaveUp;
  }

  /**
   * Whether the VM runs at the peer, which may be the only one to know.
   */
  async askPeer(): Promise<PeerState> {
    const { peer } = this.#options.config.replication;
    if (peer === undefined) return { type: "silent" };
    try {
      closeLink(await openLink(peer, this.#introduction, ASK_PEER_MS));
      return { type: "idle" };
    } catch (error) {
      if (!(error instanceof RefusedError)) return { type: "silent" };
      if (error.generation === 0) return { type: "busy", reason: error.message };
      return {
        type: "runs",
        reason:
          `it runs at ${formatAddress(peer)}, which has taken it over; stand by for it with ` +
          "`colo standby`, or end it there first",
      };
    }
  }

  /**
   * Take this secondary, and no other from now on.
   *
   * @throws {StateError} when there is one already; it goes on
   */
  reprotect(address: LinkAddress): void {
    if (this.#link !== undefined) {
      throw new StateError(
        "Cannot take another secondary: there is one; end that one first",
        this.#primary.phase(),
        "a primary without a secondary",
      );
    }
    this.#finder.order(address);
  }

  /** Look for a secondary, and for another when it is lost, as long as the primary lives. */
  async connectAgainAndAgain(): Promise<void> {
    const primary = this.#primary;
    /** What was last heard of each, so that it is said once. */
    const complaints = new Map<string, string>();
    while (!primary.isDone()) {
      const candidates = await this.#finder.candidates(performance.now());
      for (const address of candidates) {
        if (primary.isDone()) return;
        const name = formatAddress(address);
        try {
          await this.#connect(address);
          complaints.delete(name);
        } catch (error) {
          const message = messageOf(error);
          const refused = error instanceof RefusedError ? error.generation : 0;
          // Without a third party both sides may have gone on from the same generation.
          if (refused > 0 && refused >= this.#options.arbitration.generation) {
            return primary.step({ type: "stale", reason: `${message} (generation ${refused})` });
          }
          const isNews = complaints.get(name) !== message;
          if (isNews && !primary.isDone()) this.#notice(`${message}; trying again`);
          complaints.set(name, message);
        }
      }
      await sleep(this.#reconnectMs);
    }
  }

  /** Work with a secondary until it is lost. */
  async #connect(address: LinkAddress): Promise<void> {
    const { arbitration } = this.#options;
    const primary = this.#primary;
    // A generation that is being claimed is no other's to share.
    while (arbitration.isClaiming && !primary.isDone()) await sleep(RECONNECT_MS);
    if (primary.isDone()) return;
    const monitor = primary.monitor();
    if (monitor !== undefined) await this.#options.disks.prepare(monitor);
    const { generation } = arbitration;
    const link = await openLink(address, this.#introduction);
    const { isClaiming } = arbitration;
    const isLate = isClaiming || generation !== arbitration.generation;
    if (isLate || primary.isDone()) closeLink(link);
    else await this.#serve(link);
  }

  /** Wait until the secondary has acted on what it was told: it says that it took over, or breaks off. */
  async heardLastWord(timeoutMs: number): Promise<void> {
    await within(timeoutMs, this.#lastWord);
  }

  /** Fulfilled when nothing is being sent from the mirror. */
  sent(): Promise<void> {
    return this.#sending;
  }

  /** Fulfilled when the system has all that was sent. */
  async flushed(): Promise<void> {
    await this.#sending;
    await this.#link?.bulk.flush();
  }

  /** Give the secondary up; fulfilled when nothing is being sent to it any more. */
  async cut(): Promise<void> {
    if (this.#link !== undefined) closeLink(this.#link);
    await this.#sending;
  }

  /** Say something beside what is being sent; a link that broke says so on its own. */
  tell(message: Message): void {
    this.#link?.control.send(message).catch(() => {});
  }

  /** Say something behind what is being sent. */
  tellBehind(message: Message): void {
    this.#send((sender) => sender.bulk.send(message));
  }

  /** Send the secondary the mirror, or what it lacks of it. */
  seed(): void {
    const primary = this.#primary;
    const seed = this.#seed!;
    this.#send((sender) =>
      sender.seed(
        seed,
        (missingPages) => primary.step({ type: "seed-pass", missingPages }),
        (epoch) => primary.step({ type: "seed-sent", epoch }),
      )
    );
  }

  commitSeed(epoch: number): void {
    this.#send((sender) => sender.commit(epoch, true));
  }

  /** Send the staged checkpoint, which the secondary is to load or only to hold. */
  delta(epoch: number, load: boolean): void {
    this.#send(async (sender) => {
      const before = sender.bulk.bytesQueued;
      const taken = () => this.#primary.step({ type: "encoded" });
      const counts = await sender.delta(epoch, load, taken);
      this.#options.log.sent(epoch, counts, sender.bulk.bytesQueued - before, !load);
    });
  }

  get #introduction(): Introduction {
    return introductionOf(
      this.#options.config,
      this.#options.arbitration,
      this.#options.disks.sizes,
    );
  }

  /**
   * Work with one secondary, until it is lost.
   *
   * @throws when it cannot be begun to be seeded, for a reason on this side
   */
  async #serve(link: Link): Promise<void> {
    this.#link = link;
    this.#gaveUp = false;
    this.#options.arbitration.peerIsBack();
    let reason = "the link to the secondary broke";
    /** How often the secondary may say that it is ready. */
    let turns = 1;
    const failures: unknown[] = [];
    const isAlone = () => this.#primary.phase() === "alone";
    const watch = this.#watchOf(link);
    this.#watch = watch;
    this.#lastWord = watch.lastWord;
    const disks = this.#options.disks.serve(link.disks)
      .catch((error) => this.#notice(messageOf(error)));
    try {
      for await (const message of link.bulk.receive()) {
        if (message.type === "replicaFailed") {
          this.#gaveUp = true;
          reason = message.reason;
          break;
        }
        if (message.type === "replicaReady") {
          if (turns-- === 0) throw new LinkError("the secondary began anew without a word");
          const again = () => turns++;
          this.#begin(link, message.held, again).catch((error) => {
            failures.push(error);
            closeLink(link);
          });
        } else if (message.type === "committed" || message.type === "loaded") {
          this.#answered(message.type, message.epoch);
        }
      }
    } catch (error) {
      reason = messageOf(error);
    } finally {
      watch.stop();
      reason = watch.loss ?? reason;
      closeLink(link);
      this.#sender?.cancel();
      for (let sending; sending !== this.#sending;) await (sending = this.#sending);
      await Promise.all([watch.ended, disks]);
      this.#link = undefined;
      this.#sender = undefined;
      // From here on the primary knows that it is lost, and by what it may let things out.
      this.#watch = undefined;
      // For the guest of a primary that has remained alone nothing has changed.
      if (failures.length > 0 && isAlone()) this.#primary.unguard(link.packets);
      else this.#primary.step({ type: "replica-lost", reason });
    }
    if (failures.length === 0) return;
    this.#reconnectMs = Math.min(2 * this.#reconnectMs, RECONNECT_MS_MAX);
    throw failures[0];
  }

  #watchOf(link: Link): LinkWatch {
    const { config: { failover }, answerMs = ANSWER_MS } = this.#options;
    return new LinkWatch(link, {
      heartbeat: { intervalMs: failover.heartbeatMs, timeoutMs: failover.timeoutMs },
      answerMs,
      awaitsAnswer: () => this.#primary.awaitsCommit(),
      notice: (text) => this.#notice(text),
    });
  }

  /**
   * The secondary waits to be seeded: do so as soon as there is something to seed from.
   *
   * @param held What it holds already
   * @param again Called when it is told to throw that away, and to say once more that it is ready
   */
  async #begin(link: Link, held: HeldEpoch | undefined, again: () => void): Promise<void> {
    const primary = this.#primary;
    const over = () => primary.isDone() || this.#link !== link;
    const isAlone = () => primary.phase() === "alone";
    const untilAlone = async () => {
      while (!isAlone() && !over()) await sleep(SEED_POLL_MS);
    };
    await untilAlone();
    if (over()) return;
    await this.#options.disks.synchronise();
    do {
      await untilAlone();
      if (over()) return;
      if (held !== undefined && !canResume(primary.source(), held)) {
        again();
        return await link.bulk.send({ type: "seedAnew" });
      }
      await primary.guard(link.packets);
    } while (!isAlone() && !over());
    if (over()) return primary.unguard(link.packets);
    const { capture, encoders, lineage } = primary.source();
    this.#seed = { lineage, resumes: held !== undefined };
    encoders.attach(capture.mirror);
    this.#sender = new ReplicaSender(capture, link.bulk, encoders);
    this.#seedBeganMs = performance.now();
    this.#reconnectMs = RECONNECT_MS;
    primary.step({ type: "replica-ready" });
  }

  #answered(type: "committed" | "loaded", epoch: number): void {
    const { log, report } = this.#options;
    const wasJoining = this.#primary.phase() === "joining";
    this.#primary.step({ type, epoch });
    if (type === "committed") log.committed(epoch);
    else this.#options.disks.loaded(epoch);
    if (!wasJoining || this.#primary.phase() !== "protected") return;
    report({
      event: "seeded",
      atMs: Date.now(),
      durationMs: performance.now() - this.#seedBeganMs,
      wireBytes: this.#link?.bulk.bytesQueued ?? 0,
      resumed: this.#seed?.resumes ?? false,
    });
  }

  /**
   * Queue work for the secondary behind what is being sent. A broken link ends the work and is noticed
   * where the link is read; anything else that fails leaves the mirror in doubt, so the guest is
   * captured anew.
   */
  #send(work: (sender: ReplicaSender) => Promise<void>): void {
    const sender = this.#sender;
    if (sender === undefined) return;
    this.#sending = this.#sending.then(() => work(sender)).catch((error) => {
      // Whoever has ended has something to say about it yet.
      if (this.#primary.isDone()) return;
      if (this.#link !== undefined) closeLink(this.#link);
      if (error instanceof LinkError) return;
      this.#notice(messageOf(error));
      this.#primary.captureAnew();
    });
  }

  #notice(text: string): void {
    this.#options.report({ event: "notice", atMs: Date.now(), text });
  }
}

/** Whether it is known what has changed since the checkpoint that a secondary holds. */
function canResume({ capture, lineage }: SeedSource, held: HeldEpoch): boolean {
  return held.lineage === lineage && capture.canResume(held.epoch);
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
