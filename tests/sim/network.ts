/**
 * The network between two hosts. A link has three connections, as the engine's has: each keeps its
 * order, and none keeps that of another. A cut loses nothing that TCP would send again: it arrives when
 * the cut is healed, unless the link was given up by then.
 *
 * @module
 */

import type { Introduction, Message, Refusal } from "../../engine/link/mod.ts";
import type { Actor, Task } from "./actor.ts";
import type { Simulation } from "./kernel.ts";

export type Role = "control" | "bulk" | "packets";

const ROLES: readonly Role[] = ["control", "bulk", "packets"];

/** The longest that somebody waits for a standby's answer. */
const HANDSHAKE_MS = 5000;

/** One end of a link, as the engine there has it. */
export interface LinkUser {
  readonly actor: Actor;
  received(role: Role, message: Message): void;
  /** Nothing more comes, whoever has ended it. */
  closed(): void;
}

/** Whoever listens for primaries. */
export interface Listener {
  readonly actor: Actor;
  refusal(introduction: Introduction): Refusal | undefined;
  accepted(end: LinkEnd, introduction: Introduction): LinkUser;
}

/** What becomes of an attempt to connect. */
export type Connected =
  | { readonly type: "connected"; readonly end: LinkEnd }
  | { readonly type: "refused"; readonly generation: number }
  | { readonly type: "unreachable" };

/** The two hosts' network. */
export class Network {
  /** Nothing gets through, and nobody is told. */
  isCut = false;
  /** What is added to each message's time. */
  lagMs = 0;
  readonly #links = new Set<Link>();
  readonly #listeners: (Listener | undefined)[] = [undefined, undefined];
  /** Hosts that have no power. */
  readonly isDown: boolean[] = [false, false];

  constructor(readonly sim: Simulation) {}

  listen(host: number, listener: Listener | undefined): void {
    this.#listeners[host] = listener;
  }

  get delayMs(): number {
    return this.sim.random.between(0.1, 2) + this.lagMs * this.sim.random.between(0.5, 1.5);
  }

  /** Connect from a host to the other one. */
  *connect(
    actor: Actor,
    from: number,
    introduction: Introduction,
    timeoutMs = HANDSHAKE_MS,
  ): Task<Connected> {
    const connected = yield (resume) => {
      let isOver = false;
      const end = (value: Connected) => {
        if (isOver) {
          if (value.type === "connected") value.end.close();
          return;
        }
        isOver = true;
        resume(value);
      };
      actor.after(timeoutMs, () => end({ type: "unreachable" }));
      this.sim.after(this.delayMs, () => this.#arrive(actor, from, introduction, end));
    };
    return connected as Connected;
  }

  #arrive(
    actor: Actor,
    from: number,
    introduction: Introduction,
    end: (connected: Connected) => void,
  ): void {
    const host = 1 - from;
    if (this.isCut || this.isDown[host]) return;
    const listener = this.#listeners[host];
    const answer = (connected: Connected) =>
      this.sim.after(this.delayMs, () => {
        if (this.isCut) {
          // One end is open, and nobody is there at the other one.
          if (connected.type === "connected") connected.end.vanish();
        } else if (actor.isAlive) actor.run(() => end(connected));
        else if (connected.type === "connected") connected.end.close();
      });
    if (listener === undefined || !listener.actor.isAlive) {
      return void answer({ type: "unreachable" });
    }
    listener.actor.run(() => {
      const refusal = listener.refusal(introduction);
      if (refusal !== undefined) {
        return void answer({ type: "refused", generation: refusal.generation ?? 0 });
      }
      const link = new Link(this);
      this.#links.add(link);
      const [theirs, ours] = link.ends;
      ours.attach(listener.accepted(ours, introduction));
      answer({ type: "connected", end: theirs });
    });
  }

  /** An engine's process has ended: its host says so, if it is there. */
  ended(actor: Actor): void {
    for (const { ends } of this.#links) {
      for (const end of ends) if (end.user?.actor === actor) end.close();
    }
  }

  /** A host has lost its power: nobody says so. */
  lost(actor: Actor): void {
    for (const { ends } of this.#links) {
      for (const end of ends) if (end.user?.actor === actor) end.vanish();
    }
  }

  cut(): void {
    this.isCut = true;
  }

  heal(): void {
    this.isCut = false;
    for (const link of this.#links) link.flush();
  }

  /** Break all connections, as a middlebox does that has forgotten them. */
  reset(): void {
    for (const { ends } of [...this.#links]) ends[this.sim.random.below(2)]!.close();
  }

  forget(link: Link): void {
    this.#links.delete(link);
  }
}

/** The connections between two engines. */
class Link {
  readonly ends: readonly [LinkEnd, LinkEnd];

  constructor(readonly network: Network) {
    const first = new LinkEnd(this);
    const second = new LinkEnd(this);
    first.peer = second;
    second.peer = first;
    this.ends = [first, second];
  }

  flush(): void {
    for (const end of this.ends) end.flush();
  }
}

/** What is on its way to an end. */
interface Arriving {
  readonly role: Role;
  /** How many came before it on its connection. */
  readonly order: number;
  /** Nothing more comes where it is undefined. */
  readonly message: Message | undefined;
}

/** One engine's end of a link. */
export class LinkEnd {
  user: LinkUser | undefined;
  peer!: LinkEnd;
  isOpen = true;
  /** What has come before the one who has connected knows that he has. */
  readonly #early: Arriving[] = [];
  readonly #sent: Record<Role, number> = { control: 0, bulk: 0, packets: 0 };
  readonly #taken: Record<Role, number> = { control: 0, bulk: 0, packets: 0 };
  /** What has overtaken something that was sent again. */
  readonly #ahead: Arriving[] = [];
  /** What waits for a cut to be healed. */
  readonly #unsent: Arriving[] = [];

  constructor(readonly link: Link) {}

  attach(user: LinkUser): void {
    if (!this.isOpen) return user.actor.run(() => user.closed());
    this.user = user;
    for (const arriving of this.#early.splice(0)) this.#arrive(arriving);
  }

  send(role: Role, message: Message): void {
    if (this.isOpen) this.#transmit({ role, message, order: this.#sent[role]++ });
  }

  /** Break it off; the peer hears of it behind what was sent, on each connection. */
  close(): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    for (const role of ROLES) {
      this.#transmit({ role, message: undefined, order: this.#sent[role]++ });
    }
    this.#ended();
  }

  /** The host is gone, and with it what it had not sent. */
  vanish(): void {
    this.isOpen = false;
    this.#unsent.length = 0;
    this.#ended();
  }

  flush(): void {
    for (const arriving of this.#unsent.splice(0)) this.#transmit(arriving);
  }

  #ended(): void {
    const { user } = this;
    this.user = undefined;
    if (!this.peer.isOpen) this.link.network.forget(this.link);
    if (user?.actor.isAlive) user.closed();
  }

  #transmit(arriving: Arriving): void {
    const { network } = this.link;
    if (network.isCut) return void this.#unsent.push(arriving);
    network.sim.after(network.delayMs, () => {
      if (network.isCut) this.#unsent.push(arriving);
      else this.peer.#arriveInOrder(arriving);
    });
  }

  /** A connection keeps its order. */
  #arriveInOrder(arriving: Arriving): void {
    this.#ahead.push(arriving);
    for (let at; (at = this.#ahead.findIndex((next) => this.#isNext(next))) >= 0;) {
      const [next] = this.#ahead.splice(at, 1);
      this.#taken[next!.role]++;
      this.#arrive(next!);
    }
  }

  #isNext({ role, order }: Arriving): boolean {
    return order === this.#taken[role];
  }

  #arrive(arriving: Arriving): void {
    const { user } = this;
    if (!this.isOpen) return;
    if (user === undefined) return void this.#early.push(arriving);
    const { role, message } = arriving;
    user.actor.run(() => {
      if (!this.isOpen) return;
      if (message === undefined) this.close();
      else user.received(role, message);
    });
  }
}
