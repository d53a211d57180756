/**
 * Keeps a guest's copy in a thread of its own, so that writing a large checkpoint holds up no word
 * about life and death.
 *
 * @module
 */

/// <reference no-default-lib="true" />
/// <reference lib="deno.worker" />

import { messageOf } from "../errors.ts";
import { type FromKeeper, ImageKeeper, type ToKeeper } from "../image/keeper.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import { ImageDirectory } from "./image_directory.ts";

/** What the main thread says: first where, last that it is over. */
export type ToImage =
  | { readonly type: "open"; readonly directory: string }
  | { readonly type: "close" }
  | ToKeeper;

/** What comes back. */
export type FromImage =
  /** It listens: what was said before is lost. */
  | { readonly type: "ready" }
  /** The directory was given up. */
  | { readonly type: "closed" }
  | FromKeeper;

let directory: ImageDirectory | undefined;
let keeper: ImageKeeper | undefined;

self.onmessage = ({ data }: MessageEvent<ToImage>) => {
  if (data.type === "open") return open(data.directory);
  if (data.type === "close") return close();
  keeper?.tell(data);
};

function open(path: string): void {
  try {
    directory = new ImageDirectory(path);
    keeper = new ImageKeeper(directory, WasmKernels.create(), answer);
  } catch (error) {
    answer({ type: "failed", reason: messageOf(error) });
  }
}

function close(): void {
  directory?.[Symbol.dispose]();
  answer({ type: "closed" });
}

function answer(message: FromImage): void {
  const transferred = message.type === "fed" ? [message.chunk.buffer as ArrayBuffer] : [];
  self.postMessage(message, transferred);
}

answer({ type: "ready" });
