/**
 * An outbound proxy with both sides' sockets played by hand.
 *
 * @module
 */

import { assertEquals } from "@std/assert/mod.js";
import { OutboundProxy, type OutboundProxyOptions } from "../../engine/proxy/mod.ts";
import { type KernelSet, WasmKernels } from "../../wasm/mod.ts";
import { concat, record, tcp, TCP_FLAG, type TcpOptions } from "./packets.ts";

type Frame = Uint8Array<ArrayBuffer>;

/** Small, so that tests are quick to set up. */
export const SMALL: OutboundProxyOptions = {
  connectionsMax: 64,
  primarySegments: 8,
  secondarySegments: 8,
  timeoutMs: 200,
};

export class Rig {
  readonly proxy: OutboundProxy;
  now = 1000;

  constructor(options: OutboundProxyOptions = {}, kernels: KernelSet = WasmKernels.create()) {
    this.proxy = new OutboundProxy(kernels, { ...SMALL, ...options });
  }

  /** Both VMs run from checkpoint 1. */
  static comparing(options: OutboundProxyOptions = {}): Rig {
    const rig = new Rig(options);
    rig.proxy.protect("compare", 1);
    rig.proxy.loaded(1, rig.now);
    return rig;
  }

  /** The primary sends frames. @returns What left since the last look */
  primary(...frames: readonly Uint8Array[]): Frame[] {
    this.primaryBytes(concat(frames.map(record)));
    return this.output();
  }

  primaryBytes(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length;) {
      const space = this.proxy.primary.space();
      const piece = bytes.subarray(at, at + space.length);
      space.set(piece);
      this.proxy.primaryReceived(piece.length, this.now);
      at += piece.length;
    }
  }

  /** The secondary sends frames. @returns What left since the last look */
  secondary(...frames: readonly Uint8Array[]): Frame[] {
    this.secondaryBytes(concat(frames.map(record)));
    return this.output();
  }

  secondaryBytes(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length;) {
      const space = this.proxy.secondary.space();
      const piece = bytes.subarray(at, at + space.length);
      space.set(piece);
      this.proxy.secondaryReceived(piece.length, this.now);
      at += piece.length;
    }
  }

  /** Take what left. */
  output(): Frame[] {
    return readRecords(this.outputBytes());
  }

  outputBytes(): Frame {
    const pieces: Frame[] = [];
    for (;;) {
      const bytes = this.proxy.output.peek().slice();
      if (bytes.length === 0) return concat(pieces);
      pieces.push(bytes);
      this.proxy.output.sent(bytes.length);
    }
  }

  /** Why a checkpoint was asked for since the last look. */
  get reason(): string | undefined {
    return this.proxy.takeRequest()?.reason;
  }

  /** Time passes. @returns What is asked for then */
  wait(ms: number): string | undefined {
    this.now += ms;
    this.proxy.tick(this.now);
    return this.reason;
  }

  /** A whole checkpoint, as quick as can be. @returns What left */
  checkpoint(): Frame[] {
    this.checkpointed();
    return this.output();
  }

  checkpointed(): void {
    const epoch = this.proxy.epoch + 1;
    this.proxy.checkpoint(epoch);
    this.proxy.loaded(epoch, this.now);
  }
}

/** The frames of records. */
export function readRecords(bytes: Frame, vnetHeader = false): Frame[] {
  const frames: Frame[] = [];
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  for (let at = 0; at < bytes.length;) {
    const start = vnetHeader ? at + 8 : at + 4;
    const end = start + view.getUint32(at);
    frames.push(bytes.slice(vnetHeader ? start + view.getUint32(at + 4) : start, end));
    at = end;
  }
  return frames;
}

/** A connection that the guest has accepted: its segments, by what is in them. */
export class Stream {
  constructor(readonly options: TcpOptions = {}, readonly isn = 1000) {}

  /** Bytes that begin `offset` bytes into the stream. */
  at(offset: number, data: string | Uint8Array, options: TcpOptions = {}): Frame {
    return tcp({
      ...this.options,
      seq: this.isn + 1 + offset >>> 0,
      ack: 500,
      flags: TCP_FLAG.ACK | TCP_FLAG.PSH,
      data,
      ...options,
    });
  }

  /** Nothing but an acknowledgment. */
  ack(ack: number, offset = 0, options: TcpOptions = {}): Frame {
    return this.at(offset, "", { ack, flags: TCP_FLAG.ACK, ...options });
  }

  fin(offset: number, data = ""): Frame {
    return this.at(offset, data, { flags: TCP_FLAG.ACK | TCP_FLAG.FIN });
  }

  rst(offset: number): Frame {
    return this.at(offset, "", { flags: TCP_FLAG.RST | TCP_FLAG.ACK });
  }

  /** @param isn The secondary has another one */
  synAck(isn = this.isn, options: TcpOptions = {}): Frame {
    return tcp({
      ...this.options,
      seq: isn,
      ack: 500,
      flags: TCP_FLAG.SYN | TCP_FLAG.ACK,
      ...options,
    });
  }

  /** Both sides shake hands. */
  open(rig: Rig): this {
    const synAck = this.synAck();
    assertEquals(rig.primary(synAck), []);
    assertEquals(rig.secondary(this.synAck(this.isn + 77_777)), [synAck]);
    return this;
  }
}
