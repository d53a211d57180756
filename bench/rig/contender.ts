/**
 * What the contenders have in common: each takes checkpoints of the same guest.
 *
 * @module
 */

import { ColoError } from "../../engine/errors.ts";
import { eventTimeMs, type QmpClient } from "../../engine/qmp/mod.ts";
import type { MigrationCapability } from "../../engine/qmp/mod.ts";
import { pause, type Rig, until } from "./rig.ts";

/** One checkpoint, as the guest felt it and the link bore it. */
export interface Checkpoint {
  /** From QEMU's STOP to its RESUME event. */
  readonly pauseMs: number;
  /** Pages that the guest had written, where the contender looks. */
  readonly pages?: number;
  /** Bytes that crossed the link, where they are counted. */
  readonly bytes?: number;
}

/** Something that takes checkpoints of a guest. */
export interface Contender {
  /** The next checkpoints, one a period. */
  take(count: number): Promise<Checkpoint[]>;
  /** End it, and all that it started. */
  close(): Promise<void>;
}

/** The longest a checkpoint may take: 64 MB over 100 Mbit/s take 6 s. */
const CHECKPOINT_TIMEOUT_MS = 60_000;

const READY_TIMEOUT_MS = 120_000;

/** A bench takes checkpoints when it wants them: QEMU's own timer shall not. */
const NEVER_MS = 0x7fffffff;

/** Bytes per second; QEMU's default would hold the copy back. */
const BANDWIDTH_MAX = 10_000_000_000;

/** Set up one side of COLO. */
export async function setCapabilities(qmp: QmpClient, rig: Rig): Promise<void> {
  await qmp.execute("migrate-set-capabilities", {
    capabilities: [...rig.qemu.capabilities, "events"].map((name) => ({
      capability: name as MigrationCapability,
      state: true,
    })),
  });
}

/** When a migration began and when the guest ran in COLO, by QEMU's own clock. */
export interface Handover {
  readonly durationMs: number;
}

/** A primary QEMU whose checkpoints are asked for over QMP. */
export class QmpPrimary {
  #stoppedMs = 0;
  #lastPauseMs = 0;
  #resumes = 0;
  #broken: string | undefined;

  constructor(readonly rig: Rig, readonly qmp: QmpClient) {
    qmp.on("STOP", (event) => this.#stoppedMs = eventTimeMs(event));
    qmp.on("RESUME", (event) => {
      this.#lastPauseMs = eventTimeMs(event) - this.#stoppedMs;
      this.#resumes++;
    });
    qmp.on("COLO_EXIT", ({ data }) => this.#broken = `COLO ended by ${data.reason}`);
    qmp.closed.then(() => this.#broken = "the primary QEMU ended");
  }

  /** Migrate to whoever listens there, until the guest runs under COLO. */
  async migrate(uri: string): Promise<Handover> {
    const { qmp, rig } = this;
    await setCapabilities(qmp, rig);
    await qmp.execute("migrate-set-parameters", {
      "max-bandwidth": BANDWIDTH_MAX,
      "x-checkpoint-delay": NEVER_MS,
    });
    let setupMs = 0;
    let resumedMs: number | undefined;
    let colo = false;
    const off = [
      qmp.on("MIGRATION", (event) => {
        if (event.data.status === "setup") setupMs = eventTimeMs(event);
        if (event.data.status === "colo") colo = true;
        if (event.data.status === "failed") this.#broken = "the migration failed";
      }),
      qmp.on("RESUME", (event) => {
        if (colo) resumedMs ??= eventTimeMs(event);
      }),
    ];
    await qmp.execute("migrate", { uri });
    const running = () => this.#alive() && resumedMs !== undefined;
    await until(running, "the guest runs under COLO", READY_TIMEOUT_MS, rig.signal);
    for (const remove of off) remove();
    return { durationMs: resumedMs! - setupMs };
  }

  /** One checkpoint, asked for now. */
  async checkpoint(): Promise<number> {
    const { qmp, rig } = this;
    const before = this.#resumes;
    await qmp.execute("migrate-set-parameters", { "x-checkpoint-delay": NEVER_MS });
    const resumed = () => this.#alive() && this.#resumes > before;
    await until(resumed, "a checkpoint is taken", CHECKPOINT_TIMEOUT_MS, rig.signal);
    return this.#lastPauseMs;
  }

  /** Checkpoints, each a period after the last. */
  async take(
    count: number,
    periodMs: number,
    measured: () => Omit<Checkpoint, "pauseMs">,
  ): Promise<Checkpoint[]> {
    const checkpoints: Checkpoint[] = [];
    while (checkpoints.length < count) {
      await pause(periodMs, this.rig.signal);
      const pauseMs = await this.checkpoint();
      checkpoints.push({ pauseMs, ...measured() });
    }
    return checkpoints;
  }

  #alive(): boolean {
    if (this.#broken !== undefined) {
      throw new ColoError(`Cannot go on with the checkpoints: ${this.#broken}`);
    }
    return true;
  }
}
