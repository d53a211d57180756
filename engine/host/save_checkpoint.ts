/**
 * Saves a checkpoint of a VM that runs, from the mirror of its engine.
 *
 * @module
 */

import type { Capture } from "../checkpoint/capture.ts";
import { StoreError } from "../errors.ts";
import type { FrozenSnapshot, Saver, SaveResult } from "../store/mod.ts";
import type { Reporter } from "./report.ts";

/** The primary, as far as it is needed here. */
export interface SavedPrimary {
  /** Have no checkpoint begun, or let them begin again. */
  hold(on: boolean): void;
  /** No checkpoint is on its way into the mirror. */
  isSettled(): boolean;
  /** The mirror follows the guest no more. */
  isOver(): boolean;
  readonly report: Reporter;
}

/** Between two looks at whether the mirror has come to rest. */
const POLL_MS = 1;

/**
 * Save a checkpoint; the guest goes on meanwhile.
 *
 * @throws {StoreError} when it cannot be saved; guest and store are as they were
 */
export async function saveCheckpoint(
  name: string,
  saver: Saver | undefined,
  capture: Capture,
  primary: SavedPrimary,
): Promise<SaveResult> {
  if (saver === undefined) {
    throw new StoreError(`Cannot save checkpoint ${name}: [store] directory is not in the config`);
  }
  const { mirror, machine } = capture;
  const freeze = () => freezeMirror(name, capture, primary);
  const result = await saver.save(name, { mirror, machine, freeze });
  const { checkpoint: { metadata, sizeBytes }, durationMs, frozenMs, retainFailure } = result;
  const { epoch, pages, parent } = metadata;
  const full = parent === undefined;
  const figures = { epoch, full, pages, sizeBytes, durationMs, frozenMs };
  const atMs = Date.now();
  primary.report({ event: "saved", atMs, name, ...figures });
  if (retainFailure !== undefined) primary.report({ event: "notice", atMs, text: retainFailure });
  return result;
}

/** Keep the mirror as it is at one checkpoint: none is begun, and the guest runs. */
async function freezeMirror(
  name: string,
  capture: Capture,
  primary: SavedPrimary,
): Promise<FrozenSnapshot> {
  const release = () => primary.hold(false);
  primary.hold(true);
  while (!(primary.isSettled() && capture.consistent)) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    if (!primary.isOver()) continue;
    release();
    throw new StoreError(`Cannot save checkpoint ${name}: the guest is not captured any more`);
  }
  const { epoch, deviceState } = capture;
  return { epoch, deviceState, savedAtMs: Date.now(), release };
}
