/**
 * What is said to a QEMU over QMP to make it one side of a COLO pair, and to end that.
 *
 * @module
 */

import { QmpError } from "../errors.ts";
import type { QmpClient } from "../qmp/mod.ts";
import type { MigrationCapability } from "../qmp/mod.ts";

/**
 * QEMU asks for a checkpoint this soon after the last one, and then waits for our reply with its guest
 * running: when to take it is ours to say, and it begins without a round trip over QMP.
 */
const REQUEST_AFTER_MS = 10;

/**
 * What QEMU may take to copy the rest of the memory, the guest standing still. With 0 it copies all of it
 * once, and has nothing left to copy when it stops the guest and asks what was written meanwhile.
 *
 * Else it might have left what the guest writes to over and over, and without KVM that is lost: having
 * asked (QEMU 11.1, `physical_memory_sync_dirty_bitmap`), it has its processors notice the next write to
 * a page only if some page was not left anyway. What such a guest writes in COLO until its processor
 * forgets which page is where would be in no checkpoint.
 */
const DOWNTIME_MS = 0;

/** Bytes per second; QEMU's default would make the first copy crawl. */
const BANDWIDTH_MAX = 10_000_000_000;

/** That it takes milliseconds was seen, and hundreds on a host that is short of time. */
const CLEAR_UP_MS = 10_000;

async function setCapabilities(
  qmp: QmpClient,
  names: readonly string[],
  state = true,
): Promise<void> {
  await qmp.execute("migrate-set-capabilities", {
    capabilities: names.map((capability) => ({
      capability: capability as MigrationCapability,
      state,
    })),
  });
}

/**
 * Wait until QEMU has cleared up after the migration before. Its status says that sooner, and QEMU 11.1
 * aborts when it is told to migrate in between ("duplicate yank instance").
 *
 * @throws {QmpError} when it does not
 */
async function untilClearedUp(qmp: QmpClient): Promise<void> {
  const deadlineMs = performance.now() + CLEAR_UP_MS;
  while ((await qmp.execute("query-yank")).some(({ type }) => type === "migration")) {
    if (performance.now() > deadlineMs) {
      throw new QmpError("Cannot begin a migration: QEMU does not end the one before");
    }
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/** Make a running QEMU the primary of whoever listens at `path`. Returns when the migration has begun. */
export async function beginPrimary(
  qmp: QmpClient,
  capabilities: readonly string[],
  path: string,
): Promise<void> {
  await setCapabilities(qmp, [...capabilities, "events"]);
  await qmp.execute("migrate-set-parameters", {
    "max-bandwidth": BANDWIDTH_MAX,
    "x-checkpoint-delay": REQUEST_AFTER_MS,
    "downtime-limit": DOWNTIME_MS,
  });
  await untilClearedUp(qmp);
  await qmp.execute("migrate", { uri: `unix:${path}` });
}

/** Have a QEMU that was started with `-incoming defer` wait for a primary at `path`. */
export async function beginSecondary(
  qmp: QmpClient,
  capabilities: readonly string[],
  path: string,
): Promise<void> {
  await setCapabilities(qmp, [...capabilities, "events"]);
  await qmp.execute("migrate-incoming", { uri: `unix:${path}` });
}

/**
 * Have a secondary QEMU forget the code that it has translated, before RAM is loaded under it.
 *
 * Without KVM, QEMU runs translations of the guest's code, and it only notices that code has changed
 * when the guest changes it. Since version 10.2 it forgets them on the way into the run state
 * `restore-vm` alone, which a COLO load does not pass: a guest that had patched its code on the other
 * side would run old instructions on new memory, and crash. `loadvm` of a snapshot that does not exist
 * passes through that state and changes nothing else; COLO accepts the VM back only from `paused`.
 */
export async function forgetTranslations(qmp: QmpClient): Promise<void> {
  await Promise.all([
    qmp.executeRaw("human-monitor-command", { "command-line": "loadvm no-such-snapshot" }),
    qmp.execute("cont"),
    qmp.execute("stop"),
  ]);
}

/**
 * Let the guest of a primary go on without COLO, paused or not. Does nothing where COLO has ended
 * already.
 */
export async function releasePrimary(qmp: QmpClient): Promise<void> {
  const { status } = await qmp.execute("query-migrate");
  if (status === "colo") await qmp.execute("x-colo-lost-heartbeat");
  else if (status === "active" || status === "setup") await qmp.execute("migrate_cancel");
}

/** It is not given up, whatever it takes. */
const PATIENTLY = { timeoutMs: Infinity };

/**
 * Make a secondary's VM run on its own, however long that takes.
 *
 * @returns When QEMU resumed it, in milliseconds since the epoch
 * @throws {QmpError} when its monitor breaks
 */
export async function takeOver(
  qmp: QmpClient,
  eventTimeMs: () => number | undefined,
): Promise<number> {
  await qmp.execute("x-colo-lost-heartbeat", {}, PATIENTLY);
  while (true) {
    const [colo, run] = await Promise.all([
      qmp.execute("query-colo-status", {}, PATIENTLY),
      qmp.execute("query-status", {}, PATIENTLY),
    ]);
    if (colo.mode === "none" && run.status === "running") return eventTimeMs() ?? Date.now();
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/** Have a QEMU that was started with `-incoming defer` load a plain stream that comes to `path`. */
export async function beginIncoming(
  qmp: QmpClient,
  capabilities: readonly string[],
  path: string,
): Promise<void> {
  await setCapabilities(qmp, [...capabilities, "events"]);
  await qmp.execute("migrate-incoming", { uri: `unix:${path}` });
}

/**
 * Have a VM run as soon as it is loaded. One that was paused when the capture of its memory began says so
 * in each of its checkpoints, and would stand still.
 */
export function runOnceLoaded(qmp: QmpClient): void {
  qmp.on("MIGRATION", async ({ data }) => {
    if (data.status !== "completed") return;
    try {
      if ((await qmp.execute("query-status")).status === "paused") await qmp.execute("cont");
    } catch {
      // A QEMU that has ended is noticed where it is waited for.
    }
  });
}

/** Once it runs: make it a VM like any other, which can be migrated with all of its memory. */
export async function endIncoming(qmp: QmpClient, capabilities: readonly string[]): Promise<void> {
  // The VM runs a moment before its migration counts as completed.
  while ((await qmp.execute("query-migrate")).status === "active") {
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  await setCapabilities(qmp, capabilities, false);
}
