/**
 * Encodes pages in a thread of its own, over the memory that the engine's main thread reads QEMU's
 * bytes to.
 *
 * @module
 */

/// <reference no-default-lib="true" />
/// <reference lib="deno.worker" />

import { type EncodeJob, type EncoderShard, PageEncoder } from "../checkpoint/page_encoder.ts";
import { FrameEncoder } from "../link/wire.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import { type EncodedJob, encodeJob } from "./encoder.ts";

/** What the main thread says. */
export type ToEncoder =
  | {
    readonly type: "mirror";
    readonly memories: readonly WebAssembly.Memory[];
    readonly shards: readonly EncoderShard[];
  }
  | { readonly type: "job"; readonly job: EncodeJob; readonly epoch: number };

/** What comes back: once that it is ready, then one answer a job, in their order. */
export type FromEncoder =
  /** It listens: what was said before is lost. */
  | { readonly type: "ready" }
  | ({ readonly type: "encoded" } & EncodedJob)
  | { readonly type: "failed"; readonly reason: string };

const sealer = new FrameEncoder(WasmKernels.create());
let encoder: PageEncoder | undefined;

self.onmessage = ({ data }: MessageEvent<ToEncoder>) => {
  if (data.type === "mirror") {
    const kernels = data.memories.map((memory) => WasmKernels.attach(memory));
    encoder = new PageEncoder(kernels, data.shards);
    return;
  }
  const answer = encode(data.job, data.epoch);
  const buffers = answer.type === "encoded"
    ? answer.frames.map(({ bytes }) => bytes.buffer as ArrayBuffer)
    : [];
  self.postMessage(answer, buffers);
};

function encode(job: EncodeJob, epoch: number): FromEncoder {
  try {
    if (encoder === undefined) return { type: "failed", reason: "it was given no mirror" };
    return { type: "encoded", ...encodeJob(encoder, sealer, job, epoch) };
  } catch (error) {
    return { type: "failed", reason: error instanceof Error ? error.message : String(error) };
  }
}

self.postMessage({ type: "ready" } satisfies FromEncoder);
