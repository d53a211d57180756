/**
 * The overlays of a secondary's disk: how they are made, and when they hold too much.
 *
 * @module
 */

import { join } from "@std/path/mod.js";
import { DiskError, messageOf } from "../errors.ts";
import { run } from "../vm/run.ts";
import { type BlockMonitor, blockNodes, diskNames, type GuestDisk } from "./monitor.ts";

/** `qemu-img`: the command, and what to add to its environment. */
export interface ImageTool {
  readonly command: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

/** The paths of a disk's overlays. */
export interface OverlayPaths {
  readonly activePath: string;
  readonly hiddenPath: string;
}

/**
 * Make the overlays of a disk, empty, in place of older ones.
 *
 * @param directory Best in memory, which makes a checkpoint some milliseconds shorter
 * @param sizeBytes Of the disk as the guest sees it
 * @throws {DiskError} when there is no room, say
 */
export async function createOverlays(
  tool: ImageTool,
  directory: string,
  { node }: Pick<GuestDisk, "node">,
  sizeBytes: number,
): Promise<OverlayPaths> {
  const [activePath = "", hiddenPath = ""] = ["active", "hidden"].map((kind) =>
    join(directory, `${node}-${kind}.qcow2`)
  );
  for (const path of [activePath, hiddenPath]) {
    const [program = "", ...leading] = tool.command;
    const args = [...leading, "create", "-q", "-f", "qcow2", path, String(sizeBytes)];
    try {
      await run(program, args, { env: tool.env });
    } catch (cause) {
      const remedy = "make room there, or name another directory";
      throw new DiskError(
        `Cannot make the overlay ${path} of the disk ${node}: ${messageOf(cause)}; ${remedy}`,
        { cause },
      );
    }
  }
  return { activePath, hiddenPath };
}

/** Bytes that the overlays of a disk take up where they lie. */
export async function overlayBytes(monitor: BlockMonitor, disk: GuestDisk): Promise<number> {
  const { active, hidden } = diskNames(disk);
  const nodes = await blockNodes(monitor);
  return [active, hidden].reduce(
    (sum, node) => sum + (nodes.get(node)?.image["actual-size"] ?? 0),
    0,
  );
}

/** What is to be said of overlays, or done about them. */
export type OverlayEvent =
  /** Little room is left: a checkpoint that is loaded empties them. */
  | { readonly type: "filling"; readonly usedBytes: number; readonly limitBytes: number }
  /** There is room again. */
  | { readonly type: "relieved"; readonly usedBytes: number; readonly limitBytes: number };

/** How overlays are watched. */
export interface OverlayWatchOptions {
  /** What they may take up together. */
  readonly limitBytes: number;
  /**
   * The share of it from which on little room is left; 0.4. When a checkpoint is about to be loaded, what
   * the primary has written lands on the disk, and what it takes the place of beside the overlay that
   * is full already: as much again, as a rule. Only then both are emptied.
   */
  readonly warnShare?: number;
}

/** The share of what is worth a warning at which there is room again: an emptied overlay has hardly any. */
const RELIEF_SHARE = 0.75;

/**
 * Tells when overlays fill up. Pure: sizes in, events out.
 *
 * @example
 * ```ts
 * import { OverlayWatch } from "./overlay.ts";
 *
 * const watch = new OverlayWatch({ limitBytes: 1000 });
 * if (watch.update(399).length !== 0) throw new Error("there is room");
 * if (watch.update(400)[0]?.type !== "filling") throw new Error("there is not");
 * if (watch.update(450).length !== 0) throw new Error("that was said");
 * ```
 */
export class OverlayWatch {
  readonly #limitBytes: number;
  readonly #warnBytes: number;
  #isFilling = false;

  constructor({ limitBytes, warnShare = 0.4 }: OverlayWatchOptions) {
    this.#limitBytes = limitBytes;
    this.#warnBytes = limitBytes * warnShare;
  }

  /** Whether a checkpoint should come soon. */
  get isFilling(): boolean {
    return this.#isFilling;
  }

  /** @param usedBytes What the overlays take up now */
  update(usedBytes: number): OverlayEvent[] {
    const limitBytes = this.#limitBytes;
    if (!this.#isFilling && usedBytes >= this.#warnBytes) {
      this.#isFilling = true;
      return [{ type: "filling", usedBytes, limitBytes }];
    }
    if (this.#isFilling && usedBytes <= this.#warnBytes * RELIEF_SHARE) {
      this.#isFilling = false;
      return [{ type: "relieved", usedBytes, limitBytes }];
    }
    return [];
  }
}
