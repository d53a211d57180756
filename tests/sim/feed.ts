/**
 * A primary's mirror, and what goes from it to a secondary: the work of `Capture` and `ReplicaSender`.
 *
 * @module
 */

import type { HeldEpoch } from "../../engine/link/mod.ts";
import { type Actor, sleep, start, type Task } from "./actor.ts";
import {
  BLOCK,
  chunkOf,
  deviceStateOf,
  dirtyPages,
  MACHINE,
  type Moment,
  PAGES,
  pagesAt,
} from "./guest.ts";
import type { LinkEnd } from "./network.ts";
import type { Rules } from "./rules.ts";

/** Pages of a real guest that one of ours stands for. */
const PAGES_FOR_ONE = 3000;

const RAM_SECTION_ID = 2;

/** The guest's memory as of the last checkpoint. */
export class Mirror {
  epoch = 0;
  /** The last whole checkpoint, in the mirror or staged. */
  #staged: Moment | undefined;
  /** QEMU sends a checkpoint. */
  isSending = false;
  readonly missing = new Set<number>();
  /** Pages that have changed since a secondary held all of a checkpoint, and which one that was. */
  readonly #unheld = new Set<number>();
  #heldEpoch = 0;

  /** @param lineage No other mirror's */
  constructor(public moment: Moment, readonly lineage: string) {}

  /** A secondary holds all that is in the mirror. */
  held(epoch: number): void {
    this.missing.clear();
    this.#unheld.clear();
    this.#heldEpoch = epoch;
  }

  canResume({ lineage, epoch }: HeldEpoch): boolean {
    return lineage === this.lineage && epoch >= this.#heldEpoch && epoch <= this.epoch;
  }

  /** Pages that a secondary lacks. */
  markMissing(resumes: boolean, { forgetsSent }: Rules): void {
    if (resumes && forgetsSent) return;
    const pages = resumes ? this.#unheld : Array.from({ length: PAGES }, (_, page) => page);
    this.missing.clear();
    for (const page of pages) this.missing.add(page);
  }

  whole(moment: Moment): void {
    this.epoch++;
    this.#staged = moment;
    this.isSending = false;
  }

  /** Take the staged checkpoint in. @returns The pages that it changes */
  absorb(): readonly number[] {
    const staged = this.#staged;
    if (staged === undefined) return [];
    const pages = dirtyPages(this.moment, staged);
    for (const page of pages) {
      this.missing.add(page);
      this.#unheld.add(page);
    }
    this.moment = staged;
    this.#staged = undefined;
    return pages;
  }

  get isConsistent(): boolean {
    return !this.isSending && this.#staged === undefined;
  }
}

/** What a seed's progress is told to. */
export interface SeedEvents {
  pass(missingPages: number): void;
  sent(epoch: number): void;
}

/** Sends to one secondary: one piece of work after another. */
export class Feed {
  #frames = 0;
  #bytes = 0;
  #isCancelled = false;
  #isBusy = false;
  readonly #work: (() => Task<void> | void)[] = [];
  #waiting: (() => void)[] = [];

  /** @param resumes The secondary lacks what has changed, and no more */
  constructor(
    readonly actor: Actor,
    readonly mirror: Mirror,
    readonly link: LinkEnd,
    readonly resumes: boolean,
    readonly rules: Rules,
  ) {}

  /** The link is gone: what is being sent is only taken in. */
  cancel(): void {
    this.#isCancelled = true;
  }

  get #isOver(): boolean {
    return this.#isCancelled || !this.link.isOpen;
  }

  /** Queue work behind what is being sent. */
  queue(work: () => Task<void> | void): void {
    this.#work.push(work);
    if (!this.#isBusy) this.#next();
  }

  /** When nothing is being sent any more. */
  *settled(): Task<void> {
    if (this.#isBusy) yield (resume) => this.#waiting.push(() => resume(undefined));
  }

  #next(): void {
    const work = this.#work.shift();
    this.#isBusy = work !== undefined;
    if (work === undefined) {
      for (const resume of this.#waiting.splice(0)) resume();
      return;
    }
    const task = work();
    if (task === undefined) this.#next();
    else start(this.actor, task, () => this.#next());
  }

  *delta(epoch: number, load: boolean, taken: () => void): Task<void> {
    const { sim } = this.actor;
    yield* sleep(this.actor, sim.random.between(0.2, 6));
    const pages = this.mirror.absorb();
    this.#sendPages(epoch, pages.slice(0, pages.length >> 1));
    yield* sleep(this.actor, sim.random.between(0.2, 6));
    this.#sendPages(epoch, pages.slice(pages.length >> 1));
    taken();
    this.#commit(epoch, load);
  }

  *seed(events: SeedEvents): Task<void> {
    const { mirror, actor } = this;
    const { sim } = actor;
    this.#send({
      type: "seedBegin",
      epoch: mirror.epoch,
      lineage: mirror.lineage,
      resumes: this.resumes,
      machine: MACHINE,
      blocks: [{ name: BLOCK, sizeBytes: PAGES * 4096 }],
      ramSectionId: RAM_SECTION_ID,
    });
    mirror.markMissing(this.resumes, this.rules);
    while (!this.#isOver) {
      const pages = [...mirror.missing];
      for (const page of pages) {
        mirror.missing.delete(page);
        this.#sendPages(mirror.epoch, [page]);
        yield* sleep(actor, sim.random.between(2, 30));
      }
      if (this.#isOver) return;
      if (mirror.missing.size === 0 && mirror.isConsistent) return events.sent(mirror.epoch);
      events.pass(mirror.missing.size * PAGES_FOR_ONE);
      if (mirror.missing.size === 0) yield* sleep(actor, 1);
    }
  }

  commit(epoch: number): void {
    this.#commit(epoch, true);
  }

  say(reason: string): void {
    this.link.send("bulk", { type: "primaryLost", reason });
  }

  #sendPages(epoch: number, pages: readonly number[]): void {
    const contents = pagesAt(this.mirror.moment);
    for (const page of pages) {
      const records = chunkOf(page, contents[page]!);
      this.#frames++;
      this.#bytes += records.length;
      this.#send({ type: "pages", epoch, records });
    }
  }

  #commit(epoch: number, load: boolean): void {
    const bytes = deviceStateOf(this.mirror.moment);
    this.#send({ type: "deviceState", epoch, bytes });
    this.#send({
      type: "commit",
      epoch,
      pagesFrames: this.#frames,
      pageBytes: this.#bytes,
      deviceStateBytes: bytes.length,
      load,
    });
    this.#frames = 0;
    this.#bytes = 0;
  }

  #send(message: Parameters<LinkEnd["send"]>[1]): void {
    if (!this.#isOver) this.link.send("bulk", message);
  }
}
