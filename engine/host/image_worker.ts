/**
 * Keeps a guest's copy in a thread of its own, so that writing a large checkpoint holds up no word
 * about life and death.
 *
 * @module
 */

/// <reference no-default-lib="true" />
/// <reference lib="deno.worker" />

import { DiskKeeper, type FromDisks, type ToDisks } from "../block/disk_keeper.ts";
import { messageOf } from "../errors.ts";
import { type FromKeeper, ImageKeeper, type ToKeeper } from "../image/keeper.ts";
import { WasmKernels } from "../../wasm/mod.ts";
import { DiskFile, ImageDirectory } from "./image_directory.ts";

/** What the main thread says: first where, last that it is over. */
export type ToImage =
  | { readonly type: "open"; readonly directory: string; readonly diskPaths: readonly string[] }
  | { readonly type: "close" }
  | ToKeeper
  | ToDisks;

/** What comes back. */
export type FromImage =
  /** It listens: what was said before is lost. */
  | { readonly type: "ready" }
  /** The directory was given up. */
  | { readonly type: "closed" }
  | FromKeeper
  | FromDisks;

let directory: ImageDirectory | undefined;
let keeper: ImageKeeper | undefined;
let images: DiskFile[] = [];
let disks: DiskKeeper | undefined;

self.onmessage = ({ data }: MessageEvent<ToImage>) => {
  switch (data.type) {
    case "open":
      return open(data.directory, data.diskPaths);
    case "close":
      return close();
    case "disks-begin":
      // Nobody runs a memory whose disks are another's.
      if (images.length > 0) keeper?.tell({ type: "discard" });
      return disks?.tell(data);
    case "disk-bytes":
      return disks?.tell(data);
    case "recover":
      if (disks?.isEqual === false) keeper?.tell({ type: "discard" });
      break;
    case "take":
      disks?.drop();
  }
  keeper?.tell(data);
};

function open(path: string, diskPaths: readonly string[]): void {
  try {
    directory = new ImageDirectory(path);
    const kernels = WasmKernels.create();
    images = diskPaths.map((path) =>
      new DiskFile(Deno.openSync(path, { read: true, write: true }))
    );
    const kept = images.map((target, index) => ({ name: `disk${index}`, target }));
    disks = new DiskKeeper(directory, kernels, kept, answer);
    keeper = new ImageKeeper(directory, kernels, keep);
  } catch (error) {
    answer({ type: "failed", reason: messageOf(error) });
  }
}

/** What becomes of the guest's memory becomes of its disks. */
function keep(message: FromKeeper): void {
  if (message.type === "recovered") {
    const { recovery } = message;
    disks?.recover(recovery.type === "held" ? recovery.checkpoint.epoch : undefined);
  } else if (message.type === "stored") disks?.committed(message.epoch);
  answer(message);
}

function close(): void {
  for (const image of images) image.close();
  directory?.[Symbol.dispose]();
  answer({ type: "closed" });
}

function answer(message: FromImage): void {
  const transferred = message.type === "fed" ? [message.chunk.buffer as ArrayBuffer] : [];
  self.postMessage(message, transferred);
}

answer({ type: "ready" });
