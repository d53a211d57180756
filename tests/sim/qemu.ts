/**
 * QEMU as far as COLO is concerned: a process with a guest in it, which is a primary, a secondary, or a
 * VM like any other. Its engine hears of everything a little later, in the order in which it happened.
 *
 * @module
 */

import { SECTION } from "../../engine/stream/format.ts";
import { shut } from "../../engine/stream/return_path.ts";
import { coloMessage } from "../../engine/stream/writer.ts";
import type { Actor } from "./actor.ts";
import { type Moment, PAGES, readChunk, readHash } from "./guest.ts";
import type { Timer } from "./kernel.ts";
import type { World } from "./world.ts";

/** A socket between an engine and its QEMU. */
const SOCKET_MS = 0.1;

/** QEMU asks for a checkpoint so soon after the last one. */
const REQUEST_AFTER_MS = 10;

/** The engine that takes a primary's checkpoints. */
export interface CaptureUser {
  readonly actor: Actor;
  entered(moment: Moment): void;
  requested(): void;
  stopped(): void;
  whole(moment: Moment): void;
  /** The stream has ended, whoever has ended it. */
  broken(): void;
}

/** The engine that gives a secondary its checkpoints. */
export interface ReplicaUser {
  readonly actor: Actor;
  answered(bytes: Uint8Array): void;
}

const SHUT = shut();
const READY = coloMessage("checkpoint-ready");
const REPLY = coloMessage("checkpoint-reply");
const RECEIVED = coloMessage("vmstate-received");
const LOADED = coloMessage("vmstate-loaded");

/** One QEMU process. */
export class Qemu {
  /** What the guest has come to; of one that has loaded nothing, nothing. */
  moment: Moment | undefined;
  /** Where what the guest says goes to. */
  output: (moment: Moment) => void = () => {};
  /** It is the VM that the world sees, or would be if it ran. */
  runsVm = false;
  exited: (() => void) | undefined;
  #isPaused = false;
  #isInCheckpoint = false;
  /** The stream to an engine, if there is one. */
  #capture: { readonly user: CaptureUser } | undefined;
  #replica: ReplicaUser | undefined;
  #isSeeded = false;
  #pages: number[] = new Array<number>(PAGES).fill(0);
  /** What the last load has left, whatever a guest that runs along has written since: `colo_cache`. */
  readonly #cache: number[] = new Array<number>(PAGES).fill(0);
  #stepTimer: Timer | undefined;

  constructor(readonly world: World, readonly actor: Actor, readonly host: number) {}

  /** The guest runs now. */
  get isRunning(): boolean {
    return this.actor.isAwake && this.moment !== undefined && !this.#isPaused &&
      !this.#isInCheckpoint;
  }

  /** Have the guest run from a moment. */
  boot(moment: Moment): void {
    this.moment = moment;
    this.runsVm = true;
    this.#step();
  }

  /** Over QMP: `stop` and `cont`. */
  pause(on: boolean): void {
    this.tell(() => this.#isPaused = on);
  }

  /** Do something in QEMU, on behalf of an engine. */
  tell(work: () => void, ms = SOCKET_MS): void {
    this.world.sim.after(ms, () => this.actor.run(work));
  }

  /** Ask something over QMP that is answered at once, unless it hangs. */
  ask(actor: Actor, answered: () => void): void {
    this.tell(() => this.#say({ actor }, answered));
  }

  kill(): void {
    if (!this.actor.isAlive) return;
    this.actor.kill();
    this.world.sim.after(this.world.sim.random.between(0.5, 8), () => this.exited?.());
  }

  /** `migrate` to an engine. */
  beginPrimary(user: CaptureUser): void {
    this.tell(() => {
      const capture = { user };
      this.#capture = capture;
      this.actor.after(this.world.sim.random.between(20, 80), () => {
        const { moment } = this;
        if (moment !== undefined) this.#sayIf(capture, () => user.entered(moment));
      });
    });
  }

  /** The engine's words. */
  ready(user: CaptureUser): void {
    this.tell(() => this.#request(user));
  }

  reply(user: CaptureUser): void {
    this.tell(() => {
      const capture = this.#capture;
      if (capture?.user !== user) return;
      this.#isInCheckpoint = true;
      this.#say(user, () => user.stopped());
      const { moment } = this;
      this.actor.after(this.world.sim.random.between(1, 12), () => {
        this.#sayIf(capture, () => user.whole(moment!));
      });
    });
  }

  acknowledge(user: CaptureUser): void {
    this.tell(() => {
      if (this.#capture?.user !== user) return;
      this.#isInCheckpoint = false;
      this.#request(user);
    });
  }

  /** `x-colo-lost-heartbeat` of a primary: the guest goes on, whoever there is. */
  releasePrimary(): void {
    this.tell(() => {
      this.#capture = undefined;
      this.#isInCheckpoint = false;
    });
  }

  /** The stream to the engine breaks; a guest that stands still for a checkpoint stays so. */
  breakCapture(): void {
    const user = this.#capture?.user;
    if (user === undefined) return;
    this.#capture = undefined;
    this.#say(user, () => user.broken());
  }

  #request(user: CaptureUser): void {
    const capture = this.#capture;
    if (capture?.user !== user) return;
    this.actor.after(REQUEST_AFTER_MS, () => this.#sayIf(capture, () => user.requested()));
  }

  #sayIf(capture: { readonly user: CaptureUser }, work: () => void): void {
    if (this.#capture === capture) this.#say(capture.user, work);
  }

  #say(user: { readonly actor: Actor }, work: () => void): void {
    this.world.sim.after(SOCKET_MS, () => user.actor.run(work));
  }

  /** `migrate-incoming` from an engine. */
  beginSecondary(user: ReplicaUser): void {
    this.#replica = user;
  }

  /** What a `LiveReplica` writes: it keeps the pieces of a message apart. */
  write(bytes: readonly Uint8Array[]): void {
    this.tell(() => this.#read(bytes));
  }

  #read(bytes: readonly Uint8Array[]): void {
    const [first] = bytes;
    const kind = first?.[0];
    if (bytes.length === 1) {
      this.#isInCheckpoint = true;
      return this.#answer(REPLY);
    }
    if (!this.#isSeeded && kind === SECTION.PART) return this.#take(bytes[1]!);
    if (!this.#isSeeded && kind !== SECTION.END) return;
    const chunks = this.#isSeeded ? bytes.slice(2, -4) : [];
    this.actor.after(this.world.sim.random.between(1, 40), () => {
      for (const chunk of chunks) this.#take(chunk);
      this.#load(bytes.at(-1)!);
    });
  }

  #load(deviceState: Uint8Array): void {
    this.#pages = [...this.#cache];
    this.moment = this.world.checkers.loaded(this.host, readHash(deviceState), this.#pages);
    this.#isInCheckpoint = false;
    if (this.#isSeeded) this.#answer(RECEIVED, LOADED);
    else this.#answer(SHUT, READY);
    this.#isSeeded = true;
    this.#step();
  }

  /** Have a page written before its checkpoint is whole, which nobody must. */
  poke(chunk: Uint8Array): void {
    const [page, content] = readChunk(chunk);
    this.tell(() => this.#pages[page] = content);
  }

  #take(chunk: Uint8Array): void {
    const [page, content] = readChunk(chunk);
    this.#cache[page] = content;
  }

  #answer(...messages: readonly Uint8Array[]): void {
    const user = this.#replica;
    if (user === undefined) return;
    for (const message of messages) this.#say(user, () => user.answered(message));
  }

  /** `x-colo-lost-heartbeat` of a secondary: its guest goes on as the VM. */
  takeOver(done: () => void): void {
    this.tell(() => {
      this.#replica = undefined;
      this.#isInCheckpoint = false;
      this.runsVm = true;
      this.world.checkers.tookOver(this.host, this.moment!, this.#pages);
      done();
    }, this.world.sim.random.between(1, 8));
  }

  /** A standby's QEMU is given all at once: the image, and the end of its stream. */
  runImage(deviceState: Uint8Array, pages: readonly number[], done: () => void): void {
    this.tell(() => {
      this.moment = this.world.checkers.loaded(this.host, readHash(deviceState), pages);
      this.#pages = [...pages];
      this.runsVm = true;
      this.world.checkers.tookOver(this.host, this.moment, pages);
      this.#step();
      done();
    }, this.world.sim.random.between(5, 20));
  }

  #step(): void {
    if (this.#stepTimer !== undefined) this.#stepTimer.cancelled = true;
    const { world } = this;
    this.#stepTimer = this.actor.after(world.stepMs * world.sim.random.between(0.5, 1.5), () => {
      if (this.isRunning) {
        const moment = world.step(this.moment!);
        this.#pages[moment.step % PAGES] = moment.hash;
        this.moment = moment;
        this.output(moment);
      }
      this.#step();
    });
  }
}
