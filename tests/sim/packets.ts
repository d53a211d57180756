/**
 * The network of a primary, as `engine/host/primary_packets.ts` has it: one card, whose frames go
 * through the real {@linkcode OutboundProxy}.
 *
 * @module
 */

import { WasmKernels } from "../../wasm/mod.ts";
import type { Message } from "../../engine/link/mod.ts";
import { OutboundProxy } from "../../engine/proxy/mod.ts";
import type { Actor } from "./actor.ts";
import { type Moment, readRecords, recordOf } from "./guest.ts";
import type { Timer } from "./kernel.ts";
import type { LinkEnd } from "./network.ts";
import type { Qemu } from "./qemu.ts";
import type { World } from "./world.ts";

const TIMEOUT_MS = 200;
const TICK_MS = TIMEOUT_MS / 8;

/** Over QMP, to switch QEMU's filters. */
const SWITCH_MS = 2;

/** So small that many are made quickly. */
const SMALL = {
  connectionsMax: 64,
  primarySegments: 8,
  secondarySegments: 8,
  timeoutMs: TIMEOUT_MS,
};

/** Proxies of worlds that are over: each takes a while to make, and is as new when it was cleared. */
const spare: OutboundProxy[] = [];

function takeProxy(): OutboundProxy {
  const proxy = spare.pop() ?? new OutboundProxy(WasmKernels.create(), SMALL);
  return proxy;
}

function giveBack(proxy: OutboundProxy): void {
  proxy.runAlone();
  proxy.primary.reset();
  proxy.secondary.reset();
  for (let bytes; (bytes = proxy.output.peek()).length > 0;) proxy.output.sent(bytes.length);
  proxy.takeRequest();
  spare.push(proxy);
}

type FramesMessage = Extract<Message, { type: "frames" }>;

/** What a primary's network needs. */
export interface PacketsOptions {
  readonly world: World;
  readonly actor: Actor;
  readonly qemu: Qemu;
  readonly demand: () => void;
  readonly mayLeave: () => boolean;
  /** By which generation the engine lets things out. */
  readonly generation: () => number;
}

/** The network of one primary VM. */
export class SimPackets {
  readonly #options: PacketsOptions;
  readonly #proxy: OutboundProxy;
  #link: LinkEnd | undefined;
  #guardedEpoch: number | undefined;
  #secondaryEpoch = -1;
  #isLed = false;
  #isSwitching = false;
  #ticker: Timer | undefined;
  #isClosed = false;

  constructor(options: PacketsOptions) {
    this.#options = options;
    this.#proxy = takeProxy();
    options.world.atEnd(() => giveBack(this.#proxy));
  }

  /** Lead all frames through this engine from now on; `done` when QEMU does so. */
  guard(link: LinkEnd, done: () => void): void {
    this.#link = link;
    this.#secondaryEpoch = -1;
    this.#proxy.secondary.reset();
    this.#engage(done);
  }

  isGuardedFor(link: LinkEnd): boolean {
    return this.#link === link;
  }

  /** All that was said before is there already: the socket keeps its order. */
  stopped(): void {}

  begin(epoch: number): void {
    if (this.#link === undefined) return;
    const { world } = this.#options;
    const mode = world.mode === "colo" ? "compare" : "continuous";
    if (this.#guardedEpoch === undefined) this.#proxy.protect(mode, epoch);
    else this.#proxy.checkpoint(epoch);
    this.#guardedEpoch ??= epoch;
    // The mutation: nobody holds it yet.
    if (world.rules.releasesBeforeCommit) this.committed(epoch);
  }

  committed(epoch: number): void {
    if (this.#guardedEpoch === undefined || epoch < this.#guardedEpoch) return;
    this.#proxy.committed(epoch);
    this.#flush();
  }

  /** The secondary VM has said something, or begun an epoch. @returns Whether it made sense */
  received({ epoch, records }: FramesMessage): boolean {
    const proxy = this.#proxy;
    if (this.#isClosed || this.#guardedEpoch === undefined || epoch < this.#guardedEpoch) {
      return true;
    }
    if (epoch > proxy.epoch) return false;
    const { nowMs } = this.#options.actor;
    if (epoch !== this.#secondaryEpoch) {
      this.#secondaryEpoch = epoch;
      proxy.loaded(epoch, nowMs);
    }
    if (records.length > 0) {
      proxy.secondary.space().set(records);
      proxy.secondaryReceived(records.length, nowMs);
    }
    this.#flush();
    return true;
  }

  secondaryLost(): void {
    this.#proxy.secondaryLost();
  }

  runAlone(): void {
    if (this.#link === undefined) return;
    this.#link = undefined;
    this.#guardedEpoch = undefined;
    if (this.#ticker !== undefined) this.#ticker.cancelled = true;
    this.#ticker = undefined;
    this.#proxy.runAlone();
    this.#flush();
    this.#engage(() => {});
  }

  close(): void {
    this.#isClosed = true;
    this.#link = undefined;
    if (this.#ticker !== undefined) this.#ticker.cancelled = true;
  }

  /** Switch QEMU's filters as is wanted now, which may change meanwhile. */
  #engage(done: () => void): void {
    const { qemu, actor } = this.#options;
    const wanted = this.#link !== undefined;
    if (this.#isSwitching || this.#isLed === wanted) {
      if (this.#isLed === wanted && !this.#isSwitching) return this.#engaged(done);
      return void actor.after(SWITCH_MS, () => this.#engage(done));
    }
    this.#isSwitching = true;
    qemu.tell(() => {
      this.#lead(wanted);
      this.#options.world.sim.after(SWITCH_MS / 2, () =>
        actor.run(() => {
          this.#isLed = wanted;
          this.#isSwitching = false;
          this.#engage(done);
        }));
    }, SWITCH_MS / 2);
  }

  #engaged(done: () => void): void {
    if (this.#link !== undefined && this.#ticker === undefined) this.#tick();
    done();
  }

  #lead(on: boolean): void {
    const { qemu, world, actor, generation } = this.#options;
    qemu.output = on
      ? (moment) => world.sim.after(0.1, () => actor.run(() => this.#said(moment)))
      : (moment) => world.checkers.hear(qemu.host, generation(), moment);
  }

  #said(moment: Moment): void {
    if (this.#isClosed) return;
    const record = recordOf(moment);
    this.#proxy.primary.space().set(record);
    this.#proxy.primaryReceived(record.length, this.#options.actor.nowMs);
    this.#flush();
  }

  #flush(): void {
    const { output } = this.#proxy;
    const { qemu, world, actor, generation, demand, mayLeave } = this.#options;
    const isBelieving = world.rules.believesOldWords;
    const mayFlush = () => isBelieving || (!this.#proxy.isInDoubt && mayLeave());
    for (let bytes; mayFlush() && (bytes = output.peek()).length > 0;) {
      const by = generation();
      const moments = readRecords(bytes).map((hash) => world.moments.get(hash)!);
      output.sent(bytes.length);
      for (const moment of moments) world.checkers.letOut(qemu.host, actor, by, moment);
      // QEMU writes to its tap what its engine gives it.
      qemu.tell(() => {
        for (const moment of moments) world.checkers.hear(qemu.host, by, moment);
      });
    }
    if (this.#proxy.takeRequest() !== undefined) demand();
  }

  #tick(): void {
    if (this.#options.world.mode !== "colo") return;
    this.#ticker = this.#options.actor.after(TICK_MS, () => {
      this.#proxy.tick(this.#options.actor.nowMs);
      this.#flush();
      this.#tick();
    });
  }
}
