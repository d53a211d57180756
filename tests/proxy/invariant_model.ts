/**
 * Invariant 1, the slow and simple way: who said what, when, and which frames may therefore leave.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert/mod.js";
import { icmp, tcp, TCP_FLAG, udp } from "./packets.ts";
import { Rig } from "./rig.ts";

type Frame = Uint8Array<ArrayBuffer>;

/** What a VM sends; TCP positions count from the start of the stream. */
export type Said =
  | { readonly kind: "udp" | "icmp"; readonly flow: number; readonly text: string }
  | {
    readonly kind: "tcp";
    readonly flow: number;
    readonly at: number;
    readonly text: string;
    readonly ack: number;
    readonly fin: boolean;
  }
  | { readonly kind: "syn" | "syn-ack" | "rst"; readonly flow: number };

/** What happens. */
export type Step =
  | { readonly type: "primary" | "secondary"; readonly said: readonly Said[] }
  | { readonly type: "checkpoint" | "commit" | "load" | "lost" | "alone" | "time" }
  | { readonly type: "protect"; readonly mode: "compare" | "continuous" };

/** Streams wrap early on. */
const ISN = 0xffff_fffa;
const FIN = "FIN";

function frameOf(said: Said, id: number): Frame {
  const options = { id, destinationPort: 100 + said.flow };
  const ackPort = { ...options, seq: ISN, ack: 1 };
  switch (said.kind) {
    case "udp":
      return udp({ ...options, data: said.text });
    case "icmp":
      return icmp({ id, destination: 10 + said.flow, data: said.text });
    case "syn":
      return tcp({ ...ackPort, flags: TCP_FLAG.SYN });
    case "syn-ack":
      return tcp({ ...ackPort, flags: TCP_FLAG.SYN | TCP_FLAG.ACK });
    case "rst":
      return tcp({ ...ackPort, flags: TCP_FLAG.RST });
    case "tcp":
      return tcp({
        ...options,
        seq: ISN + 1 + said.at >>> 0,
        ack: said.ack,
        flags: TCP_FLAG.ACK | (said.fin ? TCP_FLAG.FIN : 0),
        data: said.text,
      });
  }
}

interface Sent {
  readonly said: Said;
  readonly epoch: number;
  readonly wasAlone: boolean;
  hasLeft: boolean;
}

/** What a VM has said in an epoch, or what has left: enough to judge a frame by. */
class Words {
  readonly datagrams = new Map<string, number>();
  readonly bytes = new Set<string>();
  readonly flags = new Set<string>();
  readonly acks = new Map<number, number>();

  add(said: Said): void {
    if (said.kind === "udp" || said.kind === "icmp") {
      const key = datagramKey(said);
      this.datagrams.set(key, (this.datagrams.get(key) ?? 0) + 1);
    } else if (said.kind === "tcp") {
      for (const key of byteKeys(said)) this.bytes.add(key);
      this.acks.set(said.flow, Math.max(said.ack, this.acks.get(said.flow) ?? 0));
    } else {
      this.flags.add(flagKey(said));
      if (said.kind === "syn-ack") {
        this.acks.set(said.flow, Math.max(1, this.acks.get(said.flow) ?? 0));
      }
    }
  }
}

const datagramKey = (said: Said & { text: string }) => `${said.kind} ${said.flow} ${said.text}`;
const flagKey = ({ kind, flow }: Said) => `${kind} ${flow}`;

function byteKeys({ flow, at, text, fin }: Said & { kind: "tcp" }): string[] {
  const values = [...text, ...(fin ? [FIN] : [])];
  return values.map((value, i) => `${flow} ${at + i} ${value}`);
}

/** Plays steps to a proxy, and holds everything that leaves against the invariant. */
export class InvariantModel {
  readonly rig = new Rig();
  readonly #sent: Sent[] = [];
  #mode: "alone" | "compare" | "continuous" = "alone";
  /** The secondary was lost, and may run. */
  #isInDoubt = false;
  #epoch = 0;
  #committed = 0;
  #secondaryEpoch = -1;
  /** What the secondary has said in its epoch; what has left since protection began. */
  #secondary = new Words();
  #left = new Words();

  run(steps: readonly Step[]): void {
    for (const step of steps) this.#step(step);
    // Whatever happened: one checkpoint later all of it has left, once.
    if (this.#mode !== "alone") {
      for (const type of ["checkpoint", "commit"] as const) {
        this.#step({ type });
      }
    }
    assert(this.#sent.every(({ hasLeft }) => hasLeft), "a frame was lost");
    assertEquals(this.rig.proxy.statistics.held, 0);
  }

  #step(step: Step): void {
    const { rig } = this;
    const { proxy } = rig;
    switch (step.type) {
      case "primary": {
        const frames = step.said.map((said) => {
          const id = this.#sent.length;
          const wasAlone = this.#mode === "alone";
          this.#sent.push({ said, epoch: this.#epoch, wasAlone, hasLeft: false });
          return frameOf(said, id);
        });
        return this.#judge(rig.primary(...frames));
      }
      case "secondary":
        for (const said of step.said) this.#secondary.add(said);
        return this.#judge(rig.secondary(...step.said.map((said) => frameOf(said, 0xffff))));
      case "checkpoint":
        proxy.checkpoint(++this.#epoch);
        return this.#judge(rig.output());
      case "protect":
        proxy.protect(step.mode, ++this.#epoch);
        this.#mode = step.mode;
        this.#isInDoubt = false;
        this.#forgetSecondary(-1);
        return this.#judge(rig.output());
      case "commit":
        return this.#commit();
      case "load":
        return this.#load();
      case "lost":
        proxy.secondaryLost();
        this.#isInDoubt = this.#mode !== "alone";
        this.#forgetSecondary(-1);
        return this.#judge(rig.output());
      case "alone":
        return this.#runAlone();
      case "time":
        rig.wait(100);
        return this.#judge(rig.output());
    }
  }

  #commit(): void {
    this.rig.proxy.committed(this.#epoch);
    const isNew = this.#mode !== "alone" && this.#epoch > this.#committed;
    if (isNew) {
      this.#committed = this.#epoch;
      if (this.#secondaryEpoch !== this.#epoch) this.#forgetSecondary(-1);
    }
    const waiting = this.#sent.flatMap(({ hasLeft, epoch }, id) =>
      !hasLeft && epoch < this.#committed ? [id] : []
    );
    const frames = this.rig.output();
    if (isNew) assertEquals(frames.slice(0, waiting.length).map(idOf), waiting, "commit order");
    this.#judge(frames);
  }

  #load(): void {
    if (this.#mode === "alone") return;
    if (this.#epoch > this.#committed) this.#commit();
    this.rig.proxy.loaded(this.#epoch, this.rig.now);
    if (this.#secondaryEpoch !== this.#epoch) this.#forgetSecondary(this.#epoch);
    this.#judge(this.rig.output());
  }

  #runAlone(): void {
    this.rig.proxy.runAlone();
    this.#mode = "alone";
    this.#isInDoubt = false;
    const waiting = this.#sent.flatMap(({ hasLeft }, id) => hasLeft ? [] : [id]);
    const frames = this.rig.output();
    assertEquals(frames.map(idOf), waiting, "order of all that waited");
    this.#judge(frames);
    this.#left = new Words();
    this.#forgetSecondary(-1);
  }

  #forgetSecondary(epoch: number): void {
    this.#secondaryEpoch = epoch;
    this.#secondary = new Words();
  }

  #judge(frames: readonly Frame[]): void {
    for (const frame of frames) {
      const id = idOf(frame);
      const sent = this.#sent[id];
      assert(sent !== undefined, "a frame that the primary has not sent");
      assert(!sent.hasLeft, `frame ${id} left twice`);
      sent.hasLeft = true;
      assert(this.#mayLeave(sent), `frame ${id} must not leave: ${JSON.stringify(sent)}`);
      if (this.#mode !== "alone") this.#left.add(sent.said);
    }
  }

  #mayLeave({ said, epoch, wasAlone }: Sent): boolean {
    if (wasAlone || this.#mode === "alone" || this.#committed > epoch) return true;
    if (this.#mode !== "compare" || this.#isInDoubt || epoch !== this.#committed) return false;
    const secondary = this.#secondaryEpoch === epoch ? this.#secondary : new Words();
    switch (said.kind) {
      case "syn":
        return false;
      case "syn-ack":
        // A retransmission of one that has left is no news.
        return secondary.flags.has(flagKey(said)) || this.#left.flags.has(flagKey(said)) ||
          this.#left.flags.has(flagKey({ ...said, kind: "syn" }));
      case "rst":
        return secondary.flags.has(flagKey(said));
      case "tcp": {
        const ack = Math.max(
          secondary.acks.get(said.flow) ?? 0,
          this.#left.acks.get(said.flow) ?? 0,
        );
        return said.ack <= ack &&
          byteKeys(said).every((key) => secondary.bytes.has(key) || this.#left.bytes.has(key));
      }
      default: {
        const key = datagramKey(said);
        const count = secondary.datagrams.get(key) ?? 0;
        secondary.datagrams.set(key, count - 1);
        return count > 0;
      }
    }
  }
}

/** The IPv4 identification, which nobody compares. */
function idOf(frame: Frame): number {
  return frame[18]! << 8 | frame[19]!;
}
