/**
 * What a secondary's engine does for its replica: a QEMU that runs along, as `engine/host/live_side.ts`
 * has it, or an image and a QEMU that stands by, as `engine/host/image_side.ts` has it.
 *
 * @module
 */

import type { ReplicaAnswer, ReplicaEffect } from "../../engine/checkpoint/replica.ts";
import type { ImageCommand } from "../../engine/image/keeper.ts";
import type { Actor } from "./actor.ts";
import { type Moment, PAGES, readChunk, recordOf } from "./guest.ts";
import { watchForHang } from "./hang_watch.ts";
import type { Host } from "./host.ts";
import type { LinkEnd } from "./network.ts";
import type { Qemu } from "./qemu.ts";

/** How long a QEMU takes to start. */
const START_MS = [40, 200] as const;

/** What a side has to say. */
export interface SideEvents {
  ready(): void;
  answered(answer: ReplicaAnswer): void;
  lost(reason: string): void;
  /** A checkpoint outlives this process. */
  held(epoch: number, deviceState: Uint8Array): void;
}

/** One side. */
export interface Side {
  readonly qemu: Qemu | undefined;
  start(): void;
  do(effect: Exclude<ReplicaEffect, { type: "loaded" }>): void;
  connect(link: LinkEnd | undefined): void;
  restart(): void;
  takeOver(done: () => void): void;
  /** Have a page of a checkpoint written before it is whole, which nobody must. */
  poke(chunk: Uint8Array): void;
}

/** The QEMU that runs along. */
export class LiveSide implements Side {
  qemu: Qemu | undefined;
  #link: LinkEnd | undefined;
  #epoch = 0;
  #isTaking = false;

  constructor(readonly host: Host, readonly actor: Actor, readonly events: SideEvents) {}

  start(): void {
    const { sim } = this.host.world;
    this.actor.after(sim.random.between(...START_MS), () => {
      const qemu = this.host.startQemu();
      this.qemu = qemu;
      this.#epoch = 0;
      qemu.output = (moment) =>
        sim.after(0.1, () => this.actor.run(() => this.#said(qemu, moment)));
      qemu.exited = () => this.actor.run(() => this.#exited(qemu));
      qemu.beginSecondary({
        actor: this.actor,
        answered: (bytes) => {
          if (this.qemu === qemu) this.events.answered({ type: "qemu-answer", bytes });
        },
      });
      watchForHang(this.actor, qemu, () => true, () => {
        if (this.qemu !== qemu || this.#isTaking) return;
        this.host.world.checkers.harmed(this.host);
        qemu.kill();
      });
      this.events.ready();
    });
  }

  #exited(qemu: Qemu): void {
    if (this.qemu === qemu) this.events.lost("the secondary QEMU ended");
  }

  do(effect: Exclude<ReplicaEffect, { type: "loaded" }>): void {
    switch (effect.type) {
      case "write":
        return this.qemu?.write(effect.bytes);
      case "prepare": {
        const { qemu } = this;
        this.actor.after(this.host.world.sim.random.between(0.5, 4), () => {
          if (this.qemu === qemu) this.events.answered({ type: "prepared" });
        });
        return;
      }
      case "settle":
        return this.events.answered({ type: "disks-settled" });
      case "stopped":
        this.#epoch = effect.epoch;
        return this.#tell(new Uint8Array(0));
      case "image":
        throw new Error("a QEMU runs along");
    }
  }

  connect(link: LinkEnd | undefined): void {
    this.#link = link;
  }

  restart(): void {
    this.qemu?.kill();
    this.qemu = undefined;
    this.start();
  }

  takeOver(done: () => void): void {
    const { qemu } = this;
    this.#isTaking = true;
    qemu?.takeOver(() => this.actor.run(done));
  }

  poke(chunk: Uint8Array): void {
    this.qemu?.poke(chunk);
  }

  #said(qemu: Qemu, moment: Moment): void {
    if (this.qemu !== qemu || this.#link === undefined) return;
    this.host.world.checkers.said(moment);
    this.#tell(recordOf(moment));
  }

  #tell(records: Uint8Array): void {
    this.#link?.send("packets", { type: "frames", epoch: this.#epoch, nic: 0, records });
  }
}

/** A checkpoint in files. */
interface Image {
  readonly lineage: string;
  readonly epoch: number;
  readonly pages: number[];
  readonly deviceState: Uint8Array;
}

/** What outlives an engine, and no host. */
export class ImageFiles {
  held: Image | undefined;
}

/** The keeper of an image, and a QEMU that stands by. */
export class ImageSide implements Side {
  qemu: Qemu | undefined;
  #arriving: number[] = [];
  #seedLineage = "";
  #isSeeding = false;
  #lastMs = 0;
  #standing = 0;

  constructor(readonly host: Host, readonly actor: Actor, readonly events: SideEvents) {}

  start(): void {
    this.actor.after(5, () => {
      const held = this.host.files.held;
      if (held !== undefined) {
        this.events.answered({ type: "recovered", held });
        this.#standBy();
      }
      this.events.ready();
    });
  }

  do(effect: Exclude<ReplicaEffect, { type: "loaded" }>): void {
    if (effect.type === "image") this.#tell(effect.command);
  }

  /** The keeper is another thread: it answers in its order. */
  #tell(command: ImageCommand): void {
    const { sim } = this.host.world;
    this.#lastMs = Math.max(this.#lastMs, sim.nowMs + sim.random.between(0.1, 3));
    sim.after(this.#lastMs - sim.nowMs, () => this.actor.run(() => this.#do(command)));
  }

  #do(command: ImageCommand): void {
    switch (command.type) {
      case "seed-begin":
        this.#isSeeding = true;
        this.#seedLineage = command.lineage;
        this.#arriving = new Array<number>(PAGES).fill(0);
        // A QEMU that stands by for another image is of no use.
        return this.#dismiss();
      case "seed-pages":
      case "pages": {
        if (!this.#isSeeding && this.#arriving.length === 0) {
          this.#arriving = [...this.host.files.held?.pages ?? []];
        }
        const [page, content] = readChunk(command.chunk);
        this.#arriving[page] = content;
        return;
      }
      case "seed-drop":
        this.#isSeeding = false;
        this.#arriving = [];
        if (this.host.files.held !== undefined) this.#standBy();
        return;
      case "drop":
        this.#arriving = [];
        return;
      case "seed-commit":
      case "commit":
        return this.#commit(command);
    }
  }

  #commit({ type, epoch, deviceState }: Extract<ImageCommand, { readonly epoch: number }>): void {
    const { files } = this.host;
    const pages = this.#arriving.length > 0 ? this.#arriving : [...files.held?.pages ?? []];
    const lineage = type === "seed-commit" ? this.#seedLineage : files.held!.lineage;
    files.held = { lineage, epoch, pages, deviceState };
    this.#arriving = [];
    this.#isSeeding = false;
    if (type === "seed-commit") this.#standBy();
    this.events.held(epoch, deviceState);
    this.events.answered({ type: "stored", epoch });
    this.events.answered({ type: "applied", epoch });
  }

  #dismiss(): void {
    this.#standing++;
    this.qemu?.kill();
    this.qemu = undefined;
  }

  /** A QEMU for the image that is held now takes the place of the one before. */
  #standBy(): void {
    this.#dismiss();
    const standing = this.#standing;
    this.actor.after(this.host.world.sim.random.between(...START_MS), () => {
      if (standing !== this.#standing) return;
      const qemu = this.host.startQemu();
      this.qemu = qemu;
      qemu.exited = () =>
        this.actor.run(() => {
          if (this.qemu !== qemu) return;
          if (qemu.runsVm) this.events.lost("QEMU ended");
          else this.#standBy();
        });
      this.events.answered({ type: "standby-ready" });
      this.#taking?.();
    });
  }

  #taking: (() => void) | undefined;

  connect(): void {}

  poke(chunk: Uint8Array): void {
    const { held } = this.host.files;
    const [page, content] = readChunk(chunk);
    if (held !== undefined) held.pages[page] = content;
  }

  /** The QEMU is no part of what is held. */
  restart(): void {}

  takeOver(done: () => void): void {
    const take = () => {
      const held = this.host.files.held;
      const { qemu } = this;
      if (qemu === undefined || held === undefined || !qemu.actor.isAlive) return;
      this.#taking = undefined;
      this.host.files.held = undefined;
      qemu.runsVm = true;
      qemu.runImage(held.deviceState, held.pages, () => this.actor.run(done));
    };
    this.#taking = take;
    take();
  }
}
